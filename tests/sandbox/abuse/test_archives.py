"""Archives that mean harm: whatever is in one, nothing gets out, nothing is left, nobody waits."""

import asyncio
import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits
from sandbox.errors import FileError, SandboxError
from tests.sandbox.abuse.attack import PROLOGUE, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.archives.packing import hard, link, pieces, tar, zipped
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

TAR, TAR_GZ, ZIP = ArchiveFormat.TAR, ArchiveFormat.TAR_GZ, ArchiveFormat.ZIP
LIMITS = ArchiveLimits(16 * MIB, 2000, 100)


def typed(kind: bytes, **odd: Any) -> dict[str, Any]:
    return {"type": kind, **odd}


def packs(*entries: tuple[str, bytes | dict[str, Any]], style: int = 1) -> tuple[Any, bytes]:
    return TAR, tar(*entries, style=style)


def headed(kind: bytes, size: int, content: bytes = b"", after: Any = b"1") -> tuple[Any, bytes]:
    """A tar archive that begins with one header which says of itself what it likes."""
    info = tarfile.TarInfo("head")
    info.type, info.size = kind, size
    padding = bytes(-len(content) % 512)
    return TAR, info.tobuf(tarfile.GNU_FORMAT) + content + padding + tar(("after", after))


def pax(*records: str, after: Any = b"1") -> tuple[Any, bytes]:
    text = "".join(f"{len(one) + len(str(len(one))) + 2} {one}\n" for one in records).encode()
    return headed(b"x", len(text), text, after)


def sparse() -> tuple[Any, bytes]:
    """An old GNU sparse file that says to be an exabyte of holes."""
    info = tarfile.TarInfo("sparse")
    info.type = b"S"
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (0, 0)
    head[483:495] = b"\x80" + (1 << 60).to_bytes(11, "big")
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return TAR, bytes(head) + bytes(1024)


def overlapping() -> tuple[Any, bytes]:
    """A zip whose thousand entries all are one piece of compressed data."""
    data = zlib.compress(bytes(MIB))[2:-4]
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, zlib.crc32(bytes(MIB)),
                        len(data), MIB, 1, 0) + b"f" + data  # fmt: skip
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, zlib.crc32(bytes(MIB)),
                    len(data), MIB, 4, 0, 0, 0, 0, 0, 0) + b"%04d" % number
        for number in range(1000)
    )  # fmt: skip
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(entries), len(local), 0)
    return ZIP, local + entries + end


def nested() -> bytes:
    """A gz of a gz of a gz, as a quine is without end: only the outermost is ever opened."""
    data = tar(("inner", b"1" * 1000))
    for _ in range(8):
        data = gzip.compress(data)
    return data


UP = "../" * 20
HARMFUL: dict[str, tuple[Any, bytes]] = {
    "names upwards": packs((f"{UP}tmp/evil", b"1")),
    "names with dots between": packs(("a/./../../evil", b"1")),
    "an absolute name": packs(("/workspace/../tmp/evil", b"1")),
    "a name of dots alone": packs(("..", b"1")),
    "a long name upwards, of GNU": packs((f"{'x/' * 80}{'../' * 90}evil", b"1"), style=1),
    "a long name upwards, of pax": packs((f"{'x/' * 80}{'../' * 90}evil", b"1"), style=2),
    "a name upwards in a pax record": pax(f"path={UP}tmp/evil"),
    "a link, and a file below it": packs(("l", link("/tmp")), ("l/evil", b"1")),
    "a link upwards, and a file below it": packs(("l", link(UP)), ("l/tmp/evil", b"1")),
    "a link to a link": packs(("a", link("b")), ("b", link("/tmp")), ("a/evil", b"1")),
    "a link in place of a folder": packs(("d/f", b"1"), ("d", link("/tmp")), ("d/evil", b"1")),
    "a hard link upwards": packs(("h", hard(f"{UP}etc/passwd"))),
    "a hard link to a file of proc": packs(("h", hard("/proc/1/environ"))),
    "a hard link, then a file over it": packs(("h", hard("/tmp/victim")), ("h", b"evil")),
    "a target upwards in a pax record": pax(f"linkpath={UP}etc/passwd", after=hard("x")),
    "a character device": packs(("dev", typed(tarfile.CHRTYPE, devmajor=1, devminor=1))),
    "a block device": packs(("dev", typed(tarfile.BLKTYPE, devmajor=8, devminor=0))),
    "a named pipe": packs(("pipe", typed(tarfile.FIFOTYPE))),
    "a kind that nobody knows": packs(("odd", typed(b"Z"))),
    "a part of many volumes": packs(("part", typed(b"M"))),
    "a name of half a gigabyte": headed(b"L", 1 << 29, bytes(100_000)),
    "a name of more than there is": headed(b"L", 1 << 40),
    "a head of more than there is": headed(b"x", 1 << 62),
    "a pax head of megabytes": pax(*(f"comment{n}={'x' * 60_000}" for n in range(100))),
    "a pax record longer than itself": headed(b"x", 20, b"99999999 path=evil\n "),
    "a pax record of no length": headed(b"x", 20, b"0 path=evil........."),
    "a pax record of a negative size": pax("size=-1"),
    "a pax record of an endless size": pax("size=" + "9" * 4000),
    "a global pax head without end": headed(b"g", 1 << 30, b"x" * 100_000),
    "a sparse file of an exabyte": sparse(),
    "a million empty entries": (
        TAR_GZ,
        gzip.compress(tarfile.TarInfo("same").tobuf(tarfile.GNU_FORMAT) * 100_000, 1),
    ),
    "a folder in a folder in a folder": packs(("/".join("d" * 2000), b"")),
    "a gigabyte of zeros": (TAR_GZ, gzip.compress(tar(("zeros", bytes(40 * MIB))), 9)),
    "entries that are one another's data": overlapping(),
    "a zip upwards": (ZIP, zipped((f"{UP}tmp/evil", b"1", 0o100644))),
    "a zip upwards, of Windows": (ZIP, zipped(("..\\..\\tmp\\evil/../../x", b"1", 0o100644))),
    "a zip of an absolute name": (ZIP, zipped(("/tmp/evil", b"1", 0o100644))),
    "a zip with a link and a file below it": (
        ZIP,
        zipped(("l", b"/tmp", 0o120777), ("l/evil", b"1", 0o100644)),
    ),
    "a zip with a link of a megabyte": (ZIP, zipped(("l", b"x" * MIB, 0o120777))),
    "a zip with a device": (ZIP, zipped(("dev", b"", 0o020666))),
    "a zip of a gigabyte of zeros": (ZIP, zipped(("zeros", bytes(40 * MIB), 0o100644))),
    "a gz in a gz in a gz": (TAR_GZ, nested()),
    "a gz whose name never ends": (TAR_GZ, b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (2 * MIB)),
    "gz members without end": (TAR_GZ, gzip.compress(b"") * 200_000),
}


async def clean(box: Box) -> None:
    """Raise AssertionError if anything is left, wherever code of this user may write."""
    _, out, _ = await box.run(
        "find /workspace /tmp /dev/shm -mindepth 1 ! -path /tmp/victim | head -5; cat /tmp/victim"
    )
    assert out == b"kept"


@pytest.mark.parametrize(("style", "data"), HARMFUL.values(), ids=HARMFUL.keys())
async def test_a_harmful_archive_is_refused_as_a_whole(
    site: Site, style: ArchiveFormat, data: bytes
) -> None:
    box = site.box
    await tries(box, "open('/tmp/victim', 'w').write('kept')")
    with pytest.raises(SandboxError):
        await box.client.files.unpack("out", pieces(data), style, LIMITS)
    await clean(box)


async def test_dangerous_bits_do_not_come_out_of_an_archive(site: Site) -> None:
    box = await site.make()
    entries = [("setuid", {"mode": 0o6755}), ("dir", {"type": tarfile.DIRTYPE, "mode": 0o7777})]
    await box.client.files.unpack("tar", pieces(tar(*entries)), TAR, LIMITS)
    data = zipped(("setuid", b"", 0o106755), ("dir/", b"", 0o047777))
    await box.client.files.unpack("zip", pieces(data), ZIP, LIMITS)
    program = """
import glob
for path in sorted(glob.glob('/workspace/*/*')):
    found = os.stat(path)
    print(oct(found.st_mode & 0o7000), found.st_uid == os.getuid())
"""
    got = await tries(box, program)
    assert got == ["0o0", "True"] * 4


async def test_the_same_name_again_and_again_is_one_file(site: Site) -> None:
    box = await site.make()
    data = tar(*(("same", b"%d" % number) for number in range(500)))
    await box.client.files.unpack("out", pieces(data), TAR, LIMITS)
    assert await box.client.files.read("out/same") == b"499"
    assert len(await box.client.files.list("out")) == 1


async def test_an_archive_that_stops_in_the_middle_holds_nobody(site: Site) -> None:
    box = await site.make()
    data = tar(("file", os.urandom(200_000)))
    stopped = asyncio.Event()

    async def halting() -> AsyncIterator[bytes]:
        yield data[:100_000]
        stopped.set()
        await asyncio.Event().wait()

    async def unpack(number: int) -> None:
        await box.client.files.unpack(f"out{number}", halting(), TAR, LIMITS)

    # As many as may be at once; what else there is goes on beside them.
    waiting = [asyncio.ensure_future(unpack(number)) for number in range(16)]
    async with asyncio.timeout(30):
        await stopped.wait()
    assert (await box.run("echo well"))[1] == b"well\n"
    await box.client.files.write("beside", b"x")
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(30):
        while [entry.name for entry in await box.client.files.list()] != ["beside"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


SWAP = """
os.makedirs('/tmp/outside', exist_ok=True)
open('/tmp/outside/file', 'w').write('outside')
print('ready', flush=True)
number = 316 if X86 else 276
while True:
    for top in os.listdir('/workspace'):
        try:
            for name in os.listdir('/workspace/' + top):
                path = f'/workspace/{top}/{name}'
                if os.path.isdir(path) and not name.endswith('.link'):
                    os.symlink('/tmp/outside', path + '.link')
                    libc.syscall(number, -100, path.encode(), -100, (path + '.link').encode(), 2)
        except OSError:
            pass
"""
ROUNDS = 20


async def test_folders_become_links_while_an_archive_is_unpacked(site: Site) -> None:
    box = await site.make()
    racer = await box.start(["python3", "-c", PROLOGUE + SWAP], timeout_s=120)
    async for _ in racer.output():
        break
    data = tar(*((f"d{n}/e/file", b"evil" * 500) for n in range(40)))
    for number in range(ROUNDS):
        try:
            await box.client.files.unpack(f"out{number % 4}", pieces(data), TAR, LIMITS)
        except FileError:
            continue
    await racer.cancel()
    await racer.result()
    got = await tries(box, "print(*sorted(os.listdir('/tmp/outside')),"
                           " open('/tmp/outside/file').read())")  # fmt: skip
    assert got == ["file", "outside"]


async def test_folders_become_links_while_they_are_packed(site: Site) -> None:
    box = await site.make()
    program = """
os.makedirs('/tmp/outside')
open('/tmp/outside/secret', 'w').write('S3CRET')
for number in range(20):
    os.makedirs(f'/workspace/top/d{number}/e')
"""
    await tries(box, program)
    racer = await box.start(["python3", "-c", PROLOGUE + SWAP], timeout_s=120)
    async for _ in racer.output():
        break
    for _ in range(ROUNDS):
        try:
            async with aclosing(box.client.files.pack("top", TAR)) as chunks:
                data = b"".join([chunk async for chunk in chunks])
        except FileError:
            continue
        assert b"S3CRET" not in data
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert not [name for name in archive.getnames() if name.endswith("secret")]
    await racer.cancel()
    await racer.result()
