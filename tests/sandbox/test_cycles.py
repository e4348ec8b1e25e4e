"""Sandboxes made, used and removed again and again: nothing of them stays.

NOOSPHERE_TEST_CYCLES sets how many there are on each driver; 10,000 is what is promised.
"""

import gc
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.docker import DockerDriver
from sandbox.errors import TemplateError
from sandbox.limits import Limits
from tests.sandbox.conftest import MIB, Boxes

CYCLES = {"bubblewrap": 200, "docker": 25}
# Cycles before the first count: what is made once and kept is there then.
WARM = 5
LIMITS = Limits(memory_bytes=128 * MIB, disk_bytes=4 * MIB, pids=16)


def cycles(driver: str) -> int:
    return int(os.environ.get("NOOSPHERE_TEST_CYCLES") or CYCLES[driver])


def descendants() -> int:
    """Processes below this one, zombies among them."""
    parents = {}
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


def groups(ids: set[str]) -> list[str]:
    """Control groups with the name of a sandbox, in every hierarchy."""
    root = Path("/sys/fs/cgroup")
    if not root.is_dir():
        return []
    found = (Path(top) / name for top, names, _ in os.walk(root) for name in names)
    return [str(path) for path in found if path.name in ids]


def mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


async def traces(boxes: Boxes) -> dict[str, int]:
    """Count what a sandbox could leave on this machine, in this process or in the engine."""
    gc.collect()
    return {
        "sandboxes": len(await boxes.driver.list(boxes.run_label)),
        "processes": descendants(),
        "groups": len(groups(boxes.ids)),
        "mounts": mounts(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "records": len(records(boxes)),
    }


def records(boxes: Boxes) -> list[str]:
    """Records of sandboxes that bubblewrap's driver keeps."""
    folder = getattr(boxes.driver, "_state_dir", None)
    return [] if folder is None else [str(path) for path in folder.glob("sandboxes/*")]


async def cycle(boxes: Boxes, number: int) -> None:
    box = await boxes.make(limits=LIMITS)
    result, out, _ = await box.run(f"echo {number} > file; (setsid sleep 600 &); cat file")
    assert (out, result.exit_code) == (f"{number}\n".encode(), 0)
    await box.client.files.write("data", b"x" * 10_000)
    await box.client.aclose()
    boxes.clients.remove(box.client)
    await boxes.driver.remove(box.id)


def within(before: Mapping[str, int], after: Mapping[str, int], allowed: Mapping[str, int]) -> bool:
    return all(after[name] <= before[name] + allowed.get(name, 0) for name in before)


@pytest.mark.timeout(0 if os.environ.get("NOOSPHERE_TEST_CYCLES") else 180)
async def test_cycles_leave_nothing(boxes: Boxes) -> None:
    for number in range(WARM):
        await cycle(boxes, number)
    before = await traces(boxes)
    assert (before["sandboxes"], before["groups"]) == (0, 0)
    for number in range(cycles(boxes.driver.name)):
        await cycle(boxes, number)
    after = await traces(boxes)
    # A pool of connections to an engine may hold one more. The machine's mounts are others', too:
    # one for each cycle would be many more.
    pooled = 2 if isinstance(boxes.driver, DockerDriver) else 0
    assert within(before, after, {"descriptors": pooled, "mounts": CYCLES["docker"] // 2}), (
        before,
        after,
    )


async def test_what_fails_leaves_nothing_either(boxes: Boxes) -> None:
    await cycle(boxes, 0)
    before = await traces(boxes)
    for number in range(5):
        box = await boxes.make(limits=LIMITS)
        running = await box.start("(setsid sleep 600 &); sleep 600")
        if number % 2:
            await boxes.driver.stop(box.id)
        await boxes.driver.remove(box.id)
        assert (await running.result()).exit_code is None
        with pytest.raises(TemplateError):
            await boxes.make(image="noosphere-no-such-image")
    for client in boxes.clients:
        await client.aclose()
    boxes.clients.clear()
    after = await traces(boxes)
    assert within(before, after, {"descriptors": 2, "mounts": 3}), (before, after)
