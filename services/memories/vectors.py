"""Vectors of users' memories, in the memory of this process and in step with the tables.

Every change of a memory is an event of the topic `memories:usr_…`, numbered in commit order. A
shelf holds one user's vectors as of one such number. Before each use it compares the number with
the table's and reads the memories that changed meanwhile, whichever process changed them.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.accounts import User
from models.memories import Memory
from models.states import MemoryType
from models.system import Event, Topic
from services.base import Deps, Work, work
from services.errors import UserError, UserErrorCode
from services.language.embeddings import Vectors, to_bytes

if TYPE_CHECKING:
    from services.language.index import ExactIndex

CHANGED = "MemoryChanged"
_CACHE = "memories"
# About 200 MB of vectors in a process; the users seen longest ago are dropped first.
_MAX_VECTORS = 100_000
# An index begins with room for this many.
_MIN_VECTORS = 128
_BATCH_IDS = 500
# Further behind than this, reading everything is the shorter way.
_MAX_NEWS = 1_000
_EMBED_BATCH = 64


def topic(user_id: str) -> str:
    """The topic of a user's memories."""
    return f"memories:{user_id}"


def changed(unit: Work, user_id: str, memory_id: str, how: str) -> None:
    """Record that a memory is new or different: `how` is added, updated, superseded or deleted."""
    unit.record(topic(user_id), CHANGED, {"id": memory_id, "how": how})


async def lock_owner(unit: Work, user_id: str) -> None:
    """Make writers of one user's memories wait for each other: two must not keep the same fact.

    Raises UserError NOT_FOUND when the account is gone.
    """
    if await unit.lock(User, user_id) is None:
        raise UserError(UserErrorCode.NOT_FOUND, "Your account is gone.")


@dataclass(frozen=True, slots=True)
class Position:
    """A state of a user's memories: the last event, and how many memories there are."""

    epoch: str | None
    seq: int
    count: int


_NOWHERE = Position(None, -1, -1)


def _index() -> "ExactIndex":
    # It needs numpy: 11 MiB that a process in which nobody searches memories can do without.
    from services.language.index import ExactIndex

    return ExactIndex()


@dataclass(slots=True)
class Shelf:
    """One user's vectors: of current memories, and of past (superseded) ones."""

    refreshing: asyncio.Lock = field(default_factory=asyncio.Lock)
    position: Position = _NOWHERE
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _current: "ExactIndex" = field(default_factory=_index)
    _past: "ExactIndex" = field(default_factory=_index)
    _types: dict[str, MemoryType] = field(default_factory=dict)
    _successors: dict[str, str] = field(default_factory=dict)
    # Memories without a vector of the present model: imported, or made by an earlier model.
    _unread: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._types)

    @property
    def unread(self) -> list[str]:
        """Ids of memories that have no vector of the present model yet."""
        with self._guard:
            return sorted(self._unread)

    def forget_all(self) -> None:
        """Begin anew."""
        with self._guard:
            self._current, self._past = _index(), _index()
            self._types.clear()
            self._successors.clear()
            self._unread.clear()

    def put(self, ids: Iterable[str], rows: Sequence[Any], model: str) -> None:
        """Take over memories as read from the table; an id without a row is forgotten."""
        found = {row.id: row for row in rows}
        with self._guard:
            for id_ in ids:
                row = found.get(id_)
                self._unread.discard(id_)
                self._successors.pop(id_, None)
                if row is None:
                    self._types.pop(id_, None)
                    self._current.remove(id_)
                    self._past.remove(id_)
                    continue
                self._types[id_] = row.type
                here, there = self._current, self._past
                if row.valid_until is not None:
                    here, there = there, here
                if row.superseded_by_id is not None:
                    self._successors[id_] = row.superseded_by_id
                there.remove(id_)
                is_read = row.embedding is not None and row.embedding_model == model
                if not (is_read and here.upsert_bytes(id_, row.embedding)):
                    here.remove(id_)
                    self._unread.add(id_)

    def search(
        self,
        vector: Vectors,
        k: int,
        *,
        types: Collection[MemoryType] | None = None,
        include_past: bool = False,
    ) -> list[tuple[str, float]]:
        """Give the `k` most relevant memories, best first, with their relevance.

        That is the cosine with `vector`; and what took the place of a memory is as relevant as that
        was: "I moved to Busan" answers where one lives, for it superseded "I live in Seoul".
        """
        with self._guard:
            among = None
            if types is not None:
                among = {id_ for id_, type_ in self._types.items() if type_ in types}
            found = dict(self._current.search(vector, k, among))
            past = self._past.search(vector, k, among)
            for id_, score in past:
                heir = self._heir(id_)
                if heir in self._current and (among is None or heir in among):
                    found[heir] = max(score, found.get(heir, score))
        if include_past:
            found.update(past)
        return sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:k]

    def nearest(self, vector: Vectors, k: int) -> list[tuple[str, float]]:
        """Give the `k` current memories nearest to `vector` with their cosines, best first."""
        with self._guard:
            return self._current.search(vector, k)

    def _heir(self, id_: str) -> str:
        """Follow what took the place of a memory to the end."""
        seen = {id_}
        while (successor := self._successors.get(id_)) is not None and successor not in seen:
            seen.add(successor)
            id_ = successor
        return id_


@dataclass(slots=True)
class Library:
    """The shelves of this process."""

    _shelves: OrderedDict[str, Shelf] = field(default_factory=OrderedDict)
    # Searches and index building leave a core to the event loop.
    _threads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @staticmethod
    def of(deps: Deps) -> "Library":
        """Give the library of this process."""
        library: Library = deps.caches.setdefault(_CACHE, Library())
        return library

    async def open(self, deps: Deps, user_id: str) -> Shelf:
        """Give the shelf of a user as of now, every memory on it having a vector."""
        async with deps.db.reading() as connection:
            shelf = await self.refresh(connection, user_id, deps.embedder.model)
        if unread := shelf.unread:
            await _embed(deps, user_id, unread)
            async with deps.db.reading() as connection:
                shelf = await self.refresh(connection, user_id, deps.embedder.model)
        return shelf

    async def refresh(self, connection: AsyncConnection, user_id: str, model: str) -> Shelf:
        """Give the shelf of a user as the connection sees the tables now.

        The caller brings the connection, so that nobody waits for one while holding the shelf.
        """
        shelf = self._shelves.get(user_id)
        if shelf is None:
            # The first one loads numpy. Somebody else may have put one there meanwhile.
            made = await asyncio.to_thread(Shelf)
            shelf = self._shelves.setdefault(user_id, made)
        self._shelves.move_to_end(user_id)
        async with shelf.refreshing:
            position = await _position(connection, user_id)
            if position != shelf.position:
                ids = await _news(connection, user_id, shelf.position, position)
                if ids is None:
                    shelf.forget_all()
                    shelf.position = _NOWHERE
                    ids = await _all_ids(connection, user_id)
                for start in range(0, len(ids), _BATCH_IDS):
                    batch = ids[start : start + _BATCH_IDS]
                    rows = await _rows(connection, user_id, batch)
                    await self.run(shelf.put, batch, rows, model)
                shelf.position = position
        self._shrink(user_id)
        return shelf

    async def run(self, function: Any, *args: Any) -> Any:
        """Run a computation in a thread, a few at a time."""
        async with self._threads:
            return await asyncio.to_thread(function, *args)

    def _shrink(self, keep: str) -> None:
        total = sum(max(len(shelf), _MIN_VECTORS) for shelf in self._shelves.values())
        for user_id in list(self._shelves):
            if total <= _MAX_VECTORS or user_id == keep:
                return
            total -= max(len(self._shelves.pop(user_id)), _MIN_VECTORS)


async def _position(connection: AsyncConnection, user_id: str) -> Position:
    def of(column: Any) -> Any:
        return select(column).where(Topic.id == topic(user_id)).scalar_subquery()

    count = select(func.count()).select_from(Memory).where(Memory.user_id == user_id)
    row = (
        await connection.execute(select(of(Topic.epoch), of(Topic.seq), count.scalar_subquery()))
    ).one()
    return Position(row[0], row[1] or 0, row[2])


async def _news(
    connection: AsyncConnection, user_id: str, old: Position, new: Position
) -> list[str] | None:
    """Give the ids that changed between two positions, or None if only a new reading helps."""
    behind = new.seq - old.seq if old.epoch == new.epoch else -1
    # The same number but another count: rows came or went without an event (a restored backup).
    if not 0 < behind <= _MAX_NEWS:
        return None
    events = (
        await connection.execute(
            select(Event.payload).where(
                Event.topic == topic(user_id), Event.seq > old.seq, Event.seq <= new.seq
            )
        )
    ).scalars()
    ids = [payload["id"] for payload in events]
    return sorted(set(ids)) if len(ids) == behind else None


async def _all_ids(connection: AsyncConnection, user_id: str) -> list[str]:
    return sorted(
        (await connection.execute(select(Memory.id).where(Memory.user_id == user_id))).scalars()
    )


async def _rows(connection: AsyncConnection, user_id: str, ids: Sequence[str]) -> Sequence[Any]:
    return (
        await connection.execute(
            select(
                Memory.id,
                Memory.type,
                Memory.valid_until,
                Memory.superseded_by_id,
                Memory.embedding,
                Memory.embedding_model,
            ).where(Memory.id.in_(ids), Memory.user_id == user_id)
        )
    ).all()


async def _embed(deps: Deps, user_id: str, ids: Sequence[str]) -> None:
    """Give memories the vectors of the present model."""
    for start in range(0, len(ids), _EMBED_BATCH):
        async with deps.db.reading() as connection:
            rows = (
                await connection.execute(
                    select(Memory.id, Memory.content, Memory.content_hash).where(
                        Memory.id.in_(ids[start : start + _EMBED_BATCH])
                    )
                )
            ).all()
        vectors = await deps.embedder.embed([row.content for row in rows])
        async with work(deps) as unit:
            await lock_owner(unit, user_id)
            for row, vector in zip(rows, vectors, strict=True):
                await unit.session.execute(
                    update(Memory)
                    # Somebody may have edited it meanwhile.
                    .where(Memory.id == row.id, Memory.content_hash == row.content_hash)
                    .values(
                        embedding=to_bytes(vector),
                        embedding_model=deps.embedder.model,
                        updated_at=Memory.updated_at,
                    )
                )
                changed(unit, user_id, row.id, "updated")
