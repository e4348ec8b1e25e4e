"""The local side of every bus: bounded taps, fan-out without copies, and the JSON that travels.

Nothing here awaits while it delivers: `Hub.deliver` costs one queue append per tap, whatever its
reader does. A tap whose reader is too slow is emptied and marked lost; it then costs nothing until
its reader asks. Memory of a hub is bounded by the sum of its taps' `max_bytes`, and far below it as
long as taps share news, because all taps of a topic hold the same object.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson

from services.events.base import BusUnavailableError, Json, News, Stats

_log = logging.getLogger(__name__)

# What a queued news costs beside its payload: the object, its strings and its place in the queue.
NEWS_OVERHEAD_BYTES = 200


def encode(data: Json) -> bytes:
    """Give `data` as JSON. Raises TypeError when it holds what JSON cannot express."""
    return orjson.dumps(data if isinstance(data, dict) else dict(data))


def decode(payload: bytes | memoryview) -> Json:
    """Give the object that `encode` made into `payload`. Raises ValueError for anything else."""
    data = orjson.loads(payload)
    if not isinstance(data, dict):
        raise ValueError("The payload of news must be a JSON object.")
    return cast(dict[str, Any], data)


class HubTap:
    """A `Tap`: a bounded queue between one hub and one reader.

    One task reads a tap at a time (a second concurrent `get` raises RuntimeError). The queue holds
    at most `max_items` news and `max_bytes` bytes of payload and overhead; the news that would
    exceed either empties the queue and marks the tap lost. While it is lost, news are dropped at
    no cost: the reader must re-read anyhow, and what is delivered after `lost()` answered is
    queued.
    """

    __slots__ = (
        "_bytes",
        "_is_closed",
        "_is_lost",
        "_max_bytes",
        "_max_items",
        "_queue",
        "_waiter",
        "losses",
        "sink",
        "topics",
    )

    def __init__(self, topics: Iterable[str], *, max_items: int, max_bytes: int) -> None:
        if max_items < 1 or max_bytes < 1:
            raise ValueError("A tap needs room for at least one item and one byte.")
        self.topics = tuple(dict.fromkeys(topics))
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._queue: deque[tuple[News, int]] = deque()
        self._bytes = 0
        self._is_lost = False
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.sink: Callable[[News], bool] | None = None
        # How often news were lost that the reader had not heard of before.
        self.losses = 0

    @property
    def is_closed(self) -> bool:
        """Whether the bus was closed."""
        return self._is_closed

    def __len__(self) -> int:
        return len(self._queue)

    def __bool__(self) -> bool:
        return True

    def offer(self, news: News, size_bytes: int) -> None:
        """Queue `news`, or mark the tap lost. Never waits, never raises."""
        if self._is_lost or self._is_closed:
            return
        if self.sink is not None and not self._queue and self._is_dealt_with(news, self.sink):
            return
        if (
            len(self._queue) >= self._max_items
            or self._bytes + size_bytes + NEWS_OVERHEAD_BYTES > self._max_bytes
        ):
            self.lose()
            return
        self._bytes += size_bytes + NEWS_OVERHEAD_BYTES
        self._queue.append((news, size_bytes + NEWS_OVERHEAD_BYTES))
        self._wake()

    @staticmethod
    def _is_dealt_with(news: News, sink: Callable[[News], bool]) -> bool:
        try:
            return sink(news)
        except Exception:  # noqa: BLE001 - whatever it raises, the others are told.
            # One reader's failure is neither the publisher's nor that of the readers after it.
            _log.exception("News of %s could not be dealt with where they came", news.topic)
            return False

    def lose(self) -> None:
        """Empty the queue and let the reader know that it must re-read."""
        self._queue.clear()
        self._bytes = 0
        self.losses += not self._is_lost
        self._is_lost = True
        self._wake()

    def close(self) -> None:
        """Mark the tap lost for the last time; once that was asked, `get` raises."""
        if not self._is_closed:
            self._is_closed = True
            self.lose()

    async def get(self, timeout_s: float) -> News | None:
        """Give the next news; None after `timeout_s` seconds or, at once, when news were lost.

        A cancelled `get` loses nothing: news leave the queue only as they are returned. Raises
        BusUnavailableError once the bus is closed and `lost()` has said so.
        """
        if not self._queue and not self._is_lost and not self._is_closed and timeout_s > 0:
            await self._wait(timeout_s)
        if self._queue:
            news, size_bytes = self._queue.popleft()
            self._bytes -= size_bytes
            return news
        if self._is_closed and not self._is_lost:
            raise BusUnavailableError("The bus is closed.")
        return None

    def wake(self) -> None:
        """Let a waiting `get` return None now."""
        self._wake()

    def lost(self) -> bool:
        """Tell once whether news were dropped since last asked."""
        was_lost, self._is_lost = self._is_lost, False
        return was_lost

    async def _wait(self, timeout_s: float) -> None:
        if self._waiter is not None:
            raise RuntimeError("Two tasks read the same tap.")
        # A plain future and timer: asyncio.timeout would cost a task lookup and a cancellation per
        # wait, and waits are what a live subscriber does all day.
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """Which taps of this process follow which topics."""

    def __init__(self) -> None:
        self._taps: dict[str, dict[HubTap, None]] = {}
        self._delivered = 0
        # Of the taps that were removed.
        self._losses = 0

    def stats(self, *, received: int, reconnects: int) -> Stats:
        """Give what was delivered, and what the taps hold now, with what the bus itself counts."""
        taps = {tap for taps in self._taps.values() for tap in taps}
        return Stats(
            received=received,
            delivered=self._delivered,
            losses=self._losses + sum(tap.losses for tap in taps),
            reconnects=reconnects,
            taps=len(taps),
            queued=sum(map(len, taps)),
        )

    def follows(self, topic: str) -> bool:
        """Tell whether any tap follows `topic`, so that nobody decodes for nobody."""
        return topic in self._taps

    def topics(self) -> list[str]:
        """Give the topics that have taps now."""
        return list(self._taps)

    def add(self, tap: HubTap) -> None:
        """Begin to deliver to `tap`."""
        for topic in tap.topics:
            self._taps.setdefault(topic, {})[tap] = None

    def remove(self, tap: HubTap) -> None:
        """Deliver nothing more to `tap`; forgets topics without taps."""
        is_held = any(tap in self._taps.get(topic, ()) for topic in tap.topics)
        self._losses += tap.losses if is_held else 0
        for topic in tap.topics:
            taps = self._taps.get(topic)
            if taps is not None:
                taps.pop(tap, None)
                if not taps:
                    del self._taps[topic]

    def deliver(self, news: News, size_bytes: int) -> None:
        """Hand one shared `news` to all taps of its topic."""
        taps = self._taps.get(news.topic)
        if taps is not None:
            self._delivered += len(taps)
            for tap in taps:
                tap.offer(news, size_bytes)

    def lose(self, topics: Iterable[str] | None = None) -> None:
        """Mark the taps of `topics` (all, if None) lost."""
        for topic in self._taps if topics is None else topics:
            for tap in self._taps.get(topic, ()):
                tap.lose()

    def close(self) -> None:
        """Close all taps; their readers wake."""
        for taps in list(self._taps.values()):
            for tap in taps:
                tap.close()

    @asynccontextmanager
    async def attached(self, tap: HubTap) -> AsyncIterator[HubTap]:
        """Deliver to `tap` while the context lasts."""
        self.add(tap)
        try:
            yield tap
        finally:
            self.remove(tap)
