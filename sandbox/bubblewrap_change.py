"""Changing and measuring a sandbox of the embedded driver while it runs."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import replace

from sandbox.base import ResourceUsage, SandboxState
from sandbox.bubblewrap_box import Box, resized
from sandbox.errors import ConflictError, InvalidArgumentError, SandboxError
from sandbox.filesystems import use_of
from sandbox.limits import HEADROOM_BYTES, Limits
from sandbox.spawning import Spawner


async def change(box: Box, limits: Limits, spawner: Spawner) -> None:
    """Put new limits in force, all or none; `limits` differ only in what can change.

    Raises InvalidArgumentError, ConflictError where more is in use, TimeoutError_,
    DriverUnavailableError.
    """
    if box.uid is None:
        _require_headroom(box, limits)
    try:
        await _change(box, limits, spawner)
    except OSError as error:
        raise _refused(box, limits, error) from error
    box.handle = replace(box.handle, limits=limits)
    if box.uid is not None:
        box.tmp_bytes = limits.tmp_bytes


def _refused(box: Box, limits: Limits, error: OSError) -> SandboxError:
    """Why the kernel refused new limits: mostly because they leave no room for what is in use."""
    if error.errno == errno.ESRCH:
        return ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
    if error.errno not in (errno.EINVAL, errno.EBUSY):
        what = os.strerror(error.errno or errno.EIO)
        return ConflictError(f"The kernel refused the limits: {what}.", state=box.state)
    place = box.workspace() if box.disk == "memory" else None
    used = (0, 0)
    if place is not None:
        with contextlib.suppress(OSError):
            used = use_of(place)
    for count, most, what in (
        (used[0], limits.disk_bytes, "bytes"),
        (used[1], limits.mounted_inodes(), "files and directories"),
    ):
        if count > most:
            return ConflictError(
                f"The workspace holds {count:,} {what}; with these limits it would hold at most"
                f" {most:,}. Remove files, or ask for more.",
                state=box.state,
                limit="disk_bytes",
            )
    return ConflictError(
        f"Programs and files, such as those in /tmp, use more than {limits.memory_bytes:,} bytes of"
        " memory leave room for. End programs or remove files, or ask for more.",
        state=box.state,
        limit="memory_bytes",
    )


async def _change(box: Box, limits: Limits, spawner: Spawner) -> None:
    """Files first when they shrink, for they count as memory; what was done is undone."""
    before = box.handle.limits
    mounted = [] if box.uid is None else resized(box, limits)
    is_less = limits.disk_bytes + limits.tmp_bytes < before.disk_bytes + box.tmp_bytes
    if is_less:
        await _remount(box, mounted, spawner)
    try:
        if box.group is not None:
            await asyncio.to_thread(box.group.update, limits)
        if not is_less:
            await _remount(box, mounted, spawner)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_undo(box, is_less, mounted, spawner)))
        raise


async def _undo(
    box: Box, is_remounted: bool, mounted: Sequence[dict[str, str]], spawner: Spawner
) -> None:
    if box.group is not None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(box.group.update, box.handle.limits)
    if is_remounted:
        with contextlib.suppress(OSError):
            await _remount(
                box,
                [
                    {"name": each["name"], "before": each["options"], "options": each["before"]}
                    for each in mounted
                ],
                spawner,
            )


async def _remount(box: Box, mounted: Sequence[dict[str, str]], spawner: Spawner) -> None:
    if mounted:
        await spawner.remount(box.handle.sandbox_id, box.record.pid, box.record.start, mounted)


def _require_headroom(box: Box, limits: Limits) -> None:
    """Check against the /tmp that is there, where its size cannot follow that of memory."""
    least = limits.disk_bytes + box.tmp_bytes + HEADROOM_BYTES
    if limits.memory_bytes < least:
        raise InvalidArgumentError(
            f"memory_bytes is {limits.memory_bytes}; this sandbox needs at least {least}, because"
            " its files count as memory."
        )


def usage(box: Box) -> ResourceUsage:
    """Totals of the group, and use of the workspace where this process may look at it."""
    found = ResourceUsage() if box.group is None else box.group.usage()
    workspace = box.workspace()
    if workspace is None or box.state is SandboxState.STOPPED:
        return found
    try:
        disk_bytes, inodes = use_of(workspace)
    except OSError:
        return found
    return replace(found, disk_bytes=disk_bytes, inodes=inodes)
