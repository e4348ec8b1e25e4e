"""One reader's end of a subscription: a bounded queue that merges, then lets go and reads again."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import orjson

from schema.execution.errors import ErrorDict
from schema.execution.result import Result

if TYPE_CHECKING:
    from schema.execution.feed import Feed
    from schema.execution.subscription import Subscription

MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024
"""The high mark: a reader that has more waiting lets go of it and reads the log again later."""

LOW_EVENTS = 64
LOW_BYTES = 128 * 1024
"""The low mark: above it, what can be told as one event is."""

_MERGED_BYTES = 16 * 1024
_EVENT_BYTES = 600
"""What an event costs beside its payload: the objects, and the item it was made from."""


class Room:
    """What all streams of one connection hold together, however many they are.

    Those that catch up take `turn`, one after the other, and wait until there is room again: what
    is read for a reader that does not take it would wait in memory otherwise.
    """

    __slots__ = ("_freed", "bytes", "turn")

    def __init__(self) -> None:
        self.bytes = 0
        self.turn = asyncio.Lock()
        self._freed: asyncio.Event | None = None

    def hold(self, size: int) -> None:
        """Count bytes that are held (or, below 0, were taken)."""
        self.bytes += size
        if size < 0 and self.bytes <= LOW_BYTES and self._freed is not None:
            self._freed.set()

    async def free(self) -> None:
        """Return when no more is held than a reader in step leaves."""
        while self.bytes > LOW_BYTES:
            if self._freed is None:
                self._freed = asyncio.Event()
            self._freed.clear()
            await self._freed.wait()


class Event:
    """One event of a subscription with its payload as JSON, shared by all who receive it.

    `item` is what it was made from. `created_at` is on the clock of the loop.
    """

    __slots__ = ("_after", "_joined", "_json", "created_at", "cursor", "errors", "item")

    is_executed = True

    def __init__(
        self, json: bytes, item: Any, created_at: float, errors: list[ErrorDict] | None = None
    ) -> None:
        self._json = json
        self.item = item
        self.cursor: str | None = getattr(item, "cursor", None)
        self.created_at = created_at
        self.errors = errors or []
        # The event this one was joined to last, and both as one: readers that fall behind together
        # share that too.
        self._after: Event | None = None
        self._joined: Event | None = None

    def joined_to(self, last: "Event", answer: "Callable[[Any], Event | None]") -> "Event | None":
        """Give `last` and this event as one, or None if they are no adjacent texts."""
        if self._after is not last:
            join = getattr(last.item, "joined", None)
            item = None if join is None else join(self.item)
            joined = None if item is None else answer(item)
            if joined is not None:
                joined.created_at = last.created_at
            self._after, self._joined = last, joined
        return self._joined

    def json(self) -> bytes:
        """Give the payload."""
        return self._json

    @property
    def data(self) -> Any:
        """The payload's `data`, read back."""
        return orjson.loads(self._json)["data"]

    def payload(self) -> dict[str, Any]:
        """Give the payload, read back."""
        payload: dict[str, Any] = orjson.loads(self._json)
        return payload


class Stream:
    """What one reader has not taken yet.

    A transport either iterates over it, one event at a time, or takes what there is whenever
    `on_ready` was called. The feed never waits for it: adjacent texts are merged above the low
    mark; above the high mark everything is let go, and once the reader takes again it is read again
    from the last cursor it took, at its own pace. So a slow reader costs a bounded queue, and one
    that takes nothing at all costs nothing more.
    """

    __slots__ = (
        "_bytes",
        "_events",
        "_is_closed",
        "_room",
        "_waiter",
        "cursor",
        "end",
        "feed",
        "has_taken",
        "is_lagging",
        "is_over",
        "on_ready",
        "room",
        "subscription",
    )

    def __init__(self, subscription: "Subscription", cursor: str | None) -> None:
        self.subscription = subscription
        # Shared with the other streams of its connection by whoever opened it for one.
        self.room = Room()
        self.cursor = cursor
        self.feed: Feed | None = None
        self.has_taken = False
        self.is_lagging = False
        self.is_over = False
        # What failed, when it did: the last thing the reader hears.
        self.end: Result | None = None
        self.on_ready: Callable[[], None] | None = None
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._room: asyncio.Event | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._events)

    def __bool__(self) -> bool:
        return True

    @property
    def is_done(self) -> bool:
        """Whether everything was taken and nothing can follow."""
        return self.is_over and not self._events

    @property
    def size_bytes(self) -> int:
        """Bytes of the events queued, with what they cost beside their payloads."""
        return self._bytes

    @property
    def tip(self) -> str | None:
        """The cursor of the last event queued or taken; the one to begin at, before the first."""
        return self._events[-1].cursor if self._events else self.cursor

    @property
    def is_behind(self) -> bool:
        """Whether more waits than a reader in step would leave."""
        events = len(self._events)
        return events > LOW_EVENTS or (events > 0 and self.room.bytes > LOW_BYTES)

    # ---- for the feed

    def offer(self, event: Event) -> None:
        """Queue an event without waiting; beyond the high mark, lag."""
        events = self._events
        size = len(event.json()) + _EVENT_BYTES
        room = self.room
        if len(events) > LOW_EVENTS or room.bytes > LOW_BYTES:
            if events and self._merge(event):
                return
            if events and (len(events) >= MAX_EVENTS or room.bytes + size > MAX_BYTES):
                self._lag()
                return
        events.append(event)
        self._bytes += size
        room.bytes += size
        if self.on_ready is not None:
            self.on_ready()
        elif self._waiter is not None:
            self._wake()

    async def put(self, event: Event) -> None:
        """Queue an event once the reader is in step; for readers that catch up."""
        while self.is_behind and not self._is_closed:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if not self._is_closed:
            self._events.append(event)
            self._hold(len(event.json()) + _EVENT_BYTES)
            self._signal()

    def finish(self, end: Result | None = None) -> None:
        """Let nothing follow what is queued, but for `end`."""
        if not self.is_over:
            self.is_over = True
            self.end = end
            self._signal()

    def _merge(self, event: Event) -> bool:
        """Make one event of the newest and this one, if they are adjacent texts."""
        last = self._events[-1]
        size = len(last.json())
        if size > _MERGED_BYTES:
            return False
        merged = event.joined_to(last, self.subscription.answer)
        if merged is None:
            return False
        self._events[-1] = merged
        self._hold(len(merged.json()) - size)
        self.subscription.feeds.stats.merged += 1
        return True

    def _hold(self, size: int) -> None:
        self._bytes += size
        self.room.hold(size)

    def _lag(self) -> None:
        self._events.clear()
        self._hold(-self._bytes)
        self.is_lagging = True
        self.subscription.feeds.lags(self)

    # ---- for the transport

    def share(self, room: Room) -> None:
        """Count what this stream holds in the room of its connection."""
        self.room.hold(-self._bytes)
        room.hold(self._bytes)
        self.room = room

    def take(self, max_bytes: int) -> list[Event]:
        """Give the next events, at least one if there is any, up to about `max_bytes` bytes."""
        events = self._events
        taken: list[Event] = []
        size = 0
        while events and size < max_bytes:
            event = events.popleft()
            taken.append(event)
            size += len(event.json()) + _EVENT_BYTES
        if taken:
            self._hold(-size)
            self.has_taken = True
            self.cursor = taken[-1].cursor or self.cursor
            if self._room is not None and not self.is_behind:
                self._room.set()
        if self.is_lagging and not events:
            self.is_lagging = False
            self.subscription.feeds.resume(self)
        return taken

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event | Result:
        """Give the next event; a failure as the last, with `is_executed` False."""
        while True:
            for event in self.take(1):
                return event
            if self.is_done:
                end, self.end = self.end, None
                if end is None:
                    raise StopAsyncIteration
                return end
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def aclose(self) -> None:
        """Stop receiving."""
        self.close()

    def close(self) -> None:
        """Stop receiving, without waiting."""
        if self._is_closed:
            return
        self._is_closed = True
        self.is_over, self.is_lagging = True, False
        self.on_ready = None
        self._events.clear()
        self._hold(-self._bytes)
        if self._room is not None:
            self._room.set()
        self.subscription.feeds.leave(self)
        self._wake()

    def _signal(self) -> None:
        if self.on_ready is not None:
            self.on_ready()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


Results = AsyncGenerator[Result, None]
