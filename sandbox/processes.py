"""Processes inside a sandbox, as its agent lists them."""

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Process:
    """One process inside. `execution` is `Execution.operation`, None outside of any.

    `state` is the kernel's letter (R, S, D, T, Z); `command` the first 4 KiB of its arguments.
    """

    pid: int
    parent: int
    execution: int | None
    state: str
    started_at: datetime
    cpu_ms: float
    memory_bytes: int
    command: tuple[str, ...]


def from_record(
    pid: int, parent: int, op: int, state: bytes, start: int, cpu: int, rss: int, line: bytes
) -> Process:
    """Raises UnicodeDecodeError for what no agent sends."""
    words = line.decode("utf-8", "replace").rstrip("\0").split("\0")
    try:
        started = datetime.fromtimestamp(start / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        started = datetime.fromtimestamp(0, UTC)
    return Process(
        pid, parent, op or None, state.decode("ascii"), started, cpu / 1000, rss, tuple(words)
    )
