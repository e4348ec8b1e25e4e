"""Finding memories by meaning."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select, update

from models.base import now, row_columns, rows_of
from models.memories import Memory
from models.states import MemoryType
from services import access
from services.base import Deps, Viewer, work
from services.errors import RequestError, UserError
from services.language.memories import rank
from services.llm.base import RecalledMemory
from services.memories.vectors import Library, lock_owner
from services.text import clean

QUERY_MAX_CHARS = 2_000
FIRST_MAX = 100
# Importance, recency and use reorder what is near, so more is looked at than is given.
_WIDER = 5
_LOOKED_AT_MIN, _LOOKED_AT_MAX = 50, 500
# What was true once comes after what is true.
_PAST_WEIGHT = 0.6
# Relevance from which a memory found is one that was wanted; unrelated sentences stay near 0.1.
_WANTED = 0.3


@dataclass(frozen=True, slots=True)
class Match:
    """A memory found, with its score in 0…1."""

    memory: Memory
    score: float


async def search(
    deps: Deps,
    viewer: Viewer,
    query: str,
    *,
    first: int = 10,
    types: Sequence[MemoryType] | None = None,
    include_superseded: bool = False,
) -> list[Match]:
    """Give the viewer's memories nearest to the meaning of `query`, best first.

    The order is that of `services.language.memories.rank`: relevance, weighed by importance,
    recency and use. Those that fit count as accessed. The viewer's own only, whatever else they
    may see.

    Raises RequestError BAD_USER_INPUT unless `query` has 1 to 2,000 characters and `first` is 1 to
    100, UnauthenticatedError for an anonymous viewer.
    """
    user_id = viewer.id
    if not 1 <= first <= FIRST_MAX:
        raise RequestError(
            "BAD_USER_INPUT", f"`first` must be between 1 and {FIRST_MAX}; {first} is not."
        )
    try:
        query = clean(query, "query", max_chars=QUERY_MAX_CHARS).strip()
    except UserError as error:
        raise RequestError("BAD_USER_INPUT", error.message) from error
    vector = (await deps.embedder.embed([query]))[0]
    library = Library.of(deps)
    shelf = await library.open(deps, user_id)
    looked_at = min(_LOOKED_AT_MAX, max(_LOOKED_AT_MIN, first * _WIDER))
    found: list[tuple[str, float]] = await library.run(
        lambda: shelf.search(vector, looked_at, types=types, include_past=include_superseded)
    )
    rows = await _rows(deps, viewer, [id_ for id_, _ in found], include_superseded)
    relevance = dict(found)
    matches = sorted(
        (_match(row, relevance[row.id]) for row in rows),
        key=lambda match: (-match.score, match.memory.id),
    )[:first]
    wanted = [match.memory.id for match in matches if relevance[match.memory.id] >= _WANTED]
    await touch(deps, user_id, wanted)
    return [Match(match.memory, min(1.0, match.score)) for match in matches]


def _match(memory: Memory, relevance: float) -> Match:
    at = now()
    accessed = memory.last_accessed_at
    score = rank(
        max(0.0, relevance),
        memory.importance,
        (at - memory.created_at).total_seconds(),
        None if accessed is None else (at - accessed).total_seconds(),
        memory.access_count,
    )
    return Match(memory, score if memory.valid_until is None else score * _PAST_WEIGHT)


async def _rows(
    deps: Deps, viewer: Viewer, ids: Sequence[str], include_superseded: bool
) -> list[Memory]:
    """Give the rows as they are now: one may be deleted or closed since the vectors were read."""
    if not ids:
        return []
    statement = select(*row_columns(Memory)).where(
        Memory.id.in_(ids), Memory.user_id == viewer.user_id, access.visible(Memory, viewer)
    )
    if not include_superseded:
        statement = statement.where(Memory.valid_until.is_(None))
    async with deps.db.reading() as connection:
        return rows_of(Memory, (await connection.execute(statement)).all())


async def touch(deps: Deps, user_id: str, ids: Sequence[str]) -> None:
    """Note that memories of a user were accessed: one more time, and now."""
    if not ids:
        return
    async with work(deps) as unit:
        await lock_owner(unit, user_id)
        await unit.session.execute(
            update(Memory)
            .where(Memory.id.in_(ids), Memory.user_id == user_id)
            .values(
                access_count=Memory.access_count + 1,
                last_accessed_at=now(),
                # Being read is no change.
                updated_at=Memory.updated_at,
            )
        )


async def recall(deps: Deps, viewer: Viewer, query: str, *, first: int) -> list[RecalledMemory]:
    """Give what is remembered of the viewer and near to a message, for an answer, best first.

    Only the first 2,000 characters of the message count; an empty one recalls nothing.
    """
    query = query.replace("\x00", " ")[:QUERY_MAX_CHARS]
    if not query.strip():
        return []
    return [
        RecalledMemory(match.memory.id, match.memory.type.value, match.memory.content, match.score)
        for match in await search(deps, viewer, query, first=first)
    ]
