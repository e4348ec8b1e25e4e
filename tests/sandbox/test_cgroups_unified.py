"""Version 2 of cgroups: who may hand controllers down, and what the kernel itself does."""

import asyncio
import errno
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import cgroup_detect, cgroups, records
from sandbox.limits import Limits
from tests.sandbox.test_cgroups import FILES_2, MIB


class Unified:
    """A version 2 hierarchy of files that hands controllers down as the kernel does."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, processes: str = "") -> None:
        self.root = root
        self.mkdir, self.write, self.rmdir = Path.mkdir, Path.write_text, Path.rmdir
        self.read = cgroup_detect._read
        self.fill(root, "cpuset cpu io memory pids")
        (root / "cgroup.procs").write_text(processes)

        def mkdir(path: Path, *args: int, **options: bool) -> None:
            self.on_mkdir(path, *args, **options)

        def write_text(path: Path, text: str) -> int:
            return self.on_write(path, text)

        def read(path: Path) -> str:
            # Whatever group the tests are in, it is none of this hierarchy.
            return "0::/\n" if path == Path("/proc/self/cgroup") else self.read(path)

        monkeypatch.setattr(cgroup_detect, "_read", read)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "write_text", write_text)
        monkeypatch.setattr(Path, "rmdir", shutil.rmtree)

    def fill(self, folder: Path, controllers: str) -> None:
        names = [*FILES_2, "cgroup.procs", "cgroup.subtree_control", "memory.oom.group"]
        for name in names:
            if name.partition(".")[0] in ("cgroup", *controllers.split()):
                (folder / name).touch()
        self.write(folder / "cgroup.controllers", controllers)

    def on_mkdir(self, folder: Path, *args: int, parents: bool = False, **options: bool) -> None:
        if parents and not folder.parent.exists():
            self.on_mkdir(folder.parent, parents=True)
        known = folder.exists()
        self.mkdir(folder, *args, **options)
        if not known:
            self.fill(folder, (folder.parent / "cgroup.subtree_control").read_text())

    def on_write(self, path: Path, text: str) -> int:
        if path.name == "cgroup.procs":
            # The one who writes moves, wherever it was.
            self.write(self.root / "cgroup.procs", "")
            return self.write(path, text)
        if path.name != "cgroup.subtree_control":
            return self.write(path, text)
        if (path.parent / "cgroup.procs").read_text():
            raise OSError(errno.EBUSY, "there are processes in it")
        if text[1:] not in (path.parent / "cgroup.controllers").read_text().split():
            raise OSError(errno.ENOENT, "there is no such controller")
        handed = f"{path.read_text()} {text[1:]}".strip()
        for below in filter(Path.is_dir, path.parent.iterdir()):
            self.fill(below, handed)
        return self.write(path, handed)

    def detect(self) -> cgroups.Hierarchies | None:
        mounts = f"30 1 0:30 / {self.root} rw - cgroup2 cgroup2 rw"
        return cgroup_detect.detect("here", mountinfo=mounts, has_swap=lambda: True)


@pytest.mark.parametrize("processes", ["", "77\n"])
def test_version_2_hands_its_controllers_down_to_groups_without_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    unified = Unified(tmp_path, monkeypatch, processes)
    found = unified.detect()
    assert found is not None
    assert (found.version, found.has_memory, found.has_freezer) == (2, True, True)
    assert set(found.folders) == {"memory", "cpu", "pids", "freezer"}
    # A server that is in the group itself goes into a leaf, since only leaves have processes.
    assert (tmp_path / "server").is_dir() == bool(processes)
    (procs,) = found.group("box").create(Limits(memory_bytes=256 * MIB))
    box = Path(procs).parent
    assert box == tmp_path / "noosphere" / "here" / "box"
    assert (box / "memory.max").read_text() == str(256 * MIB)
    assert (box / "memory.oom.group").read_text() == "0"
    for above in (tmp_path, box.parent.parent, box.parent):
        assert set((above / "cgroup.subtree_control").read_text().split()) == {
            "memory", "pids", "cpu",
        }  # fmt: skip
        assert not (above / "cgroup.procs").read_text()
    assert not (box / "cgroup.subtree_control").read_text()


def test_version_2_is_not_used_where_others_are_in_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unified = Unified(tmp_path, monkeypatch, "77\n78\n")

    def refuse(path: Path, text: str) -> int:
        raise OSError(errno.EBUSY, "there are processes in it")

    monkeypatch.setattr(unified, "on_write", refuse)
    assert unified.detect() is None


# The kernel's own.


def test_the_kernel_takes_limits_up_and_down() -> None:
    found = cgroup_detect.detect(f"test-{uuid.uuid4().hex}")
    if found is None:
        pytest.skip("No cgroups can be written here.")
    names = {
        1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "cpu.cfs_quota_us"),
        2: ("memory.max", "memory.swap.max", "cpu.max"),
    }[found.version]
    group = found.group("box")
    try:
        group.create(Limits())
        for mib, millis in ((512, 500), (1024, 1500), (128, 10), (300, 1000)):
            limits = Limits(cpu_millis=millis, memory_bytes=mib * MIB, disk_bytes=MIB, pids=mib)
            group.update(limits)
            if "memory" in found.folders:
                assert group._get("memory", names[0]) == str(mib * MIB)
                if group.limits_swap:
                    swap = str(mib * MIB) if found.version == 1 else "0"
                    assert group._get("memory", names[1]) == swap
            if "cpu" in found.folders:
                assert group._get("cpu", names[2]).split()[0] == str(cgroups.cpu_share(millis)[1])
            if "pids" in found.folders:
                assert group._get("pids", "pids.max") == str(mib)
    finally:
        assert group.remove()
        found.close()


@pytest.fixture
def real_version_2() -> Iterator[cgroups.Group]:
    """A group under the version 2 mount of this machine, whatever controllers it has."""
    point = cgroup_detect.mounts(Path("/proc/self/mountinfo").read_text()).get("unified")
    if point is None or not os.access(point, os.W_OK):
        pytest.skip("No version 2 hierarchy can be written here.")
    folder = point / f"noosphere-test-{uuid.uuid4().hex}"
    folder.mkdir()
    hierarchies = cgroups.Hierarchies(2, {"freezer": folder, "cpu": folder})
    # The controllers themselves may belong to version 1 here; freezing and counting need none.
    group = cgroups.Group(hierarchies, folders={"freezer": folder})
    try:
        yield group
    finally:
        group.kill()
        folder.rmdir()


async def test_the_kernel_freezes_thaws_and_kills_a_version_2_group(
    real_version_2: cgroups.Group,
) -> None:
    group = real_version_2
    process = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        folder = group._folders["freezer"]
        (folder / "cgroup.procs").write_text(str(process.pid))
        assert group.pids() == [process.pid]
        assert group.holds("freezer")
        for frozen in (True, False):
            assert group.freeze(frozen)
            async with asyncio.timeout(20):
                while group.is_frozen() != frozen:  # noqa: ASYNC110 - no event tells.
                    await asyncio.sleep(0.005)
        assert group.freeze(True)
        group.kill()
        async with asyncio.timeout(20):
            assert await process.wait() == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_groups_of_a_process_are_known_by_name(tmp_path: Path) -> None:
    own = Path("/proc/self/cgroup").read_text()
    pid = os.getpid()
    assert cgroup_detect.groups_of(pid, uuid.uuid4().hex) is None
    assert cgroup_detect.groups_of(2**22 + 1, "") is None
    found = cgroup_detect.groups_of(pid, "/")
    if found is None:
        pytest.skip(f"No hierarchy counts memory here: {own}")
    usage = found.usage()
    assert usage.memory_bytes is None or usage.memory_bytes > 0
    assert records.start_time(pid)
