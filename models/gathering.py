"""The same select, asked for by several operations in one moment, sent once.

On a busy server many operations reach the same select in the same turn of the event loop: the pages
of so many conversations, the authors of so many messages, each for keys of its own. Sent together
they cost one round trip, one parse and one plan of the database, and nobody waits for longer than
that turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from models.journal import journal
from models.statements import Statement

Found = Mapping[Any, Any]
Ask = Callable[[Sequence[Any]], Awaitable[Found]]

_MOST_KEYS = 200
"""Keys of one select: as many as one operation alone may ask for in one statement."""


class _Told(Enum):
    """What those who joined are told where nothing was found for them."""

    # It failed, for one of them perhaps: each asks alone.
    ALONE = auto()
    # Whoever was to ask has left.
    ANEW = auto()


class _Batch:
    """Keys that are asked for together, and those who joined the one who asks."""

    __slots__ = ("joined", "keys")

    def __init__(self, keys: Sequence[Any]) -> None:
        self.keys = dict.fromkeys(keys)
        self.joined: list[asyncio.Future[Found | _Told]] = []

    def tell(self, found: Found | _Told) -> None:
        for told in self.joined:
            if not told.done():
                told.set_result(found)


class Gathering:
    """Selects that wait until the end of this turn of the loop for others to join them."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch] = {}

    async def of(
        self, statement: Statement, values: Mapping[str, Any], keys: Sequence[Any], ask: Ask
    ) -> Found:
        """Give what `ask` finds for the keys, among what it finds for others'.

        The first to come asks for all who have the same statement and the same values, the keys
        apart. Nobody is given what was read before they asked. Where it fails, each asks alone and
        hears of their own failure; whoever is cancelled takes nothing from the others. Raises what
        `ask` raises.
        """
        kind = (statement, *map(values.get, statement.given))
        try:
            batch = self._open.get(kind)
        except TypeError:
            # A list among the values: hardly ever asked twice in one moment.
            return await ask(keys)
        if batch is None:
            return await self._first(kind, keys, ask)
        if len(batch.keys) + len(keys) > _MOST_KEYS:
            return await ask(keys)
        batch.keys.update(dict.fromkeys(keys))
        told: asyncio.Future[Found | _Told] = asyncio.get_running_loop().create_future()
        batch.joined.append(told)
        found = await _noted(statement, told)
        if found is _Told.ANEW:
            return await self.of(statement, values, keys, ask)
        return await ask(keys) if isinstance(found, _Told) else found

    async def _first(self, kind: Hashable, keys: Sequence[Any], ask: Ask) -> Found:
        batch = self._open[kind] = _Batch(keys)
        outcome: Found | _Told = _Told.ANEW
        try:
            try:
                await asyncio.sleep(0)
            finally:
                del self._open[kind]
            if not batch.joined:
                return await ask(keys)
            try:
                outcome = found = await ask(list(batch.keys))
            except Exception:  # noqa: BLE001 - each hears of it by asking alone.
                outcome = _Told.ALONE
        finally:
            batch.tell(outcome)
        return await ask(keys) if outcome is _Told.ALONE else found


async def _noted(statement: Statement, told: "asyncio.Future[Found | _Told]") -> Found | _Told:
    """Wait for what somebody else asks; the statement is one of this operation's, too."""
    noted = journal.get()
    if noted is None:
        return await told
    begun = noted.begin(statement.dialect, statement.text)
    try:
        found = await told
    except BaseException as error:
        noted.end(begun, statement.text, None, error)
        raise
    noted.end(begun, statement.text, None, None)
    return found
