"""Workspaces on disk: a file without a name, with a filesystem of its own in it.

The file is gone as soon as nobody has it open: neither a killed server nor a killed machine
leaves one behind. It is mounted through a loop device that clears itself with the last mount.
"""

import asyncio
import errno
import os
import tempfile
from pathlib import Path

from sandbox.errors import (
    DriverUnavailableError,
    Resource,
    ResourceExhaustedError,
    TimeoutError_,
)
from sandbox.limits import Limits

MKFS = "mkfs.ext4"
MKFS_TIMEOUT_S = 60.0
LOOP_CONTROL = Path("/dev/loop-control")
BYTES_PER_INODE = 16384  # What mkfs gives a disk by itself; more would eat small disks up.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def find_mkfs() -> str | None:
    """The program that makes ext4 filesystems; servers' PATHs often lack its folder."""
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/sbin", "/sbin"]
    paths = (f"{folder}/{MKFS}" for folder in folders if folder.startswith("/"))
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def why_not() -> str | None:
    """What plainly stands in the way of disk images here; None if only a trial can tell."""
    if os.geteuid() != 0:
        return "Workspaces on disk need root."
    if find_mkfs() is None:
        return "Workspaces on disk need mkfs.ext4 (Debian, Ubuntu: apt install e2fsprogs)."
    if not LOOP_CONTROL.exists():
        return "Workspaces on disk need loop devices (/dev/loop-control)."
    return None


async def make(folder: Path, limits: Limits, uid: int) -> int:
    """A file of `disk_bytes` on the disk of `folder`, all of it reserved, owned inside by `uid`.

    The caller closes the descriptor. Raises ResourceExhaustedError where the disk has no room,
    DriverUnavailableError, TimeoutError_.
    """
    program = find_mkfs()
    if program is None:
        raise DriverUnavailableError("mkfs.ext4 is not there any more.")
    reserving = asyncio.ensure_future(asyncio.to_thread(_reserve, folder, limits.disk_bytes))
    try:
        fd = await asyncio.shield(reserving)
    except asyncio.CancelledError:
        # The thread goes on; what it opens is nobody's then.
        reserving.add_done_callback(_let_go)
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ResourceExhaustedError(
                "The host has no room for a workspace of this size.", resource=Resource.HOST
            ) from error
        raise DriverUnavailableError(
            "The host cannot keep workspaces on disk.", engine=str(error)
        ) from error
    try:
        await _format(program, fd, limits, uid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _let_go(reserved: "asyncio.Future[int]") -> None:
    if not reserved.cancelled() and reserved.exception() is None:
        os.close(reserved.result())


def _reserve(folder: Path, size: int) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # Some filesystems know only files with names.
        fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
    try:
        os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def _format(program: str, fd: int, limits: Limits, uid: int) -> None:
    inodes = max(16, min(limits.inodes, limits.disk_bytes // BYTES_PER_INODE))
    process = await asyncio.create_subprocess_exec(
        program, "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-N", str(inodes),
        # Discarding would give back what was reserved.
        "-E", f"nodiscard,lazy_itable_init=1,root_owner={uid}:{uid}", f"/proc/self/fd/{fd}",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE, pass_fds=(fd,),
    )  # fmt: skip
    try:
        async with asyncio.timeout(MKFS_TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise TimeoutError_("mkfs.ext4 did not end in time.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        raise DriverUnavailableError(
            "mkfs.ext4 cannot make a workspace.", engine=lines[-1][:200] if lines else ""
        )
