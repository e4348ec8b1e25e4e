"""What a follower gives, and what every follower can do."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from services.events.base import News

I_co = TypeVar("I_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A connection that reads the state as of one moment, lent until `release`.

    Others read from it too: whoever executes a statement holds `lock`.
    """

    connection: AsyncConnection
    lock: asyncio.Lock
    release: Callable[[], Awaitable[None]]


class Fact(NamedTuple):
    """A durable event as it stands in the log."""

    seq: int
    type: str
    payload: Mapping[str, Any]


class Happened(NamedTuple):
    """A durable event. `at` is when it was told, seconds since 1970; 0 if read from the log."""

    cursor: str
    seq: int
    type: str
    payload: Mapping[str, Any]
    at: float = 0.0


class Appended(NamedTuple):
    """More of the text `key`, beginning at `offset` characters. `at` as in `Happened`."""

    cursor: str
    key: str
    offset: int
    text: str
    at: float = 0.0

    def joined(self, later: "Item") -> "Appended | None":
        """Give this append and the `later` one that continues it as one; None if it does not."""
        if (
            not isinstance(later, Appended)
            or later.key != self.key
            or later.offset != self.offset + len(self.text)
        ):
            return None
        return Appended(later.cursor, self.key, self.offset, self.text + later.text, self.at)


class Restarted(NamedTuple):
    """The follower must begin anew from a snapshot.

    `snapshot` reads the state that belongs to `cursor`, until it is released or the next item is
    asked for.
    """

    cursor: str
    snapshot: Snapshot


Item = Happened | Appended | Restarted


class Follower(Protocol[I_co]):
    """How far one reader, or many together, have come on a topic, and what comes next.

    Whoever drives it attaches to `topic` first, consumes `begin()`, and from then on gives it the
    news of the topic in the order they come: first to `accept`, which never waits, and to `take`
    where that is not enough. After lost news, or silence in which `is_current()` says no, it is
    told to `catch_up()`. Nothing is skipped or given twice, whatever signals do. Once `is_over`
    nothing follows. One task at a time drives a follower.
    """

    @property
    def topic(self) -> str:
        """The topic to attach to."""

    @property
    def is_over(self) -> bool:
        """Whether the last item was given."""

    def place(self) -> Hashable:
        """Tell how far it has come: followers at equal places give equal items from there on."""

    def begin(self) -> AsyncGenerator[I_co, None]:
        """Give what lies between the beginning (a cursor, or a snapshot) and now."""

    def accept(self, news: News) -> Sequence[I_co] | None:
        """Give what the news bring, without waiting; None, and nothing changes, if it must read."""

    def take(self, news: News) -> AsyncGenerator[I_co, None]:
        """Give what the news bring, reading what is needed."""

    def catch_up(self) -> AsyncGenerator[I_co, None]:
        """Read everything up to now."""

    async def is_current(self) -> bool:
        """Tell, after a silence, whether there is surely nothing to catch up with."""
