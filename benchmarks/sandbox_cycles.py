"""Sandboxes made, used and removed again and again, and what stays of them: nothing may."""

import gc
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from sandbox.base import SandboxDriver, SandboxSpec
from sandbox.client import SandboxClient
from sandbox.limits import MIB, Limits

_WARM = 5
_LIMITS = Limits(memory_bytes=128 * MIB, disk_bytes=4 * MIB, pids=16)
# An engine's client keeps connections, and the machine's mounts are others', too.
ALLOWED = {"descriptors": 2, "mounts": 2}


async def cycle(driver: SandboxDriver, image: str) -> str:
    """Make a sandbox, leave a process and a file in it, and remove it; gives its id."""
    sandbox_id = f"cycle-{uuid.uuid4().hex}"
    await driver.create(SandboxSpec(sandbox_id, image, _LIMITS))
    try:
        client = await SandboxClient.connect(await driver.open_channel(sandbox_id))
        execution = await client.execute(
            "(setsid sleep 600 &); echo hi > file; cat file", timeout_s=60, output_limit_bytes=1000
        )
        out = b"".join([chunk.data async for chunk in execution.output()])
        await client.aclose()
        if out != b"hi\n":
            raise RuntimeError(f"a cycle said {out!r}")
    finally:
        await driver.remove(sandbox_id)
    return sandbox_id


async def traces(driver: SandboxDriver, ids: set[str]) -> dict[str, int]:
    """Count what sandboxes could leave with the driver, in this process and on the machine."""
    gc.collect()
    return {
        "sandboxes": sum(info.sandbox_id in ids for info in await driver.list({})),
        "processes": _descendants(),
        "cgroups": _groups(ids),
        "mounts": _mounts(),
        "descriptors": _descriptors(),
    }


async def leaks(driver: SandboxDriver, image: str, count: int) -> Mapping[str, int]:
    """Go through so many cycles; gives by how much each count grew beyond what is allowed."""
    ids = {await cycle(driver, image) for _ in range(_WARM)}
    before = await traces(driver, ids)
    for _ in range(count):
        ids.add(await cycle(driver, image))
    after = await traces(driver, ids)
    return {name: max(0, after[name] - before[name] - ALLOWED.get(name, 0)) for name in before}


def _descendants() -> int:
    """Processes below this one, zombies among them."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    below: set[int] = set()
    grown = {os.getpid()}
    while grown:
        grown = {pid for pid, parent in parents.items() if parent in grown} - below
        below |= grown
    return len(below)


def _mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _groups(ids: set[str]) -> int:
    root = Path("/sys/fs/cgroup")
    return sum(name in ids for _, names, _ in os.walk(root) for name in names)
