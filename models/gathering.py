"""The same select, asked for by several operations in one moment, sent once.

On a busy server many operations reach the same select in the same turn of the event loop: the pages
of so many conversations, the authors of so many messages, each for keys of its own. Sent together
they cost one round trip, one parse and one plan of the database, and nobody waits for longer than
that turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from copy import copy
from enum import Enum, auto
from typing import Any

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.journal import journal
from models.statements import Statement

Found = Mapping[Any, Any]
Ask = Callable[[Sequence[Any]], Awaitable[Found]]

_MOST_KEYS = 200
"""Keys of one select: as many as one operation alone may ask for in one statement."""
_MOST_ROWS = 2_500
"""Rows that those keys may give: who wants few must not wait until many are read for others."""


class _Told(Enum):
    """What those who joined are told where nothing was found for them."""

    # It failed, for one of them perhaps: each asks alone.
    ALONE = auto()
    # Whoever was to ask has left, or cannot ask yet.
    ANEW = auto()


_Outcome = Found | _Told | SQLAlchemyError


class _Batch:
    """Keys that are asked for together, and those who joined the one who asks."""

    __slots__ = ("joined", "keys")

    def __init__(self, keys: Sequence[Any]) -> None:
        self.keys = dict.fromkeys(keys)
        self.joined: list[asyncio.Future[_Outcome]] = []

    def tell(self, found: _Outcome) -> None:
        for told in self.joined:
            if not told.done():
                told.set_result(found)


class Gathering:
    """Selects that wait until the end of this turn of the loop for others to join them."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Batch] = {}

    async def of(
        self,
        statement: Statement,
        values: Mapping[str, Any],
        keys: Sequence[Any],
        ask: Ask,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> Found:
        """Give what `ask` finds for the keys, among what it finds for others'.

        The first to come asks for all who have the same statement and the same values, the keys
        apart, unless `is_busy` tells that it would have to wait before. Nobody is given what was
        read before they asked. Where it fails, each asks alone and hears of their own failure;
        where there was no connection to ask on, all hear of that. Whoever is cancelled takes
        nothing from the others. Raises what `ask` raises.
        """
        most = min(_MOST_KEYS, _MOST_ROWS // values.get("limit", 1))
        if len(keys) > most:
            return await ask(keys)
        kind = (statement, *map(values.get, statement.given))
        while True:
            try:
                batch = self._open.get(kind)
            except TypeError:
                # A list among the values: hardly ever asked twice in one moment.
                return await ask(keys)
            if batch is None and not is_busy():
                return await self._first(kind, keys, ask, is_busy)
            if batch is None or len(batch.keys) + len(keys) > most:
                return await ask(keys)
            batch.keys.update(dict.fromkeys(keys))
            told: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
            batch.joined.append(told)
            found = await _noted(statement, told)
            if isinstance(found, SQLAlchemyError):
                # Of one's own: whoever is told of it adds where they were.
                raise copy(found)
            if found is _Told.ALONE:
                return await ask(keys)
            if not isinstance(found, _Told):
                return found

    async def _first(
        self, kind: Hashable, keys: Sequence[Any], ask: Ask, is_busy: Callable[[], bool]
    ) -> Found:
        batch = self._open[kind] = _Batch(keys)
        outcome: _Outcome = _Told.ANEW
        try:
            try:
                await asyncio.sleep(0)
            finally:
                del self._open[kind]
            if batch.joined and not is_busy():
                try:
                    outcome = found = await ask(list(batch.keys))
                    return found
                except (DBAPIError, PoolTimeoutError) as error:
                    if _is_sent(error):
                        outcome = _Told.ALONE
                    else:
                        outcome = error
                        raise
                except Exception:  # noqa: BLE001 - each hears of it by asking alone.
                    outcome = _Told.ALONE
        finally:
            batch.tell(outcome)
        return await ask(keys)


def _is_sent(error: DBAPIError | PoolTimeoutError) -> bool:
    """Tell whether there was a connection; without, it fails whatever is asked, and later for all.

    To try again for each would take as long again, of a database that has too much to do.
    """
    return isinstance(error, DBAPIError) and error.statement is not None


async def _noted(statement: Statement, told: "asyncio.Future[_Outcome]") -> _Outcome:
    """Wait for what somebody else asks; the statement is one of this operation's, too."""
    noted = journal.get()
    if noted is None:
        return await told
    begun = noted.begin(statement.dialect, statement.shown)
    try:
        found = await told
    except BaseException as error:
        noted.end(begun, statement.shown, None, error)
        raise
    failure = found if isinstance(found, SQLAlchemyError) else None
    noted.end(begun, statement.shown, None, failure)
    return found
