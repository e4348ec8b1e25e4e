"""Pages of lists: what is asked for, the order they are in, and their cursors."""

import base64
from binascii import b2a_base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import orjson
from sqlalchemy import ColumnElement, and_, bindparam, or_

from models.base import IdType, Record, UtcDateTime, is_id
from services.errors import RequestError

R = TypeVar("R", bound=Record)
MAX_PAGE = 100
DEFAULT_PAGE = 20
# Beyond every number of a column; infinity and NaN are not below it.
_NUMBERS_END = 2**63
_new = tuple.__new__
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True)
class PageArgs:
    """A request for a page: forward with `first`/`after`, or backward with `last`/`before`."""

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None

    def __post_init__(self) -> None:
        """Raise RequestError BAD_USER_INPUT for sizes out of range or both directions at once."""
        for name, size in (("first", self.first), ("last", self.last)):
            if size is not None and not 0 <= size <= MAX_PAGE:
                raise RequestError(
                    "BAD_USER_INPUT",
                    f"`{name}` must be between 0 and {MAX_PAGE}; {size} is not.",
                )
        if self.first is not None and self.last is not None:
            raise RequestError("BAD_USER_INPUT", "Give `first` or `last`, not both.")

    @property
    def is_backward(self) -> bool:
        """Whether the page is the last before a cursor."""
        return self.last is not None

    @property
    def size(self) -> int:
        """Rows asked for; 20 by default."""
        size = self.last if self.is_backward else self.first
        return DEFAULT_PAGE if size is None else size


@dataclass(frozen=True, slots=True)
class Order:
    """A total order of a table's rows: columns, then the id, all in one direction."""

    columns: tuple[str, ...] = ()
    is_descending: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, the id last."""
        return (*self.columns, "id")

    def cursors(self, rows: Sequence[Any]) -> list[str]:
        """Give the opaque cursors of rows."""
        if self.columns:
            values = attrgetter(*self.columns, "id")
            # Times as `isoformat` has them.
            given = [orjson.dumps(values(row)) for row in rows]
        else:
            given = [orjson.dumps((row.id,)) for row in rows]
        return [
            b2a_base64(each, newline=False).rstrip(b"=").translate(_URL_SAFE).decode()
            for each in given
        ]


@dataclass(slots=True)
class Page(Generic[R]):
    """One page of a connection, in the connection's order. Cursors are made when they are read."""

    rows: Sequence[R]
    order: Order
    has_next: bool
    has_previous: bool
    _cursors: list[str] | None = None

    @property
    def nodes(self) -> Sequence[R]:
        """The rows, as a connection calls them."""
        return self.rows

    @property
    def edges(self) -> "list[Entry]":
        """The rows with their places."""
        return [_new(Entry, (row, self, place)) for place, row in enumerate(self.rows)]

    @property
    def page_info(self) -> "Bounds":
        """Where the page lies."""
        return Bounds(self)

    @property
    def cursors(self) -> list[str]:
        """The cursors of all rows."""
        if self._cursors is None:
            self._cursors = self.order.cursors(self.rows)
        return self._cursors

    def cursor_at(self, place: int) -> str | None:
        """Give the cursor of one row, -1 being the last; None if there are no rows."""
        if not self.rows:
            return None
        if self._cursors is None:
            return self.order.cursors([self.rows[place]])[0]
        return self._cursors[place]


class Entry(NamedTuple):
    """One entry of a page, which knows its place: an edge."""

    node: Any
    page: Page[Any]
    place: int

    @property
    def cursor(self) -> str:
        """The place of the entry in the connection's order."""
        return (self.page._cursors or self.page.cursors)[self.place]


@dataclass(slots=True)
class Bounds:
    """Where a page lies in its list."""

    page: Page[Any]

    @property
    def has_next_page(self) -> bool:
        """Whether there is more after the page."""
        return self.page.has_next

    @property
    def has_previous_page(self) -> bool:
        """Whether there is more before the page."""
        return self.page.has_previous

    @property
    def start_cursor(self) -> str | None:
        """The cursor of the first row."""
        return self.page.cursor_at(0)

    @property
    def end_cursor(self) -> str | None:
        """The cursor of the last row."""
        return self.page.cursor_at(-1)


def beyond(columns: Sequence[Any], name: str, *, is_below: bool) -> ColumnElement[bool]:
    """Keyset condition: rows after the cursor's in the order of `columns`."""
    bounds = [
        bindparam(f"{name}_{index}", type_=column.type) for index, column in enumerate(columns)
    ]
    conditions = []
    for index, column in enumerate(columns):
        equal = [columns[i] == bounds[i] for i in range(index)]
        step = column < bounds[index] if is_below else column > bounds[index]
        conditions.append(and_(*equal, step))
    return or_(*conditions)


def decode_cursor(cursor: str, size: int) -> list[Any]:
    """Read a page cursor. Raises RequestError BAD_USER_INPUT when it is not one of this list's."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = orjson.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
        if not isinstance(values, list) or len(values) != size or not isinstance(values[-1], str):
            raise ValueError("not a cursor of this list")
    except (ValueError, TypeError) as error:
        raise RequestError(
            "BAD_USER_INPUT",
            "This cursor does not belong to this list; take one from `pageInfo` or `edges`.",
        ) from error
    return values


def typed(column: Any, value: Any) -> Any:
    """Give a cursor's value as its column holds it."""
    try:
        return _held(column.type, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("BAD_USER_INPUT", "This cursor does not belong to this list.") from error


def _held(type_: Any, value: Any) -> Any:
    if isinstance(type_, UtcDateTime):
        at = datetime.fromisoformat(value)
        if at.tzinfo is None:
            raise ValueError("cursors hold aware times")
        return at.astimezone(UTC)
    if isinstance(type_, IdType):
        if not is_id(value):
            raise ValueError("not an id")
        return value
    if type_.python_type is str:
        # Half a surrogate pair cannot be encoded; what is no text has no such method at all.
        str.encode(value)
        return value
    number = type_.python_type(value)
    if not abs(number) < _NUMBERS_END:
        raise ValueError("not a number that a column holds")
    return number
