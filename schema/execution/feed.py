"""A feed: it follows one source, executes its items once, and hands them to its streams.

A subscription begins with a feed of its own that reads from its cursor, or from a snapshot, to the
present, at the pace of its reader. Once it stands where the shared feed of its kind stands, its
reader moves over; if there is none, it becomes the shared one.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from schema.execution.errors import request_failure, request_id_of
from schema.execution.result import Result
from schema.execution.stream import Event, Stream
from schema.execution.subscription import Subscription
from services.errors import RequestError
from services.events.base import BusUnavailableError, News, Tap
from services.streams import Follower, Restarted, idle_s

if TYPE_CHECKING:
    from schema.execution.feeds import Feeds

logger = logging.getLogger(__name__)

_RETRY_S, _RETRY_MAX_S = 1.0, 15.0
_PATIENCE_S = 15.0
"""How long a new subscription waits for a bus that is away."""
_LONG_PATIENCE_S = 60.0
"""How long one that was told something already waits, whatever is away."""
_TURN = 16
"""Events of a feed that catches up before everybody else in the process gets a turn."""


def nothing() -> None:
    """Do nothing."""


class Feed:
    """Follows one source for one or more streams."""

    def __init__(
        self,
        feeds: "Feeds",
        subscription: Subscription,
        follower: Follower[Any],
        *,
        is_resumed: bool = False,
        has_cursor: bool = False,
    ) -> None:
        self.subscription = subscription
        self._is_resumed = is_resumed
        self.streams: dict[Stream, None] = {}
        self.task: asyncio.Task[None] | None = None
        self._feeds = feeds
        self._follower = follower
        self._tap: Tap | None = None
        self._has_begun = False
        # Whether news may be taken where they are delivered: nothing is under way.
        self._is_idle = False
        self._is_shared = False
        self._is_executing = False
        # A reader with a cursor that is given a snapshot is reset; one without asked for it.
        self._has_given = has_cursor
        self._accepted: list[Any] = []
        # Those who would give it their readers once it stands still, and being called by it.
        self._joining: set[Feed] = set()
        self._is_called = False

    def stop(self) -> None:
        """End, once the event under way is executed: nothing can be taken back in its middle."""
        if self.task is None or self._is_executing or self.task is asyncio.current_task():
            # It looks whether anybody is left before the next one.
            return
        self.task.cancel()

    async def _event(self, item: Any) -> Event:
        self._is_executing = True
        if isinstance(item, Restarted):
            if self._has_given:
                self._feeds.stats.resets += 1
            else:
                self._feeds.stats.snapshots += 1
        self._has_given = True
        try:
            return await self.subscription.event(item)
        finally:
            self._is_executing = False

    async def run(self) -> None:
        """Serve until the source is over, or nobody reads any more, or the readers moved over."""
        end: Result | None = None
        try:
            await self._attached()
        except Exception as error:  # noqa: BLE001 - told to the readers, masked and logged.
            request_id = request_id_of(self.subscription.context)
            end = Result.refused([request_failure(error, request_id)])
        finally:
            self._feeds.forget(self)
            self._call_joining()
            for stream in self.streams:
                stream.feed = None
        for stream in tuple(self.streams):
            stream.finish(end)

    async def _attached(self) -> None:
        """Serve attached to the topic; a bus that is away for a moment is waited for."""
        bus, loop = self.subscription.live.bus, asyncio.get_running_loop()
        patience_s = _LONG_PATIENCE_S if self._is_resumed else _PATIENCE_S
        patient_until = loop.time() + patience_s
        while True:
            try:
                async with bus.attach(self._follower.topic) as tap:
                    self._tap = tap
                    await self._serve(tap)
                    return
            except Exception as error:
                may_pass = self._is_resumed or isinstance(error, BusUnavailableError)
                if self._has_begun or _is_refusal(error) or not may_pass:
                    raise
                if loop.time() >= patient_until or not self.streams:
                    raise
                logger.warning("A subscription waits to begin: %s", error)
                await asyncio.sleep(_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311
                # On from what was given by then. All who read this feed were given the same.
                tip = next((stream.tip for stream in self.streams), None)
                self._follower = self.subscription.live.follower(tip)

    async def _serve(self, tap: Tap) -> None:
        items = self._follower.begin()
        turn = await self._feeds.begin(self)
        wait_s = _RETRY_S
        while True:
            try:
                try:
                    await self._give(items, turn)
                finally:
                    turn()
                self._has_begun, wait_s = True, _RETRY_S
                if self._follower.is_over or await self._live(tap):
                    return
            except Exception as error:
                if not self._has_begun or tap.is_closed or _is_refusal(error):
                    raise
                self._feeds.stats.interrupted += 1
                logger.warning("A subscription is interrupted: %s", error)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311
                wait_s = min(wait_s * 2, _RETRY_MAX_S)
            tap.lost()
            items = self._follower.catch_up()

    async def _live(self, tap: Tap) -> bool:
        """Give what comes until something was lost (False) or nothing more is to be done (True)."""
        tap.sink = self._accept
        while self.streams:
            if self._follower.is_over or (not len(tap) and self._moves_over()):
                return True
            self._is_idle = not len(tap)
            if self._is_idle:
                self._call_joining()
            self._is_called = False
            try:
                news = await tap.get(idle_s())
            finally:
                self._is_idle = False
            is_quiet = news is None and not self._accepted and not self._is_called
            # The follower has passed what it accepted: it comes before the news, lost or not.
            accepted, self._accepted = self._accepted, []
            await self._answer_all(accepted)
            if tap.lost():
                return False
            if news is not None:
                await self._take(news)
            elif is_quiet and not self._follower.is_over and not await self._follower.is_current():
                return False
        return True

    async def _answer_all(self, items: Sequence[Any]) -> None:
        for item in items:
            # Whoever was handed the one before may lag by it, and nobody be left.
            if not self.streams:
                return
            self._hand(await self._event(item))

    def _accept(self, news: News) -> bool:
        """Take news where they are delivered, if that takes no waiting.

        Only the shared feed does: any other looks after each whether it can give its readers to it.
        """
        if not self._is_idle or not self._is_shared:
            return False
        try:
            items = self._follower.accept(news)
        except Exception:
            # Told again where it can be dealt with.
            logger.exception("News of %s are not understood", news.topic)
            return False
        if items is None:
            return False
        for item in items:
            event = None if self._accepted else self.subscription.answer(item)
            if event is None:
                self._accepted.append(item)
            else:
                self._hand(event)
        if self._accepted or self._follower.is_over:
            self._is_idle = False
            assert self._tap is not None  # noqa: S101 - the tap is what calls.
            self._tap.wake()
        return True

    async def _take(self, news: News) -> None:
        items = self._follower.accept(news)
        if items is None:
            await self._give(self._follower.take(news))
            return
        await self._answer_all(items)

    async def _give(
        self, items: AsyncGenerator[Any, None], turn: Callable[[], None] = nothing
    ) -> None:
        count = 0
        async with aclosing(items):
            while await self._give_next(items, turn):
                count += 1
                if count % _TURN == 0:
                    await asyncio.sleep(0)

    async def _give_next(self, items: AsyncGenerator[Any, None], turn: Callable[[], None]) -> bool:
        """Give one item; False when there is none, or nobody left to give it to."""
        if len(self.streams) != 1:
            return await self._give_now(items, turn)
        # Read no sooner than its reader's connection has room for it.
        (stream,) = self.streams
        async with stream.room.turn:
            await stream.room.free()
            return await self._give_now(items, turn)

    async def _give_now(self, items: AsyncGenerator[Any, None], turn: Callable[[], None]) -> bool:
        try:
            item = await anext(items)
        except StopAsyncIteration:
            return False
        event = await self._event(item)
        # The snapshot is read: the next who want one need not wait for this one's reader.
        turn()
        streams = tuple(self.streams)
        if len(streams) == 1:
            self._feeds.stats.delivered += 1
            await streams[0].put(event)
        else:
            self._hand(event)
        return bool(self.streams)

    def _hand(self, event: Event) -> None:
        streams = tuple(self.streams)
        self._feeds.stats.delivered += len(streams)
        for stream in streams:
            stream.offer(event)

    def _call_joining(self) -> None:
        """Let those who waited for this feed to stand still look again whether they can join."""
        joining, self._joining = self._joining, set()
        for feed in joining:
            feed._is_called = True
            if feed._tap is not None:
                feed._tap.wake()

    def _moves_over(self) -> bool:
        """Become the shared feed, or give the readers to it if it stands at the same place."""
        shared = self._feeds.shared(self)
        if shared is self:
            self._is_shared = True
            return False
        stands_still = shared._is_idle and shared._tap is not None and not len(shared._tap)
        if not stands_still:
            shared._joining.add(self)
        if (
            not stands_still
            or shared._follower.place() != self._follower.place()
            or any(stream.is_behind for stream in self.streams)
        ):
            return False
        for stream in self.streams:
            stream.feed = shared
            shared.streams[stream] = None
            self._feeds.stats.joined += 1
        self.streams.clear()
        return True


def _is_refusal(error: Exception) -> bool:
    """Tell whether trying again cannot help."""
    return isinstance(error, RequestError) and not isinstance(error, BusUnavailableError)
