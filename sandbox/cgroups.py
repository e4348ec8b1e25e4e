"""Control groups of sandboxes, version 1 and 2, through their files alone."""

import contextlib
import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox.base import ResourceUsage
from sandbox.errors import ConflictError
from sandbox.limits import Limits

CONTROLLERS = ("memory", "cpu", "pids", "freezer", "cpuacct")
# A sandbox that has used its share up waits for the end of the period: longer ones are felt.
PERIOD_US = 10_000
LEAST_QUOTA_US = 1_000  # Of a period; the kernel takes no less.
SOCKETS_V1 = "memory.kmem.tcp.limit_in_bytes"  # Of UDP, too.


@dataclass(frozen=True)
class Hierarchies:
    """Folders in which groups can be made: one per controller (v1), or one for all (v2).

    A controller is here only if it holds its limits. `bounds_swap`: what is swapped out counts
    against the limit of memory, or the machine swaps nothing.
    """

    version: int
    folders: Mapping[str, Path]
    bounds_swap: bool = True

    def group(self, name: str) -> "Group":
        return Group(self, name)

    def make(self) -> None:
        """Make the folders again if another server of the same state directory took them away."""
        for folder in set(self.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
            if self.version == 2:
                enable(folder)

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
        """Whether memory is limited for a sandbox as a whole, swap included."""
        return "memory" in self.folders and self.bounds_swap

    @property
    def has_freezer(self) -> bool:
        return "freezer" in self.folders


def cpu_share(cpu_millis: int) -> tuple[int, int]:
    """A period, and how much of it a sandbox may run, in microseconds."""
    period = max(PERIOD_US, -(-LEAST_QUOTA_US * 1000 // cpu_millis))
    return period, cpu_millis * period // 1000


def has_processes(folder: Path) -> bool:
    """Whether a v2 group has processes of its own, so that it can hand nothing down.

    The kernel's first group, which alone has no type, may have both.
    """
    return (folder / "cgroup.type").exists() and bool(_read(folder / "cgroup.procs").split())


def enable(folder: Path) -> bool:
    """Hand the controllers of a v2 group down to the groups in it; False if any was refused."""
    if has_processes(folder):
        # The kernel would refuse memory, but take pids and cpu: as controllers of threads, after
        # which no process may enter any group in it.
        return False
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
    """The group of one sandbox. Controllers that the machine lacks are passed over.

    What the hierarchies promise is set or fails: no limit of theirs is ever left out.
    """

    def __init__(
        self,
        hierarchies: Hierarchies,
        name: str = "",
        *,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self._hierarchies = hierarchies
        self._version = hierarchies.version
        made = {key: base / name for key, base in hierarchies.folders.items()}
        self._folders = dict(folders) if folders is not None else made

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
        """Set every limit. Raises OSError if the kernel refuses one; some may be set by then.

        EBUSY: less memory than is in use.
        """
        period, quota = cpu_share(limits.cpu_millis)
        if self._version == 2:
            self._set_memory_v2(limits.memory_bytes)
            self._set("cpu", "cpu.max", f"{quota} {period}")
        else:
            self._set_memory_v1(limits.memory_bytes)
            # Version 1 does not count what waits in sockets as memory, unless it has a limit.
            self._set("memory", SOCKETS_V1, str(limits.socket_bytes), optional=True)
            self._set("cpu", "cpu.cfs_period_us", str(period))
            self._set("cpu", "cpu.cfs_quota_us", str(quota))
        self._set("pids", "pids.max", str(limits.pids))

    def _set_memory_v1(self, memory: int) -> None:
        """Memory with swap may never be under memory alone, so the order depends on direction."""
        names = ["memory.limit_in_bytes"]
        if self.limits_swap:
            names.append("memory.memsw.limit_in_bytes")
        else:
            self._set("memory", "memory.swappiness", "0", optional=True)
        current = _number(self._get("memory", names[0]))
        if current is not None and current < memory:
            names.reverse()
        for name in names:
            self._set("memory", name, str(memory))

    def _set_memory_v2(self, memory: int) -> None:
        """A lower maximum kills what is above it, so make room first and refuse without it."""
        used = _number(self._get("memory", "memory.current"))
        if used is not None and used > memory:
            self._set("memory", "memory.high", str(memory), optional=True)
            used = _number(self._get("memory", "memory.current"))
            self._set("memory", "memory.high", "max", optional=True)
            if used is not None and used > memory:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        # Whoever is killed for want of memory goes alone: process 1 stays to tell of it.
        self._set("memory", "memory.oom.group", "0", optional=True)
        self._set("memory", "memory.max", str(memory))
        if self.limits_swap:
            self._set("memory", "memory.swap.max", "0")

    @property
    def limits_swap(self) -> bool:
        """Whether the kernel counts what is swapped out (swapaccount)."""
        folder = self._folders.get("memory")
        name = "memory.swap.max" if self._version == 2 else "memory.memsw.limit_in_bytes"
        return folder is not None and (folder / name).exists()

    def holds(self, controller: str) -> bool:
        """Whether the files of a controller are there, which not every kernel has."""
        old = {"cpuacct": "cpuacct.usage", "freezer": "freezer.state"}
        new = {"freezer": "cgroup.freeze"}
        name = (new if self._version == 2 else old).get(controller)
        return name is None or (self._folders[controller] / name).exists()

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
        """What the group uses now and has used; None where nothing counts it."""
        if self._version == 2:
            told = self._get("cpu", "cpu.stat")
            cpu, throttled = _field(told, "usage_usec"), _field(told, "throttled_usec")
            current, peak = "memory.current", "memory.peak"
        else:
            nanoseconds = _number(self._get("cpuacct", "cpuacct.usage"))
            cpu = None if nanoseconds is None else nanoseconds // 1000
            stood = _field(self._get("cpu", "cpu.stat"), "throttled_time")
            throttled = None if stood is None else stood // 1000
            current, peak = "memory.usage_in_bytes", "memory.max_usage_in_bytes"
        return ResourceUsage(
            cpu_ms=None if cpu is None else cpu / 1000,
            memory_bytes=_number(self._get("memory", current)),
            memory_peak_bytes=_number(self._get("memory", peak)),
            pids=_number(self._get("pids", "pids.current")),
            oom_kills=self.oom_kills() if "memory" in self._folders else None,
            cpu_throttled_ms=None if throttled is None else throttled / 1000,
        )

    def _get(self, controller: str, name: str) -> str:
        folder = self._folders.get(controller)
        return "" if folder is None else _read(folder / name).strip()

    def _set(self, controller: str, name: str, value: str, *, optional: bool = False) -> bool:
        folder = self._folders.get(controller)
        if folder is None:
            return False
        try:
            fd = os.open(folder / name, os.O_WRONLY | os.O_TRUNC)
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
