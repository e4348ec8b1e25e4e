"""Files of the workspace, through the agent and in the index."""

import base64
import hashlib
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import select

from models.sandboxes import Sandbox, SandboxFile, SandboxWorkspace
from resolvers import sandboxes as resolvers
from resolvers.base import Context
from services.base import Viewer
from services.errors import RequestError, UserError, UserErrorCode
from services.sandboxes import files, lifecycle, rows
from services.sandboxes.files import FileEncoding
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran

pytestmark = pytest.mark.bubblewrap


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


async def index(server: Server) -> list[tuple[str, int, str | None]]:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxFile.path, SandboxFile.size_bytes, SandboxFile.mime_type).order_by(
                SandboxFile.path
            )
        )
        return [tuple(row) for row in found]  # type: ignore[misc]


async def size(server: Server) -> int | None:
    async with server.deps.db.reading() as connection:
        return await connection.scalar(select(SandboxWorkspace.size_bytes))


@BOTH_DATABASES
async def test_files_are_written_read_listed_and_removed(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    text = "print('héllo 한')\n"
    made = await files.write(deps, ada, sandbox_id=box.id, path="src/a/main.py", content=text)
    assert (made.path, made.name, made.size_bytes) == ("src/a/main.py", "main.py", 20)
    assert made.content_hash == hashlib.sha256(text.encode()).hexdigest()
    assert made.mime_type == "text/x-python"
    done = await ran(deps, ada, box.id, "python3 src/a/main.py")
    assert done.stdout == "héllo 한\n"
    data = os.urandom(300_000)
    await files.write(
        deps,
        ada,
        sandbox_id=box.id,
        path="/workspace/src/../data.bin",
        content=base64.b64encode(data).decode(),
        encoding=FileEncoding.BASE64,
    )
    assert await files.read(deps, ada, sandbox_id=box.id, path="data.bin") == data
    await files.write(deps, ada, sandbox_id=box.id, path="data.bin", content="short")
    assert await index(server) == [
        ("data.bin", 5, "application/octet-stream"),
        ("src", 0, None),
        ("src/a", 0, None),
        ("src/a/main.py", 20, "text/x-python"),
    ]
    assert await size(server) == 25
    listed = await files.listing(deps, box, ".")
    assert [(e.path, e.is_directory) for e in listed] == [("data.bin", False), ("src", True)]
    nested = await files.listing(deps, box, "src/a/")
    assert [(e.path, e.size_bytes) for e in nested] == [("src/a/main.py", 20)]
    with pytest.raises(UserError):
        await files.remove(deps, ada, sandbox_id=box.id, path="src")
    gone = await files.remove(deps, ada, sandbox_id=box.id, path="src", is_recursive=True)
    assert (gone.path, gone.is_directory) == ("src", True)
    assert await index(server) == [("data.bin", 5, "application/octet-stream")]
    assert await size(server) == 5


@BOTH_DATABASES
async def test_the_index_tells_of_sandboxes_that_ended(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    for path in ("a.txt", "d/b.txt", "d/e/c.txt"):
        await files.write(server.deps, ada, sandbox_id=box.id, path=path, content=path)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    top = await files.indexed(server.deps, [box], ".")
    assert [(e.path, e.is_directory) for e in top[box.id]] == [("a.txt", False), ("d", True)]
    inner = await files.indexed(server.deps, [box], "d")
    assert [(e.path, e.is_directory) for e in inner[box.id]] == [("d/b.txt", False), ("d/e", True)]
    with pytest.raises(UserError) as caught:
        await files.read(server.deps, ada, sandbox_id=box.id, path="a.txt")
    assert caught.value.code is UserErrorCode.CONFLICT


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", UserErrorCode.REQUIRED),
        ("../x", UserErrorCode.INVALID),
        ("a/../../x", UserErrorCode.INVALID),
        ("/etc/passwd", UserErrorCode.INVALID),
        ("/workspace/../etc/passwd", UserErrorCode.INVALID),
        ("a\0b", UserErrorCode.INVALID),
        ("a\ud800", UserErrorCode.INVALID),
        (".", UserErrorCode.INVALID),
        ("folder/", UserErrorCode.INVALID),
        ("x" * 256, UserErrorCode.LIMIT),
    ],
)
async def test_paths_that_cannot_be_are_refused(
    server: Server, ada: Viewer, box: Sandbox, path: str, code: UserErrorCode
) -> None:
    for attempt in (
        files.write(server.deps, ada, sandbox_id=box.id, path=path, content="x"),
        files.read(server.deps, ada, sandbox_id=box.id, path=path),
    ):
        with pytest.raises(UserError) as caught:
            await attempt
        assert (caught.value.code, caught.value.path) == (code, ("path",))
    assert await index(server) == []


async def test_links_that_lead_outside_are_not_followed(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    await ran(server.deps, ada, box.id, "ln -s /etc/passwd link; ln -s / root")
    for path in ("link", "root/etc/passwd"):
        with pytest.raises(UserError) as caught:
            await files.read(server.deps, ada, sandbox_id=box.id, path=path)
        assert caught.value.path == ("path",)
    with pytest.raises(UserError):
        await files.write(server.deps, ada, sandbox_id=box.id, path="root/tmp/x", content="x")
    # The links themselves are seen in time, and nothing beyond them.
    assert {path for path, *_ in await index(server)} <= {"link", "root"}


async def test_links_are_renamed_and_removed_themselves_wherever_they_lead(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    await files.write(deps, ada, sandbox_id=box.id, path="kept/file", content="here")
    await ran(deps, ada, box.id, "ln -s /etc/passwd out; ln -s nowhere none; ln -s kept inside")
    for path in ("out", "none", "inside"):
        moved = await files.rename(
            deps, ada, sandbox_id=box.id, path=path, new_path=f"links/{path}"
        )
        assert (moved.path, moved.is_directory) == (f"links/{path}", False)
        gone = await files.remove(deps, ada, sandbox_id=box.id, path=moved.path, is_recursive=True)
        assert (gone.path, gone.is_directory) == (f"links/{path}", False)
    done = await ran(deps, ada, box.id, "ls -A links; test -s /etc/passwd && cat kept/file")
    assert done.stdout == "here"
    assert [path for path, _, _ in await index(server)] == ["kept", "kept/file", "links"]


async def test_what_is_too_large_or_no_content_is_refused(launch: Launch) -> None:
    server = await launch(file_max_bytes=1000)
    deps, ada = server.deps, await server.person("ada")
    box = await lifecycle.create(deps, ada)
    base = {"sandbox_id": box.id, "path": "f"}
    for content, encoding, code in (
        ("x" * 1001, FileEncoding.UTF8, UserErrorCode.LIMIT),
        ("é" * 501, FileEncoding.UTF8, UserErrorCode.LIMIT),
        (base64.b64encode(b"x" * 1001).decode(), FileEncoding.BASE64, UserErrorCode.LIMIT),
        ("not base64!", FileEncoding.BASE64, UserErrorCode.INVALID),
        ("abc", FileEncoding.BASE64, UserErrorCode.INVALID),
        ("é", FileEncoding.BASE64, UserErrorCode.INVALID),
        ("\ud800", FileEncoding.UTF8, UserErrorCode.INVALID),
    ):
        with pytest.raises(UserError) as caught:
            await files.write(deps, ada, **base, content=content, encoding=encoding)
        assert (caught.value.code, caught.value.path) == (code, ("content",))
    await files.write(deps, ada, **base, content="x" * 1000)
    await ran(deps, ada, box.id, "echo >> f")
    with pytest.raises(UserError) as caught:
        await files.read(deps, ada, **base)
    assert caught.value.code is UserErrorCode.LIMIT


async def test_a_full_disk_is_the_users_to_mend(server: Server, ada: Viewer, box: Sandbox) -> None:
    await ran(server.deps, ada, box.id, "head -c 1G /dev/zero > full 2>/dev/null || true")
    with pytest.raises(UserError) as caught:
        await files.write(server.deps, ada, sandbox_id=box.id, path="more", content="x" * 1_000_000)
    assert caught.value.code is UserErrorCode.LIMIT
    assert "more" not in [path for path, _, _ in await index(server)]


async def test_only_the_owner_touches_files(server: Server, ada: Viewer, box: Sandbox) -> None:
    eve, root = await server.person("eve"), await server.person("root", "everything:read")
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="x")
    for attempt in (
        files.write(server.deps, eve, sandbox_id=box.id, path="f", content="y"),
        files.remove(server.deps, eve, sandbox_id=box.id, path="f"),
        files.read(server.deps, eve, sandbox_id=box.id, path="f"),
        files.write(server.deps, root, sandbox_id=box.id, path="f", content="y"),
    ):
        with pytest.raises(UserError) as caught:
            await attempt
        assert (caught.value.code, caught.value.path) == (
            UserErrorCode.NOT_FOUND,
            ("sandbox_id",),
        )
    assert await files.read(server.deps, root, sandbox_id=box.id, path="f") == b"x"
    assert await rows.sandbox(server.deps, box.id) is not None


async def test_contents_of_one_operation_are_bounded(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolvers, "_CONTENT_BYTES", 10)
    for name in ("a", "b", "c"):
        await files.write(server.deps, ada, sandbox_id=box.id, path=name, content="12345")
    entries = await files.listing(server.deps, box, ".")
    assert len({*entries, *entries}) == 3

    def operation() -> Any:
        return cast("Any", SimpleNamespace(context=Context(server.deps, ada)))

    info = operation()
    assert await resolvers.content(entries[:2], info) == ["12345"] * 2
    with pytest.raises(RequestError) as caught:
        await resolvers.content(entries[2:], info)
    assert caught.value.code == "LIMIT"
    with pytest.raises(RequestError):
        await resolvers.content(entries, operation())
    assert await resolvers.content(entries[2:], operation()) == ["12345"]


@BOTH_DATABASES
async def test_directories_are_made_and_things_are_renamed(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    made = await files.make_directory(deps, ada, sandbox_id=box.id, path="/workspace/a//b/")
    assert (made.path, made.is_directory, made.name) == ("a/b", True, "b")
    again = await files.make_directory(deps, ada, sandbox_id=box.id, path="a/b")
    assert again.path == "a/b"
    assert [path for path, _, _ in await index(server)] == ["a", "a/b"]
    for path in ("a/b/one.py", "a/b/under_score", "axb"):
        await files.write(deps, ada, sandbox_id=box.id, path=path, content=path)
    moved = await files.rename(deps, ada, sandbox_id=box.id, path="a", new_path="new/home")
    assert (moved.path, moved.is_directory) == ("new/home", True)
    assert [path for path, _, _ in await index(server)] == [
        "axb", "new", "new/home", "new/home/b", "new/home/b/one.py", "new/home/b/under_score",
    ]  # fmt: skip
    # Over a file, and to another kind of name.
    moved = await files.rename(
        deps, ada, sandbox_id=box.id, path="new/home/b/one.py", new_path="axb"
    )
    assert (moved.path, moved.size_bytes) == ("axb", 10)
    assert ("axb", 10, None) in await index(server)
    (entry,) = (e for e in (await files.indexed(deps, [box], "."))[box.id] if e.path == "axb")
    assert entry.content_hash == hashlib.sha256(b"a/b/one.py").hexdigest()
    known = (await files.indexed(deps, [box], "new/home"))[box.id]
    assert [(e.path, e.is_directory) for e in known] == [("new/home/b", True)]


async def test_what_cannot_be_made_or_renamed_says_why(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    await files.write(deps, ada, sandbox_id=box.id, path="full/file", content="1")
    await files.write(deps, ada, sandbox_id=box.id, path="other/file", content="1")

    async def refused(work: Any) -> tuple[UserErrorCode, tuple[str, ...]]:
        with pytest.raises(UserError) as caught:
            await work
        return caught.value.code, caught.value.path

    def make(path: str, who: Viewer = ada) -> Any:
        return files.make_directory(deps, who, sandbox_id=box.id, path=path)

    def move(path: str, new_path: str, who: Viewer = ada) -> Any:
        return files.rename(deps, who, sandbox_id=box.id, path=path, new_path=new_path)

    assert await refused(make("full/file")) == (UserErrorCode.CONFLICT, ("path",))
    assert await refused(make("../x")) == (UserErrorCode.INVALID, ("path",))
    assert await refused(make("")) == (UserErrorCode.REQUIRED, ("path",))
    assert await refused(move("nothing", "new/x")) == (UserErrorCode.NOT_FOUND, ("path",))
    assert await refused(move(".", "x")) == (UserErrorCode.INVALID, ("path",))
    assert await refused(move("full", ".")) == (UserErrorCode.INVALID, ("new_path",))
    assert await refused(move("full", "/etc/x")) == (UserErrorCode.INVALID, ("new_path",))
    assert await refused(move("full", "x" * 256)) == (UserErrorCode.LIMIT, ("new_path",))
    assert await refused(move("full", "other")) == (UserErrorCode.CONFLICT, ("path",))
    assert (await refused(move("full", "full/below")))[0] is UserErrorCode.INVALID
    eve = await server.person("eve")
    assert await refused(make("x", eve)) == (UserErrorCode.NOT_FOUND, ("sandbox_id",))
    assert await refused(move("full", "x", eve)) == (UserErrorCode.NOT_FOUND, ("sandbox_id",))
    reader = Viewer(ada.user_id, username="ada")
    assert (await refused(make("x", reader)))[0] is UserErrorCode.FORBIDDEN
    assert (await refused(move("full", "x", reader)))[0] is UserErrorCode.FORBIDDEN
    assert [path for path, _, _ in await index(server)] == [
        "full", "full/file", "other", "other/file",
    ]  # fmt: skip
