"""One operation that subscribes: what it follows, and how each item of that is answered."""

import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schema.execution.errors import request_failure, request_id_of
from schema.execution.live import Live
from schema.execution.result import Result
from schema.execution.selections import Selections
from schema.execution.stream import Event
from services.streams import Restarted

if TYPE_CHECKING:
    from schema.execution.feeds import Feeds

logger = logging.getLogger(__name__)

Execute = Callable[[Any, Any], Awaitable[Result]]


@dataclass(slots=True, eq=False)
class Subscription:
    """One operation under way: what it follows and how its items are answered.

    `execute(context, event)` answers with the executor; `select()` makes what answers from the
    event alone, where that is enough. `key` is equal for those who may share an execution.
    """

    live: Live
    key: Hashable
    context: Any
    select: Callable[[], Selections]
    execute: Execute
    feeds: "Feeds" = field(init=False)
    _selections: Selections | None = None

    def answer(self, item: Any) -> Event | None:
        """Answer from the item alone, or give None."""
        if isinstance(item, Restarted) or getattr(self.context, "extensions", None):
            return None
        if self._selections is None:
            self._selections = self.feeds.selections(self)
        try:
            json = self._selections.answer(self.live.event(item))
        except Exception:
            # The executor will say what is wrong with it, and where.
            logger.exception("An event cannot be answered from itself")
            return None
        if json is None:
            return None
        self.feeds.stats.answered += 1
        return Event(json, item, self.feeds.since(item))

    async def event(self, item: Any) -> Event:
        """Answer an item, reading what is selected beyond it."""
        created_at = self.feeds.since(item)
        try:
            answered = self.answer(item)
            if isinstance(item, Restarted):
                # Released in the end, whether it was needed or not.
                await self.context.pin(item.snapshot)
            if answered is not None:
                return answered
            result = await self.execute(self.context, self.live.event(item))
            json = result.json()
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            # Told in the place of the event, for what is not told at all would be a gap.
            result = Result(None, [request_failure(error, request_id_of(self.context))])
            json = result.json()
        finally:
            # Before the event is sent: a slow reader must not hold what it was read with.
            await self._end_event()
        self.feeds.stats.executed += 1
        return Event(json, item, created_at, result.errors)

    async def _end_event(self) -> None:
        try:
            await self.context.end_event()
        except Exception:
            # The event is read and must be told: its follower is past it already.
            logger.warning("A snapshot could not be given back", exc_info=True)
