"""Limits: refused where they would not hold, changed while a sandbox runs, and measured."""

import asyncio
import errno
import os
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import cgroups, disk_images
from sandbox.base import Capabilities, Enforcement
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    PolicyUnsupportedError,
    SandboxError,
)
from sandbox.limits import Limits
from sandbox.policy import Policy
from tests.sandbox.conftest import MIB, Box, Boxes
from tests.servers import require


def held(capabilities: Capabilities, item: str) -> bool:
    return capabilities.items.get(item) is Enforcement.ENFORCED


async def fill(box: Box, mib: int) -> bytes:
    program = (
        f"f = open('big', 'wb', 0)\ntry:\n  for _ in range({mib}): f.write(bytes(1 << 20))\n"
        "except OSError as e: print(e.errno)\nelse: print('written')"
    )
    return (await box.python(program))[1].strip()


async def touch(box: Box, count: int) -> int:
    """How many files there are after trying to make as many."""
    program = (
        f"import os\ntry:\n  for n in range({count}): open(f'f{{n}}', 'w').close()\n"
        "except OSError: pass\nprint(len(os.listdir()))"
    )
    return int((await box.python(program))[1])


async def size(box: Box, path: str) -> int:
    """How large a filesystem of the sandbox is."""
    program = f"import os; s = os.statvfs({path!r}); print(s.f_blocks * s.f_frsize)"
    return int((await box.python(program))[1])


async def test_every_item_is_held_or_refused_at_creation(boxes: Boxes) -> None:
    capabilities = await boxes.driver.capabilities()
    for item in ("memory", "cpu", "pids", "disk", "inodes", "uid", "pause", "network_bandwidth"):
        demanded = frozenset({item})
        if held(capabilities, item):
            await boxes.make(demanded=demanded)
        else:
            with pytest.raises(PolicyUnsupportedError, match=item):
                await boxes.make(demanded=demanded)
    before = await boxes.driver.list(boxes.run_label)
    with pytest.raises(PolicyUnsupportedError, match="no_such_item"):
        await boxes.make(policy=Policy(required=frozenset({"isolation", "no_such_item"})))
    assert await boxes.driver.list(boxes.run_label) == before


async def test_new_limits_are_in_force_and_on_the_handle(boxes: Boxes) -> None:
    capabilities = await boxes.driver.capabilities()
    if not all(held(capabilities, item) for item in ("memory", "cpu", "pids")):
        pytest.skip("Not every limit can change here.")
    box = await boxes.make()
    forks = (
        "import os, time\nn = 0\ntry:\n  while n < 90:\n    if os.fork() == 0: time.sleep(99)\n"
        "    n += 1\nexcept OSError: pass\nprint(n, flush=True); os.kill(0, 9)"
    )
    few = int((await box.python(forks))[1])
    assert few < 64
    wanted = replace(box.handle.limits, pids=200, cpu_millis=800, memory_bytes=256 * MIB)
    assert await boxes.driver.update(box.id, limits=wanted) == wanted
    assert (await boxes.driver.connect(box.id)).limits == wanted
    assert int((await box.python(forks))[1]) == 90
    fewer = replace(wanted, pids=32)
    await boxes.driver.update(box.id, limits=fewer)
    assert int((await box.python(forks))[1]) < 32


async def test_a_running_sandbox_gets_no_bandwidth_that_nobody_holds(boxes: Boxes) -> None:
    box = await boxes.make()
    limits = box.handle.limits
    with pytest.raises(PolicyUnsupportedError):
        await boxes.driver.update(box.id, limits=replace(limits, network_bytes_per_s=1000))
    assert (await boxes.driver.connect(box.id)).limits == limits


async def test_stats_tell_of_the_disk(boxes: Boxes) -> None:
    box = await boxes.make()
    before = await boxes.driver.stats(box.id)
    if before.disk_bytes is None or before.inodes is None:
        pytest.skip("The server may not look at the files of sandboxes here.")
    await box.run("head -c 5000000 /dev/zero > big; mkdir a; touch a/b")
    after = await boxes.driver.stats(box.id)
    assert after.disk_bytes is not None
    assert 5_000_000 <= after.disk_bytes - before.disk_bytes < 5_100_000
    assert after.inodes == before.inodes + 3
    await boxes.driver.stop(box.id)
    # What has ended takes up nothing, or cannot be measured; it is no error.
    assert not (await boxes.driver.stats(box.id)).disk_bytes


# bubblewrap as root mounts the files itself, so it can change their sizes.


@pytest.fixture
def rooted(wrapped: Boxes) -> Boxes:
    if os.geteuid() != 0:
        pytest.skip("Only root mounts filesystems for sandboxes.")
    return wrapped


@pytest.mark.bubblewrap
async def test_a_disk_grows_and_shrinks_while_it_is_used(rooted: Boxes) -> None:
    box = await rooted.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=16 * MIB))
    limits = box.handle.limits
    assert await size(box, ".") == 16 * MIB
    assert await fill(box, 24) == b"%d" % errno.ENOSPC
    larger = replace(limits, disk_bytes=64 * MIB)
    assert await rooted.driver.update(box.id, limits=larger) == larger
    assert await fill(box, 40) == b"written"
    with pytest.raises(ConflictError, match=r"holds 4[\d,]+ bytes.* at most 16,777,216") as refused:
        await rooted.driver.update(box.id, limits=limits)
    assert refused.value.limit == "disk_bytes"
    assert "Errno" not in refused.value.message
    assert (await rooted.driver.connect(box.id)).limits == larger
    assert (await box.run("stat -c %s big"))[1] == b"%d\n" % (40 * MIB)
    await box.run("rm big")
    await rooted.driver.update(box.id, limits=limits)
    assert await size(box, ".") == 16 * MIB


@pytest.mark.bubblewrap
async def test_the_number_of_inodes_changes_too(rooted: Boxes) -> None:
    box = await rooted.make(limits=Limits(memory_bytes=256 * MIB, disk_bytes=MIB, inodes=64))
    assert 32 <= await touch(box, 200) < 64
    await rooted.driver.update(box.id, limits=replace(box.handle.limits, inodes=1000))
    assert await touch(box, 200) == 200
    with pytest.raises(ConflictError, match="files and directories"):
        await rooted.driver.update(box.id, limits=replace(box.handle.limits, inodes=100))


@pytest.mark.bubblewrap
async def test_tmp_follows_the_memory(rooted: Boxes) -> None:
    if not held(await rooted.driver.capabilities(), "memory"):
        pytest.skip("Memory cannot change here.")
    box = await rooted.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=MIB))
    for mib, wanted in ((256, 32), (512, 64), (128, 16)):
        limits = replace(box.handle.limits, memory_bytes=mib * MIB)
        await rooted.driver.update(box.id, limits=limits)
        assert await size(box, "/tmp") == wanted * MIB


@pytest.mark.bubblewrap
async def test_what_the_kernel_refuses_half_way_is_undone(
    rooted: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not held(await rooted.driver.capabilities(), "memory"):
        pytest.skip("Memory cannot change here.")
    box = await rooted.make(limits=Limits(memory_bytes=256 * MIB, disk_bytes=32 * MIB, pids=40))
    before = box.handle.limits
    update = cgroups.Group.update
    asked: list[Limits] = []

    def refuse(self: cgroups.Group, limits: Limits) -> None:
        asked.append(limits)
        if limits != before:
            raise OSError(errno.EBUSY, "Device or resource busy")
        update(self, limits)

    monkeypatch.setattr(cgroups.Group, "update", refuse)
    smaller = replace(before, memory_bytes=192 * MIB, disk_bytes=8 * MIB)
    with pytest.raises(ConflictError, match="memory") as refused:
        await rooted.driver.update(box.id, limits=smaller)
    assert refused.value.limit == "memory_bytes"
    assert asked == [smaller, before]
    assert await size(box, ".") == 32 * MIB
    assert (await rooted.driver.connect(box.id)).limits == before
    monkeypatch.setattr(cgroups.Group, "update", update)
    # What was given is taken back when the files, which come second, cannot change.
    assert await fill(box, 20) == b"written"
    larger = replace(before, memory_bytes=1024 * MIB, disk_bytes=8 * MIB)
    with pytest.raises(ConflictError):
        await rooted.driver.update(box.id, limits=larger)
    assert await size(box, "/tmp") == 32 * MIB
    assert await size(box, ".") == 32 * MIB
    assert isinstance(rooted.driver, BubblewrapDriver)
    group = rooted.driver._sandboxes[box.id].group
    assert group is not None
    name = "memory.max" if group._version == 2 else "memory.limit_in_bytes"
    assert group._get("memory", name) == str(256 * MIB)


@pytest.mark.bubblewrap
async def test_two_changes_at_once_follow_each_other(rooted: Boxes) -> None:
    box = await rooted.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=8 * MIB))
    wanted = [replace(box.handle.limits, disk_bytes=mib * MIB) for mib in range(9, 25)]
    await asyncio.gather(*(rooted.driver.update(box.id, limits=each) for each in wanted))
    now = (await rooted.driver.connect(box.id)).limits
    assert now in wanted
    assert await size(box, ".") == now.disk_bytes


@pytest.mark.bubblewrap
async def test_sizes_of_what_has_ended_do_not_change(rooted: Boxes) -> None:
    assert isinstance(rooted.driver, BubblewrapDriver)
    box = await rooted.make()
    record = rooted.driver._sandboxes[box.id].record
    spawner = rooted.driver._spawner
    change = [{"name": "tmp", "before": "size=1m", "options": "size=1m"}]
    with pytest.raises(OSError, match="ended"):
        # The number of a living process, but another one than was meant.
        await spawner.remount("x", record.pid, "1", change)
    await rooted.driver.stop(box.id)
    with pytest.raises(OSError, match=r"No such file|ended"):
        await spawner.remount("x", record.pid, record.start, change)
    with pytest.raises(ConflictError):
        await rooted.driver.update(box.id, limits=box.handle.limits)


# Workspaces on disk.


@pytest.fixture
async def on_disk(rooted: Boxes) -> Boxes:
    await asyncio.to_thread(require, "ext4")
    capabilities = await rooted.driver.capabilities()
    if not held(capabilities, "disk_image"):
        pytest.skip(" ".join(capabilities.notes))
    return rooted


def loops() -> set[str]:
    """Devices that lie over a file without a name."""
    return {
        name
        for name in os.listdir("/sys/block")
        if os.path.exists(f"/sys/block/{name}/loop/backing_file")
    }


@pytest.mark.bubblewrap
async def test_a_disk_may_be_larger_than_the_memory(on_disk: Boxes) -> None:
    limits = Limits(memory_bytes=192 * MIB, disk_bytes=512 * MIB, inodes=2000)
    box = await on_disk.make(limits=limits, disk="image")
    assert await fill(box, 400) == b"written"
    result, out, _ = await box.run("sha256sum < big; id -u; stat -c '%u %a' .; ls -A")
    assert result.exit_code == 0
    _, uid, owner, *names = out.decode().splitlines()
    assert (owner, names) == (f"{uid} 755", ["big"])
    usage = await on_disk.driver.stats(box.id)
    assert usage.disk_bytes is not None
    assert 400 * MIB <= usage.disk_bytes <= 512 * MIB
    assert usage.oom_kills in (0, None)
    # And no larger than asked for.
    assert await fill(box, 600) == b"%d" % errno.ENOSPC
    assert (await box.run("echo alive"))[1] == b"alive\n"
    await box.run("rm big")
    # mkfs rounds the number of inodes up to whole blocks of them.
    assert 1500 <= await touch(box, 3000) <= 2100


@pytest.mark.bubblewrap
async def test_nothing_is_left_of_a_disk(on_disk: Boxes) -> None:
    assert isinstance(on_disk.driver, BubblewrapDriver)
    before = loops()
    box = await on_disk.make(
        limits=Limits(memory_bytes=192 * MIB, disk_bytes=64 * MIB), disk="image"
    )
    mine = loops() - before
    assert mine
    assert list((on_disk.driver._state_dir / "images").iterdir()) == []
    await on_disk.driver.remove(box.id)
    async with asyncio.timeout(30):
        while loops() & mine:  # noqa: ASYNC110 - the kernel clears devices in its own time.
            await asyncio.sleep(0.02)


@pytest.mark.bubblewrap
async def test_programs_on_a_disk_gain_nothing(on_disk: Boxes) -> None:
    box = await on_disk.make(
        limits=Limits(memory_bytes=192 * MIB, disk_bytes=64 * MIB), disk="image"
    )
    _, out, _ = await box.run(
        "grep ' /workspace ' /proc/self/mounts; cp /bin/sh s; chmod 4755 s; ls -l s"
    )
    assert b"nosuid" in out
    assert b"nodev" in out
    result, _, said = await box.run("mknod d b 7 0; ls /dev | grep -c loop")
    assert b"not permitted" in said
    assert result.exit_code == 1


@pytest.mark.bubblewrap
async def test_a_disk_cannot_change_its_size(on_disk: Boxes) -> None:
    box = await on_disk.make(
        limits=Limits(memory_bytes=192 * MIB, disk_bytes=64 * MIB), disk="image"
    )
    with pytest.raises(PolicyUnsupportedError, match="disk_bytes"):
        await on_disk.driver.update(box.id, limits=replace(box.handle.limits, disk_bytes=128 * MIB))
    await on_disk.driver.update(box.id, limits=replace(box.handle.limits, pids=70))
    assert await fill(box, 40) == b"written"


@pytest.mark.bubblewrap
async def test_a_disk_that_the_host_has_no_room_for_is_refused(on_disk: Boxes) -> None:
    with pytest.raises(SandboxError, match="no room"):
        await on_disk.make(limits=Limits(memory_bytes=192 * MIB, disk_bytes=2**53), disk="image")
    assert await on_disk.driver.list(on_disk.run_label) == []


@pytest.mark.bubblewrap
async def test_a_trial_that_was_cut_short_promises_nothing(
    rooted: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = BubblewrapDriver(state_dir=tmp_path / "other")
    begun = asyncio.Event()

    async def hang(folder: Path, limits: Limits, uid: int) -> int:
        begun.set()
        await asyncio.Event().wait()
        return -1

    monkeypatch.setattr(disk_images, "why_not", lambda: None)
    monkeypatch.setattr(disk_images, "make", hang)
    try:
        await asyncio.gather(driver.start(), driver.start())
        asking = asyncio.ensure_future(driver.capabilities())
        await begun.wait()
        assert not held(driver._report(), "disk_image")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not held(driver._report(), "disk_image")
        assert await driver.list({}) == []

        async def broken(folder: Path, limits: Limits, uid: int) -> int:
            raise DriverUnavailableError("mkfs.ext4 cannot make a workspace.")

        monkeypatch.setattr(disk_images, "make", broken)
        found = await driver.capabilities()
        assert not held(found, "disk_image")
        assert any("cannot make a workspace" in note for note in found.notes)
    finally:
        await driver.aclose()


@pytest.mark.bubblewrap
async def test_output_of_a_program_that_fills_the_disk_arrives(rooted: Boxes) -> None:
    """A change of sizes in the middle of writing neither stops nor corrupts it."""
    box = await rooted.make(limits=Limits(memory_bytes=512 * MIB, disk_bytes=8 * MIB))
    writer = (
        "import sys\nf = open('log', 'wb', 0)\nn = 0\nprint('up', flush=True)\n"
        "while n < 24:\n  try: n += f.write(bytes(1 << 20)) == 1 << 20\n"
        "  except OSError: pass\nprint(n)"
    )
    execution = await box.start(["python3", "-c", writer], timeout_s=60)
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data.startswith(b"up")
        await rooted.driver.update(box.id, limits=replace(box.handle.limits, disk_bytes=64 * MIB))
        rest = b"".join([chunk.data async for chunk in output])
    assert rest.strip() == b"24"
