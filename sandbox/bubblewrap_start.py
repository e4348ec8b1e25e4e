"""Starting a sandbox of the embedded driver, until its agent has spoken."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sandbox import agent as wire
from sandbox import bubblewrap_command as command
from sandbox import cgroups, disk_images, seccomp
from sandbox.agent_file import boot
from sandbox.base import SandboxSpec
from sandbox.bubblewrap_box import Box, filesystems
from sandbox.bubblewrap_leftovers import IMAGE
from sandbox.channel import Wire
from sandbox.errors import DriverUnavailableError, Resource, ResourceExhaustedError, TimeoutError_
from sandbox.limits import MIB, Disk, Limits
from sandbox.records import children
from sandbox.spawning import Spawner

P = ParamSpec("P")
T = TypeVar("T")

READY_TIMEOUT_S = 15.0
RLIMITS = {
    "RLIMIT_NOFILE": 1024,
    "RLIMIT_CORE": 0,
    "RLIMIT_MEMLOCK": 64 * 1024,
    "RLIMIT_MSGQUEUE": 64 * 1024,
    "RLIMIT_SIGPENDING": 1024,
}


@dataclass(frozen=True, slots=True)
class Means:
    """What a machine gives to every sandbox on it."""

    program: command.Program
    interpreter: tuple[str, list[str]]
    hierarchies: cgroups.Hierarchies | None
    agent: int  # A descriptor of its file.
    images: Path


async def to_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a thread. Cancelled, it waits for the end all the same before it raises.

    Who undoes what was begun would otherwise be overtaken by it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # Retrieved: the cancellation says more.
        raise


async def launch(
    box: Box,
    spec: SandboxSpec,
    means: Means,
    spawner: Spawner,
    on_started: Callable[[Box, int], None],
) -> None:
    """Start the processes of a sandbox and wait for the agent.

    Raises ResourceExhaustedError, DriverUnavailableError, TimeoutError_; what was started by then
    is the caller's to end, once `on_started` was told its PID.
    """
    procs: list[str] = []
    if box.group is not None:
        try:
            procs = await to_end(box.group.create, spec.limits)
        except OSError as error:
            raise ResourceExhaustedError(
                "The host refused the limits.", resource=Resource.HOST, engine=str(error)
            ) from error
    complaints, complaint = os.pipe()
    os.set_blocking(complaints, False)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with contextlib.ExitStack() as stack:
        stack.callback(theirs.close)
        fds = [complaint, theirs.fileno()]
        stack.callback(os.close, complaint)
        try:
            for data in (seccomp.load_program(), command.PASSWD, command.GROUP):
                fds.append(_memory_file(data))
                stack.callback(os.close, fds[-1])
            fds.append(means.agent)
            if spec.disk == "image":
                fds.append(await disk_images.make(means.images, spec.limits, _user(box)))
                stack.callback(os.close, fds[-1])
            request = _request(box, spec, means, procs)
            pid = await spawner.spawn(spec.sandbox_id, request, fds)
        except BaseException:
            os.close(complaints)
            ours.close()
            raise
    box.complaints = complaints
    on_started(box, pid)
    box.wire = await Wire.over(ours)
    await _until_ready(box, box.wire)


def probe(disk: Disk = "memory") -> SandboxSpec:
    """A small sandbox under a name that nobody else takes, to see whether one can be made."""
    limits = Limits(memory_bytes=128 * MIB, disk_bytes=MIB, pids=16)
    name = f"check-{os.getpid()}-{os.urandom(4).hex()}"
    return SandboxSpec(name, IMAGE, limits, disk=disk)


def _user(box: Box) -> int:
    if box.uid is None:
        raise DriverUnavailableError("Workspaces on disk need root.")
    return box.uid


def _request(box: Box, spec: SandboxSpec, means: Means, procs: list[str]) -> dict[str, Any]:
    limits = spec.limits
    is_image = spec.disk == "image"
    groups = means.hierarchies
    options = {"spares": str(wire.spares(limits.pids))}
    # Limits of processes stay as they were set, so they stand in only where no group limits.
    if groups is None or "pids" not in groups.folders:
        options["nproc"] = str(limits.pids)
    if groups is None or "memory" not in groups.folders:
        options["address_space"] = str(limits.memory_bytes)
    mounted: list[dict[str, object]] = []
    if box.uid is not None:
        mounted = filesystems(limits, limits.tmp_bytes, box.uid, is_image=is_image)
    argv = command.arguments(
        means.program.path,
        means.interpreter,
        spec,
        staged=box.uid is not None,
        oom_file=box.group.oom_file() if box.group else None,
        options=options,
        source=boot(command.AGENT_FD),
    )
    return {
        "argv": argv,
        "uid": box.uid,
        "procs": procs,
        "filesystems": mounted,
        "image": is_image,
        "rlimits": RLIMITS,
    }


async def _until_ready(box: Box, channel: Wire) -> None:
    wanted = wire.HEADER.size + 2
    heard = b""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while len(heard) < wanted and (data := await channel.read()):
                heard += data
            if len(heard) < wanted:
                await box.exited.wait()
    except TimeoutError as error:
        raise TimeoutError_("The sandbox did not start in time.") from error
    if len(heard) < wanted:
        said = box.last_words()[-500:]
        raise DriverUnavailableError("The sandbox did not start.", engine=said)
    box.inner = (children(box.record.pid) or [0])[0]


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("noosphere")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
