"""Connections kept open and at hand for selects.

Taking a connection from the pool and giving it back costs more than most selects: changes of
greenlets, and on MySQL a ping before and a rollback after. A lane does without: it asks in no
transaction, has nothing to roll back, and what only reads may be asked again if the server has
closed the connection meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.statements import fetch

# How long one may have been idle: something on the way may forget those that say nothing, and then
# nobody tells.
_IDLE_S = 15.0
# Who waits longer for a lane takes a connection from the pool: lanes may be held up by a few.
_TURN_S = 0.2


@dataclass(slots=True, eq=False)
class _Lane:
    connection: AsyncConnection
    opened_at: float
    used_at: float


class Lanes:
    """At most `size` connections of an engine's pool, opened as they are needed; 0 for none.

    Whoever finds all of them taken waits a moment, which is cheaper for all than one more
    connection, and is then served by the rest of the pool, as long as that has any. Those idle for
    15 s are closed, and those older than `recycle_s` seconds.
    """

    def __init__(self, engine: AsyncEngine, size: int, recycle_s: float) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._recycle_s = recycle_s
        self._places = size
        # Those who wait for a place in their turn, each until when; one timer looks after them.
        self._queue: deque[tuple[float, asyncio.Future[bool]]] = deque()
        self._patience: asyncio.TimerHandle | None = None
        # The last one used is taken first.
        self._idle: list[_Lane] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Give how many connections are open and idle."""
        return len(self._idle)

    async def select(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        """Run one select and give its rows as tuples.

        Raises DBAPIError, and the pool's TimeoutError when no connection is to be had. A cancelled
        select gives up its connection.
        """
        if not (self._enter() or await self._comes_in_turn()):
            async with self._engine.connect() as connection:
                return await fetch(connection, text, values)
        try:
            try:
                return await self._ask(text, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # It had been closed while nobody used it, and so were the others, most likely.
            await self._drop_idle()
            return await self._ask(text, values)
        finally:
            self._leave()

    def _enter(self) -> bool:
        """Take a place, if there is one."""
        if not self._places:
            return False
        self._places -= 1
        return True

    async def _comes_in_turn(self) -> bool:
        """Wait for a place, and take it; False if that takes too long."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._queue.append((loop.time() + _TURN_S, turn))
        if self._patience is None:
            self._patience = loop.call_later(_TURN_S, self._send_away)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self._leave()
            raise

    def _leave(self) -> None:
        """Leave a place to whoever has waited the longest."""
        while self._queue:
            _, turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._places += 1

    def _send_away(self) -> None:
        """Let those wait no more whose time is over."""
        loop = asyncio.get_running_loop()
        self._patience = None
        while self._queue:
            until, turn = self._queue[0]
            if not turn.done():
                if until > loop.time():
                    self._patience = loop.call_at(until, self._send_away)
                    return
                turn.set_result(False)
            self._queue.popleft()

    async def _ask(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        lane = await self._take() or await self._open()
        is_fit = False
        try:
            found = await fetch(lane.connection, text, values)
            is_fit = True
            return found
        except DBAPIError as error:
            is_fit = not error.connection_invalidated
            raise
        finally:
            if is_fit:
                self._keep(lane)
            else:
                await lane.connection.close()

    def _keep(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        lane.used_at = loop.time()
        self._idle.append(lane)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_IDLE_S, self._sweep)

    async def _take(self) -> _Lane | None:
        """Take the one used last, unless it is too old; the sweeper has those that were idle."""
        while self._idle:
            lane = self._idle.pop()
            now = asyncio.get_running_loop().time()
            if now - lane.used_at < _IDLE_S and now - lane.opened_at < self._recycle_s:
                return lane
            await self._close(lane)
        return None

    async def _open(self) -> _Lane:
        connection = await self._engine.connect()
        if not self._is_sqlite:
            try:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
            except BaseException:
                # It may be in the middle of an answer, or lost.
                await connection.invalidate()
                await connection.close()
                raise
        now = asyncio.get_running_loop().time()
        return _Lane(connection, now, now)

    async def _close(self, lane: _Lane) -> None:
        """Give a connection up without asking the server anything: it might never answer."""
        if not self._is_sqlite:
            await lane.connection.invalidate()
        await lane.connection.close()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._close(self._idle.pop())

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = None
        oldest = loop.time() - _IDLE_S
        idle, self._idle = self._idle, []
        for lane in idle:
            if lane.used_at > oldest:
                self._idle.append(lane)
                continue
            task = loop.create_task(self._close(lane), name="idle lane")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        if self._idle:
            next_at = min(lane.used_at for lane in self._idle) + _IDLE_S
            self._sweeper = loop.call_at(next_at, self._sweep)

    async def aclose(self) -> None:
        """Close those that are idle; who still waits for a place is served by the pool."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        while self._queue:
            _, turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(False)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await self._drop_idle()
        if self._closing:
            await asyncio.wait(self._closing)
