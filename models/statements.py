"""Selects compiled once, and run straight on the driver.

Putting a select together, finding its compiled form and wrapping its result costs SQLAlchemy about
as much as everything else a query of the graph does. Here the text of a select is made once for
each shape; a run binds its parameters, asks the driver, and makes rows of what it gives.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from typing import Any

from sqlalchemy import BindParameter, Dialect, Enum, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.compiler import SQLCompiler

from models.base import IdType, UtcDateTime, as_id
from models.journal import journal

Processor = Callable[[Any], Any]
# What an empty list is compared with; not every database takes empty parentheses.
_NOTHING = "SELECT 1 FROM (SELECT 1) AS no_rows WHERE 1 <> 1"
MakeRows = Callable[[Sequence[Sequence[Any]]], list[Any]]


class Statement:
    """A select of plain columns with named parameters, for one dialect.

    A parameter made with `bindparam(name, expanding=True)` takes a list. What it asks for is the
    parameter `keys`, such a list, or `key`.
    """

    def __init__(self, select: Select[*tuple[Any, ...]], dialect: Dialect, row: type[Any]) -> None:
        compiled = select.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - what a select compiles to.
        self.select = select
        self.dialect = dialect
        self.make = _row_maker(select, dialect, row)
        self.text = compiled.string
        self._mark = "?" if dialect.paramstyle == "qmark" else "%s"
        # SQLite takes no parentheses there; on MySQL a derived table each takes twice as long.
        self._part = "SELECT * FROM ({})" if dialect.name == "sqlite" else "({})"
        self._fixed = compiled.params
        self._lists = {
            name: f"(__[POSTCOMPILE_{name}])"
            for bind, name in compiled.bind_names.items()
            if bind.expanding
        }
        # For whoever is told of a run without its values: each list as long as one.
        self.shown = self._with_lists(dict.fromkeys(self._lists, 1))
        # The parameters of a run that are not the keys it asks for.
        self.given = tuple(
            name for name in compiled.bind_names.values() if name not in ("key", "keys")
        )
        self._binds = {bind.key: name for bind, name in compiled.bind_names.items()}
        self._names = [
            (name, _bind_processor(compiled.binds[name].type, dialect))
            for name in compiled.positiontup or ()
        ]

    def name_of(self, bind: BindParameter[Any]) -> str | None:
        """Give the name of a parameter the select was made with; None if its text needs none."""
        return self._binds.get(bind.key)

    def bound(self, parameters: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Give the text and the values, in its order, for one run."""
        text = self.text
        if self._lists:
            text = self._with_lists(
                {
                    name: len(parameters[name] if name in parameters else self._fixed[name])
                    for name in self._lists
                }
            )
        values: list[Any] = []
        for name, process in self._names:
            value = parameters[name] if name in parameters else self._fixed[name]
            if name in self._lists:
                values += value if process is None else map(process, value)
            else:
                values.append(value if process is None else process(value))
        return text, values

    def _with_lists(self, sizes: Mapping[str, int]) -> str:
        text = self.text
        for name, place in self._lists.items():
            marks = ", ".join([self._mark] * sizes[name]) or _NOTHING
            text = text.replace(place, f"({marks})")
        return text

    def together(
        self, parameters: Mapping[str, Any], name: str, keys: Sequence[Any]
    ) -> tuple[str, list[Any]]:
        """Give the text and values of runs that differ in one parameter, as one UNION ALL."""
        text, fixed = self.bound({**parameters, name: keys[0]})
        if len(keys) == 1:
            return text, fixed
        process = dict(self._names)[self._binds[name]]
        places = [at for at, (bind, _) in enumerate(self._names) if bind == self._binds[name]]
        values: list[Any] = []
        for key in keys:
            bound = key if process is None else process(key)
            for at in places:
                fixed[at] = bound
            values += fixed
        return " UNION ALL ".join([self._part.format(text)] * len(keys)), values


class Reading:
    """A select that is asked often: compiled at its first run, for the dialect it then runs on.

    Its lists are parameters made with `bindparam(name, expanding=True)`. Gives plain tuples, or
    those of `row`.
    """

    def __init__(self, select: Select[*tuple[Any, ...]], row: type[Any] = tuple) -> None:
        self._select, self._row = select, row
        self._statements: dict[str, Statement] = {}

    def on(self, dialect: Dialect) -> Statement:
        """Give the compiled select."""
        statement = self._statements.get(dialect.name)
        if statement is None:
            statement = self._statements[dialect.name] = Statement(self._select, dialect, self._row)
        return statement

    async def rows(self, connection: AsyncConnection, **parameters: Any) -> list[Any]:
        """Run it on a connection, in whatever transaction that has. Raises DBAPIError."""
        statement = self.on(connection.dialect)
        return statement.make(await fetch(connection, *statement.bound(parameters)))


async def fetch(connection: AsyncConnection, text: str, values: Sequence[Any]) -> Sequence[Any]:
    """Run a text on the driver of a connection and give all that it selects, as tuples.

    Raises DBAPIError. A connection left in the middle of an answer, by an error or by cancellation,
    is not used again.
    """
    noted = journal.get()
    if noted is None:
        return await _fetch(connection, text, values)
    begun = noted.begin(connection.dialect, text)
    try:
        found = await _fetch(connection, text, values)
    except BaseException as error:
        noted.end(begun, text, None, error)
        raise
    noted.end(begun, text, len(found), None)
    return found


async def _fetch(connection: AsyncConnection, text: str, values: Sequence[Any]) -> Sequence[Any]:
    sync = connection.sync_connection
    assert sync is not None  # noqa: S101 - a connection that is lent is open.
    if sync.engine._has_events:  # Whoever counts or traces statements hears of these as well.
        for told in sync.dispatch.before_cursor_execute:
            told(sync, None, text, values, None, False)
    adapted: Any = sync.connection.dbapi_connection
    failures: Any = sync.dialect.loaded_dbapi.Error
    try:
        if sync.dialect.name == "sqlite":
            return await adapted.rows(text, values)  # type: ignore[no-any-return]
        return await _fetch_mysql(adapted.driver_connection, text, values)
    except failures as error:
        is_lost = sync.dialect.is_disconnect(error, adapted, None)
        if is_lost:
            await connection.invalidate()
        raise DBAPIError.instance(
            text,
            None,
            error,
            failures,
            hide_parameters=True,
            connection_invalidated=is_lost,
            dialect=sync.dialect,
        ) from error
    except BaseException:
        if sync.dialect.name != "sqlite":
            await connection.invalidate()
        raise


async def _fetch_mysql(driver: Any, text: str, values: Sequence[Any]) -> Sequence[Any]:
    async with driver.cursor() as cursor:
        await cursor.execute(text, values or None)
        return await cursor.fetchall()  # type: ignore[no-any-return]


def _bind_processor(type_: Any, dialect: Dialect) -> Processor | None:
    if isinstance(type_, IdType):
        # What SQLAlchemy makes of it calls it through two others; there is one for each key.
        return as_id
    return type_.dialect_impl(dialect).bind_processor(dialect)  # type: ignore[no-any-return]


def _row_maker(select: Select[*tuple[Any, ...]], dialect: Dialect, row: type[Any]) -> MakeRows:
    """Give the function that makes rows of what the driver selects, generated for the columns."""
    scope: dict[str, Any] = {"new": tuple.__new__, "Row": row, "UTC": UTC}
    parts = []
    for index, column in enumerate(select.selected_columns):
        type_ = column.type
        if isinstance(type_, Enum) and type_.enum_class is not None:
            # The members by what is stored, and null.
            scope[f"of{index}"] = dict(zip(type_.enums, type_.enum_class, strict=True)) | {
                None: None
            }
            parts.append(f"of{index}[found[{index}]]")
            continue
        if isinstance(type_, UtcDateTime) and dialect.name != "sqlite":
            parts.append(f"None if (at := found[{index}]) is None else at.replace(tzinfo=UTC)")
            continue
        process = type_.dialect_impl(dialect).result_processor(dialect, None)
        if process is None:
            parts.append(f"found[{index}]")
        else:
            scope[f"of{index}"] = process
            parts.append(f"of{index}(found[{index}])")
    source = f"def make(all):\n    return [new(Row, ({', '.join(parts)},)) for found in all]\n"
    exec(compile(source, f"<rows of {row.__name__}>", "exec"), scope)  # noqa: S102 - nothing of it is given from outside.
    return scope["make"]  # type: ignore[no-any-return]
