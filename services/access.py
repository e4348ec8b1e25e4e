"""Who may see which rows: one predicate per table, and no rule means no rows.

What a viewer may not see answers exactly as if it did not exist.
"""

from collections.abc import Callable

from sqlalchemy import ColumnElement, false, true

from models.base import Record
from services.base import Viewer

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
