"""Version 2 of cgroups: who may hand controllers down, and what the kernel itself does."""

import asyncio
import errno
import json
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import cgroup_detect, cgroups, records
from sandbox.limits import Limits
from tests.sandbox.test_cgroups import FILES_2, MIB


class Unified:
    """A version 2 hierarchy of files that hands controllers down as the kernel does.

    Its root is a container's or a user's, a group like any other, unless `is_first`. A group with
    processes that was given pids or cpu has threads below it, and no processes any more.
    """

    def __init__(
        self,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
        processes: str = "",
        *,
        controllers: str = "cpuset cpu io memory pids",
        is_first: bool = False,
    ) -> None:
        self.root = root
        self.own = "/"
        self.mkdir, self.write, self.rmdir = Path.mkdir, Path.write_text, Path.rmdir
        self.read = cgroup_detect._read
        self.fill(root, controllers)
        (root / "cgroup.procs").write_text(processes)
        if is_first:
            (root / "cgroup.type").unlink()

        def mkdir(path: Path, *args: int, **options: bool) -> None:
            self.on_mkdir(path, *args, **options)

        def write_text(path: Path, text: str) -> int:
            return self.on_write(path, text)

        def read(path: Path) -> str:
            # Whatever group the tests are in, it is none of this hierarchy.
            return f"0::{self.own}\n" if path == Path("/proc/self/cgroup") else self.read(path)

        def rmdir(path: Path) -> None:
            if self.read(path / "cgroup.procs").strip() or any(map(Path.is_dir, path.iterdir())):
                raise OSError(errno.EBUSY, "there is something in it")
            shutil.rmtree(path)

        monkeypatch.setattr(cgroup_detect, "_read", read)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "write_text", write_text)
        monkeypatch.setattr(Path, "rmdir", rmdir)

    def fill(self, folder: Path, controllers: str) -> None:
        names = [*FILES_2, "cgroup.procs", "cgroup.subtree_control", "memory.oom.group"]
        for name in names:
            if name.partition(".")[0] in ("cgroup", *controllers.split()):
                (folder / name).touch()
        self.write(folder / "cgroup.controllers", controllers)
        self.write(folder / "cgroup.type", "domain")

    def on_mkdir(self, folder: Path, *args: int, parents: bool = False, **options: bool) -> None:
        if parents and not folder.parent.exists():
            self.on_mkdir(folder.parent, parents=True)
        known = folder.exists()
        self.mkdir(folder, *args, **options)
        if known:
            return
        handed = (folder.parent / "cgroup.subtree_control").read_text()
        self.fill(folder, handed)
        if handed and has_processes(folder.parent):
            self.write(folder / "cgroup.type", "domain invalid")

    def on_write(self, path: Path, text: str) -> int:
        group = path.parent
        if path.name == "cgroup.procs":
            if self.read(group / "cgroup.type") == "domain invalid":
                raise OSError(errno.EOPNOTSUPP, "there may be threads in it, and no processes")
            # The one who writes moves, wherever it was.
            for procs in self.root.rglob("cgroup.procs"):
                others = set(procs.read_text().split()) - {str(os.getpid())}
                self.write(procs, "\n".join(others))
            self.own = f"/{group.relative_to(self.root)}"
            return self.write(path, f"{os.getpid()}\n")
        if path.name != "cgroup.subtree_control":
            return self.write(path, text)
        below = [each for each in group.iterdir() if each.is_dir()]
        if has_processes(group):
            if text[1:] not in ("cpu", "pids"):
                raise OSError(errno.EBUSY, "there are processes in it")
            for each in below:
                self.write(each / "cgroup.type", "domain invalid")
        if text[1:] not in (group / "cgroup.controllers").read_text().split():
            raise OSError(errno.ENOENT, "there is no such controller")
        handed = f"{path.read_text()} {text[1:]}".strip()
        for each in below:
            self.fill(each, handed)
        return self.write(path, handed)

    def detect(self) -> cgroups.Hierarchies | None:
        mounts = f"30 1 0:30 / {self.root} rw - cgroup2 cgroup2 rw"
        return cgroup_detect.detect("here", mountinfo=mounts, has_swap=lambda: True)

    def groups(self) -> set[str]:
        return {str(each.relative_to(self.root)) for each in self.root.rglob("*") if each.is_dir()}


def has_processes(folder: Path) -> bool:
    return bool((folder / "cgroup.procs").read_text()) and (folder / "cgroup.type").exists()


def handed_down(folder: Path) -> set[str]:
    return set((folder / "cgroup.subtree_control").read_text().split())


@pytest.mark.parametrize("is_in_it", [False, True])
def test_version_2_hands_its_controllers_down_to_groups_without_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_it: bool
) -> None:
    unified = Unified(tmp_path, monkeypatch, f"{os.getpid()}\n" if is_in_it else "")
    found = unified.detect()
    assert found is not None
    assert (found.version, found.has_memory, found.has_freezer) == (2, True, True)
    assert set(found.folders) == {"memory", "cpu", "pids", "freezer"}
    # A server that is in the group itself goes into a leaf, since only leaves have processes.
    assert (tmp_path / "server").is_dir() == is_in_it
    (procs,) = found.group("box").create(Limits(memory_bytes=256 * MIB))
    box = Path(procs).parent
    assert box == tmp_path / "noosphere" / "here" / "box"
    assert (box / "memory.max").read_text() == str(256 * MIB)
    assert (box / "memory.oom.group").read_text() == "0"
    for above in (tmp_path, box.parent.parent, box.parent):
        assert handed_down(above) == {"memory", "pids", "cpu"}
        assert not (above / "cgroup.procs").read_text()
    assert not (box / "cgroup.subtree_control").read_text()


def test_whoever_looks_again_finds_the_groups_beside_the_leaf_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Unified(tmp_path, monkeypatch, "77\n")
    unit = tmp_path / "unit"
    unit.mkdir()
    machine.fill(unit, "cpu memory pids")
    (unit / "cgroup.procs").touch()
    machine.write(unit / "cgroup.procs", f"{os.getpid()}\n")
    machine.own = "/unit"
    for _ in range(2):
        found = machine.detect()
        assert found is not None
        assert set(found.folders.values()) == {unit / "noosphere" / "here"}
        assert machine.own == "/unit/server"
        assert machine.groups() == {
            "unit", "unit/server", "unit/noosphere", "unit/noosphere/here",
        }  # fmt: skip


@pytest.mark.parametrize("controllers", ["cpuset cpu io memory pids", "memory"])
def test_version_2_is_left_alone_where_others_are_in_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controllers: str
) -> None:
    unified = Unified(tmp_path, monkeypatch, f"{os.getpid()}\n78\n", controllers=controllers)
    assert unified.detect() is None
    assert unified.own == "/"
    assert not unified.groups()
    assert not handed_down(tmp_path)


def test_the_kernels_first_group_may_have_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unified = Unified(tmp_path, monkeypatch, f"{os.getpid()}\n78\n", is_first=True)
    found = unified.detect()
    assert found is not None
    assert set(found.folders) == {"memory", "cpu", "pids", "freezer"}
    assert unified.own == "/"
    assert unified.groups() == {"noosphere", "noosphere/here"}


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


INNER = """
import json, subprocess, sys
from sandbox import cgroup_detect
from sandbox.limits import Limits
mounts = f"30 1 0:30 / {sys.argv[1]} rw - cgroup2 cgroup2 rw"
for _ in range(2):
    found = cgroup_detect.detect("inner", mountinfo=mounts)
group = found.group("box")
(procs,) = group.create(Limits())
with subprocess.Popen(["sleep", "600"]) as process:
    with open(procs, "w") as file:
        file.write(str(process.pid))
    inside = group.pids() == [process.pid]
    group.kill()
print(json.dumps([inside, group.remove(), sorted(found.folders), found.has_memory]))
found.close()
"""


async def test_the_kernel_lets_a_server_alone_in_a_group_make_groups_beside_itself() -> None:
    around = cgroup_detect.detect(f"test-{uuid.uuid4().hex}")
    if around is None or around.version != 2:
        pytest.skip("No version 2 hierarchy with controllers can be written here.")
    unit = around.folders["memory"] / "unit"
    unit.mkdir()
    try:
        # As a service of systemd that was delegated its group starts: alone in it.
        enter = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
        words = ("/bin/sh", "-c", enter, unit, sys.executable, "-c", INNER, unit)
        process = await asyncio.create_subprocess_exec(
            *(str(word) for word in words), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(100):
            said, _ = await process.communicate()
        assert json.loads(said) == [True, True, ["cpu", "freezer", "memory", "pids"], True]
        below = {str(each.relative_to(unit)) for each in unit.rglob("*") if each.is_dir()}
        assert below == {"server", "noosphere"}
    finally:
        for each in sorted((each for each in unit.rglob("*") if each.is_dir()), reverse=True):
            each.rmdir()
        unit.rmdir()
        around.close()


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
