"""Control groups of sandboxes, version 1 and 2, through their files alone."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from sandbox.base import Limits, ResourceUsage
from sandbox.errors import ConflictError

CONTROLLERS = ("memory", "cpu", "pids", "freezer", "cpuacct")
PERIOD_US = 100_000


@dataclass(frozen=True)
class Hierarchies:
    """Folders in which groups can be made: one per controller (v1), or one for all (v2)."""

    version: int
    folders: dict[str, Path]

    def group(self, name: str) -> "Group":
        return Group(self, name)

    def make(self) -> None:
        """Make the folders again if another server of the same state directory took them away."""
        for folder in set(self.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
            if self.version == 2:
                _enable(folder)

    def close(self) -> None:
        """Take the folders away, unless groups of another server are in them."""
        for folder in set(self.folders.values()):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def names(self) -> set[str]:
        """Groups that exist, of whatever server made them."""
        found: set[str] = set()
        for folder in set(self.folders.values()):
            if folder.is_dir():
                found.update(entry.name for entry in os.scandir(folder) if entry.is_dir())
        return found

    @property
    def has_memory(self) -> bool:
        return "memory" in self.folders

    @property
    def has_freezer(self) -> bool:
        return "freezer" in self.folders


def mounts(text: str) -> dict[str, Path]:
    """Mount points by v1 controller name, and of version 2 as `unified`, from mountinfo."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if tail[0] == "cgroup2":
            found.setdefault("unified", point)
        elif tail[0] == "cgroup":
            for option in tail[2].split(","):
                if option in CONTROLLERS:
                    found.setdefault(option, point)
    return found


def detect(namespace: str) -> Hierarchies | None:
    """Where this process may make groups, or None. Makes `namespace` there."""
    found = mounts(_read(Path("/proc/self/mountinfo")))
    unified = found.pop("unified", None)
    if unified is not None and "memory" in _read(unified / "cgroup.controllers").split():
        folder = _delegated(unified, namespace)
        return None if folder is None else _version_2(folder)
    folders: dict[str, Path] = {}
    for controller, point in found.items():
        folder = point / "noosphere" / namespace
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"probe-{os.getpid()}"
            probe.mkdir(exist_ok=True)
            probe.rmdir()
        except OSError:
            continue
        folders[controller] = folder
    return Hierarchies(1, folders) if folders else None


def _version_2(folder: Path) -> Hierarchies | None:
    enabled = set(_read(folder / "cgroup.subtree_control").split())
    folders: dict[str, Path] = {name: folder for name in CONTROLLERS[:3] if name in enabled}
    if (folder / "cgroup.kill").exists() or folders:
        folders["freezer"] = folder
    return Hierarchies(2, folders) if folders else None


def _delegated(root: Path, namespace: str) -> Path | None:
    """A v2 folder with its controllers handed down: under the root, or under our own group."""
    own = _read(Path("/proc/self/cgroup")).rpartition("0::/")[2].strip()
    for base in dict.fromkeys((root, root / own)):
        folder = base / "noosphere" / namespace
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not _enable(base):
                # Version 2 gives controllers only to groups without processes of their own.
                leaf = base / "server"
                leaf.mkdir(exist_ok=True)
                (leaf / "cgroup.procs").write_text("0")
                if not _enable(base):
                    continue
            _enable(base / "noosphere")
            _enable(folder)
        except OSError:
            continue
        return folder
    return None


def _enable(folder: Path) -> bool:
    available = _read(folder / "cgroup.controllers").split()
    done = True
    for name in ("memory", "pids", "cpu"):
        if name not in available:
            continue
        try:
            (folder / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError:
            done = False
    return done


class Group:
    """The group of one sandbox; every method tolerates what this machine lacks."""

    def __init__(self, hierarchies: Hierarchies, name: str) -> None:
        self._hierarchies = hierarchies
        self._version = hierarchies.version
        self._folders = {key: base / name for key, base in hierarchies.folders.items()}

    def create(self, limits: Limits) -> list[str]:
        """Make the group; the `cgroup.procs` files that a first process writes itself into.

        Raises ConflictError if it exists, OSError if the kernel refuses a limit.
        """
        made = list(dict.fromkeys(self._folders.values()))
        for folder in made:
            try:
                try:
                    folder.mkdir()
                except FileNotFoundError:
                    self._hierarchies.make()
                    folder.mkdir()
            except FileExistsError as error:
                raise ConflictError("The sandbox exists already.", state="exists") from error
        self.update(limits)
        return [str(folder / "cgroup.procs") for folder in made]

    def update(self, limits: Limits) -> None:
        quota = limits.cpu_millis * PERIOD_US // 1000
        memory = str(limits.memory_bytes)
        if self._version == 2:
            self._set("memory", "memory.max", memory)
            self._set("memory", "memory.swap.max", "0", optional=True)
            self._set("cpu", "cpu.max", f"{quota} {PERIOD_US}")
        else:
            self._set_memory_v1(limits.memory_bytes)
            self._set("cpu", "cpu.cfs_period_us", str(PERIOD_US), optional=True)
            self._set("cpu", "cpu.cfs_quota_us", str(quota), optional=True)
        self._set("pids", "pids.max", str(limits.pids))

    def _set_memory_v1(self, memory: int) -> None:
        """Memory with swap may never be under memory alone, so the order depends on direction."""
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        current = self._get("memory", names[0])
        if current and int(current) < memory:
            names.reverse()
        for name in names:
            self._set("memory", name, str(memory), optional=name == names[-1] or "sw" in name)
        self._set("memory", names[0], str(memory), optional=True)

    def pids(self) -> list[int]:
        for folder in self._folders.values():
            return [int(line) for line in _read(folder / "cgroup.procs").split()]
        return []

    def freeze(self, frozen: bool) -> bool:
        """Ask to freeze or thaw; False where the machine cannot."""
        if self._version == 2:
            return self._set("freezer", "cgroup.freeze", str(int(frozen)), optional=True)
        state = "FROZEN" if frozen else "THAWED"
        return self._set("freezer", "freezer.state", state, optional=True)

    def is_frozen(self) -> bool:
        """Whether every process has stopped by now."""
        if self._version == 2:
            return "frozen 1" in self._get("freezer", "cgroup.events")
        return self._get("freezer", "freezer.state") == "FROZEN"

    def kill(self) -> None:
        """Send SIGKILL to every process; frozen ones die when thawed, so thaw."""
        self._set("freezer", "cgroup.kill", "1", optional=True)
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.freeze(False)

    def remove(self) -> bool:
        """Remove the empty group; False while processes are left in it."""
        gone = True
        for folder in set(self._folders.values()):
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def exists(self) -> bool:
        return any(folder.exists() for folder in self._folders.values())

    def oom_kills(self) -> int:
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return _field(self._get("memory", name), "oom_kill") or 0

    def oom_file(self) -> tuple[Path, str] | None:
        """Folder and name of the file that counts kills, for the agent to read."""
        if "memory" not in self._folders:
            return None
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return self._folders["memory"], name

    def usage(self) -> ResourceUsage:
        if self._version == 2:
            cpu = _field(self._get("cpu", "cpu.stat"), "usage_usec")
            current, peak = "memory.current", "memory.peak"
        else:
            nanoseconds = _number(self._get("cpuacct", "cpuacct.usage"))
            cpu = None if nanoseconds is None else nanoseconds // 1000
            current, peak = "memory.usage_in_bytes", "memory.max_usage_in_bytes"
        return ResourceUsage(
            cpu_ms=None if cpu is None else cpu / 1000,
            memory_bytes=_number(self._get("memory", current)),
            memory_peak_bytes=_number(self._get("memory", peak)),
            pids=_number(self._get("pids", "pids.current")),
            oom_kills=self.oom_kills(),
        )

    def _get(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        return "" if folder is None else _read(folder / name).strip()

    def _set(self, controller: str, name: str, value: str, *, optional: bool = False) -> bool:
        folder = self._folders.get(controller)
        if folder is None:
            return False
        try:
            fd = os.open(folder / name, os.O_WRONLY)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError:
            if optional:
                return False
            raise
        return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value.strip())
    return None
