"""Cgroups of both versions, through files alone."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import cgroup_detect, cgroups
from sandbox.errors import ConflictError
from sandbox.limits import Limits

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
