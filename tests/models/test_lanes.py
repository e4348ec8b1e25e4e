"""Selects over connections at hand: bounded, in turn, mended, given back."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from aiomysql import Connection
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models import lanes as lanes_of_models
from models.database import Database
from models.lanes import Lanes
from tests.models.forwarding import forwarding

_NUMBER_SLOWLY = "SELECT CONNECTION_ID(), SLEEP(0.2)"


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    found = Database(f"sqlite+aiosqlite:///{tmp_path}/a.sqlite3", pool_size=4, max_overflow=4)
    yield found
    await found.aclose()


async def test_as_many_are_open_as_were_needed_at_once_and_no_more(database: Database) -> None:
    lanes = Lanes(database.engine, 3, 60.0)
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    assert len(lanes) == 1
    found = await asyncio.gather(*(lanes.select("SELECT ?", (n,)) for n in range(50)))
    assert found == [[(n,)] for n in range(50)]
    assert len(lanes) == 3
    await lanes.aclose()
    assert len(lanes) == 0


async def test_who_finds_all_taken_is_served_by_the_rest_of_the_pool(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a.sqlite3"
    database = Database(url, pool_size=2, max_overflow=0, pool_timeout_s=0.05)
    lanes = Lanes(database.engine, 1, 60.0)
    # As one whose select takes for ever.
    assert lanes._enter()
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    assert len(lanes) == 0
    async with database.reading(), database.reading():
        with pytest.raises(PoolTimeoutError):
            await lanes.select("SELECT 1", ())
    lanes._leave()
    assert await lanes.select("SELECT 1", ()) == [(1,)]
    assert len(lanes) == 1
    await lanes.aclose()
    await database.aclose()


@pytest.mark.parametrize(("pool_size", "max_overflow"), [(1, 0), (1, 1), (2, 0), (3, 0)])
async def test_a_small_pool_is_left_to_all(
    tmp_path: Path, pool_size: int, max_overflow: int
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a.sqlite3"
    found = Database(url, pool_size=pool_size, max_overflow=max_overflow, pool_timeout_s=5.0)
    try:
        assert await found.select("SELECT 1", ()) == [(1,)]
        async with AsyncExitStack() as stack:
            for _ in range(pool_size + max_overflow):
                await stack.enter_async_context(found.reading())
    finally:
        await found.aclose()


async def test_those_that_are_idle_or_old_are_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_of_models, "_IDLE_S", 0.05)
    lanes = Lanes(database.engine, 3, 60.0)
    given_back, all_back = itertools.count(1), asyncio.Event()

    def note(*_: object) -> None:
        if next(given_back) == 3:
            all_back.set()

    event.listen(database.engine.sync_engine, "checkin", note)
    await asyncio.gather(*(lanes.select("SELECT ?", (n,)) for n in range(9)))
    assert len(lanes) == 3
    async with asyncio.timeout(10):
        await all_back.wait()
    assert len(lanes) == 0
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    monkeypatch.undo()
    lanes, taken = Lanes(database.engine, 3, 0.0), []
    event.listen(database.engine.sync_engine, "checkout", lambda *_: taken.append(True))
    for _ in range(3):
        await lanes.select("SELECT 1", ())
    assert len(taken) == 3
    assert len(lanes) == 1
    await lanes.aclose()


async def test_a_select_that_fails_gives_its_place_and_its_connection_back(
    database: Database,
) -> None:
    lanes = Lanes(database.engine, 1, 60.0)
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
    lanes = Lanes(database.engine, 1, 60.0)
    monkeypatch.setattr(lanes_of_models, "_TURN_S", 60.0)
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


async def test_places_go_to_who_waits_in_turn(database: Database) -> None:
    lanes = Lanes(database.engine, 1, 60.0)
    assert lanes._enter()
    async with asyncio.timeout(30):
        first, gone, last = (asyncio.create_task(lanes._comes_in_turn()) for _ in range(3))
        await asyncio.sleep(0)
        lanes._leave()
        assert await first
        # It is given the place of the first, and gives up before it knows.
        lanes._leave()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await last
        assert not await lanes._comes_in_turn(), "nobody leaves"
    lanes._leave()
    assert lanes._enter()
    assert not lanes._enter()
    await lanes.aclose()


@pytest.mark.mysql
async def test_connections_the_server_closed_are_replaced(migrated_mysql_url: str) -> None:
    found = Database(migrated_mysql_url, pool_size=6, max_overflow=6)
    try:
        opened = await asyncio.gather(*(found.select(_NUMBER_SLOWLY, ()) for _ in range(6)))
        numbers = {number for ((number, _),) in opened}
        assert len(numbers) == found.at_hand == 6
        # As when it was started again: not one of them is left.
        async with found.reading() as other:
            for number in numbers:
                await other.execute(text(f"KILL {number}"))
        again = await asyncio.gather(*(found.select(_NUMBER_SLOWLY, ()) for _ in range(6)))
        assert numbers.isdisjoint(number for ((number, _),) in again)
    finally:
        await found.aclose()


@pytest.mark.mysql
async def test_one_that_the_network_forgot_is_given_up_without_asking_it(
    migrated_mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = make_url(migrated_mysql_url)
    async with forwarding(str(url.host), int(url.port or 3306)) as road:
        found = Database(
            url.set(host="127.0.0.1", port=road.port).render_as_string(hide_password=False),
            pool_size=4,
            max_overflow=4,
        )
        try:
            await found.select("SELECT 1", ())
            road.forget()
            monkeypatch.setattr(lanes_of_models, "_IDLE_S", 0.0)
            async with asyncio.timeout(10):
                assert await found.select("SELECT 2", ()) == ((2,),)
        finally:
            await found.aclose()


@pytest.mark.mysql
async def test_one_that_nobody_waits_for_while_it_is_opened_is_given_up_without_asking_it(
    migrated_mysql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(migrated_mysql_url)
    begun = asyncio.Event()
    autocommit = Connection.autocommit
    async with forwarding(str(url.host), int(url.port or 3306)) as road:

        async def hanging(connection: Connection, value: bool) -> None:
            if value:
                road.forget()
                begun.set()
            await autocommit(connection, value)

        monkeypatch.setattr(Connection, "autocommit", hanging)
        found = Database(
            url.set(host="127.0.0.1", port=road.port).render_as_string(hide_password=False),
            pool_size=4,
            max_overflow=4,
        )
        try:
            async with asyncio.timeout(30):
                opening = asyncio.create_task(found.select("SELECT 1", ()))
                await begun.wait()
                # The statement is on its way.
                for _ in range(3):
                    await asyncio.sleep(0)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
                monkeypatch.undo()
                assert await found.select("SELECT 2", ()) == ((2,),)
            assert [record.getMessage() for record in caplog.records] == []
        finally:
            await found.aclose()
