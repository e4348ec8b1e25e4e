"""Archives that are damaged or broken off leave nothing behind."""

import gzip
import os
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits
from sandbox.errors import (
    FileError,
    FileErrorCode,
    SandboxError,
)
from tests.sandbox.archives.packing import (
    LIMITS,
    TAR,
    TAR_GZ,
    TARRED,
    ZIP,
    ZIPPED,
    bomb,
    changed,
    formats,
    gone,
    packed,
    refused,
    tar,
    zipped,
)
from tests.sandbox.conftest import MIB, Box

DAMAGED: dict[str, tuple[ArchiveFormat, bytes]] = {
    "an empty tar": (TAR, b""),
    "an empty gz": (TAR_GZ, b""),
    "an empty zip": (ZIP, b""),
    "noise as tar": (TAR, os.urandom(4096)),
    "noise as gz": (TAR_GZ, os.urandom(4096)),
    "noise as zip": (ZIP, os.urandom(4096)),
    "a tar without its end": (TAR, TARRED[:1536]),
    "a tar that stops in a file": (TAR, TARRED[:700]),
    "a tar that stops in a head": (TAR, TARRED[:300]),
    "a wrong checksum": (TAR, changed(TARRED, 0, b"F")),
    "a gz that stops": (TAR_GZ, gzip.compress(TARRED)[:-20]),
    "a gz without its sum": (TAR_GZ, gzip.compress(TARRED)[:-8]),
    "a gz with another sum": (TAR_GZ, changed(gzip.compress(TARRED), -8, b"1234") + b""),
    "a zip that stops": (ZIP, ZIPPED[:-30]),
    "a zip without its files": (ZIP, ZIPPED[-120:]),
    "a zip with another content": (ZIP, changed(ZIPPED, 36, b"\xff")),
    "a zip with another sum": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 16, b"1234")),
    "a zip with another size": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 24, b"\1")),
    "a zip with a size beyond": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 20, b"\xff\xff")),
    "a zip with a wide size that is missing": (
        ZIP,
        changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 24, b"\xff" * 4),
    ),
    "a zip with a place beyond": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 42, b"\xff" * 3)),
    "a zip with a secret": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 8, b"\1")),
    "a zip of another method": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 10, b"\x0e")),
    "a zip in parts": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\5\6") + 4, b"\1")),
    "a zip with more entries than there are": (
        ZIP,
        changed(ZIPPED, ZIPPED.rfind(b"PK\5\6") + 8, b"\2\0\2\0"),
    ),
    "a tar as zip": (ZIP, TARRED),
    "a zip as tar": (TAR, ZIPPED * 9),
    "a gz as tar": (TAR, gzip.compress(os.urandom(2000))),
    "a tar as gz": (TAR_GZ, TARRED),
}


@pytest.mark.parametrize(("style", "data"), DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_archive_leaves_nothing(
    box: Box, style: ArchiveFormat, data: bytes
) -> None:
    assert await refused(box, data, style) == "InvalidArgumentError"
    assert (await box.run("exit 0"))[0].exit_code == 0


@formats
async def test_an_upload_that_breaks_off_leaves_nothing(box: Box, style: ArchiveFormat) -> None:
    data = os.urandom(3 * MIB)
    whole = {TAR: tar, TAR_GZ: lambda *e: gzip.compress(tar(*e))}
    archive = (
        zipped(("sub/file", data, 0))
        if style is ZIP
        else whole[style](("sub/one", data[:MIB]), ("sub/two", data))
    )

    async def broken() -> AsyncIterator[bytes]:
        yield archive[: 2 * MIB]
        await box.client.files.list()
        raise RuntimeError("the sender is gone")

    with pytest.raises(RuntimeError):
        await box.client.files.unpack("out", broken(), style, LIMITS)
    await gone(box)
    assert (await box.client.files.measure()).bytes < MIB


async def test_a_worker_that_is_killed_leaves_nothing(box: Box) -> None:
    data = tar(("sub/one", os.urandom(MIB)), ("sub/two", os.urandom(MIB)))

    async def slow() -> AsyncIterator[bytes]:
        yield data[: MIB + 4096]
        # The worker has set its folder up once there is something in it.
        await box.run("until ls .archive.*/sub; do sleep 0.05; done; kill -9 -1")
        yield data[MIB + 4096 :]

    with pytest.raises(SandboxError):
        await box.client.files.unpack("out", slow(), TAR, LIMITS)
    await gone(box)


async def test_a_full_disk_ends_it_and_leaves_nothing(box: Box) -> None:
    limits = ArchiveLimits(1 << 40, 10, 1000)
    size = 40 * MIB
    assert await refused(box, bomb(size, TAR), TAR, limits=limits) == "NO_SPACE"
    assert (await box.client.files.measure()).bytes < MIB


async def test_packing_waits_for_its_reader_and_ends_with_it(box: Box) -> None:
    for number in range(20):
        await box.client.files.write(f"file{number}", os.urandom(MIB))
    for _ in range(20):
        async with aclosing(box.client.files.pack(".", TAR)) as chunks:
            await anext(chunks)
    # Had the workers lived on, there would be no room for one more.
    assert len(await packed(box, ".", TAR)) > 20 * MIB
    with pytest.raises(FileError) as caught:
        await packed(box, ".", TAR, most=MIB)
    assert caught.value.code is FileErrorCode.TOO_LARGE
