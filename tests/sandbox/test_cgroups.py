"""Cgroups of both versions, through files alone."""

import asyncio
import errno
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import cgroup_detect, cgroups, records
from sandbox.base import Limits
from sandbox.errors import ConflictError

MIB = 1024 * 1024
UNLIMITED = "9223372036854771712"  # What version 1 says of a limit that nobody set.
HYBRID = """\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
26 24 0:24 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 24 0:25 / /sys/fs/cgroup/my\\040memory rw shared:9 - cgroup cgroup rw,memory
28 24 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
29 1 8:1 / / rw - ext4 /dev/sda1 rw
"""


def test_mounts_are_found_by_controller() -> None:
    base = Path("/sys/fs/cgroup")
    assert cgroup_detect.mounts(HYBRID) == {
        "unified": base / "unified",
        "cpu": base / "cpu,cpuacct",
        "cpuacct": base / "cpu,cpuacct",
        "memory": base / "my memory",
    }


@pytest.fixture
def version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cgroups.Hierarchies:
    """A folder that looks like version 2: the kernel makes these files when it makes a folder."""
    folder = tmp_path / "noosphere"
    folder.mkdir()
    made = Path.mkdir

    def mkdir(self: Path, *args: int, **options: bool) -> None:
        made(self, *args, **options)  # type: ignore[arg-type]
        for name in (
            "memory.max", "memory.swap.max", "cpu.max", "pids.max", "cgroup.freeze", "cgroup.kill",
            "cgroup.procs", "memory.events", "cpu.stat", "cgroup.events", "memory.current",
            "memory.peak", "pids.current", "memory.oom.group",
        ):  # fmt: skip
            (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    return cgroups.Hierarchies(2, dict.fromkeys(("memory", "cpu", "pids", "freezer"), folder))


def test_version_2_gets_its_limits_once(version_2: cgroups.Hierarchies) -> None:
    group = version_2.group("box")
    limits = Limits(cpu_millis=1500, memory_bytes=256 * MIB, pids=77)
    (procs,) = group.create(limits)
    folder = Path(procs).parent
    assert Path(procs).name == "cgroup.procs"
    assert (folder / "memory.max").read_text() == str(256 * MIB)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "0"
    assert (folder / "cpu.max").read_text() == "15000 10000"
    assert (folder / "pids.max").read_text() == "77"
    assert group.oom_file() == (folder, "memory.events")
    with pytest.raises(ConflictError):
        group.create(limits)


def test_version_2_is_read_and_frozen(version_2: cgroups.Hierarchies) -> None:
    group = version_2.group("box")
    folder = Path(group.create(Limits())[0]).parent
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    (folder / "cpu.stat").write_text("usage_usec 12500\nuser_usec 1\n")
    (folder / "memory.current").write_text("4096\n")
    (folder / "memory.peak").write_text("8192\n")
    (folder / "pids.current").write_text("3\n")
    usage = group.usage()
    assert (usage.cpu_ms, usage.memory_bytes, usage.memory_peak_bytes) == (12.5, 4096, 8192)
    assert (usage.pids, usage.oom_kills) == (3, 2)
    assert group.freeze(True)
    assert (folder / "cgroup.freeze").read_text() == "1"
    assert not group.is_frozen()
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert group.is_frozen()
    group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"
    assert (folder / "cgroup.freeze").read_text() == "0"


# A machine of files: the kernel fills the folders of groups with them.

MEMORY_1 = {"memory.limit_in_bytes": UNLIMITED, "memory.memsw.limit_in_bytes": UNLIMITED}
VERSION_1 = {
    "memory": {**MEMORY_1, "memory.swappiness": "60"},
    "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
    "pids": {"pids.max": "max"},
    "freezer": {"freezer.state": "THAWED"},
    "cpuacct": {"cpuacct.usage": "0"},
}


class Machine:
    """Folders that look like version 1 hierarchies, each with the files this kernel has."""

    def __init__(self, root: Path, files: dict[str, dict[str, str]]) -> None:
        self.root = root
        self.files = files
        self.made: list[Path] = []
        for controller in files:
            (root / controller).mkdir()
        lines = [
            f"{number} 1 0:{number} / {root}/{name} rw - cgroup cgroup rw,{name}"
            for number, name in enumerate(files, 30)
        ]
        self.mountinfo = "\n".join(lines)

    def detect(self, *, has_swap: bool = True) -> cgroups.Hierarchies | None:
        return cgroup_detect.detect("here", mountinfo=self.mountinfo, has_swap=lambda: has_swap)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Make a machine whose kernel lacks the named files, or a whole controller."""
    made, removed = Path.mkdir, Path.rmdir

    def build(*lacking: str) -> Machine:
        files = {
            name: {file: text for file, text in each.items() if file not in lacking}
            for name, each in VERSION_1.items()
            if name not in lacking
        }
        machine = Machine(tmp_path, files)

        def mkdir(self: Path, *args: int, **options: bool) -> None:
            made(self, *args, **options)  # type: ignore[arg-type]
            for file, text in files.get(self.relative_to(tmp_path).parts[0], {}).items():
                (self / file).write_text(text)

        def rmdir(self: Path) -> None:
            for entry in list(self.iterdir()):
                if entry.is_file():
                    entry.unlink()
            removed(self)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)
        return machine

    return build


def test_only_controllers_that_take_their_limits_count(machine: Callable[..., Machine]) -> None:
    found = machine().detect()
    assert found is not None
    assert set(found.folders) == set(VERSION_1)
    assert found.has_memory
    assert found.has_freezer
    assert found.names() == set()  # The probes are gone.


@pytest.mark.parametrize(
    ("lacking", "controller"),
    [
        ("cpu.cfs_quota_us", "cpu"),
        ("cpu.cfs_period_us", "cpu"),
        ("memory.limit_in_bytes", "memory"),
        ("pids.max", "pids"),
        ("freezer.state", "freezer"),
    ],
)
def test_a_kernel_without_the_file_does_not_enforce_the_limit(
    machine: Callable[..., Machine], lacking: str, controller: str
) -> None:
    kernel = machine(lacking)
    found = kernel.detect()
    assert found is not None
    assert set(found.folders) == set(VERSION_1) - {controller}
    assert not (kernel.root / controller / "noosphere" / "here").exists()


def test_swap_that_nobody_counts_leaves_memory_unlimited(machine: Callable[..., Machine]) -> None:
    kernel = machine("memory.memsw.limit_in_bytes")
    swapping, dry = kernel.detect(has_swap=True), kernel.detect(has_swap=False)
    assert swapping is not None
    assert dry is not None
    assert "memory" in swapping.folders  # The limit is set all the same.
    assert not swapping.has_memory
    assert dry.has_memory


@pytest.mark.parametrize("cpu_millis", [10, 11, 99, 100, 101, 250, 1000, 64_000])
def test_a_share_of_the_cpu_is_exact_and_one_the_kernel_takes(cpu_millis: int) -> None:
    period, quota = cgroups.cpu_share(cpu_millis)
    assert quota >= 1000
    assert 10_000 <= period <= 100_000
    assert cpu_millis - 1 < quota * 1000 / period <= cpu_millis


def test_version_1_writes_every_limit(machine: Callable[..., Machine]) -> None:
    found = machine().detect()
    assert found is not None
    found.group("box").create(Limits(memory_bytes=256 * MIB, cpu_millis=250, pids=9))
    folder = found.folders["memory"] / "box"
    assert [(folder / name).read_text() for name in MEMORY_1] == [str(256 * MIB)] * 2
    assert (found.folders["cpu"] / "box" / "cpu.cfs_quota_us").read_text() == "2500"
    assert (found.folders["cpu"] / "box" / "cpu.cfs_period_us").read_text() == "10000"
    assert (found.folders["pids"] / "box" / "pids.max").read_text() == "9"


@pytest.mark.parametrize(
    ("controller", "name"),
    [
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("cpu", "cpu.cfs_quota_us"),
        ("pids", "pids.max"),
    ],
)
@pytest.mark.parametrize("bytes_", [128 * MIB, 1024 * MIB])
def test_a_limit_that_the_kernel_refuses_is_told(
    machine: Callable[..., Machine], controller: str, name: str, bytes_: int
) -> None:
    found = machine().detect()
    assert found is not None
    group = found.group("box")
    group.create(Limits())
    file = found.folders[controller] / "box" / name
    file.unlink()
    file.mkdir()  # Writing fails, whoever we are.
    if name == "memory.memsw.limit_in_bytes":
        assert group.limits_swap
    with pytest.raises(OSError, match="directory"):
        group.update(Limits(memory_bytes=bytes_, disk_bytes=MIB))


def test_version_2_kills_nothing_to_lower_memory(version_2: cgroups.Hierarchies) -> None:
    group = version_2.group("box")
    folder = Path(group.create(Limits())[0]).parent
    (folder / "memory.high").touch()
    (folder / "memory.current").write_text(str(400 * MIB))
    before = (folder / "memory.max").read_text()
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        group.update(Limits(memory_bytes=256 * MIB, disk_bytes=MIB))
    assert (folder / "memory.max").read_text() == before
    assert (folder / "memory.high").read_text().startswith("max")


FILES_2 = ("memory.max", "memory.swap.max", "cpu.max", "pids.max", "cgroup.freeze")


@pytest.mark.parametrize("lacking", [None, *FILES_2])
@pytest.mark.parametrize("has_swap", [True, False])
def test_version_2_counts_what_takes_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str | None, has_swap: bool
) -> None:
    made = Path.mkdir

    def mkdir(self: Path, *args: int, **options: bool) -> None:
        made(self, *args, **options)  # type: ignore[arg-type]
        for name in FILES_2:
            if name != lacking:
                (self / name).touch()

    def rmdir(self: Path) -> None:
        shutil.rmtree(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    names = ("memory", "cpu", "pids", "freezer")
    found = cgroup_detect._honest(2, dict.fromkeys(names, tmp_path), lambda: has_swap)
    assert found is not None
    lost = {
        "memory.max": "memory",
        "cpu.max": "cpu",
        "pids.max": "pids",
        "cgroup.freeze": "freezer",
    }
    assert set(found.folders) == set(names) - {lost.get(lacking or "")}
    is_unbounded = lacking == "memory.max" or (lacking == "memory.swap.max" and has_swap)
    assert found.has_memory == (not is_unbounded)
    assert found.names() == set()


class Unified:
    """A version 2 hierarchy of files that hands controllers down as the kernel does."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, processes: str = "") -> None:
        self.root = root
        self.mkdir, self.write, self.rmdir = Path.mkdir, Path.write_text, Path.rmdir
        self.fill(root, "cpuset cpu io memory pids")
        (root / "cgroup.procs").write_text(processes)

        def mkdir(path: Path, *args: int, **options: bool) -> None:
            self.on_mkdir(path, *args, **options)

        def write_text(path: Path, text: str) -> int:
            return self.on_write(path, text)

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
