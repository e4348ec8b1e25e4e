"""What resolvers work with: the context of one operation, and loads that answer for all parents.

A resolver is `async (parents, info, **arguments) -> list`, one answer per parent, in order. Under
graphql-core the schema puts an aiodataloader around it; a compiled plan calls it as it is.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, cast

import orjson
import strawberry
from aiodataloader import DataLoader
from sqlalchemy import ColumnElement, Select, and_, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from models.accounts import AuthSession
from models.base import IdType, Record, UtcDateTime, is_id, row_columns, rows_of
from services import access
from services.accounts.sessions import Client, viewer_of
from services.base import ANONYMOUS, Deps, Viewer
from services.errors import RequestError
from services.streams import Snapshot

R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=Callable[..., Any])
BatchResolver = Callable[..., Awaitable[Sequence[Any]]]
MAX_PAGE = 100
DEFAULT_PAGE = 20
# Concurrent batches of one operation take at most this many connections.
_CONNECTIONS_PER_OPERATION = 4
# Beyond every number of a column; infinity and NaN are not below it.
_NUMBERS_END = 2**63
# SQLite refuses compound selects of more than 500 parts.
_UNION_PARTS = 200
# Tables whose rows are nodes of the graph; filled by the schema.
NODE_RECORDS: set[type[Record]] = set()


@dataclass(slots=True)
class Context:
    """One operation: who asks, what the process offers, and the loads under way.

    Every operation has a context of its own; in a subscription `begin_event` gives each event fresh
    loads, and `end_event` returns a pinned snapshot.
    """

    deps: Deps
    viewer: Viewer = ANONYMOUS
    request_id: str = ""
    client: Client = field(default_factory=Client)
    # A cursor the transport was given (`Last-Event-ID`): it comes before the argument `after`.
    resume_after: str | None = None
    # Whether the answer is this client's own though nobody is signed in: nobody may keep it then.
    depends_on_client: bool = False
    # Sent with the answer.
    extensions: dict[str, Any] = field(default_factory=dict)
    load: "Loads" = field(init=False)
    _loaders: dict[Hashable, DataLoader[Any, Any]] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_CONNECTIONS_PER_OPERATION)
    )
    _pinned: Snapshot | None = None

    def __post_init__(self) -> None:
        """Attach the loads."""
        self.load = Loads(self)

    def batch(
        self, resolver: BatchResolver, info: Any, arguments: dict[str, Any]
    ) -> DataLoader[Any, Any]:
        """Give the loader that gathers the parents of one field with the same arguments."""
        key = (resolver, _freeze(arguments))
        loader = self._loaders.get(key)
        if loader is None:

            async def answer(parents: list[Any]) -> list[Any]:
                return list(await resolver(parents, info, **arguments))

            loader = DataLoader(answer, get_cache_key=_identity)
            self._loaders[key] = loader
        return loader

    async def sign_in(self, session: AuthSession) -> None:
        """Answer the rest of the operation as the owner of a sign-in it has just begun."""
        viewer = await viewer_of(self.deps, session.user_id, session.id)
        if viewer is not None:
            self.viewer = viewer

    def begin_event(self) -> None:
        """Forget earlier loads, so that the next event is answered from the present state."""
        self._loaders.clear()

    async def end_event(self) -> None:
        """Return the snapshot the event was answered from, if there was one."""
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            await pinned.release()

    async def pin(self, snapshot: Snapshot) -> None:
        """Answer everything from a snapshot until `end_event`, which releases it."""
        await self.end_event()
        self._pinned = snapshot

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for one statement."""
        pinned = self._pinned
        if pinned is not None:
            # One connection runs one statement at a time.
            async with pinned.lock:
                yield pinned.connection
            return
        async with self._slots, self.deps.db.reading() as connection:
            yield connection


Info = strawberry.Info[Context, None]


class Parents:
    """All parents of a field at once, in the place of one.

    A compiled plan gives them to a batch field, which then answers for all.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows


def known_by(attribute: str) -> Callable[[F], F]:
    """Mark a resolver whose node's id is an attribute of the parent, and surely exists.

    An answer that asks for no more than the id can be made from the parent.
    """

    def mark(resolver: F) -> F:
        resolver.known_by = attribute  # type: ignore[attr-defined]
        return resolver

    return mark


def by_id_alone(record: type[R], ids: Sequence[str], info: Info) -> list[R | None] | None:
    """Give rows that hold nothing but their ids, if the operation asks for no more than those.

    For events that come many times a second and are seen to be the viewer's already: what is known
    needs no reading. None when more is asked for.
    """
    for node in info._raw_info.field_nodes:
        for selection in node.selection_set.selections if node.selection_set else ():
            name = getattr(selection, "name", None)
            if selection.kind != "field" or name is None or name.value not in ("id", "__typename"):
                return None
    row = record.Row
    empty = dict.fromkeys(row._fields)  # type: ignore[attr-defined]
    return [cast("R", row(**empty | {"id": id_})) for id_ in ids]


class _Same:
    """A parent without an id: equal to itself alone, and kept as long as its answer.

    Its address would not do: it is given to another object once the parent is gone.
    """

    __slots__ = ("parent",)

    def __init__(self, parent: Any) -> None:
        self.parent = parent

    def __hash__(self) -> int:
        return id(self.parent)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.parent is other.parent


def _identity(parent: Any) -> Hashable:
    return (type(parent), parent.id) if hasattr(parent, "id") else _Same(parent)


def _freeze(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return cast("Hashable", value)


@dataclass(frozen=True, slots=True)
class PageArgs:
    """A request for a page: forward with `first`/`after`, or backward with `last`/`before`."""

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None

    def __post_init__(self) -> None:
        """Raise RequestError BAD_USER_INPUT for sizes out of range or both directions at once."""
        for name in ("first", "last"):
            size = getattr(self, name)
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

    def cursor(self, row: Any) -> str:
        """Give the opaque cursor of a row."""
        values = [_plain(getattr(row, name)) for name in self.names]
        return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """One page of a connection, in the connection's order."""

    rows: Sequence[R]
    order: Order
    has_next: bool
    has_previous: bool


class Loads:
    """The ways resolvers read rows: every one applies the access rule and answers in order."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def rows(self, record: type[R], *where: ColumnElement[bool], limit: int) -> list[R]:
        """Give the visible rows that fulfil the conditions, by id."""
        statement = self._visible(record).where(*where).order_by(record.id).limit(limit)  # type: ignore[attr-defined]
        return rows_of(record, await self._all(statement))

    async def one(
        self,
        record: type[R],
        column: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        *where: ColumnElement[bool],
    ) -> list[R | None]:
        """Give for each key the visible row whose unique `column` has it, or None."""
        wanted = {key for key in keys if key is not None}
        if not wanted:
            return [None] * len(keys)
        statement = self._visible(record).where(column.in_(wanted), *where)
        name = column.key
        found = {getattr(row, name): row for row in rows_of(record, await self._all(statement))}
        return [found.get(key) for key in keys]

    async def many(
        self,
        record: type[R],
        column: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        *,
        order_by: Any = None,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> list[list[R]]:
        """Give for each key all visible rows of it: only for lists that are small by nature."""
        if not keys:
            return []
        statement = (
            self._visible(record)
            .where(column.in_(set(keys)), *where)
            .order_by(record.id if order_by is None else order_by)  # type: ignore[attr-defined]
        )
        grouped: dict[Any, list[R]] = {key: [] for key in keys}
        for row in rows_of(record, await self._all(statement)):
            grouped[getattr(row, column.key)].append(row)
        return [grouped[key] for key in keys]

    async def through(
        self,
        record: type[R],
        link_from: InstrumentedAttribute[Any],
        link_to: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        *,
        order_by: Any = None,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> list[list[R]]:
        """Give for each key the visible rows a link table leads to, in one joined statement.

        The link is `link_from` (matched with the keys) to `link_to` (the id of `record`).
        """
        if not keys:
            return []
        viewer, link = self._context.viewer, cast("type[Record]", link_from.class_)
        statement = (
            select(link_from, *row_columns(record))
            .join_from(link, record, link_to == record.id)  # type: ignore[attr-defined]
            .where(
                link_from.in_(set(keys)),
                access.visible(record, viewer),
                access.visible(link, viewer),
                *where,
            )
            .order_by(record.id if order_by is None else order_by)  # type: ignore[attr-defined]
        )
        grouped: dict[Any, list[R]] = {key: [] for key in keys}
        for key, *values in await self._all(statement):
            grouped[key].extend(rows_of(record, [values]))
        return [grouped[key] for key in keys]

    async def page(
        self,
        record: type[R],
        column: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        page: PageArgs,
        *,
        order: Order = Order(),
        where: Sequence[ColumnElement[bool]] = (),
    ) -> list[Page[R]]:
        """Give for each key one page of its visible rows.

        One statement for all keys: a UNION ALL of limited selects, cheaper than ROW_NUMBER.
        """
        unique = list(dict.fromkeys(keys))
        grouped: dict[Any, list[R]] = {key: [] for key in unique}
        for start in range(0, len(unique), _UNION_PARTS):
            parts = [
                self._limited(record, page, order, [column == key, *where])
                for key in unique[start : start + _UNION_PARTS]
            ]
            statement = (
                parts[0]
                if len(parts) == 1
                else union_all(*(select(part.subquery()) for part in parts))
            )
            for row in rows_of(record, await self._all(statement)):
                grouped[getattr(row, column.key)].append(row)
        return [_page(grouped[key], page, order) for key in keys]

    async def list(
        self,
        record: type[R],
        page: PageArgs,
        *,
        order: Order = Order(),
        where: Sequence[ColumnElement[bool]] = (),
    ) -> Page[R]:
        """Give one page of all visible rows of a table."""
        rows = rows_of(record, await self._all(self._limited(record, page, order, where)))
        return _page(rows, page, order)

    def _visible(self, record: type[R]) -> Select[Any]:
        return select(*row_columns(record)).where(access.visible(record, self._context.viewer))

    def _limited(
        self,
        record: type[R],
        page: PageArgs,
        order: Order,
        where: Sequence[ColumnElement[bool]],
    ) -> Select[Any]:
        is_descending = order.is_descending != page.is_backward
        columns = [getattr(record, name) for name in order.names]
        conditions = list(where)
        bounds = ((page.after, order.is_descending), (page.before, not order.is_descending))
        for text, is_upper in bounds:
            if text is not None:
                conditions.append(_beyond(record, columns, text, is_below=is_upper))
        return (
            self._visible(record)
            .where(*conditions)
            .order_by(*(c.desc() if is_descending else c.asc() for c in columns))
            .limit(page.size + 1)
        )

    async def _all(self, statement: Any) -> Sequence[Any]:
        async with self._context.connection() as connection:
            return (await connection.execute(statement)).all()


def _page(rows: list[R], page: PageArgs, order: Order) -> Page[R]:
    has_more, rows = len(rows) > page.size, rows[: page.size]
    if page.is_backward:
        rows.reverse()
        return Page(rows, order, page.before is not None, has_more)
    return Page(rows, order, has_more, page.after is not None)


def _beyond(
    record: type[Record], columns: Sequence[Any], cursor: str, *, is_below: bool
) -> ColumnElement[bool]:
    """Keyset condition: rows after the cursor's in the order of `columns`."""
    values = decode_cursor(cursor, len(columns))
    conditions = []
    for index, column in enumerate(columns):
        bound = [literal(_typed(c, v), c.type) for c, v in zip(columns, values, strict=True)]
        equal = [columns[i] == bound[i] for i in range(index)]
        step = column < bound[index] if is_below else column > bound[index]
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


def _typed(column: Any, value: Any) -> Any:
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
