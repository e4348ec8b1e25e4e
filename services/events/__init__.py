"""The bus: signals between processes, and short logs of streamed text and output."""

from pathlib import Path

from services.events.base import Bus
from services.events.local import LocalBus

__all__ = ["open_bus"]


def open_bus(redis_url: str | None, data_dir: Path, node_id: str) -> Bus:
    """Give the bus this configuration asks for, not yet started.

    With a Redis URL any number of processes share it; without one it serves this process alone and
    keeps its logs in `data_dir`/events.sqlite3. `node_id` must be unique among the processes.
    """
    if redis_url:
        from services.events.redis import RedisBus

        return RedisBus(redis_url, node_id)
    return LocalBus(data_dir / "events.sqlite3", node_id)
