"""SQLite in one call a statement: what it saves, and what it must not lose."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from models.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'some.sqlite3'}", pool_size=1)
    async with database.writing() as session:
        await session.execute(text("CREATE TABLE words (id INTEGER PRIMARY KEY, word TEXT UNIQUE)"))
        await session.commit()
    yield database
    await database.aclose()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give what is asked of the threads of connections, from here on."""
    made: list[Any] = []
    execute = aiosqlite.Connection._execute

    async def counted(self: aiosqlite.Connection, function: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(function)
        return await execute(self, function, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    return made


async def add(database: Database, *words: str) -> None:
    async with database.writing() as session:
        for word in words:
            await session.execute(text("INSERT INTO words (word) VALUES (:word)"), {"word": word})
        await session.commit()


async def words(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list(await connection.scalars(text("SELECT word FROM words ORDER BY id")))


async def test_a_statement_that_reads_is_one_call(database: Database, calls: list[Any]) -> None:
    await add(database, "one", "two")
    calls.clear()
    assert await words(database) == ["one", "two"]
    assert len(calls) == 1


async def test_a_transaction_is_begun_and_ended_once(database: Database, calls: list[Any]) -> None:
    calls.clear()
    await add(database, "one", "two")
    # BEGIN IMMEDIATE, two statements, COMMIT.
    assert len(calls) == 4
    calls.clear()
    async with database.snapshot() as connection:
        await connection.execute(text("SELECT 1"))
        await connection.execute(text("SELECT 2"))
    # BEGIN, two statements, and the end of it.
    assert len(calls) == 4


async def test_a_reader_without_a_snapshot_sees_what_was_committed_meanwhile(
    tmp_path: Path, database: Database
) -> None:
    other = Database(f"sqlite+aiosqlite:///{tmp_path / 'some.sqlite3'}")
    try:
        async with database.reading() as reading, other.snapshot() as snapshot:
            count = text("SELECT count(*) FROM words")
            assert await snapshot.scalar(count) == await reading.scalar(count) == 0
            await add(other, "one")
            assert await reading.scalar(count) == 1
            assert await snapshot.scalar(count) == 0
    finally:
        await other.aclose()


async def test_results_tell_what_the_driver_told(database: Database) -> None:
    async with database.writing() as session:
        insert = text("INSERT INTO words (word) VALUES ('one'), ('two') RETURNING id, word")
        result = await session.execute(insert)
        assert [tuple(row) for row in result] == [(1, "one"), (2, "two")]
        changed: Any = await session.execute(text("UPDATE words SET word = word || '!'"))
        assert changed.rowcount == 2
        many: Any = await session.execute(
            text("INSERT INTO words (word) VALUES (:word)"), [{"word": "a"}, {"word": "b"}]
        )
        assert many.rowcount == 2
        none = await session.execute(text("SELECT id, word FROM words WHERE id = 99"))
        assert list(none.keys()) == ["id", "word"]
        assert none.all() == []
        await session.commit()
    assert await words(database) == ["one!", "two!", "a", "b"]


async def test_what_fails_is_told_as_before_and_undone(database: Database) -> None:
    await add(database, "one")
    with pytest.raises(IntegrityError, match="UNIQUE"):
        await add(database, "two", "one")
    assert await words(database) == ["one"]
    with pytest.raises(OperationalError, match="no such table"):
        async with database.reading() as connection:
            await connection.execute(text("SELECT * FROM absent"))
    await add(database, "three")
    assert await words(database) == ["one", "three"]


async def test_a_call_cancelled_in_its_middle_leaves_no_transaction_behind(
    tmp_path: Path, database: Database
) -> None:
    other = Database(f"sqlite+aiosqlite:///{tmp_path / 'some.sqlite3'}", pool_size=1)
    begins = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            loop.call_soon(begins.set)

    event.listen(other.engine.sync_engine, "before_cursor_execute", told)
    try:
        async with database.writing() as session:
            await session.execute(text("INSERT INTO words (word) VALUES ('held')"))
            # It waits for the lock that we hold, in its thread, when it is cancelled.
            waiting = asyncio.create_task(add(other, "late"))
            await begins.wait()
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait((waiting,))
            assert waiting.cancelled()
            await session.commit()
        # Whoever comes next waits for nobody who has gone.
        async with asyncio.timeout(10):
            await add(database, "next")
            await add(other, "last")
    finally:
        await other.aclose()
    assert await words(database) == ["held", "next", "last"]


async def test_a_closed_connection_is_replaced(database: Database) -> None:
    await add(database, "one")
    async with database.reading() as connection:
        raw: Any = await connection.get_raw_connection()
        await raw.driver_connection.close()
        with pytest.raises(OperationalError, match="closed"):
            await connection.execute(text("SELECT 1"))
    assert await words(database) == ["one"]
