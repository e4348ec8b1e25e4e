"""Reading rows for resolvers: access rule applied, answers in order, one statement for all keys."""

# Functions are made for each load: what their annotations say must not be worked out each time.
from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    UnaryExpression,
    bindparam,
    select,
)
from sqlalchemy.orm import InstrumentedAttribute

from models.base import Record, partial_row
from models.gathering import Ask
from models.statements import Statement
from resolvers.pages import Order, Page, PageArgs, beyond, decode_cursor, typed
from services import access

if TYPE_CHECKING:
    from resolvers.base import Context

R = TypeVar("R", bound=Record)
# SQLite refuses compound selects of more than 500 parts.
_UNION_PARTS = 200
# Statements kept; there are about as many shapes as fields of the graph.
_STATEMENTS = 2_000
_BY_ID = Order()
_ID = attrgetter("id")
# A text for the driver, and its values.
Bound = tuple[str, list[Any]]
Build = Callable[[Select[Any]], Select[Any]]
# By their shapes, with the names of each condition's parameters.
_Statements = dict[Any, tuple[Statement, list[list[str | None]]]]


class Loads:
    """The ways resolvers read rows: every one applies the access rule and answers in order.

    A statement is put together and compiled once for each shape: table, keys, conditions, order,
    and what the viewer's roles permit. Values are parameters, the viewer's id among them.
    """

    __slots__ = ("_columns", "_context", "_record")

    def __init__(
        self,
        context: Context,
        record: type[Record] | None = None,
        columns: frozenset[str] = frozenset(),
    ) -> None:
        """Of `record`, if there is one, load `columns` alone, and those a load itself needs."""
        self._context = context
        self._record = record
        self._columns = columns

    async def rows(self, record: type[R], *where: ColumnElement[bool], limit: int) -> Sequence[R]:
        """Give the visible rows that fulfil the conditions, by id."""
        statement, values = self._statement(
            record,
            ("rows",),
            where,
            lambda s: s.order_by(record.id).limit(bindparam("limit", type_=Integer)),  # type: ignore[attr-defined]
        )
        return await self._run(record, statement, statement.bound(values | {"limit": limit}))

    async def one(
        self,
        record: type[R],
        column: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        *where: ColumnElement[bool],
    ) -> list[R | None]:
        """Give for each key the visible row whose unique `column` has it, or None."""
        wanted = list(dict.fromkeys(keys))
        if None in wanted:
            wanted.remove(None)
        if not wanted:
            return [None] * len(keys)
        statement, values = self._statement(
            record,
            ("one", column.key),
            where,
            lambda s: s.where(column.in_(_keys(column))),
            needs=(column.key,),
            is_seen=self._are_seen(record, column, wanted),
        )
        of = attrgetter(column.key)

        async def ask(keys: Sequence[Any]) -> dict[Any, R]:
            rows = await self._fetch(statement, statement.bound(values | {"keys": keys}))
            return dict(zip(map(of, rows), rows, strict=True))

        found = await self._gathered(statement, values, wanted, ask)
        if access.is_followed(record):
            self._see(record, filter(None, map(found.get, wanted)))
        return list(map(found.get, keys))

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
        order = _ordering(record, order_by)
        statement, values = self._statement(
            record,
            ("many", column.key, order),
            where,
            lambda s: s.where(column.in_(_keys(column))).order_by(*_ordered(record, order_by)),
            needs=(column.key,),
            is_seen=self._are_seen(record, column, keys),
        )
        grouped: dict[Any, list[R]] = {key: [] for key in keys}
        bound = statement.bound(values | {"keys": list(grouped)})
        for row in await self._run(record, statement, bound):
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
        link = cast("type[Record]", link_from.class_)
        order = _ordering(record, order_by)
        statement, values = self._statement(
            record,
            ("through", link.__name__, link_from.key, link_to.key, order),
            where,
            lambda s: (
                s.add_columns(link_from)
                .join_from(link, record, link_to == record.id)  # type: ignore[attr-defined]
                .where(
                    link_from.in_(_keys(link_from)),
                    access.visible(link, access.symbolic(self._context.viewer)),
                )
                .order_by(*_ordered(record, order_by))
            ),
            is_linked=True,
        )
        grouped: dict[Any, list[R]] = {key: [] for key in keys}
        make = partial_row(record, self._names(record))._make  # type: ignore[attr-defined]
        bound = statement.bound(values | {"keys": list(grouped)})
        for *cells, key in await self._fetch(statement, bound):
            grouped[key].append(make(cells))
        return [grouped[key] for key in keys]

    async def page(
        self,
        record: type[R],
        column: InstrumentedAttribute[Any],
        keys: Sequence[Any],
        page: PageArgs,
        *,
        order: Order = _BY_ID,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> list[Page[R]]:
        """Give for each key one page of its visible rows.

        One statement for all keys: a UNION ALL of limited selects, cheaper than ROW_NUMBER.
        """
        unique = list(dict.fromkeys(keys))
        is_seen = self._are_seen(record, column, unique)
        statement, values = self._paged(record, page, order, where, column, is_seen=is_seen)
        of = attrgetter(column.key)

        async def ask(keys: Sequence[Any]) -> dict[Any, list[R]]:
            found: dict[Any, list[R]] = {key: [] for key in keys}
            for start in range(0, len(keys), _UNION_PARTS):
                parts = statement.together(values, "key", keys[start : start + _UNION_PARTS])
                for row in await self._fetch(statement, parts):
                    found[of(row)].append(row)
            return found

        found = await self._gathered(statement, values, unique, ask)
        if access.is_followed(record):
            self._see(record, chain.from_iterable(map(found.__getitem__, unique)))
        return [_page(found[key], page, order) for key in keys]

    async def list(
        self,
        record: type[R],
        page: PageArgs,
        *,
        order: Order = _BY_ID,
        owner: InstrumentedAttribute[Any] | None = None,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> Page[R]:
        """Give one page of all visible rows of a table; the viewer's own, if `owner` says whose."""
        statement, values = self._paged(record, page, order, where, None, owner=owner)

        async def ask(_: Sequence[Any]) -> dict[Any, Sequence[R]]:
            return {None: await self._fetch(statement, statement.bound(values))}

        rows = (await self._gathered(statement, values, (None,), ask))[None]
        if access.is_followed(record):
            self._see(record, rows)
        return _page(rows, page, order)

    def _paged(
        self,
        record: type[R],
        page: PageArgs,
        order: Order,
        where: Sequence[ColumnElement[bool]],
        column: InstrumentedAttribute[Any] | None,
        *,
        owner: InstrumentedAttribute[Any] | None = None,
        is_seen: bool = False,
    ) -> tuple[Statement, dict[str, Any]]:
        is_backward = page.is_backward
        given = []
        if page.after is not None:
            given.append(("after", page.after, order.is_descending))
        if page.before is not None:
            given.append(("before", page.before, not order.is_descending))

        def build(statement: Select[Any]) -> Select[Any]:
            columns = [getattr(record, name) for name in order.names]
            is_descending = order.is_descending != is_backward
            for name, _, is_upper in given:
                statement = statement.where(beyond(columns, name, is_below=is_upper))
            if column is not None:
                statement = statement.where(column == bindparam("key", type_=column.type))
            if owner is not None:
                statement = statement.where(access.own(owner))
            return statement.order_by(
                *(c.desc() if is_descending else c.asc() for c in columns)
            ).limit(bindparam("limit", type_=Integer))

        key = None if column is None else column.key
        whose = None if owner is None else owner.key
        shape = ("page", key, whose, order, is_backward, *[name for name, _, _ in given])
        needs = order.names if key is None else (key, *order.names)
        statement, values = self._statement(
            record, shape, where, build, needs=needs, is_seen=is_seen
        )
        for name, text, _ in given:
            columns = order.names
            cells = decode_cursor(text, len(columns))
            values |= {
                f"{name}_{index}": typed(getattr(record, column), cell)
                for index, (column, cell) in enumerate(zip(columns, cells, strict=True))
            }
        return statement, values | {"limit": page.size + 1}

    def _statement(
        self,
        record: type[Record],
        shape: tuple[Any, ...],
        where: Sequence[ColumnElement[bool]],
        build: Build,
        *,
        needs: Sequence[str] = (),
        is_linked: bool = False,
        is_seen: bool = False,
    ) -> tuple[Statement, dict[str, Any]]:
        """Give the statement of a shape, compiled the first time, and the values of this run.

        With `is_seen` its rows are known to be visible: their keys are.
        """
        context = self._context
        viewer = context.viewer
        conditions: Sequence[Any] = [c._generate_cache_key() for c in where] if where else ()
        names = self._names(record, *needs)
        key = (
            record,
            names,
            shape,
            is_seen,
            viewer.is_authenticated,
            viewer.roles,
            viewer.permissions,
            tuple([condition.key for condition in conditions]) if conditions else (),
        )
        statements: _Statements = context.deps.caches.setdefault("statements", {})
        known = statements.get(key)
        if known is None:
            columns = [getattr(record, name) for name in names]
            chosen = select(*columns).where(*where)
            if not is_seen:
                chosen = chosen.where(access.visible(record, access.symbolic(viewer)))
            chosen = build(chosen)
            row = tuple if is_linked else partial_row(record, names)
            statement = Statement(chosen, context.deps.db.engine.dialect, row)
            binds = [[statement.name_of(bind) for bind in c.bindparams] for c in conditions]
            if len(statements) >= _STATEMENTS:
                statements.clear()
            known = statements[key] = statement, binds
        values = access.values(viewer)
        for names_, condition in zip(known[1], conditions, strict=True):
            values |= {
                name: bind.effective_value
                for name, bind in zip(names_, condition.bindparams, strict=True)
                if name is not None
            }
        return known[0], values

    def _names(self, record: type[Record], *needs: str) -> tuple[str, ...]:
        """Name the columns to load of a table, in their order."""
        if record is not self._record:
            return record.Row._fields  # type: ignore[attr-defined, no-any-return]
        return _narrowed(record, self._columns, needs)

    async def _run(self, record: type[R], statement: Statement, bound: Bound) -> Sequence[R]:
        rows: Sequence[R] = await self._fetch(statement, bound)
        if access.is_followed(record):
            self._see(record, rows)
        return rows

    def _gathered(
        self, statement: Statement, values: dict[str, Any], keys: Sequence[Any], ask: Ask
    ) -> Awaitable[Mapping[Any, Any]]:
        """Ask for keys, together with whoever asks for others of the same in this moment."""
        context = self._context
        if context.is_pinned:
            return ask(keys)
        return context.deps.db.gathering.of(statement, values, keys, ask, context.is_busy)

    def _see(self, record: type[Record], rows: Iterable[Record]) -> None:
        """Remember that rows may be seen, and those that follow them."""
        self._context.seen.setdefault(record, set()).update(map(_ID, rows))

    def _are_seen(
        self, record: type[Record], column: InstrumentedAttribute[Any], keys: Sequence[Any]
    ) -> bool:
        """Tell whether the rows with these keys may be seen because those they follow were.

        The database then need not look for the others once more: with a page for each of 20 keys
        that took it longer than the pages.
        """
        parent = access.parent_of(record, column.key)
        if parent is None:
            return False
        seen = self._context.seen.get(parent)
        return seen is not None and seen.issuperset(keys)

    async def _fetch(self, statement: Statement, bound: Bound) -> Sequence[Any]:
        return statement.make(await self._context.select(*bound))


@lru_cache(maxsize=_STATEMENTS)
def _narrowed(
    record: type[Record], columns: frozenset[str], needs: tuple[str, ...]
) -> tuple[str, ...]:
    """Name those columns of a table that are selected or needed, in their order, and the id."""
    wanted = {"id", *columns, *needs}
    return tuple(name for name in record.Row._fields if name in wanted)  # type: ignore[attr-defined]


def _page(found: Sequence[R], page: PageArgs, order: Order) -> Page[R]:
    size = page.size
    has_more, rows = len(found) > size, list(found[:size])
    if page.is_backward:
        rows.reverse()
        return Page(rows, order, page.before is not None, has_more)
    return Page(rows, order, has_more, page.after is not None)


def _keys(column: InstrumentedAttribute[Any]) -> Any:
    return bindparam("keys", type_=column.type, expanding=True)


def _ordered(record: type[Record], order_by: Any) -> tuple[Any, ...]:
    return (record.id if order_by is None else order_by,)  # type: ignore[attr-defined]


def _ordering(record: type[Record], order_by: Any) -> Any:
    """Give what stands for an order in the shape of a statement."""
    (column,) = _ordered(record, order_by)
    if isinstance(column, UnaryExpression):
        return (column.element.key, str(column.modifier))
    return (column.key, "")
