"""Shared execution: who asks the same with the same rights is answered once.

A *feed* follows one source and executes its items for one operation, one set of variables and one
scope of authorisation. It has any number of *streams*, each with its own reader. A reader that
cannot keep up leaves the shared feed of its kind, and begins again with one of its own from the
last event it took.
"""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from schema.execution.feed import Feed, nothing
from schema.execution.selections import Selections
from schema.execution.stream import Stream
from schema.execution.subscription import Subscription
from services.events.calls import TaskSet

_CLOSE_S = 2.0


@dataclass(slots=True)
class Stats:
    """What happened since the process started."""

    executed: int = 0
    answered: int = 0
    delivered: int = 0
    merged: int = 0
    lagged: int = 0
    snapshots: int = 0
    resets: int = 0
    joined: int = 0
    interrupted: int = 0


class Feeds:
    """All feeds of a process."""

    def __init__(self) -> None:
        self.stats = Stats()
        self._shared: dict[Hashable, Feed] = {}
        # Feeds that are to begin with a snapshot and have not: whoever wants one now shares it.
        self._waiting: dict[Hashable, Feed] = {}
        self._selections: WeakValueDictionary[Hashable, Selections] = WeakValueDictionary()
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._streams: dict[Stream, None] = {}
        self._tasks = TaskSet()

    def since(self, item: Any) -> float:
        """Give when an item came to be, on the clock of the loop; now, where that is not known.

        Its sender may be another machine: clocks that differ count as no time at most.
        """
        now = asyncio.get_running_loop().time()
        at = getattr(item, "at", 0.0)
        return now - max(0.0, time.time() - at) if at else now

    def selections(self, subscription: Subscription) -> Selections:
        """Give what answers events from themselves, the same for all of a kind."""
        known = self._selections.get(subscription.key)
        if known is None:
            known = self._selections[subscription.key] = subscription.select()
        return known

    def open(self, subscription: Subscription) -> Stream:
        """Begin a subscription from its cursor."""
        subscription.feeds = self
        stream = Stream(subscription, subscription.live.after)
        self._streams[stream] = None
        self.resume(stream)
        return stream

    def resume(self, stream: Stream) -> None:
        """Let a stream go on from its cursor, with a feed of its own at first."""
        subscription = stream.subscription
        waiting = self._waiting.get(subscription.key) if stream.cursor is None else None
        if waiting is not None:
            waiting.streams[stream] = None
            stream.feed = waiting
            self.stats.joined += 1
            return
        feed = Feed(
            self,
            subscription,
            subscription.live.follower(stream.cursor),
            is_resumed=stream.has_taken,
            has_cursor=stream.cursor is not None,
        )
        if stream.cursor is None:
            self._waiting[subscription.key] = feed
        feed.streams[stream] = None
        stream.feed = feed
        feed.task = self._tasks.start(feed.run(), name=f"feed {feed._follower.topic}")

    async def begin(self, feed: Feed) -> Callable[[], None]:
        """Wait until no other feed of the same kind reads its snapshot; gives what ends the turn.

        Meanwhile others join `feed`: nobody gets a snapshot that was begun before they asked.
        """
        key = feed.subscription.key
        if self._waiting.get(key) is not feed:
            return nothing
        lock = self._turns.get(key)
        if lock is None:
            lock = self._turns[key] = asyncio.Lock()
        await lock.acquire()
        if self._waiting.get(key) is feed:
            del self._waiting[key]
        return partial(_release, [lock])

    def shared(self, feed: Feed) -> Feed:
        """Give the shared feed of the same kind, which is `feed` itself if there was none."""
        return self._shared.setdefault(feed.subscription.key, feed)

    def lags(self, stream: Stream) -> None:
        """Let a stream that does not keep up go its own way."""
        self.stats.lagged += 1
        self._part(stream)

    def leave(self, stream: Stream) -> None:
        """Forget a stream whose reader has gone."""
        self._streams.pop(stream, None)
        self._part(stream)

    def _part(self, stream: Stream) -> None:
        feed, stream.feed = stream.feed, None
        if feed is None:
            return
        feed.streams.pop(stream, None)
        if not feed.streams:
            self.forget(feed)
            feed.stop()

    def forget(self, feed: Feed) -> None:
        """Let nobody join a feed that ends."""
        for feeds in (self._shared, self._waiting):
            if feeds.get(feed.subscription.key) is feed:
                del feeds[feed.subscription.key]

    @property
    def open_feeds(self) -> int:
        """Feeds at work."""
        return len(self._tasks)

    def queues(self) -> tuple[int, int, int, int]:
        """Give the number of streams, of events they have queued, their bytes, and who lags."""
        streams = self._streams
        return (
            len(streams),
            sum(map(len, streams)),
            sum(stream.size_bytes for stream in streams),
            sum(stream.is_lagging for stream in streams),
        )

    async def aclose(self) -> None:
        """End all streams and feeds."""
        for stream in tuple(self._streams):
            stream.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._tasks.ended()
        except TimeoutError:
            await self._tasks.aclose()


def _release(locks: list[asyncio.Lock]) -> None:
    """Release a lock, once."""
    while locks:
        locks.pop().release()
