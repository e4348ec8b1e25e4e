"""What programs do to files is indexed."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import Sandbox, SandboxWorkspace
from models.states import FileVerdict
from sandbox.watching import Change, ChangeKind
from services.base import Viewer, work
from services.sandboxes import (
    changed,
    entries,
    files,
    lifecycle,
    watching,
)
from services.sandboxes.changed import Net
from tests.services.sandboxes.conftest import BOTH_DATABASES, Server, ran
from tests.services.sandboxes.watching.conftest import Follow, equals, indexed, paths, row, until

pytestmark = pytest.mark.bubblewrap

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
    await until(lambda: equals(paths(server, box), ["c", "link"]))
    # Once it has ended the index tells what there was.
    await lifecycle.stop(deps, ada, sandbox_id=box.id)
    known = await files.indexed(deps, [box], ".")
    assert [entry.path for entry in known[box.id]] == ["c", "link"]


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
