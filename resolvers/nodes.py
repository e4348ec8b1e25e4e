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
    kinds = {PREFIXES.get(id_.split("_")[0]) for id_ in ids} & NODE_RECORDS
    found: dict[str, Record] = {}
    for record in kinds:
        wanted = [id_ for id_ in ids if PREFIXES.get(id_.split("_")[0]) is record]
        rows = await info.context.load.one(record, record.id, wanted)  # type: ignore[attr-defined]
        found |= {row.id: row for row in rows if row is not None}  # type: ignore[attr-defined]
    return [found.get(id_) for id_ in ids]
