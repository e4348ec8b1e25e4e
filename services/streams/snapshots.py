"""How topics stand: read together for all who begin at the same moment.

After a deploy, or a network that comes back, everybody begins at once.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.statements import Reading
from models.system import Topic
from services.base import Deps
from services.batches import Batches
from services.streams.source import Kind, Source, Texts

_TOPICS = Reading(
    select(Topic.id, Topic.epoch, Topic.seq, Topic.first_seq).where(
        Topic.id.in_(bindparam("topics", expanding=True))
    )
)
_SIZE = 200
# Connections that snapshots may hold at once, of those the pool has.
_AT_ONCE = 4


class Glimpse(NamedTuple):
    """How a topic stands. Its `epoch` is empty before its first event; `seq` is its newest."""

    epoch: str
    seq: int
    first_seq: int
    growing: Texts
    is_complete: bool


_Lent = tuple[Glimpse, AsyncConnection, asyncio.Lock]


async def look(connection: AsyncConnection, sources: Sequence[Source]) -> dict[Source, Glimpse]:
    """Read how topics stand, with three statements for each kind and 200 topics.

    Without a snapshot, whatever has ended by `is_complete` has told so by `seq`, and what grows
    is no newer than `seq`.
    """
    kinds: dict[Kind, list[str]] = defaultdict(list)
    for source in sources:
        kinds[source.kind].append(source.id)
    # In this order: what ends a topic is its last event.
    complete = {kind: await kind.complete(connection, ids) for kind, ids in kinds.items()}
    growing = {kind: await kind.growing(connection, ids) for kind, ids in kinds.items()}
    rows = await _TOPICS.rows(connection, topics=[source.topic for source in sources])
    topics = {row[0]: row for row in rows}
    found = {}
    for source in sources:
        topic = topics.get(source.topic)
        epoch, seq, first_seq = topic[1:] if topic is not None else ("", 0, 1)
        texts = growing[source.kind].get(source.id, {})
        is_complete = source.id in complete[source.kind]
        found[source] = Glimpse(epoch, seq, first_seq, texts, is_complete)
    return found


def glimpses(deps: Deps) -> Batches[Source, Glimpse]:
    """Give who tells, for this process, how a topic stands. Raises DBAPIError."""

    async def read(sources: Sequence[Source]) -> Mapping[Source, Glimpse]:
        async with deps.db.reading() as connection:
            return await look(connection, sources)

    known = deps.caches.get("glimpses")
    if not isinstance(known, Batches):
        known = deps.caches["glimpses"] = Batches(read, size=_SIZE)
    return known


@dataclass(eq=False, slots=True)
class _Asked:
    source: Source
    answer: "asyncio.Future[_Lent]"
    left: asyncio.Event = field(default_factory=asyncio.Event)
    # Whose end gives the connection back, and who wait for it.
    task: asyncio.Task[None] | None = None
    others: "Sequence[_Asked]" = ()


class Snapshots:
    """Lends snapshots, one to all who ask while the one before is being read."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._waiting: list[_Asked] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_called = False
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def of(
        self, source: Source
    ) -> AsyncIterator[tuple[Glimpse, AsyncConnection, asyncio.Lock]]:
        """Lend a snapshot, with how the topic stands in it. Raises DBAPIError."""
        asked = _Asked(source, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        self._call()
        try:
            yield await asked.answer
        finally:
            asked.left.set()
            if asked.task is not None and all(one.left.is_set() for one in asked.others):
                # The last one goes when the connection is back.
                await asyncio.wait((asked.task,))

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            task = asyncio.get_running_loop().create_task(self._serve(), name="snapshot")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        asked = self._waiting
        try:
            async with self._slots, AsyncExitStack() as stack:
                async with self._turn:
                    asked = self._next()
                    for one in asked:
                        one.task, one.others = asyncio.current_task(), asked
                    connection = await stack.enter_async_context(self._deps.db.snapshot())
                    found = await look(connection, list({one.source: None for one in asked}))
                lock = asyncio.Lock()
                for one in asked:
                    if not one.answer.done():
                        one.answer.set_result((found[one.source], connection, lock))
                for one in asked:
                    await one.left.wait()
        except BaseException as error:
            self._is_called = self._is_called and asked is not self._waiting
            for one in asked:
                _refuse(one, error)
            if not isinstance(error, Exception):
                raise

    def _next(self) -> list[_Asked]:
        waiting = [one for one in self._waiting if not one.answer.done()]
        asked, self._waiting = waiting[:_SIZE], waiting[_SIZE:]
        self._is_called = False
        if self._waiting:
            self._call()
        return asked


def _refuse(asked: _Asked, error: BaseException) -> None:
    if asked.answer.done():
        return
    if isinstance(error, Exception):
        asked.answer.set_exception(error)
    else:
        asked.answer.cancel()


def snapshots(deps: Deps) -> Snapshots:
    """Give the process's one."""
    known = deps.caches.get("snapshots")
    if not isinstance(known, Snapshots):
        known = deps.caches["snapshots"] = Snapshots(deps)
    return known
