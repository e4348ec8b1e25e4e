"""Any row by its id; the prefix tells the table."""

from collections.abc import Sequence

from models.base import PREFIXES, Record
from resolvers.base import MAX_PAGE, NODE_RECORDS, Info
from services.errors import RequestError


async def by_ids(info: Info, ids: Sequence[str]) -> list[Record | None]:
    """Give the visible rows of ids in their order: one statement per kind of object.

    Raises RequestError BAD_USER_INPUT for more than 100 ids.
    """
    if len(ids) > MAX_PAGE:
        raise RequestError(
            "BAD_USER_INPUT", f"At most {MAX_PAGE} ids at once; these are {len(ids)}."
        )
    kinds = {record for record in NODE_RECORDS if any(_kind(id_) is record for id_ in ids)}
    found: dict[str, Record] = {}
    for record in kinds:
        wanted = [id_ for id_ in ids if _kind(id_) is record]
        rows = await info.context.load.one(record, record.id, wanted)  # type: ignore[attr-defined]
        found |= {row.id: row for row in rows if row is not None}  # type: ignore[attr-defined]
    return [found.get(id_) for id_ in ids]


def _kind(id_: str) -> type[Record] | None:
    return PREFIXES.get(id_.split("_", maxsplit=1)[0])
