"""SQLite through one thread per connection, with one call to that thread for each statement.

SQLAlchemy's adapter of aiosqlite asks the thread for a cursor, then to execute, to fetch, to close,
and to roll back what was only read: five changes of threads for a statement that takes SQLite
microseconds. On a busy loop each of them waits for the interpreter's lock.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiosqlite
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
)

_Outcome = tuple[Any, list[Any], int, int | None]


class Cursor(AsyncAdapt_aiosqlite_cursor):
    """Executes, fetches and closes in one call."""

    __slots__ = ("_outcome", "arraysize")

    def __init__(self, adapt_connection: AsyncAdapt_dbapi_connection) -> None:
        self._adapt_connection = adapt_connection
        self._connection = adapt_connection._connection
        self._rows = deque()
        self._outcome: _Outcome = (None, [], -1, None)
        self.arraysize = 1

    @property
    def description(self) -> Any:
        """The columns of the result; None if the statement gives no rows."""
        return self._outcome[0]

    @property
    def rowcount(self) -> int:
        """The number of rows changed; -1 for a statement that changes none."""
        return self._outcome[2]

    @property
    def lastrowid(self) -> Any:
        """The row id of the last row inserted."""
        return self._outcome[3]

    async def _execute_async(self, operation: Any, parameters: Any) -> Any:
        await self._run(_execute, operation, () if parameters is None else parameters)

    async def _executemany_async(self, operation: Any, seq_of_parameters: Any) -> Any:
        await self._run(_execute_many, operation, seq_of_parameters)

    async def _run(self, function: Callable[..., _Outcome], *arguments: Any) -> None:
        connection: Any = self._adapt_connection
        async with connection._execute_mutex:
            self._outcome = await connection.call(function, *arguments)
        self._rows = deque(self._outcome[1])

    async def _async_soft_close(self) -> None:
        """Do nothing: all was fetched, and the cursor is closed."""

    def close(self) -> None:
        """Drop the rows that nobody took."""
        self._rows.clear()


def _execute(connection: sqlite3.Connection, operation: str, parameters: Any) -> _Outcome:
    cursor = connection.execute(operation, parameters)
    try:
        rows = cursor.fetchall() if cursor.description else []
        return cursor.description, rows, cursor.rowcount, cursor.lastrowid
    finally:
        cursor.close()


def _execute_many(connection: sqlite3.Connection, operation: str, parameters: Any) -> _Outcome:
    cursor = connection.executemany(operation, parameters)
    try:
        return None, [], cursor.rowcount, cursor.lastrowid
    finally:
        cursor.close()


class Connection(AsyncAdapt_aiosqlite_connection):
    """Ends only transactions that were begun."""

    __slots__ = ("_is_unsure",)

    _cursor_cls = Cursor

    def __init__(self, dbapi: Any, connection: Any) -> None:
        super().__init__(dbapi, connection)
        # Whether a call was left before it ended: nobody knows what the thread is doing.
        self._is_unsure = False

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function(connection, …)` in the connection's thread.

        One that is cancelled leaves it running there; what is called next comes after it.
        """
        was_unsure, self._is_unsure = self._is_unsure, True
        driver: Any = self._connection
        try:
            outcome = await driver._execute(partial(_on, driver, function), *arguments)
        except Exception:
            self._is_unsure = was_unsure
            raise
        self._is_unsure = was_unsure
        return outcome

    async def rows(self, text: str, values: Sequence[Any]) -> list[Any]:
        """Run a select and give all of it, as tuples. Raises sqlite3.Error."""
        try:
            async with self._execute_mutex:
                outcome: _Outcome = await self.call(_execute, text, values)
        except Exception as error:  # noqa: BLE001 - told as SQLAlchemy's own way tells it.
            self._handle_exception(error)
        return outcome[1]

    def rollback(self) -> None:
        """Roll back, if there is something to."""
        if self._may_be_in_transaction():
            super().rollback()
            self._is_unsure = False

    def commit(self) -> None:
        """Commit, if there is something to."""
        if self._may_be_in_transaction():
            super().commit()

    def _may_be_in_transaction(self) -> bool:
        driver: Any = self._connection
        return self._is_unsure or (driver._connection is not None and driver.in_transaction)


def _on(driver: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(driver._conn, *arguments)


class Driver(AsyncAdapt_aiosqlite_dbapi):
    """What `create_async_engine` takes as `module` for `sqlite+aiosqlite`."""

    def __init__(self) -> None:
        super().__init__(aiosqlite, sqlite3)

    def connect(self, *arguments: Any, **options: Any) -> Connection:
        """Open a connection, in a thread of its own."""
        return Connection(self, super().connect(*arguments, **options)._connection)


__all__ = ["Driver"]
