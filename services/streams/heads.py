"""The newest event of many topics, asked for together."""

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, select

from models.system import Topic
from services.base import Deps
from services.batches import Batches

# Put together once, which takes longer than running it.
_HEADS = select(Topic.id, Topic.epoch, Topic.seq).where(
    Topic.id.in_(bindparam("topics", expanding=True))
)
Head = tuple[str, int]


def heads(deps: Deps) -> Batches[str, Head]:
    """Give who answers, for this process, with epoch and number of a topic's newest event.

    None before the first. Raises DBAPIError.
    """

    async def read(topics: Sequence[str]) -> Mapping[str, Head]:
        async with deps.db.reading() as connection:
            rows = await connection.execute(_HEADS, {"topics": list(topics)})
            return {row.id: (row.epoch, row.seq) for row in rows}

    known = deps.caches.get("heads")
    if not isinstance(known, Batches):
        known = deps.caches["heads"] = Batches(read)
    return known
