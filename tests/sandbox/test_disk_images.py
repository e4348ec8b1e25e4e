"""Files without names for workspaces, before anything is mounted."""

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest

from sandbox import disk_images
from sandbox.errors import DriverUnavailableError, Resource, ResourceExhaustedError
from sandbox.limits import Limits
from tests.servers import require

MIB = 1024 * 1024
LIMITS = Limits(disk_bytes=8 * MIB, inodes=256)


@pytest.fixture(autouse=True)
def _with_mkfs() -> None:
    require("ext4")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


async def test_a_file_has_its_whole_size_reserved_and_no_name(tmp_path: Path) -> None:
    fd = await disk_images.make(tmp_path / "images", LIMITS, 12345)
    try:
        found = os.fstat(fd)
        assert (found.st_size, found.st_nlink) == (8 * MIB, 0)
        assert found.st_blocks * 512 >= 8 * MIB
        assert os.pread(fd, 2, 1024 + 56) == b"\x53\xef"  # The mark of an ext4 superblock.
        assert int.from_bytes(os.pread(fd, 4, 1024), "little") >= 256  # Its number of inodes.
        assert os.listdir(tmp_path / "images") == []
    finally:
        os.close(fd)


async def test_a_filesystem_that_knows_only_names_serves_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(path, flags, mode, **options)

    monkeypatch.setattr(os, "open", refuse)
    fd = await disk_images.make(tmp_path, LIMITS, 1)
    try:
        assert (os.fstat(fd).st_size, os.fstat(fd).st_nlink) == (8 * MIB, 0)
        assert os.listdir(tmp_path) == []
    finally:
        os.close(fd)


async def test_a_full_disk_is_the_hosts_trouble(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ResourceExhaustedError, match="no room") as caught:
        await disk_images.make(tmp_path, Limits(disk_bytes=max(free * 4, 2**50)), 1)
    assert caught.value.resource is Resource.HOST
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_program_that_fails_is_told_and_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(disk_images, "find_mkfs", lambda: "/bin/false")
    with pytest.raises(DriverUnavailableError, match="mkfs"):
        await disk_images.make(tmp_path, LIMITS, 1)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # The loop's watch over children.


async def test_who_gives_up_waiting_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    opened: list[int] = []
    closed = asyncio.Event()
    close = os.close

    def slow(folder: Path, size: int) -> int:
        begun.set()
        assert go.wait(60)
        opened.append(os.open(folder, os.O_RDONLY))
        return opened[0]

    def watched(fd: int) -> None:
        close(fd)
        if fd in opened:
            closed.set()

    monkeypatch.setattr(disk_images, "_reserve", slow)
    monkeypatch.setattr(os, "close", watched)
    making = asyncio.ensure_future(disk_images.make(tmp_path, LIMITS, 1))
    await asyncio.to_thread(begun.wait, 60)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    go.set()
    async with asyncio.timeout(60):
        await closed.wait()
    assert not is_open(opened[0])
