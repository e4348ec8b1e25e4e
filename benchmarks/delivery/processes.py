"""What a process uses: resident memory, and whether it is busy."""

import contextlib
import time
from pathlib import Path

_WHILE_S = 0.25


def tree(pid: int) -> list[int]:
    """Give the process and all of its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [pid, *(one for child in found for one in tree(child))]


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel does not tell {name}")


def resident(pid: int) -> int:
    """Give the bytes in memory of a process and its descendants."""
    return sum(_status(one, "VmRSS") for one in tree(pid))


def peak(pid: int) -> int:
    """Give the most bytes they had in memory since `reset_peak`."""
    return sum(_status(one, "VmHWM") for one in tree(pid))


def reset_peak(pid: int) -> None:
    """Begin to look for the peak anew."""
    for one in tree(pid):
        Path(f"/proc/{one}/clear_refs").write_text("5")


def cpu_s(pid: int) -> float:
    """Give the seconds of a core that the threads of a process have used."""
    used_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            used_ns += int((thread / "schedstat").read_text().split()[0])
    return used_ns / 1e9


def settle(pid: int, *, within_s: float = 60.0, share: float = 0.1) -> None:
    """Return when a process has used less than `share` of a core for a while."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        before_s = cpu_s(pid)
        time.sleep(_WHILE_S)
        if cpu_s(pid) - before_s < _WHILE_S * share:
            return
    raise AssertionError(f"process {pid} was still busy after {within_s:g} s")
