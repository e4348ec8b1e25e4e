"""Selects over connections at hand: bounded, in turn, mended, given back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models import lanes as lanes_of_models
from models.database import Database
from models.lanes import Lanes


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite+aiosqlite:///{tmp_path}/a.sqlite3", pool_size=4, max_overflow=4)
    yield found
    await found.aclose()


async def test_as_many_are_open_as_were_needed_at_once_and_no_more(database: Database) -> None:
    lanes = Lanes(database.engine, 3, 10.0)
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    assert len(lanes) == 1
    found = await asyncio.gather(*(lanes.select("SELECT ?", (n,)) for n in range(50)))
    assert found == [[(n,)] for n in range(50)]
    assert len(lanes) == 3
    await lanes.aclose()
    assert len(lanes) == 0


async def test_who_finds_all_taken_waits_no_longer_than_for_the_pool(database: Database) -> None:
    lanes = Lanes(database.engine, 1, 0.05)
    await lanes._places.acquire()
    with pytest.raises(PoolTimeoutError):
        await lanes.select("SELECT 1", ())
    lanes._places.release()
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    await lanes.aclose()


async def test_a_select_that_fails_gives_its_place_and_its_connection_back(
    database: Database,
) -> None:
    lanes = Lanes(database.engine, 1, 10.0)
    for _ in range(3):
        with pytest.raises(DBAPIError):
            await lanes.select("SELECT nothing", ())
    assert len(lanes) == 1
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    await lanes.aclose()


async def test_a_cancelled_select_gives_its_place_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, forever = asyncio.Event(), asyncio.Event()

    async def fetch(*_: object) -> None:
        begun.set()
        await forever.wait()

    monkeypatch.setattr(lanes_of_models, "fetch", fetch)
    lanes = Lanes(database.engine, 1, 10.0)
    running = asyncio.create_task(lanes.select("SELECT 1", ()))
    await begun.wait()
    waiting = asyncio.create_task(lanes.select("SELECT 2", ()))
    for task in (waiting, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    monkeypatch.undo()
    # What the connection was doing is not known: it is given up.
    assert len(lanes) == 0
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    await lanes.aclose()


@pytest.mark.mysql
async def test_a_connection_the_server_closed_is_replaced(migrated_mysql_url: str) -> None:
    found = Database(migrated_mysql_url, pool_size=2, max_overflow=2)
    try:
        ((number,),) = await found.select("SELECT CONNECTION_ID()", ())
        assert found.at_hand == 1
        async with found.reading() as other:
            await other.execute(text(f"KILL {number}"))
        ((again,),) = await found.select("SELECT CONNECTION_ID()", ())
        assert again != number
    finally:
        await found.aclose()
