"""How a memory stands to the others of its owner: the same, in their place, or near them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.memories import Memory, MemoryRelation
from models.states import MemoryRelationType
from services.base import Work
from services.language.embeddings import Vectors
from services.language.memories import Relation, relation
from services.memories import vectors
from services.memories.vectors import Library, Shelf

# Nearest memories looked at for sameness and contradiction. A contradiction shares its subject, so
# it is near, but seldom the nearest.
_NEIGHBOURS = 64
_LINKS_MADE = 3
_LINKS_MAX = 10


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A current memory near a content, and how the content stands to it."""

    id: str
    valid_from: datetime
    similarity: float
    relation: Relation


async def neighbours(
    library: Library,
    connection: AsyncConnection,
    shelf: Shelf,
    content: str,
    vector: Vectors,
) -> list[Neighbour]:
    """Give the current memories on a shelf that matter to a content, the nearest first."""
    found = await library.run(shelf.nearest, vector, _NEIGHBOURS)
    rows = {
        row.id: row
        for row in await connection.execute(
            select(Memory.id, Memory.content, Memory.valid_from).where(
                Memory.id.in_([id_ for id_, _ in found]), Memory.valid_until.is_(None)
            )
        )
    }
    related: list[Neighbour] = await library.run(_relate, content, found, rows)
    return related


def _relate(
    content: str, found: Sequence[tuple[str, float]], rows: dict[str, Any]
) -> list[Neighbour]:
    return [
        Neighbour(id_, row.valid_from, score, kind)
        for id_, score in found
        if (row := rows.get(id_)) is not None
        and (kind := relation(row.content, content, score)) is not Relation.UNRELATED
    ]


async def supersede(
    unit: Work, user_id: str, old: Sequence[tuple[str, float]], by: str, at: datetime
) -> None:
    """Close memories (ids and similarities) whose place the memory `by` takes from `at` on."""
    for id_, similarity in old:
        await unit.session.execute(
            update(Memory)
            .where(Memory.id == id_)
            .values(valid_until=at, superseded_by_id=by)
            .execution_options(synchronize_session=False)
        )
        note_superseded(unit, user_id, id_, by, similarity)


def note_superseded(unit: Work, user_id: str, old: str, by: str, similarity: float) -> None:
    """Record that the memory `by` took the place of `old`."""
    unit.session.add(_relation(by, old, MemoryRelationType.SUPERSEDES, similarity))
    vectors.changed(unit, user_id, old, "superseded")


def _relation(
    source: str, target: str, kind: MemoryRelationType, strength: float
) -> MemoryRelation:
    return MemoryRelation(
        source_memory_id=source,
        target_memory_id=target,
        relation_type=kind,
        strength=round(min(1.0, max(0.0, strength)), 4),
    )


async def link(unit: Work, memory_id: str, near: Sequence[Neighbour]) -> None:
    """Link a memory with the strongest of those related to it, in both directions.

    A memory keeps its ten strongest links, so that a common subject does not collect thousands.
    """
    chosen = [item for item in near if item.relation is Relation.RELATED][:_LINKS_MADE]
    if not chosen:
        return
    is_link = MemoryRelation.relation_type == MemoryRelationType.RELATED
    theirs: dict[str, list[Any]] = {item.id: [] for item in chosen}
    for row in await unit.session.execute(
        select(MemoryRelation.id, MemoryRelation.source_memory_id, MemoryRelation.strength)
        .where(MemoryRelation.source_memory_id.in_(theirs), is_link)
        .order_by(MemoryRelation.strength.desc(), MemoryRelation.id)
    ):
        theirs[row.source_memory_id].append(row)
    for item in chosen:
        unit.session.add(_relation(memory_id, item.id, MemoryRelationType.RELATED, item.similarity))
        links = theirs[item.id]
        if len(links) >= _LINKS_MAX:
            if links[-1].strength >= item.similarity:
                continue
            weakest = [row.id for row in links[_LINKS_MAX - 1 :]]
            await unit.session.execute(delete(MemoryRelation).where(MemoryRelation.id.in_(weakest)))
        unit.session.add(_relation(item.id, memory_id, MemoryRelationType.RELATED, item.similarity))


async def unlink(unit: Work, memory_id: str) -> None:
    """Remove the links of a memory, in both directions; what it superseded stays superseded."""
    await unit.session.execute(
        delete(MemoryRelation).where(
            and_(
                MemoryRelation.relation_type == MemoryRelationType.RELATED,
                or_(
                    MemoryRelation.source_memory_id == memory_id,
                    MemoryRelation.target_memory_id == memory_id,
                ),
            )
        )
    )
