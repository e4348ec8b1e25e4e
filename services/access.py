"""Who may see which rows: one predicate per table, and no rule means no rows.

What a viewer may not see answers exactly as if it did not exist.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import BindParameter, ColumnElement, bindparam, false, select, true
from sqlalchemy.orm import InstrumentedAttribute

from models.base import Id, Record
from models.statements import Reading
from services.base import Deps, Viewer
from services.batches import Batches

Rule = Callable[[Viewer], ColumnElement[bool]]
_rules: dict[type[Record], Rule] = {}

READ_EVERYTHING = "everything:read"


def rule(record: type[Record]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the predicate of `record` for signed-in viewers."""

    def register(predicate: Rule) -> Rule:
        if record in _rules:
            raise TypeError(f"{record.__name__} has an access rule already")
        _rules[record] = predicate
        return predicate

    return register


def follows(column: InstrumentedAttribute[Any], parent: type[Record]) -> None:
    """Say that whoever may see a row of `parent` may see the rows whose `column` is its id."""
    record = cast("type[Record]", column.class_)

    def predicate(viewer: Viewer) -> ColumnElement[bool]:
        return column.in_(select(parent.id).where(visible(parent, viewer)))  # type: ignore[attr-defined]

    rule(record)(predicate)
    _parents[record] = column.key, parent
    _followed.add(parent)


_parents: dict[type[Record], tuple[str, type[Record]]] = {}
_followed: set[type[Record]] = set()


def parent_of(record: type[Record], column: str) -> type[Record] | None:
    """Give the table whose visible rows' ids, in this column, make rows of `record` visible."""
    known = _parents.get(record)
    return known[1] if known is not None and known[0] == column else None


def is_followed(record: type[Record]) -> bool:
    """Tell whether rows of another table are visible because those of `record` are."""
    return record in _followed


def visible(record: type[Record], viewer: Viewer) -> ColumnElement[bool]:
    """Give the WHERE clause that keeps the rows of `record` the viewer may see."""
    predicate = _rules.get(record)
    if predicate is None or not viewer.is_authenticated:
        return false()
    if viewer.may(READ_EVERYTHING) and record not in _personal:
        return true()
    return predicate(viewer)


_personal: set[type[Record]] = set()


def personal(record: type[Record]) -> None:
    """Say that not even a viewer who may read everything sees other people's rows of `record`."""
    _personal.add(record)


def has_rule(record: type[Record]) -> bool:
    """Tell whether `record` has a predicate (without one nobody sees a row of it)."""
    return record in _rules


_Asked = tuple[type[Record], Viewer, str]


async def may_see(deps: Deps, viewer: Viewer, record: type[Record], id_: str) -> bool:
    """Tell whether there is a row with this id that the viewer may see; False if it is absent.

    Read together with whatever others ask at the same time. Raises DBAPIError.
    """
    # With whichever sign-in somebody asks, they may see the same.
    asker = replace(viewer, session_id=None, expires_at=None)
    return await _sights(deps).of((record, asker, id_)) is not None


def symbolic(viewer: Viewer) -> Viewer:
    """Give a viewer with parameters in the place of ids, for statements that are compiled once.

    `values` has what they stand for. What a rule gives must therefore depend on the viewer alone,
    not on the time, and on the ids as values only.
    """
    if not viewer.is_authenticated:
        return viewer
    return replace(
        viewer,
        user_id=cast("str", bindparam("viewer_id", type_=Id)),
        session_id=cast("str", bindparam("viewer_session", type_=Id)),
        expires_at=None,
    )


def own(column: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
    """Give the condition that a column is the viewer's id, for statements compiled once."""
    return column == bindparam("viewer_id", type_=Id)


def values(viewer: Viewer) -> dict[str, Any]:
    """Give the parameters of a statement made with a symbolic viewer."""
    return {"viewer_id": viewer.user_id, "viewer_session": viewer.session_id}


@lru_cache(maxsize=1_000)
def _sight(
    record: type[Record],
    is_authenticated: bool,
    roles: frozenset[str],
    permissions: frozenset[str],
) -> Reading:
    """Give what keeps those of the rows `ids` that a viewer with these rights may see."""
    viewer = Viewer("somebody" if is_authenticated else None, None, None, roles, permissions)
    ids: BindParameter[Any] = bindparam("ids", expanding=True)
    return Reading(select(record.id).where(record.id.in_(ids), visible(record, symbolic(viewer))))  # type: ignore[attr-defined]


def _sights(deps: Deps) -> Batches[_Asked, bool]:
    async def read(asked: Sequence[_Asked]) -> Mapping[_Asked, bool]:
        wanted: dict[tuple[type[Record], Viewer], list[str]] = defaultdict(list)
        for record, viewer, id_ in asked:
            wanted[record, viewer].append(id_)
        found: dict[_Asked, bool] = {}
        for (record, viewer), ids in wanted.items():
            sight = _sight(record, viewer.is_authenticated, viewer.roles, viewer.permissions)
            rows = await deps.db.rows(sight, ids=ids, **values(viewer))
            found |= dict.fromkeys(((record, viewer, id_) for (id_,) in rows), True)
        return found

    known = deps.caches.get("sights")
    if not isinstance(known, Batches):
        known = deps.caches["sights"] = Batches(read)
    return known
