"""A database that cannot be read for a while."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from models.database import Database


class FaultyDatabase:
    """A real database behind a fault that a test turns on and off.

    While it is `away` nothing can be read. With `reads_left`, so many statements more are answered
    before it goes away by itself. What is written is written.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_away = False
        self.reads_left: int | None = None
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def _require_answer(self) -> None:
        if self.reads_left is not None:
            self.is_away = self.is_away or self.reads_left == 0
            self.reads_left = None if self.is_away else self.reads_left - 1
        if self.is_away:
            self.refused += 1
            raise OperationalError("SELECT", {}, Exception("turned off by the test"))

    def mend(self) -> None:
        """End the fault."""
        self.is_away, self.reads_left = False, None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        self._require_answer()
        async with self._database.reading() as connection:
            yield _Connection(self, connection)  # type: ignore[misc]

    async def select(self, text: str, values: Sequence[Any]) -> Sequence[Any]:
        self._require_answer()
        return await self._database.select(text, values)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        self._require_answer()
        async with self._database.snapshot() as connection:
            yield _Connection(self, connection)  # type: ignore[misc]


class _Connection:
    """A connection whose statements are answered as long as the database is there."""

    def __init__(self, database: FaultyDatabase, connection: AsyncConnection) -> None:
        self._database, self._connection = database, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        self._database._require_answer()
        return await self._connection.execute(*arguments, **options)

    async def scalar(self, *arguments: Any, **options: Any) -> Any:
        self._database._require_answer()
        return await self._connection.scalar(*arguments, **options)
