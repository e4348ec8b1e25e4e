"""What programs do to files: told to followers, indexed, scanned."""

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from sqlalchemy import select

import schema
from models.sandboxes import Sandbox, SandboxFile, SandboxFinding, SandboxWorkspace
from models.states import FileVerdict
from resolvers.base import Context
from sandbox.watching import Change, ChangeKind
from schema.execution import Result
from schema.execution.engine import Engine
from services import streams
from services.base import ANONYMOUS, Viewer, work
from services.changes import topic as viewer_topic
from services.errors import RequestError, UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import (
    changed,
    entries,
    file_events,
    files,
    findings,
    lifecycle,
    watching,
)
from services.sandboxes.changed import Net
from services.sandboxes.file_events import Changed, FileChange, Quarantined, Reset
from tests.servers.clamd import EICAR, clamd
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran
from tests.services.sandboxes.test_graph import ask, prepared

WAIT_S = 60
EICAR_TEXT = EICAR.decode()
pytestmark = pytest.mark.bubblewrap


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


class Following:
    """The events of one follower."""

    def __init__(self, items: AsyncIterator[file_events.Item]) -> None:
        self._items = items
        self.cursor = ""

    async def next(self) -> file_events.Item:
        async with asyncio.timeout(WAIT_S):
            item = await anext(self._items)
        self.cursor = item.cursor
        return item

    async def change(self, path: str, kind: FileChange | None = None) -> Changed:
        """The next change of a path, of any kind unless one is wanted."""
        while True:
            item = await self.next()
            if isinstance(item, Changed) and item.path == path and kind in (None, item.kind):
                return item

    async def over(self) -> None:
        async with asyncio.timeout(WAIT_S):
            async for _ in self._items:
                pass


Follow = Callable[..., Awaitable[Following]]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    async with AsyncExitStack() as stack:

        async def start(server: Server, viewer: Viewer, box: Sandbox, **more: Any) -> Following:
            items = file_events.follow(server.deps, viewer, box.id, **more)
            following = Following(await stack.enter_async_context(aclosing(items)))
            if "after" not in more:
                first = await following.next()
                assert isinstance(first, Reset)
                assert first.sandbox.id == box.id
            return following

        yield start


async def row(server: Server, sandbox_id: str, path: str) -> SandboxFile | None:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxFile.__table__).where(
                SandboxFile.sandbox_id == sandbox_id, SandboxFile.path == path
            )
        )
        first = found.first()
        return None if first is None else SandboxFile(**first._asdict())


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Look until something is so; what is looked at tells nobody of itself."""
    async with asyncio.timeout(WAIT_S):
        while not (found := await condition()):  # noqa: ASYNC110 - the database tells nobody.
            await asyncio.sleep(0.02)
        return found


async def indexed(
    server: Server, box: Sandbox, path: str, size: int, verdict: FileVerdict | None = None
) -> SandboxFile:
    async def look() -> SandboxFile | None:
        found = await row(server, box.id, path)
        is_so = found is not None and found.size_bytes == size
        return found if is_so and found and verdict in (None, found.verdict) else None

    found: SandboxFile = await until(look)
    return found


async def paths(server: Server, box: Sandbox) -> list[str]:
    async with server.deps.db.reading() as connection:
        return list(
            await connection.scalars(
                select(SandboxFile.path)
                .where(SandboxFile.sandbox_id == box.id)
                .order_by(SandboxFile.path)
            )
        )


async def test_followers_are_told_what_programs_and_people_do(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    everything, below = (
        await follow(server, ada, box),
        await follow(server, ada, box, path="d/e"),
    )
    await ran(server.deps, ada, box.id, "printf hello > a && mkdir -p d/e && printf 1 > d/e/f")
    assert (await everything.change("a")).kind is FileChange.CREATED
    made = await everything.change("d/e")
    assert (made.kind, made.is_directory) == (FileChange.CREATED, True)
    assert (await below.change("d/e/f")).kind is FileChange.CREATED
    await files.write(server.deps, ada, sandbox_id=box.id, path="d/e/f", content="longer")
    for follower in (everything, below):
        told = await follower.change("d/e/f", FileChange.MODIFIED)
        while told.size_bytes != 6:
            told = await follower.change("d/e/f", FileChange.MODIFIED)
    await ran(server.deps, ada, box.id, "mv d moved && rm a")
    renamed = await below.change("moved")
    assert (renamed.kind, renamed.old_path) == (FileChange.RENAMED, "d")
    assert (await everything.change("a", FileChange.REMOVED)).size_bytes == 0


async def test_drafts_of_files_that_are_being_written_are_nobodys(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    following = await follow(server, ada, box)
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="x")
    await ran(server.deps, ada, box.id, "touch last")
    seen: list[Changed] = []
    while not seen or seen[-1].path != "last":
        item = await following.next()
        assert isinstance(item, Changed)
        seen.append(item)
    assert {(item.path, item.old_path) for item in seen} == {("f", None), ("last", None)}


async def test_a_cursor_goes_on_where_its_reader_left(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    first = await follow(server, ada, box)
    await ran(server.deps, ada, box.id, "for n in 1 2 3; do touch $n; done")
    await first.change("1")
    cursor = first.cursor
    await first.change("3")
    again = await follow(server, ada, box, after=cursor)
    told = []
    while again.cursor != first.cursor:
        item = await again.next()
        assert isinstance(item, Changed)
        told.append((item.path, item.kind))
    assert ("1", FileChange.CREATED) not in told
    assert [path for path, kind in told if kind is FileChange.CREATED] == ["2", "3"]
    # One of another log, or of the future, begins anew.
    for made_up in (file_events.Position("other", 5, 1), file_events.Position("", 99, 0)):
        following = await follow(server, ada, box, after=made_up.encode())
        assert isinstance(await following.next(), Reset)
    for nonsense in ("x", "", "bnVsbA", file_events.Position("", -1, 0).encode()):
        with pytest.raises(RequestError) as caught:
            await anext(file_events.follow(server.deps, ada, box.id, ".", nonsense))
        assert caught.value.code == "BAD_USER_INPUT"


async def test_a_log_that_was_lost_is_a_reset(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    first = await follow(server, ada, box)
    await ran(server.deps, ada, box.id, "touch a")
    await first.change("a")
    await server.deps.bus.expire(findings.topic(box.id), 0)
    again = await follow(server, ada, box, after=first.cursor)
    assert isinstance(await again.next(), Reset)
    await ran(server.deps, ada, box.id, "touch b")
    assert (await again.change("b")).kind is FileChange.CREATED


async def test_lost_changes_are_a_reset_and_the_index_is_right_again(
    launch: Launch, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_CHANGES", 10)
    monkeypatch.setattr(changed, "MOST_CHANGES", 10)
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    following = await follow(server, ada, box)
    await ran(server.deps, ada, box.id, "touch begin")
    await following.change("begin")
    program = (
        "import os\nos.mkdir('d')\n"
        "for n in range(3000): open('d/x%d' % n, 'w').close()\n"
        "for n in range(3000): os.unlink('d/x%d' % n)\n"
        "open('d/stays', 'w').write('12345')"
    )
    await files.write(server.deps, ada, sandbox_id=box.id, path="p.py", content=program)
    await ran(server.deps, ada, box.id, "python3 p.py", timeout_s=60)
    while not isinstance(await following.next(), Reset):
        pass
    await indexed(server, box, "d/stays", 5)
    wanted = ["begin", "d", "d/stays", "p.py"]
    await until(lambda: _is(paths(server, box), wanted))


async def test_a_subscription_ends_with_the_sandbox(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.following, "_IDLE_S", 3600.0)
    following = await follow(server, ada, box)
    await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    await ran(server.deps, ada, box.id, "touch a")
    await following.change("a")
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await following.over()
    late = await follow(server, ada, box)
    await late.over()


async def test_strangers_follow_nothing(server: Server, ada: Viewer, box: Sandbox) -> None:
    eve = await server.person("eve")
    for viewer, id_ in ((eve, box.id), (ada, "sbx_none")):
        with pytest.raises(RequestError) as caught:
            await anext(file_events.follow(server.deps, viewer, id_))
        assert caught.value.code == "NOT_FOUND"
    with pytest.raises(UserError) as refused:
        await anext(file_events.follow(server.deps, ada, box.id, "../etc"))
    assert refused.value.code is UserErrorCode.INVALID


@pytest.mark.redis
async def test_followers_on_another_node_are_told_as_well(
    launch: Launch, redis_url: str, follow: Follow
) -> None:
    prefix = f"test-{secrets.token_hex(4)}:"

    async def process(name: str) -> Server:
        bus = RedisBus(redis_url, name, prefix)
        await bus.start()
        return await launch(bus=bus, folder=name)

    near, other = await process("near"), await process("other")
    ada = await other.person("ada")
    box = await lifecycle.create(other.deps, ada)
    assert box.node_id == "other"
    followers = [await follow(near, ada, box), await follow(other, ada, box)]
    await files.write(near.deps, ada, sandbox_id=box.id, path="f", content="abc")
    await ran(near.deps, ada, box.id, "mv f g")
    for following in followers:
        assert (await following.change("g")).old_path == "f"
    with pytest.raises(UserError) as caught:
        await files.write(near.deps, ada, sandbox_id=box.id, path="bad", content=EICAR_TEXT)
    assert "eicar" in caught.value.message
    for following in followers:
        while not isinstance(item := await following.next(), Quarantined):
            pass
        assert item.finding.path == "bad"


# The index.


@BOTH_DATABASES
async def test_the_index_is_kept_in_step_with_what_programs_do(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    await ran(deps, ada, box.id, "mkdir -p d/e && printf hello > d/e/a.py; printf 22 > b; : > c")
    found = await indexed(server, box, "d/e/a.py", 5, FileVerdict.CLEAN)
    assert found.mime_type == "text/x-python"
    assert found.content_hash == hashlib.sha256(b"hello").hexdigest()
    assert found.scanned_at is not None
    assert await paths(server, box) == ["b", "c", "d", "d/e", "d/e/a.py"]
    await ran(deps, ada, box.id, "printf more >> d/e/a.py; mv d moved; rm b; ln -s / link")
    again = await indexed(server, box, "moved/e/a.py", 9, FileVerdict.CLEAN)
    assert again.content_hash == hashlib.sha256(b"hellomore").hexdigest()
    assert await paths(server, box) == ["c", "link", "moved", "moved/e", "moved/e/a.py"]
    async with deps.db.reading() as connection:
        space = (await connection.execute(select(SandboxWorkspace.__table__))).one()
    assert space.size_bytes == 9
    assert space.inodes >= 5
    await ran(deps, ada, box.id, "rm -r moved")
    await until(lambda: _is(paths(server, box), ["c", "link"]))
    # Once it has ended the index tells what there was.
    await lifecycle.stop(deps, ada, sandbox_id=box.id)
    known = await files.indexed(deps, [box], ".")
    assert [entry.path for entry in known[box.id]] == ["c", "link"]


async def _is(found: Awaitable[Any], wanted: Any) -> bool:
    return bool(await found == wanted)


async def test_what_the_api_wrote_keeps_its_hash(server: Server, ada: Viewer, box: Sandbox) -> None:
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="abc")
    found = await indexed(server, box, "f", 3, FileVerdict.CLEAN)
    assert found.content_hash == hashlib.sha256(b"abc").hexdigest()


async def test_files_full_of_holes_and_odd_names_are_no_trouble(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    following = await follow(server, ada, box)
    long = "l" * 200
    await ran(
        server.deps,
        ada,
        box.id,
        f"truncate -s 7E one; truncate -s 7E two; printf x > \"$(printf 'b\\377d')\"; "
        f"mkdir {long}; touch {long}/{long}; mkfifo pipe; : > after",
    )
    await following.change("after")
    await indexed(server, box, "after", 0)
    assert await paths(server, box) == ["after", "b\ufffdd", long, "one", "pipe", "two"]
    assert (await row(server, box.id, "one")).size_bytes == changed.SIZE_MAX  # type: ignore[union-attr]


async def test_the_index_is_bounded_and_then_the_disk_is_measured(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed, "MOST_INDEXED", 20)
    await ran(server.deps, ada, box.id, "for n in $(seq 50); do printf 1234 > f$n; done")

    async def look() -> int | None:
        async with server.deps.db.reading() as connection:
            size = await connection.scalar(select(SandboxWorkspace.size_bytes))
            return size if (size or 0) >= 50 * 4096 else None

    await until(look)
    assert len(await paths(server, box)) == 20


async def test_programs_that_write_do_not_keep_a_sandbox_in_use(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    await ran(server.deps, ada, box.id, "printf 1 > a")
    node = await server.host.node()
    before = node.live[box.id].used_at
    await node.live[box.id].client.files.write("b", b"12")  # type: ignore[union-attr]
    await indexed(server, box, "b", 2, FileVerdict.CLEAN)
    assert node.live[box.id].used_at == before


async def test_where_the_kernel_cannot_watch_the_workspace_is_walked(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WALK_S", 0.1)
    box = await lifecycle.create(server.deps, ada)
    node = await server.host.node()
    client = node.live[box.id].client
    assert client is not None
    await ran(server.deps, ada, box.id, "mkdir secret; chmod 000 secret; printf 1 > a")
    await indexed(server, box, "a", 1)
    # No more watches are left for another watch of the same sandbox.
    async with AsyncExitStack() as stack:
        for _ in range(7):
            batches: AsyncGenerator[Any, None] = client.files.watch()
            await stack.enter_async_context(aclosing(batches))
            await anext(batches)
        for tell in node.on_added:
            tell(node.live[box.id])
        await ran(server.deps, ada, box.id, "printf 22 > b")
        await indexed(server, box, "b", 2)


def test_many_changes_come_to_what_is_so_at_their_end() -> None:
    def net(*changes: tuple[ChangeKind, str, str | None]) -> Net:
        found = Net()
        for kind, path, old in changes:
            found.add(Change(kind, path, is_directory=path.startswith("d"), old_path=old))
        return found

    created, removed, renamed = ChangeKind.CREATED, ChangeKind.REMOVED, ChangeKind.RENAMED
    found = net((created, "d/a", None), (renamed, "dd", "d"), (created, "d/b", None))
    assert found.moves == [("d", "dd")]
    assert set(found.written) == {"dd", "dd/a", "d/b"}
    found = net((created, "a", None), (removed, "a", None), (created, "b", None))
    assert (found.moves, set(found.written)) == ([("a", None)], {"b"})
    found = net((renamed, "f", ".f.7.part"))
    assert (found.moves, found.drafted) == ([], {"f"})
    found = net((renamed, "f", ".f.7.part"), (removed, "f", None), (created, "f", None))
    assert found.drafted == set()


# Findings.


async def found_rows(server: Server) -> list[Any]:
    async with server.deps.db.reading() as connection:
        return list(
            await connection.execute(select(SandboxFinding.__table__).order_by(SandboxFinding.id))
        )


@BOTH_DATABASES
async def test_a_harmful_file_is_refused_and_nothing_appears(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    deps = server.deps
    following = await follow(server, ada, box)
    await files.write(deps, ada, sandbox_id=box.id, path="f", content="good")
    with pytest.raises(UserError) as caught:
        await files.write(deps, ada, sandbox_id=box.id, path="f", content=EICAR_TEXT)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("content",))
    assert "yara: eicar" in caught.value.message
    assert await files.read(deps, ada, sandbox_id=box.id, path="f") == b"good"
    assert [entry.path for entry in await files.listing(deps, box, ".")] == ["f"]
    (finding,) = await found_rows(server)
    assert (finding.sandbox_id, finding.user_id, finding.path) == (box.id, ada.id, "f")
    assert (finding.rule, finding.engine, finding.size_bytes) == ("eicar", "yara", len(EICAR))
    assert finding.sha256 == hashlib.sha256(EICAR).hexdigest()
    kept = server.options.data_dir / "quarantine" / finding.quarantine_path
    assert kept.read_bytes() == EICAR
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    while not isinstance(item := await following.next(), Quarantined):
        pass
    assert (item.finding.id, item.finding.rule) == (finding.id, "eicar")


async def test_a_harmful_file_that_a_program_wrote_goes_into_quarantine(
    server: Server, ada: Viewer, box: Sandbox, follow: Follow
) -> None:
    deps = server.deps
    following = await follow(server, ada, box)
    async with deps.bus.attach(viewer_topic(ada.id)) as tap:
        program = f"import sys; open('virus', 'wb').write({EICAR!r})"
        await ran(deps, ada, box.id, f"mkdir d; cd d; python3 -c {_quoted(program)}; touch beside")
        while not isinstance(item := await following.next(), Quarantined):
            pass
        assert item.finding.path == "d/virus"
        assert (await following.change("d/virus", FileChange.REMOVED)).is_directory is False
        async with asyncio.timeout(WAIT_S):
            news = await tap.get(WAIT_S)
        assert news is not None
        assert (news.data["type"], news.data["payload"]["id"]) == ("SandboxChanged", box.id)
    (finding,) = await found_rows(server)
    assert (finding.path, finding.rule) == ("d/virus", "eicar")
    kept = server.options.data_dir / "quarantine" / finding.quarantine_path
    assert kept.read_bytes() == EICAR
    await until(lambda: _is(paths(server, box), ["d", "d/beside"]))
    assert [entry.path for entry in await files.listing(deps, box, "d")] == ["d/beside"]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


async def test_files_are_refused_while_clamav_is_away(
    launch: Launch,
) -> None:
    async with clamd() as daemon:
        daemon.signatures[b"bad words"] = "Test.Bad-1"
        strict = await launch(clamav_url=daemon.url)
        ada = await strict.person("ada")
        box = await lifecycle.create(strict.deps, ada)
        with pytest.raises(UserError) as caught:
            await files.write(strict.deps, ada, sandbox_id=box.id, path="f", content="bad words")
        assert "clamav: Test.Bad-1" in caught.value.message
        await files.write(strict.deps, ada, sandbox_id=box.id, path="f", content="good words")
        await indexed(strict, box, "f", 10, FileVerdict.CLEAN)
    with pytest.raises(UserError) as caught:
        await files.write(strict.deps, ada, sandbox_id=box.id, path="f", content="other")
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    assert await files.read(strict.deps, ada, sandbox_id=box.id, path="f") == b"good words"
    await ran(strict.deps, ada, box.id, "printf more > g")
    found = await indexed(strict, box, "g", 4)
    assert (found.verdict, found.scanned_at) == (FileVerdict.UNSCANNED, None)


async def test_files_may_be_taken_in_unscanned_while_clamav_is_away(launch: Launch) -> None:
    server = await launch(clamav_url="unix:///nowhere/clamd.ctl", clamav_required=False)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="bad words")
    found = await indexed(server, box, "f", 9)
    assert (found.verdict, found.finding) == (FileVerdict.UNSCANNED, None)


async def test_the_quarantine_is_cleared_in_time(launch: Launch) -> None:
    server = await launch(quarantine_retention_s=60)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    for name in ("old", "new"):
        with pytest.raises(UserError):
            await files.write(server.deps, ada, sandbox_id=box.id, path=name, content=EICAR_TEXT)
    old, new = await found_rows(server)
    folder = server.options.data_dir / "quarantine"

    os.utime(folder / old.quarantine_path, (0, 0))
    assert await findings.clear(server.deps) == 1
    assert [p.name for p in folder.iterdir() if p.is_file()] == [new.quarantine_path]
    assert len(await found_rows(server)) == 2


# Through the graph.

EVENTS = """subscription ($id: ID!, $path: String, $after: String) {
  sandboxFileEvents(sandboxId: $id, path: $path, after: $after) {
    __typename cursor
    ... on SandboxFileChanged { kind path oldPath isDirectory sizeBytes }
    ... on SandboxFileQuarantined {
      finding { id path rule engine sha256 sizeBytes createdAt sandbox { id } }
    }
    ... on SandboxFilesReset { sandbox { id files { path sizeBytes } } }
  }
}"""


async def test_the_graph_tells_what_happens_to_files(server: Server, ada: Viewer) -> None:
    engine = Engine(schema.build()._schema)
    box = await lifecycle.create(server.deps, ada)
    await files.write(server.deps, ada, sandbox_id=box.id, path="before", content="x")
    events = await engine.subscribe(
        prepared(engine, EVENTS, {"id": box.id}), Context(server.deps, ada)
    )
    assert not isinstance(events, Result), events
    async with asyncio.timeout(WAIT_S), aclosing(events):

        async def following(kind: str, path: str | None = None) -> dict[str, Any]:
            async for result in events:
                assert not result.errors, result.errors
                event: dict[str, Any] = result.data["sandboxFileEvents"]
                if event["__typename"] == kind and path in (None, event.get("path")):
                    return event
            raise AssertionError("the subscription ended")

        reset = await following("SandboxFilesReset")
        assert reset["sandbox"] == {"id": box.id, "files": [{"path": "before", "sizeBytes": 1}]}
        await ran(server.deps, ada, box.id, "mv before after")
        moved = await following("SandboxFileChanged", "after")
        assert (moved["kind"], moved["oldPath"], moved["sizeBytes"]) == ("RENAMED", "before", 1)
        written = await ask(
            engine,
            server,
            ada,
            "mutation ($input: SandboxFileWriteInput!) { sandboxFileWrite(input: $input) {"
            " file { path } errors { code message path } } }",
            input={"sandboxId": box.id, "path": "bad", "content": EICAR_TEXT},
        )
        (error,) = written["sandboxFileWrite"]["errors"]
        assert written["sandboxFileWrite"]["file"] is None
        assert (error["code"], error["path"]) == ("INVALID", ["input", "content"])
        assert "yara: eicar" in error["message"]
        finding = (await following("SandboxFileQuarantined"))["finding"]
    assert (finding["path"], finding["rule"], finding["engine"]) == ("bad", "eicar", "yara")
    assert finding["sandbox"] == {"id": box.id}
    query = """query ($id: ID!, $finding: ID!) {
      sandbox(id: $id) { findings { nodes {
        id path rule engine sha256 sizeBytes createdAt sandbox { id } } } }
      node(id: $finding) { __typename id }
    }"""
    shown = await ask(engine, server, ada, query, id=box.id, finding=finding["id"])
    assert shown["sandbox"]["findings"]["nodes"] == [finding]
    assert shown["node"] == {"__typename": "SandboxFinding", "id": finding["id"]}
    eve = await server.person("eve")
    shown = await ask(engine, server, eve, query, id=box.id, finding=finding["id"])
    assert shown == {"sandbox": None, "node": None}
    for viewer, id_, path, code in (
        (eve, box.id, ".", "NOT_FOUND"),
        (ada, box.id, "../x", "BAD_USER_INPUT"),
        (ANONYMOUS, box.id, ".", "UNAUTHENTICATED"),
    ):
        refused = await engine.subscribe(
            prepared(engine, EVENTS, {"id": id_, "path": path}), Context(server.deps, viewer)
        )
        assert isinstance(refused, Result)
        assert [e["extensions"]["code"] for e in refused.errors or []] == [code]


async def test_what_is_written_during_a_look_at_everything_stays(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    node = await server.host.node()
    # Nobody looks by himself.
    for tell in node.on_ending:
        tell(node.live[box.id])
    for path in ("before", "during"):
        await files.write(server.deps, ada, sandbox_id=box.id, path=path, content=path)
    written = await row(server, box.id, "during")
    assert written is not None
    # A look that began between the two, and had passed both places by then.
    async with work(server.deps) as unit:
        await unit.lock(Sandbox, box.id)
        await entries.replace(unit, box.id, ".", [], since=written.modified_at)
    assert await paths(server, box) == ["during"]
    async with work(server.deps) as unit:
        await unit.lock(Sandbox, box.id)
        await entries.replace(unit, box.id, ".", [])
    assert await paths(server, box) == []
