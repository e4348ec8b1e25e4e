"""Engines and connections for SQLite and MySQL/MariaDB.

Reads take a connection and select columns; writes take a session in a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, Dialect, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from models.gathering import Gathering
from models.lanes import Lanes
from models.sqlite import Driver
from models.statements import Reading

SUPPORTED_DRIVERS = ("sqlite+aiosqlite", "mysql+aiomysql", "mysql+asyncmy")
_BUSY_TIMEOUT_MS = 15_000
_SQLITE_LANES = 4
_LANES_FROM = 4
"""Connections there must be for any of them to be kept for selects."""


class Database:
    """One database of the application.

    On SQLite writes of this process queue behind a lock, because the file has one writer at a time
    and queueing is fairer and cheaper than retrying on `SQLITE_BUSY`. On MySQL a statement waits
    `lock_wait_s` seconds at most for the locks of others: less than a request may take, so that
    there is time left to say so. One that `is_read_only` refuses every change.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        max_overflow: int = 10,
        pool_timeout_s: float = 30.0,
        pool_recycle_s: int = 1800,
        lock_wait_s: int = 10,
        is_read_only: bool = False,
    ) -> None:
        self.url = make_url(url)
        if self.url.drivername not in SUPPORTED_DRIVERS:
            raise ValueError(f"unsupported database driver {self.url.drivername}")
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": max_overflow,
            "pool_timeout": pool_timeout_s,
        }
        if self.is_sqlite:
            # The driver must not begin transactions by itself: `_begin_sqlite` does.
            options["connect_args"] = {"isolation_level": None, "timeout": _BUSY_TIMEOUT_MS / 1000}
            options["module"] = Driver()
        else:
            self.url = self.url.update_query_dict({"charset": "utf8mb4"})
            options |= {
                "pool_recycle": pool_recycle_s,
                "pool_pre_ping": True,
                "isolation_level": "READ COMMITTED",
                "connect_args": {
                    "connect_timeout": 10,
                    "init_command": "SET time_zone='+00:00', "
                    f"innodb_lock_wait_timeout={lock_wait_s:d}",
                },
            }
        self.engine = create_async_engine(self.url, **options)
        self._writer = asyncio.Lock()
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine.sync_engine, "do_connect", _connect_mysql)
        if is_read_only:
            refuse = _refuse_writes_sqlite if self.is_sqlite else _refuse_writes_mysql
            event.listen(self.engine.sync_engine, "connect", refuse)
        self._write_engine = self.engine.execution_options(noosphere_begin="BEGIN IMMEDIATE")
        self._read_engine = self.engine.execution_options(noosphere_begin="")
        # Of the connections there may be, half at most are for selects, and none where that would
        # leave too few to whoever keeps one: a lane keeps its own.
        most = min(pool_size, (pool_size + max_overflow) // 2)
        if self.is_sqlite:
            # Each has a thread, and more than a few only wait for the interpreter.
            most = min(most, _SQLITE_LANES)
        if pool_size + max_overflow < _LANES_FROM:
            most = 0
        self._lanes = Lanes(self._read_engine, most, pool_recycle_s)
        # Selects of the graph that several operations may have sent as one.
        self.gathering = Gathering()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for reading; it goes back at the end of the block.

        Each statement sees what is committed by then.
        """
        async with self._read_engine.connect() as connection:
            yield connection

    @property
    def at_hand(self) -> int:
        """How many of the pool's connections are kept open for selects, and idle."""
        return len(self._lanes)

    def select(self, text: str, values: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        """Run one select of `models.statements`, outside any transaction. Raises DBAPIError."""
        return self._lanes.select(text, values)

    async def rows(self, reading: Reading, **parameters: Any) -> list[Any]:
        """Give the rows of a select that is asked often, outside any transaction.

        Raises DBAPIError.
        """
        statement = reading.on(self.engine.dialect)
        return statement.make(await self._lanes.select(*statement.bound(parameters)))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection whose reads all see the database as of the first of them."""
        async with self.engine.connect() as connection:
            if not self.is_sqlite:
                await connection.execution_options(isolation_level="REPEATABLE READ")
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """Lend a session in a transaction; the caller commits, an error rolls back."""
        session = AsyncSession(self._write_engine, expire_on_commit=False, autoflush=False)
        if self.is_sqlite:
            async with self._writer, session:
                yield session
        else:
            async with session:
                yield session

    async def ping(self) -> None:
        """Return when the database answers a trivial query."""
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._lanes.aclose()
        await self.engine.dispose()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "temp_store=MEMORY",
        # In KiB, for each connection. The system caches the file as well: a larger one cost more
        # memory, up to 320 MiB in all, and reads took the same time (64 MiB, read at random).
        "cache_size=-2000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    # SQLite's own knows the letters of English alone; MySQL's knows all of them.
    connection.create_function("lower", 1, _lower, deterministic=True)


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _refuse_writes_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _refuse_writes_mysql(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("SET SESSION TRANSACTION READ ONLY")
    cursor.close()


def _connect_mysql(dialect: Dialect, _record: Any, arguments: Any, options: Any) -> Any:
    # The drivers connect through `asyncio.wait_for`, which before Python 3.12 swallows a
    # cancellation that comes just as it succeeds: whoever was cancelled would never end.
    before = _cancellations()
    connection = dialect.connect(*arguments, **options)
    if _cancellations() > before:
        connection.close()
        raise asyncio.CancelledError
    return connection


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock later fails instead of waiting.
    # Statements that each read by themselves need no transaction.
    statement = connection.get_execution_options().get("noosphere_begin", "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)
