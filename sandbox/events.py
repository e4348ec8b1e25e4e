"""Events of a driver, to any number of listeners."""

import asyncio
from collections.abc import AsyncIterator

from sandbox.base import DriverEvent

BACKLOG = 1024


class Broadcast:
    """A listener that falls more than 1,024 events behind loses the oldest, and delays nobody."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[DriverEvent | None]] = set()

    def emit(self, event: DriverEvent | None) -> None:
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def close(self) -> None:
        """End every subscription."""
        self.emit(None)

    def subscribe(self) -> AsyncIterator[DriverEvent]:
        """Events from this call on."""
        queue: asyncio.Queue[DriverEvent | None] = asyncio.Queue(BACKLOG)
        self._queues.add(queue)
        return self._listen(queue)

    async def _listen(
        self, queue: "asyncio.Queue[DriverEvent | None]"
    ) -> AsyncIterator[DriverEvent]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
