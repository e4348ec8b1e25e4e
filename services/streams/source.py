"""What is followed: a kind of topic, and one topic of that kind."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from services.streams.base import Fact

Texts = dict[str, str]
"""The stored content of growing texts, by their keys."""


def _never(_: Fact) -> bool:
    return False


def _no_text(_: Fact) -> str | None:
    return None


async def _nothing_grows(_: AsyncConnection, __: Sequence[str]) -> Mapping[str, Texts]:
    return {}


async def _nothing_stored(_: AsyncConnection, __: str) -> str | None:
    return None


async def _nothing_ends(_: AsyncConnection, __: Sequence[str]) -> set[str]:
    return set()


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What the topics of one kind have in common.

    `growing(connection, ids)` gives, for things followed, the texts still growing.
    `complete(connection, ids)` gives those of the things of which nothing is to come.
    `stored(connection, key)` gives the stored content of one text.
    `begins(event)` names the text an event starts, if any: it grows from offset 0.
    `ends(event)` names the text an event completes, if any: its rest is sent before the event.
    `restarts(event)` tells whether an event calls for a new snapshot.
    `is_last(event)` tells whether nothing can follow.
    `replays` makes a beginning without a usable cursor start with the whole log, if it is kept.
    """

    growing: Callable[[AsyncConnection, Sequence[str]], Awaitable[Mapping[str, Texts]]] = (
        _nothing_grows
    )
    stored: Callable[[AsyncConnection, str], Awaitable[str | None]] = _nothing_stored
    complete: Callable[[AsyncConnection, Sequence[str]], Awaitable[set[str]]] = _nothing_ends
    begins: Callable[[Fact], str | None] = _no_text
    ends: Callable[[Fact], str | None] = _no_text
    restarts: Callable[[Fact], bool] = _never
    is_last: Callable[[Fact], bool] = _never
    replays: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """One thing that is followed, by its id, and the topic on which it is told of."""

    kind: Kind
    id: str
    topic: str
