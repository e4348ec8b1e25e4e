"""What programs do to files is told to followers."""

import asyncio
import secrets
from contextlib import aclosing
from typing import Any

import pytest

import schema
from models.sandboxes import Sandbox
from resolvers.base import Context
from schema.execution import Result
from schema.execution.engine import Engine
from services import streams
from services.base import ANONYMOUS, Viewer
from services.errors import RequestError, UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import changed, file_events, files, findings, lifecycle, watching
from services.sandboxes.file_events import Changed, FileChange, Quarantined, Reset
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.graph import ask, prepared
from tests.services.sandboxes.watching.conftest import (
    EICAR_TEXT,
    WAIT_S,
    Follow,
    equals,
    indexed,
    paths,
    until,
)

pytestmark = pytest.mark.bubblewrap


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
    await until(lambda: equals(paths(server, box), wanted))


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
