"""One sandbox of the embedded driver: its processes, its group, its filesystems."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field

from sandbox import cgroups
from sandbox.base import SandboxHandle, SandboxState
from sandbox.channel import Wire
from sandbox.errors import ConflictError, TimeoutError_
from sandbox.limits import SHM_BYTES, SHM_INODES, Disk, Limits
from sandbox.records import Record, children, start_time

END_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Box:
    """What the driver holds of a sandbox. `uid` is None where all share the server's user."""

    handle: SandboxHandle
    group: cgroups.Group | None
    uid: int | None
    record: Record
    disk: Disk = "memory"
    tmp_bytes: int = 0
    state: SandboxState = SandboxState.RUNNING
    wire: Wire | None = None
    inner: int = 0
    complaints: int = -1
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    ooms: int = 0

    def last_words(self) -> str:
        """What bubblewrap or the agent wrote to standard error since the last look."""
        try:
            return os.read(self.complaints, 65536).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        if self.wire is not None:
            self.wire.close()
        if self.complaints >= 0:
            os.close(self.complaints)
            self.complaints = -1

    async def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on.

        Raises ConflictError where the kernel refuses, TimeoutError_.
        """
        assert self.group is not None  # noqa: S101 - checked by the only caller.
        if not self.group.freeze(frozen):
            raise ConflictError("The kernel refused to freeze the sandbox.", state=self.state)
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                while self.group.is_frozen() != frozen:  # noqa: ASYNC110 - no event tells.
                    await asyncio.sleep(0.002)
        except TimeoutError as error:
            self.group.freeze(False)
            raise TimeoutError_("The sandbox did not come to rest in time.") from error

    async def terminate(self, grace_s: float) -> None:
        """Send SIGTERM to everything but the agent, and wait for at most `grace_s`."""
        assert self.group is not None  # noqa: S101 - checked by the only caller.
        keep = {self.record.pid, self.inner}
        for pid in set(self.group.pids()) - keep:
            send(pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while set(self.group.pids()) - keep:  # noqa: ASYNC110 - no event tells.
                    await asyncio.sleep(0.005)

    async def kill(self) -> None:
        """Kill everything and wait until nothing is left. Raises TimeoutError_."""
        if self.group is not None:
            self.group.kill()
        pid = self.record.pid
        if pid and not self.exited.is_set():
            inner = self.inner or (children(pid) or [0])[0]
            inner_start = start_time(inner) if inner else ""
            if inner:
                send(inner, signal.SIGKILL)
            send(pid, signal.SIGKILL)
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self.exited.wait()
                    # Process 1 takes its whole namespace along before it is gone.
                    while inner_start and start_time(inner) == inner_start:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            except TimeoutError as error:
                raise TimeoutError_("The sandbox did not end in time.") from error
        if self.wire is not None:
            self.wire.close()

    def count_ooms(self) -> bool:
        """Whether the kernel killed for want of memory since the last look."""
        if self.group is None:
            return False
        before, self.ooms = self.ooms, max(self.ooms, self.group.oom_kills())
        return self.ooms > before

    def workspace(self) -> str | None:
        """Where this process sees the workspace; None where it may not look."""
        # Outside of what bubblewrap made: nothing in the sandbox can reach or move it.
        return None if self.uid is None else f"/proc/{self.record.pid}/root/mnt/workspace"


async def remove_group(group: cgroups.Group) -> None:
    """Kill what is in a group until the group can go. Raises TimeoutError_."""
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            while not await asyncio.to_thread(group.remove):
                group.kill()
                await asyncio.sleep(0.002)
    except TimeoutError as error:
        raise TimeoutError_("The sandbox's processes did not end in time.") from error


def filesystems(
    limits: Limits, tmp_bytes: int, uid: int, *, is_image: bool
) -> list[dict[str, object]]:
    """What the spawner mounts for a sandbox that has a user of its own."""
    owner = f"uid={uid},gid={uid}"
    tmp: dict[str, object] = {
        "name": "tmp",
        "options": f"{size(tmp_bytes, limits.tmp_inodes)},mode=1777,{owner}",
    }
    shm: dict[str, object] = {
        "name": "shm",
        "options": f"{size(SHM_BYTES, SHM_INODES)},mode=1777,{owner}",
    }
    if is_image:
        return [{"name": "workspace", "image": True}, tmp, shm]
    options = f"{size(limits.disk_bytes, limits.mounted_inodes())},mode=0755,{owner}"
    return [{"name": "workspace", "options": options}, tmp, shm]


def resized(box: Box, wanted: Limits) -> list[dict[str, str]]:
    """The filesystems that new limits change, with the options before and after."""
    found = []
    now = box.handle.limits
    sizes = [
        ("tmp", size(box.tmp_bytes, now.tmp_inodes), size(wanted.tmp_bytes, wanted.tmp_inodes))
    ]
    if box.disk == "memory":
        old = size(now.disk_bytes, now.mounted_inodes())
        new = size(wanted.disk_bytes, wanted.mounted_inodes())
        sizes.append(("workspace", old, new))
    for name, before, after in sizes:
        if before != after:
            found.append({"name": name, "before": before, "options": after})
    return found


def size(bytes_: int, inodes: int) -> str:
    return f"size={bytes_},nr_inodes={inodes}"


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
