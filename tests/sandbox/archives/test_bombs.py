"""Archives unpack to so much and no more."""

import gzip
import os
import tarfile

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits
from tests.sandbox.archives.packing import (
    TAR_GZ,
    ZIP,
    bomb,
    formats,
    refused,
    tar,
    unpacked,
    zipped,
)
from tests.sandbox.conftest import MIB, Box


@formats
async def test_an_archive_unpacks_to_so_many_bytes_alone(box: Box, style: ArchiveFormat) -> None:
    limits = ArchiveLimits(4 * MIB, 10, 100_000)
    assert await refused(box, bomb(4 * MIB + 1, style), style, limits=limits) == "TOO_LARGE"
    assert (await unpacked(box, bomb(4 * MIB, style), style, limits=limits)).bytes == 4 * MIB


@formats
async def test_an_archive_has_so_many_entries_alone(box: Box, style: ArchiveFormat) -> None:
    limits = ArchiveLimits(MIB, 20, 1000)
    few = [(f"f{n}", b"") for n in range(20)]
    for count in (20, 21):
        files = [*few, ("more", b"")][:count]
        data = zipped(*((n, b, 0) for n, b in files)) if style is ZIP else tar(*files)
        data = gzip.compress(data) if style is TAR_GZ else data
        if count == 21:
            await box.client.files.remove("out", recursive=True)
            assert await refused(box, data, style, limits=limits) == "TOO_LARGE"
        else:
            assert (await unpacked(box, data, style, limits=limits)).entries == 20


async def test_folders_on_the_way_and_repeated_names_count(box: Box) -> None:
    limits = ArchiveLimits(MIB, 20, 1000)
    deep = "/".join("d" * 21) + "/f"
    assert await refused(box, tar((deep, b"")), limits=limits) == "TOO_LARGE"
    again = tar(*((("same"), b"") for _ in range(21)))
    assert await refused(box, again, limits=limits) == "TOO_LARGE"
    assert await refused(box, tar(("/".join("d" * 300), b""))) == "InvalidArgumentError"


@pytest.mark.parametrize("style", [TAR_GZ, ZIP])
async def test_bombs_are_known_by_what_they_unpack_to(box: Box, style: ArchiveFormat) -> None:
    assert await refused(box, bomb(12 * MIB, style), style) == "TOO_LARGE"
    honest = os.urandom(2 * MIB)
    data = zipped(("f", honest, 0)) if style is ZIP else gzip.compress(tar(("f", honest)))
    assert (await unpacked(box, data, style)).bytes == 2 * MIB
    # Little may be as dense as it likes.
    assert (await unpacked(box, bomb(MIB, style), style)).bytes == MIB


async def test_bombs_behind_and_between_the_entries_end_as_well(box: Box) -> None:
    longest = tarfile.TarInfo("././@LongLink")
    longest.type, longest.size = b"L", 60_000
    headers = (longest.tobuf(tarfile.GNU_FORMAT) + b"n" * 60_000 + bytes(-60_000 % 512)) * 9
    assert await refused(box, gzip.compress(headers + bytes(1024)), TAR_GZ) == (
        "InvalidArgumentError"
    )
    tail = gzip.compress(tar(("f", b"1")) + bytes(40 * MIB))
    assert await refused(box, tail, TAR_GZ) == "InvalidArgumentError"
    longest.size = 1 << 40
    assert (
        await refused(box, longest.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        == "InvalidArgumentError"
    )
