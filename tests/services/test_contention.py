"""Transactions that get in each other's way, on a database that really takes them back."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from app.database_metrics import DatabaseMetrics
from models.conversations import Conversation
from services import changes, contention
from services.base import Deps, work
from services.contention import ContendedError, repeatable, told
from services.conversations import threads
from tests.api import operations as op
from tests.fixtures import Api

UPDATE = """
mutation($id: ID!, $title: String) {
  conversationUpdate(id: $id, input: {title: $title}) { conversation { title } errors { code } } }
"""


@pytest.fixture(autouse=True)
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(contention, "COUNTS", counted)
    return counted


def failure(number: int) -> OperationalError:
    return OperationalError("UPDATE", {}, Exception(number, "the server's words"))


# ---- what is run again


@pytest.mark.parametrize(
    ("number", "reason", "most"), [(1213, "deadlock", 4), (1205, "lock_wait", 2)]
)
async def test_what_was_taken_back_is_run_again_so_often_and_then_told(
    counts: dict[str, int], number: int, reason: str, most: int
) -> None:
    runs = []

    @repeatable
    async def verb(*, succeeds_at: int) -> str:
        runs.append(None)
        with told():
            if len(runs) < succeeds_at:
                raise failure(number)
        return "done"

    assert await verb(succeeds_at=most) == "done"
    assert len(runs) == most
    assert counts == {reason: most - 1, "repeated": most - 1}
    runs.clear()
    counts.clear()
    with pytest.raises(ContendedError) as given_up:
        await verb(succeeds_at=most + 1)
    assert len(runs) == most
    assert counts == {reason: most, "repeated": most - 1, "given_up": 1}
    assert given_up.value.code == "UNAVAILABLE"
    assert given_up.value.retry_after_s == 1
    assert "Try again" in given_up.value.message
    # Those who go on when the database fails need not know of it.
    assert isinstance(given_up.value, SQLAlchemyError)


async def test_what_failed_for_another_reason_is_not_run_again(counts: dict[str, int]) -> None:
    runs = []

    @repeatable
    async def verb() -> None:
        runs.append(None)
        with told():
            raise failure(1064)

    with pytest.raises(OperationalError):
        await verb()
    assert (len(runs), counts) == (1, {})


async def test_who_is_cancelled_between_two_attempts_ends() -> None:
    tried = asyncio.Event()

    @repeatable
    async def verb() -> None:
        tried.set()
        with told():
            raise failure(1213)

    task = asyncio.create_task(verb())
    await tried.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_file_held_by_another_process_counts_as_well(tmp_path: Path) -> None:
    place = tmp_path / "held.sqlite3"
    holder = sqlite3.connect(place, isolation_level=None)
    other = sqlite3.connect(place, isolation_level=None, timeout=0)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError) as busy:
        other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ContendedError) as contended, told():
        raise OperationalError("BEGIN IMMEDIATE", {}, busy.value)
    assert contended.value.what == "busy"
    holder.close()
    other.close()


def test_metrics_count_it(counts: dict[str, int]) -> None:
    counts.update(deadlock=3, repeated=2, given_up=1)
    registry = CollectorRegistry()
    registry.register(DatabaseMetrics())

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"noosphere_database_{name}_total", labels)

    assert value("contentions", reason="deadlock") == 3
    assert value("contentions", reason="lock_wait") == 0
    assert (value("repetitions"), value("given_up")) == (2, 1)


# ---- on MariaDB


@asynccontextmanager
async def outsider(deps: Deps) -> AsyncIterator[AsyncConnection]:
    """Open a transaction beside those of the product."""
    engine = create_async_engine(deps.db.url)
    try:
        async with engine.connect() as connection, connection.begin():
            yield connection
    finally:
        await engine.dispose()


async def waits_for_a_lock(watch: AsyncConnection) -> None:
    """Return once some transaction waits for a lock of another."""
    waiting = text("SELECT COUNT(*) FROM information_schema.innodb_lock_waits")
    async with asyncio.timeout(60):
        while not await watch.scalar(waiting):  # noqa: ASYNC110 - a server's view has no events.
            # It is made anew only once nobody has looked for a tenth of a second.
            await asyncio.sleep(0.3)


mysql_alone = [pytest.mark.mysql, pytest.mark.parametrize("database_url", ["mysql"], indirect=True)]


def on_mysql(test: Any) -> Any:
    for mark in mysql_alone:
        test = mark(test)
    return test


@on_mysql
async def test_two_transactions_that_deadlock_both_end_well(
    deps: Deps, api: Api, counts: dict[str, int]
) -> None:
    person = await api.person("ann")
    made = [await threads.create(deps, person.viewer, title="a") for _ in range(2)]
    first, second = (conversation.id for conversation in made)
    holding = asyncio.Barrier(2)
    attempts: list[str] = []

    @repeatable
    async def both(name: str, one: str, other: str) -> None:
        is_first_time = name not in attempts
        attempts.append(name)
        async with work(deps) as unit:
            rows = [await unit.lock(Conversation, one)]
            if is_first_time:
                async with asyncio.timeout(60):
                    await holding.wait()
            rows.append(await unit.lock(Conversation, other))
            for row in rows:
                assert row is not None
                row.title = f"{row.title}{name}"

    async with asyncio.TaskGroup() as group:
        group.create_task(both("x", first, second))
        group.create_task(both("y", second, first))
    titles = set()
    async with work(deps) as unit:
        for id_ in (first, second):
            row = await unit.lock(Conversation, id_)
            assert row is not None
            titles.add(row.title)
    # Each took part once, in both rows, and in the same order.
    assert titles in ({"axy"}, {"ayx"})
    assert sorted(attempts) in (["x", "x", "y"], ["x", "y", "y"])
    assert counts == {"deadlock": 1, "repeated": 1}


@on_mysql
async def test_a_mutation_that_is_taken_back_is_made_once_all_the_same(
    deps: Deps, api: Api, counts: dict[str, int]
) -> None:
    person = await api.person("ann")
    conversation = await threads.create(deps, person.viewer, title="before")
    # On which the change is told.
    topic = changes.topic(person.id)
    async with outsider(deps) as other, outsider(deps) as watch:
        # What has changed more is not what is taken back.
        await other.execute(text("UPDATE permissions SET description = CONCAT(description, '.')"))
        await other.execute(text("UPDATE topics SET seq = seq WHERE id = :id").bindparams(id=topic))
        await other.execute(
            text("SELECT id FROM topics WHERE id = :id FOR UPDATE").bindparams(id=topic)
        )
        asking = asyncio.create_task(api.run(UPDATE, person, id=conversation.id, title="after"))
        # It holds the conversation and waits for the topic.
        await waits_for_a_lock(watch)
        await other.execute(
            text("SELECT id FROM conversations WHERE id = :id FOR UPDATE").bindparams(
                id=conversation.id
            )
        )
        await other.rollback()
        data = await asking
    assert data == {"conversation": {"title": "after"}, "errors": []}
    assert counts["deadlock"] == counts["repeated"] == 1
    stored = await api.run(op.MESSAGES, person, id=conversation.id)
    assert stored["title"] == "after"
