"""What each format can hold, and what a sandbox without zlib can do."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from sandbox.errors import (
    InvalidArgumentError,
    PolicyUnsupportedError,
)
from sandbox.inside import tars, wire, zips
from tests.sandbox.archives.packing import TAR_GZ, TARRED, ZIP, ZIPPED, packed, unpacked
from tests.sandbox.conftest import Box, Boxes


async def test_a_sandbox_without_zlib_takes_tar_alone(box: Box) -> None:
    box.client.has_zlib = False
    for style in (TAR_GZ, ZIP):
        with pytest.raises(PolicyUnsupportedError, match="format tar"):
            await packed(box, ".", style)
        with pytest.raises(PolicyUnsupportedError, match="format tar"):
            await unpacked(box, ZIPPED, style)
    assert (await unpacked(box, TARRED)).entries == 1


async def test_the_agent_itself_knows_three_formats_alone(wrapped: Boxes) -> None:
    box = await wrapped.make()
    body = wire.UNPACK_HEAD.pack(7, 1, 1, 1) + wire.pack(b"x")
    with pytest.raises(InvalidArgumentError, match="no such format"):
        async with box.client.ask(wire.UNPACK_OPEN, body) as answers:
            await answers.finish()


def item(name: bytes, size: int, data: bytes = b"", kind: bytes = tars.IS_FILE) -> tars.Item:
    return tars.Item(kind, name, 0o640, size, 1_600_000_000, b"", lambda: iter([data]))


def test_a_zip_of_more_entries_than_its_first_makers_thought_of(tmp_path: Path) -> None:
    place = tmp_path / "many.zip"
    with place.open("wb") as file:
        writer = zips.ZipWriter(file.write)  # type: ignore[arg-type]
        for number in range(66_000):
            writer.add(item(b"%05d" % number, 0))
        # Its size is said to be large beforehand, as is one's that is being written to.
        writer.add(item(b"large", zips.LARGE, b"content"))
        writer.finish()
    with zipfile.ZipFile(place) as archive:
        assert len(archive.namelist()) == 66_001
        assert archive.read("large") == b"content"
        assert archive.getinfo("00007").date_time == (2020, 9, 13, 12, 26, 40)
    with place.open("rb") as file:
        reader = zips.ZipReader(file.fileno())
        found = list(reader.items(66_001))
        assert (len(found), found[-1].name, found[0].time) == (66_001, b"large", 1_600_000_000)
        assert b"".join(found[-1].chunks()) == b"content"
        with pytest.raises(wire.Refused, match="more than 66000"):
            list(reader.items(66_000))


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 1 << 45])
def test_sizes_in_a_tar_are_as_large_as_they_like(size: int) -> None:
    head = tars.tar_header(tars.IS_FILE, b"name", 0o644, size, 1_600_000_000, b"")
    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == size
    assert tars.tar_value(head[124:136]) == size
    # Negative ones are none.
    assert tars.tar_value(b"\xff" * 12) == -1


@pytest.mark.parametrize("seconds", [0, 315_532_800, 951_782_400, 1_600_000_000, 4_354_819_198])
def test_times_in_a_zip_are_read_as_they_were_written(seconds: int) -> None:
    clock, date = zips.dos_time(seconds)
    # They begin in 1980, and know even seconds alone.
    assert zips.unix_time(clock, date) == max(seconds, 315_532_800) // 2 * 2
    assert zips.unix_time(clock, 0) == 0
