"""Keeping memories: new ones, edits and deletions, each fact once, the past closed and not lost."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy import update as sql_update
from sqlalchemy.sql.elements import ColumnElement

from models.base import now, row_columns, rows_of
from models.conversations import Message
from models.memories import Memory, MemoryRelation
from models.states import MemoryType
from services import access
from services.base import Deps, Viewer, Work, work
from services.contention import repeatable
from services.errors import UserError, UserErrorCode
from services.language.embeddings import Vectors, to_bytes
from services.language.memories import Relation, normalize
from services.memories import relating, vectors
from services.memories.relating import Neighbour
from services.memories.vectors import Library, Position, lock_owner
from services.text import clean, in_range

CONTENT_MAX_CHARS = 4_000
DEFAULT_IMPORTANCE = 0.5
# Told again, a fact moves this part of the way towards the highest importance.
_TOLD_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class Remembered:
    """A memory as kept. `is_new` is False for a fact that was known; `superseded` are the memories
    whose place it took."""

    memory: Memory
    is_new: bool
    superseded: Sequence[Memory] = ()


@access.rule(Memory)
def _memories(viewer: Viewer) -> ColumnElement[bool]:
    return Memory.user_id == viewer.user_id


access.follows(MemoryRelation.source_memory_id, Memory)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A memory to be, checked and embedded."""

    user_id: str
    type: MemoryType
    content: str
    content_hash: str
    importance: float
    vector: Vectors
    source_message_id: str | None
    at: datetime
    is_told_again: bool


@repeatable
async def create(
    deps: Deps,
    viewer: Viewer,
    *,
    type: MemoryType,
    content: str,
    importance: float | None = None,
    source_message_id: str | None = None,
    told_at: datetime | None = None,
) -> Remembered:
    """Keep a fact about the viewer, once, in the place of what it contradicts.

    A fact that is known already, in these or other words, stays one memory and only gains
    importance. What it contradicts is closed. A fact told earlier (`told_at`) than what contradicts
    it is closed itself. The same fact from the same message is no second telling: it gives the
    first answer.

    `content` has 1 to 4,000 characters, `importance` (0.5 by default) is in 0…1.
    Raises UserError FORBIDDEN without `memories:write`, REQUIRED, LIMIT or INVALID for bad input,
    QUOTA when the viewer has as many memories as a user may have.
    """
    user_id = viewer.require("memories:write")
    content = _content(content)
    draft = _Draft(
        user_id=user_id,
        type=type,
        content=content,
        content_hash=_hash(content),
        importance=_importance(DEFAULT_IMPORTANCE if importance is None else importance),
        vector=(await deps.embedder.embed([content]))[0],
        source_message_id=source_message_id,
        at=told_at or now(),
        is_told_again=told_at is None,
    )
    look = await _look(deps, user_id, content, draft.vector)
    async with work(deps) as unit:
        await lock_owner(unit, user_id)
        return await _keep(unit, draft, await look.again(unit))


def _content(content: str) -> str:
    return clean(content, "content", max_chars=CONTENT_MAX_CHARS).strip()


def _importance(importance: float) -> float:
    in_range(importance, "importance", low=0, high=1)
    return round(importance, 2)


def _hash(content: str) -> str:
    """Hash what decides whether two contents are literally the same."""
    return hashlib.sha256(normalize(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Look:
    """What stands near a content, as of a position of the owner's memories."""

    user_id: str
    content: str
    vector: Vectors
    position: Position
    near: Sequence[Neighbour]

    async def again(self, unit: Work) -> "_Look":
        """Look again under the owner's lock; mostly nothing has changed since."""
        library, connection = Library.of(unit.deps), await unit.session.connection()
        shelf = await library.refresh(connection, self.user_id, unit.deps.embedder.model)
        if shelf.position == self.position:
            return self
        near = await relating.neighbours(library, connection, shelf, self.content, self.vector)
        return replace(self, position=shelf.position, near=near)


async def _look(deps: Deps, user_id: str, content: str, vector: Vectors) -> _Look:
    """Look at what stands near, before anything is locked: it takes milliseconds of computing."""
    library = Library.of(deps)
    shelf = await library.open(deps, user_id)
    position = shelf.position
    async with deps.db.reading() as connection:
        near = await relating.neighbours(library, connection, shelf, content, vector)
    return _Look(user_id, content, vector, position, near)


async def _keep(unit: Work, draft: _Draft, look: "_Look") -> Remembered:
    near = look.near
    known = await _known(unit, draft, near)
    if known is not None and _is_replay(known, draft):
        return Remembered(known.frozen(), True, await _superseded_by(unit, known.id))
    clashing = [item for item in near if item.relation is Relation.SUPERSEDES]
    older = [item for item in clashing if item.valid_from <= draft.at]
    if known is None:
        newer = [item for item in clashing if item.valid_from > draft.at]
        kept = await _add(unit, draft, near, newer, look.position.count)
    else:
        kept = known
        _raise_importance(known, draft)
    await relating.supersede(
        unit,
        draft.user_id,
        [(item.id, item.similarity) for item in older],
        by=kept.id,
        at=draft.at,
    )
    await unit.session.flush()
    superseded = await _rows(unit, [item.id for item in older])
    return Remembered(kept.frozen(), known is None, superseded)


async def _known(unit: Work, draft: _Draft, near: Sequence[Neighbour]) -> Memory | None:
    """Give the memory that says the same: literally, or by its meaning."""
    same = Memory.user_id == draft.user_id, Memory.content_hash == draft.content_hash
    found = (await unit.session.scalars(select(Memory).where(*same).order_by(Memory.id))).all()
    for memory in found:
        # What this very message said may be past by now, if messages are read out of order.
        if memory.valid_until is None or _is_replay(memory, draft):
            return memory
    duplicate = next((item for item in near if item.relation is Relation.DUPLICATE), None)
    return None if duplicate is None else await unit.session.get(Memory, duplicate.id)


def _is_replay(memory: Memory, draft: _Draft) -> bool:
    """Tell whether the same message told it before: a repeated task, or the assistant's note."""
    return (
        draft.source_message_id is not None and memory.source_message_id == draft.source_message_id
    )


def _raise_importance(memory: Memory, draft: _Draft) -> None:
    raised = max(memory.importance, draft.importance)
    if draft.is_told_again:
        raised += _TOLD_AGAIN * (1 - raised)
    if round(raised, 2) != round(memory.importance, 2):
        memory.importance = round(raised, 2)


async def _add(
    unit: Work, draft: _Draft, near: Sequence[Neighbour], newer: Sequence[Neighbour], count: int
) -> Memory:
    limit = unit.deps.options.memories_per_user
    if count >= limit:
        raise UserError(
            UserErrorCode.QUOTA,
            f"You have {count:,} memories and may have {limit:,}; delete some first.",
        )
    memory = Memory(
        user_id=draft.user_id,
        type=draft.type,
        content=draft.content,
        content_hash=draft.content_hash,
        importance=draft.importance,
        embedding=to_bytes(draft.vector),
        embedding_model=unit.deps.embedder.model,
        source_message_id=await _existing_message(unit, draft.source_message_id),
        valid_from=draft.at,
    )
    unit.session.add(memory)
    await unit.session.flush()
    vectors.changed(unit, draft.user_id, memory.id, "added")
    if newer:
        successor = min(newer, key=lambda item: item.valid_from)
        memory.valid_until, memory.superseded_by_id = successor.valid_from, successor.id
        relating.note_superseded(unit, draft.user_id, memory.id, successor.id, successor.similarity)
    await relating.link(unit, memory.id, near)
    return memory


async def _existing_message(unit: Work, message_id: str | None) -> str | None:
    """Give the id if the message still exists: it may have been deleted since it was read."""
    if message_id is None:
        return None
    found: str | None = await unit.session.scalar(
        select(Message.id).where(Message.id == message_id)
    )
    return found


async def _superseded_by(unit: Work, memory_id: str) -> list[Memory]:
    return rows_of(
        Memory,
        await unit.session.execute(
            select(*row_columns(Memory))
            .where(Memory.superseded_by_id == memory_id)
            .order_by(Memory.id.desc())
        ),
    )


async def _rows(unit: Work, ids: Sequence[str]) -> list[Memory]:
    """Give the rows of ids, in that order."""
    if not ids:
        return []
    found = {
        row.id: row
        for row in rows_of(
            Memory,
            await unit.session.execute(select(*row_columns(Memory)).where(Memory.id.in_(ids))),
        )
    }
    return [found[id_] for id_ in ids]


async def _own(unit: Work, user_id: str, memory_id: str) -> Memory:
    memory = await unit.lock(Memory, memory_id)
    if memory is None or memory.user_id != user_id:
        raise UserError(UserErrorCode.NOT_FOUND, "You have no such memory.", ("id",))
    return memory


@repeatable
async def update(
    deps: Deps,
    viewer: Viewer,
    *,
    memory_id: str,
    content: str | None = None,
    type: MemoryType | None = None,
    importance: float | None = None,
) -> Memory:
    """Change a memory of the viewer; None leaves a value as it is.

    Raises UserError FORBIDDEN without `memories:write`, NOT_FOUND, REQUIRED, LIMIT or INVALID for
    bad input, CONFLICT when another current memory says this already.
    """
    user_id = viewer.require("memories:write")
    if importance is not None:
        importance = _importance(importance)
    look: _Look | None = None
    if content is not None:
        content = _content(content)
        vector = (await deps.embedder.embed([content]))[0]
        look = await _look(deps, user_id, content, vector)
    async with work(deps) as unit:
        await lock_owner(unit, user_id)
        memory = await _own(unit, user_id, memory_id)
        if type is not None:
            memory.type = type
        if importance is not None:
            memory.importance = importance
        if look is not None and look.content != memory.content:
            await _reword(unit, memory, await look.again(unit))
        await unit.session.flush()
        vectors.changed(unit, user_id, memory_id, "updated")
        return memory.frozen()


async def _reword(unit: Work, memory: Memory, look: _Look) -> None:
    content_hash = _hash(look.content)
    twin = await unit.session.scalar(
        select(Memory.id).where(
            Memory.user_id == memory.user_id,
            Memory.content_hash == content_hash,
            Memory.valid_until.is_(None),
            Memory.id != memory.id,
        )
    )
    if twin is not None:
        raise UserError(
            UserErrorCode.CONFLICT,
            f"Another memory of yours says this already ({twin}); delete one of the two.",
            ("content",),
        )
    memory.content, memory.content_hash = look.content, content_hash
    memory.embedding, memory.embedding_model = to_bytes(look.vector), unit.deps.embedder.model
    await relating.unlink(unit, memory.id)
    await relating.link(unit, memory.id, [item for item in look.near if item.id != memory.id])


@repeatable
async def delete(deps: Deps, viewer: Viewer, *, memory_id: str) -> Memory:
    """Delete a memory of the viewer for good, and give it as it was.

    What it superseded stays closed. Raises UserError FORBIDDEN without `memories:write`, NOT_FOUND.
    """
    user_id = viewer.require("memories:write")
    async with work(deps) as unit:
        await lock_owner(unit, user_id)
        memory = await _own(unit, user_id, memory_id)
        # The database would take the links away as well, and tell nobody.
        await unit.session.execute(
            sql_update(Memory)
            .where(Memory.superseded_by_id == memory_id)
            .values(superseded_by_id=None)
        )
        await unit.session.execute(sql_delete(Memory).where(Memory.id == memory_id))
        vectors.changed(unit, user_id, memory_id, "deleted")
        return memory.frozen()
