"""Whole files and archives into and out of sandboxes of this node and of another."""

import asyncio
import hashlib
import io
import secrets
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import Sandbox, SandboxFile
from sandbox.archives import ArchiveFormat
from sandbox.errors import FileErrorCode
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import files, lifecycle, transfers
from services.sandboxes.node import Node
from services.sandboxes.transfers import Part, Span, TransferError
from tests.servers.clamd import EICAR
from tests.services.sandboxes.conftest import Launch, Server, ran

pytestmark = pytest.mark.bubblewrap
MIB = 1024 * 1024


@dataclass
class Place:
    """A sandbox, whose it is, where its user asks and the node that has it."""

    deps: Deps
    box: Sandbox
    ada: Viewer
    node: Node
    server: Server

    async def upload(self, path: str, data: AsyncIterator[bytes]) -> Any:
        return await transfers.upload(
            self.deps, self.ada, sandbox_id=self.box.id, path=path, chunks=data
        )

    async def unpack(self, path: str, data: AsyncIterator[bytes], style: str = "tar") -> Any:
        return await transfers.unpack(
            self.deps,
            self.ada,
            sandbox_id=self.box.id,
            path=path,
            style=ArchiveFormat(style),
            chunks=data,
        )

    async def read(self, path: str, part: Part | None = None) -> bytes:
        async with transfers.download(
            self.deps, self.ada, sandbox_id=self.box.id, path=path, part=part
        ) as found:
            return b"".join([chunk async for chunk in found.chunks])

    async def run(self, command: str) -> str:
        return (await ran(self.server.deps, self.ada, self.box.id, command)).stdout or ""

    async def index(self) -> dict[str, tuple[bool, int, str | None]]:
        async with self.deps.db.reading() as connection:
            found = await connection.execute(
                select(
                    SandboxFile.path,
                    SandboxFile.is_directory,
                    SandboxFile.size_bytes,
                    SandboxFile.content_hash,
                )
            )
            return {path: (flag, size, digest) for path, flag, size, digest in found}


@pytest.fixture(params=["here", pytest.param("redis", marks=pytest.mark.redis)])
async def place(request: pytest.FixtureRequest, launch: Launch) -> AsyncIterator[Place]:
    """Each way there is to a sandbox."""
    if request.param == "here":
        server = await launch()
        ada = await server.person("ada")
        box = await lifecycle.create(server.deps, ada)
        yield Place(server.deps, box, ada, await server.host.node(), server)
        return
    url, prefix = request.getfixturevalue("redis_url"), f"test-{secrets.token_hex(4)}:"

    async def process(name: str) -> Server:
        bus = RedisBus(url, name, prefix)
        await bus.start()
        return await launch(bus=bus, folder=name)

    near, other = await process("near"), await process("other")
    ada = await other.person("ada")
    box = await lifecycle.create(other.deps, ada)
    yield Place(near.deps, box, ada, await other.host.node(), other)


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def test_a_file_goes_in_and_comes_out_exactly(place: Place) -> None:
    data = secrets.token_bytes(5 * MIB + 17)
    entry, is_new = await place.upload("deep/er/file.bin", pieces(data))
    digest = hashlib.sha256(data).hexdigest()
    assert (entry.path, entry.size_bytes, entry.content_hash, is_new) == (
        "deep/er/file.bin", len(data), digest, True,
    )  # fmt: skip
    assert await place.read("deep/er/file.bin") == data
    assert await place.read("deep/er/file.bin", Part(100, 199)) == data[100:200]
    assert await place.read("deep/er/file.bin", Part(None, 7)) == data[-7:]
    assert await place.index() == {
        "deep": (True, 0, None),
        "deep/er": (True, 0, None),
        "deep/er/file.bin": (False, len(data), digest),
    }
    entry, is_new = await place.upload("deep/er/file.bin", pieces(b""))
    assert (entry.size_bytes, is_new) == (0, False)
    assert await place.read("deep/er/file.bin") == b""
    assert len(place.node.relays) == 0


async def test_what_cannot_be_read_says_why(place: Place) -> None:
    await place.run("mkdir folder; ln -s /etc out; mkfifo pipe")
    for path, code in (
        ("nothing", UserErrorCode.NOT_FOUND),
        ("folder", UserErrorCode.INVALID),
        ("out/passwd", UserErrorCode.INVALID),
        ("pipe", UserErrorCode.INVALID),
        ("../x", UserErrorCode.INVALID),
    ):
        with pytest.raises(UserError) as caught:
            await place.read(path)
        assert (caught.value.code, caught.value.path) == (code, ("path",)), path
    stranger = Viewer("usr_0", username="eve")
    with pytest.raises(UserError) as caught:
        async with transfers.download(place.deps, stranger, sandbox_id=place.box.id, path="x"):
            pass
    assert caught.value.code is UserErrorCode.NOT_FOUND
    assert len(place.node.relays) == 0


async def test_a_stalled_reader_makes_the_sandbox_wait(place: Place) -> None:
    await place.run("head -c 60000000 /dev/zero > large")
    async with transfers.download(
        place.deps, place.ada, sandbox_id=place.box.id, path="large"
    ) as found:
        chunks = found.chunks
        first = await anext(chunks)
        node = await place.server.host.node()
        flows = [end.pipe for end in node.relays._ends.values()]
        held = [getattr(flow, "_size", 0) for flow in flows]
        assert all(size <= 2 * MIB for size in held)
        total = len(first)
        async for chunk in chunks:
            total += len(chunk)
        assert total == 60_000_000


async def test_a_file_that_grows_is_given_as_long_as_it_was(place: Place) -> None:
    writer = asyncio.ensure_future(
        place.run(
            "python3 -c \"\nimport time\nend = time.time() + 4\nwith open('log', 'ab', 0) as f:\n"
            " while time.time() < end: f.write(b'x' * 1000)\""
        )
    )
    found = 0
    while not writer.done():
        try:
            async with transfers.download(
                place.deps, place.ada, sandbox_id=place.box.id, path="log"
            ) as download:
                assert download.span is not None
                got = b"".join([chunk async for chunk in download.chunks])
                assert got == b"x" * download.span.length
                found += 1
        except UserError:
            continue  # It is not there yet.
    await writer
    assert found > 1


async def test_an_upload_that_breaks_off_leaves_nothing(place: Place) -> None:
    await place.upload("file", pieces(b"old"))
    before = await place.index()

    async def broken() -> AsyncIterator[bytes]:
        yield secrets.token_bytes(3 * MIB)
        raise RuntimeError("the sender is gone")

    for attempt in (place.upload("file", broken()), place.unpack("out", broken())):
        with pytest.raises((RuntimeError, UserError)):
            await attempt
    assert await place.read("file") == b"old"
    inside = place.node.client(place.box.id).files
    async with asyncio.timeout(60):
        while [entry.name for entry in await inside.list()] != ["file"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert await place.index() == before
    assert len(place.node.relays) == 0


async def test_a_full_disk_is_told_as_such(place: Place) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    with pytest.raises(TransferError) as caught:
        await place.upload("file", endless())
    assert caught.value.code is UserErrorCode.LIMIT
    assert caught.value.reason is FileErrorCode.NO_SPACE
    assert (await place.node.client(place.box.id).files.list()) == []


async def test_archives_go_in_and_out_and_into_the_index(place: Place) -> None:
    await place.upload("src/old", pieces(b"old"))
    await place.upload("src/kept", pieces(b"kept"))
    await place.run("rm src/old; echo 12345 > src/unseen")
    data = tar(a__one=b"1", a__two=b"22", kept=b"KEPT!")
    made = await place.unpack("src", pieces(data))
    assert (made.entries, made.bytes) == (4, 8)
    assert {path: found[:2] for path, found in (await place.index()).items()} == {
        "src": (True, 0),
        "src/a": (True, 0),
        "src/a/one": (False, 1),
        "src/a/two": (False, 2),
        "src/kept": (False, 5),
        "src/unseen": (False, 6),
    }
    kept = hashlib.sha256(b"kept").hexdigest()
    assert (await place.index())["src/kept"][2] != kept
    await place.upload("src/kept", pieces(b"kept"))
    await place.unpack(".", pieces(tar(top=b"t")))
    assert (await place.index())["src/kept"] == (False, 4, kept)
    for style in ArchiveFormat:
        async with transfers.archive(
            place.deps, place.ada, sandbox_id=place.box.id, path="src", style=style
        ) as chunks:
            packed = b"".join([chunk async for chunk in chunks])
        await place.unpack(f"copy-{style}", pieces(packed), style)
        out = await place.run(f"diff -r src copy-{style} && echo same")
        assert out == "same\n"
    assert len(place.node.relays) == 0


async def test_whatever_was_packed_comes_back_the_same(place: Place) -> None:
    # As virtual environments have them, and some that lead nowhere.
    await place.run(
        "mkdir -p src/bin src/lib; cd src; echo 1 > kept; ln -s lib lib64;"
        "ln -s python3 bin/python; ln -s /usr/bin/python3 bin/python3;"
        "ln -s ../../other out; ln -s /workspace/src/kept in;"
        "ln -s /nowhere/at/all loose"
    )
    for style in ArchiveFormat:
        async with transfers.archive(
            place.deps, place.ada, sandbox_id=place.box.id, path="src", style=style
        ) as chunks:
            packed = b"".join([chunk async for chunk in chunks])
        made = await place.unpack(f"copy-{style}", pieces(packed), style)
        assert made.entries == 9
        listed = "find . -printf '%P %y %l\\n' | sort"
        same = f"(cd src; {listed}) > /tmp/a; (cd copy-{style}; {listed}) > /tmp/b"
        assert await place.run(f"{same}; cmp /tmp/a /tmp/b && wc -l < /tmp/b") == "10\n"
        with pytest.raises(UserError) as caught:
            await place.read(f"copy-{style}/bin/python3")
        assert caught.value.code is UserErrorCode.INVALID
    link, buffer = tarfile.TarInfo("l"), io.BytesIO()
    link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("l/evil"))
    with pytest.raises(TransferError) as refused:
        await place.unpack("through", pieces(buffer.getvalue()))
    assert refused.value.reason is FileErrorCode.OUTSIDE
    assert await place.run("ls /tmp") == "a\nb\n"


async def test_an_archive_with_something_harmful_says_so_from_any_node(place: Place) -> None:
    with pytest.raises(UserError) as caught:
        await place.unpack("out", pieces(tar(good=b"good", sub__bad=EICAR)))
    assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("content",))
    assert "out/sub/bad, was taken for harmful (yara: eicar)" in caught.value.message
    assert (
        await place.run("ls; ls -d out 2>&1")
        == "ls: cannot access 'out': No such file or directory\n"
    )
    assert await place.index() == {}


async def test_an_archive_that_may_not_be_unpacked_says_why(launch: Launch) -> None:
    server = await launch(archive_max_bytes=1000, archive_max_entries=3)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    place = Place(server.deps, box, ada, await server.host.node(), server)
    for data, code, reason in (
        (tar(a=b"x" * 1001), UserErrorCode.LIMIT, FileErrorCode.TOO_LARGE),
        (tar(a=b"", b=b"", c=b"", d=b""), UserErrorCode.LIMIT, FileErrorCode.TOO_LARGE),
        (tar(**{"..__a": b""}), UserErrorCode.INVALID, FileErrorCode.OUTSIDE),
        (b"nonsense" * 999, UserErrorCode.INVALID, None),
    ):
        with pytest.raises(TransferError) as caught:
            await place.unpack(".", pieces(data))
        assert (caught.value.code, caught.value.reason) == (code, reason)
    assert await place.index() == {}
    reader = Viewer(ada.user_id, username="ada")
    with pytest.raises(UserError) as refused:
        await transfers.unpack(
            server.deps,
            reader,
            sandbox_id=box.id,
            path=".",
            style=ArchiveFormat.TAR,
            chunks=pieces(b""),
        )
    assert refused.value.code is UserErrorCode.FORBIDDEN


async def test_what_goes_into_a_sandbox_that_ends_is_told(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    place = Place(server.deps, box, ada, await server.host.node(), server)

    async def ending() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
        while True:
            yield bytes(MIB)

    with pytest.raises(UserError) as caught:
        await place.upload("file", ending())
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    with pytest.raises(UserError) as caught:
        await place.upload("file", pieces(b"1"))
    assert caught.value.code is UserErrorCode.CONFLICT
    assert (await files.indexed(server.deps, [box], "."))[box.id] == []


@pytest.mark.parametrize(
    ("part", "size", "span"),
    [
        (Part(0, None), 10, Span(0, 10)),
        (Part(0, 0), 10, Span(0, 1)),
        (Part(9, 99), 10, Span(9, 1)),
        (Part(10, None), 10, None),
        (Part(0, None), 0, None),
        (Part(None, 3), 10, Span(7, 3)),
        (Part(None, 30), 10, Span(0, 10)),
        (Part(None, 0), 10, None),
        (Part(None, 1), 0, None),
    ],
)
async def test_parts_lie_where_they_should(part: Part, size: int, span: Span | None) -> None:
    assert part.span(size) == span


async def test_an_outflow_that_is_closed_asks_for_no_more(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    place = Place(server.deps, box, ada, await server.host.node(), server)
    await place.run("head -c 60000000 /dev/zero > large")
    async with aclosing(place.node.client(box.id).files.stream("large")) as chunks:
        await anext(chunks)
    for _ in range(30):
        async with transfers.archive(
            place.deps, ada, sandbox_id=box.id, path=".", style=ArchiveFormat.TAR
        ) as packed:
            await anext(packed)
    # Had the workers inside lived on, there would be no room for one more.
    assert len(await place.read("large")) == 60_000_000
