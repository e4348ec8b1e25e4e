"""Cgroups of both versions, through files alone."""

from pathlib import Path

import pytest

from sandbox import cgroups
from sandbox.base import Limits
from sandbox.errors import ConflictError

MIB = 1024 * 1024
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
    assert cgroups.mounts(HYBRID) == {
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
            "memory.peak", "pids.current",
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
    assert (folder / "cpu.max").read_text() == "150000 100000"
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
