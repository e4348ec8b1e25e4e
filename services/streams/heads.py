"""The newest event of many topics, asked for together."""

from collections.abc import Mapping, Sequence

from sqlalchemy import bindparam, select

from models.statements import Reading
from models.system import Topic
from services.base import Deps
from services.batches import Batches

_HEADS = Reading(
    select(Topic.id, Topic.epoch, Topic.seq).where(
        Topic.id.in_(bindparam("topics", expanding=True))
    )
)
Head = tuple[str, int]


def heads(deps: Deps) -> Batches[str, Head]:
    """Give who answers, for this process, with epoch and number of a topic's newest event.

    None before the first. Raises DBAPIError.
    """

    async def read(topics: Sequence[str]) -> Mapping[str, Head]:
        rows = await deps.db.rows(_HEADS, topics=topics)
        return {id_: (epoch, seq) for id_, epoch, seq in rows}

    known = deps.caches.get("heads")
    if not isinstance(known, Batches):
        known = deps.caches["heads"] = Batches(read)
    return known
