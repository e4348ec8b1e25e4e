"""Connections kept open and at hand for selects.

Taking a connection from the pool and giving it back costs more than most selects: changes of
greenlets, and on MySQL a ping before and a rollback after. A lane does without: it asks in no
transaction, has nothing to roll back, and what only reads may be asked again if the server has
closed the connection meanwhile.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.statements import fetch

# How long one may have been idle: a server that closed it in that time was restarted.
_IDLE_S = 15.0


class Lanes:
    """At most `size` connections of an engine's pool, opened as they are needed.

    Whoever finds all of them taken waits in turn, `timeout_s` seconds at most: that is cheaper for
    all than one more connection, and leaves the rest of the pool to those who write.
    """

    def __init__(self, engine: AsyncEngine, size: int, timeout_s: float) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(size)
        # With when each was used last; the last one used is taken first.
        self._idle: list[tuple[AsyncConnection, float]] = []

    def __len__(self) -> int:
        """Give how many connections are open and idle."""
        return len(self._idle)

    async def select(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        """Run one select and give its rows as tuples.

        Raises DBAPIError, and the pool's TimeoutError when no connection is to be had. A cancelled
        select gives up its connection.
        """
        if self._places.locked():
            await self._wait()
        else:
            await self._places.acquire()
        try:
            try:
                return await self._ask(text, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # It had been closed while nobody used it.
            return await self._ask(text, values)
        finally:
            self._places.release()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise PoolTimeoutError(f"no connection was free within {self._timeout_s:g} s") from None

    async def _ask(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        connection = await self._take() or await self._open()
        is_fit = False
        try:
            found = await fetch(connection, text, values)
            is_fit = True
            return found
        except DBAPIError as error:
            is_fit = not error.connection_invalidated
            raise
        finally:
            if is_fit:
                self._idle.append((connection, asyncio.get_running_loop().time()))
            else:
                await connection.close()

    async def _take(self) -> AsyncConnection | None:
        """Take the one used last, if it was used just now; close those that were not."""
        while self._idle:
            connection, used_at = self._idle.pop()
            if asyncio.get_running_loop().time() - used_at < _IDLE_S:
                return connection
            await connection.close()
        return None

    async def _open(self) -> AsyncConnection:
        connection = await self._engine.connect()
        if not self._is_sqlite:
            try:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
            except BaseException:
                await connection.close()
                raise
        return connection

    async def aclose(self) -> None:
        """Close those that are idle."""
        while self._idle:
            connection, _ = self._idle.pop()
            await connection.close()
