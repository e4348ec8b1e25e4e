"""Notes on disk about sandboxes that are processes, so that a later server finds leftovers."""

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Record:
    """One sandbox. A process is known by its PID and start time, since PIDs come round again."""

    sandbox_id: str
    created_at: str
    uid: int | None
    server_pid: int
    server_start: str
    labels: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    start: str = ""

    @property
    def server_is_alive(self) -> bool:
        return start_time(self.server_pid) == self.server_start != ""

    @property
    def is_alive(self) -> bool:
        return self.pid > 0 and start_time(self.pid) == self.start != ""


def start_time(pid: int) -> str:
    """When a process started, in ticks since boot; "" when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def children(pid: int) -> list[int]:
    """Processes started by a process, whichever of its threads did it."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += map(int, text.split())
    except FileNotFoundError:
        if Path("/proc/self/task", str(os.getpid()), "children").exists():
            return found  # The process ended meanwhile.
        return _children_by_parent(pid)
    return found


def _children_by_parent(pid: int) -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{name}/stat").read_text()
                if int(text.rpartition(")")[2].split()[1]) == pid:
                    found.append(int(name))
    return found


class Records:
    """A folder with one file per sandbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder. Raises OSError where notes cannot be kept in it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = self._folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)

    def _path(self, sandbox_id: str) -> Path:
        return self._folder / f"{sandbox_id}.json"

    def write(self, record: Record) -> None:
        draft = self._folder / f".{record.sandbox_id}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(record)))
        draft.rename(self._path(record.sandbox_id))

    def read(self, sandbox_id: str) -> Record | None:
        try:
            return Record(**json.loads(self._path(sandbox_id).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            # Torn by a crash: what it described is found by its cgroup, if there was one.
            return Record(sandbox_id, "", None, 0, "")

    def all(self) -> list[Record]:
        found = [self.read(path.stem) for path in sorted(self._folder.glob("*.json"))]
        return [record for record in found if record is not None]

    def remove(self, sandbox_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(sandbox_id).unlink()


UID_BASE = 1_900_000_000  # Above every range that systemd and /etc/subuid hand out.
UID_COUNT = 65_536


class UidSlots:
    """A host user of its own for each sandbox, unique on the machine while it is held.

    A slot is an abstract socket address: taken by whoever binds it, freed when its process ends.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}
        self._range = _mapped_range()

    @property
    def available(self) -> bool:
        return os.geteuid() == 0 and self._range is not None

    def take(self) -> int:
        """Raises OSError when every slot is taken."""
        if self._range is None:
            raise OSError("no range of users is mapped here")
        base, count = self._range
        start = int.from_bytes(os.urandom(4), "big")
        for offset in range(count):
            uid = base + (start + offset) % count
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind(f"\0noosphere-uid-{uid}")
            except OSError:
                lock.close()
                continue
            self._held[uid] = lock
            return uid
        raise OSError("every user slot is taken")

    def release(self, uid: int) -> None:
        lock = self._held.pop(uid, None)
        if lock is not None:
            lock.close()


def _mapped_range() -> tuple[int, int] | None:
    """Users this process may become; in a container perhaps only the first 65,536."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        first, _, size = map(int, line.split())
        if first <= UID_BASE and first + size >= UID_BASE + UID_COUNT:
            return UID_BASE, UID_COUNT
        if size >= 60_000:
            return first + 40_000, 16_384
    return None
