"""What a process uses: resident memory, and whether it is busy."""

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


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


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def settle(pid: int, *, within_s: float = 60.0, share: float = 0.1) -> None:
    """Return when a process has used less than `share` of a core for half a second."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        before = _cpu_s(pid)
        time.sleep(0.5)
        if _cpu_s(pid) - before < 0.5 * share:
            return
    raise AssertionError(f"process {pid} was still busy after {within_s:g} s")
