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
    kinds: dict[type[Record], list[str]] = {}
    for id_ in ids:
        record = PREFIXES.get(id_.split("_", maxsplit=1)[0])
        if record in NODE_RECORDS:
            kinds.setdefault(record, []).append(id_)
    found: dict[str, Record] = {}
    for record, wanted in kinds.items():
        rows = await info.context.load.one(record, record.id, wanted)  # type: ignore[attr-defined]
        found |= {row.id: row for row in rows if row is not None}  # type: ignore[attr-defined]
    return [found.get(id_) for id_ in ids]
