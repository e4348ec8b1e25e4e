"""Who concludes that nobody else lives, and who does not."""

import asyncio
from typing import Any, cast

import pytest
from sqlalchemy import select

from app import solitude
from app import worker as worker_module
from app.solitude import Solitude
from app.worker import working
from models.base import now
from models.states import RunState
from models.tools import Tool, ToolExecution
from services.base import Deps, work
from services.events.base import Bus, BusUnavailableError
from tests.services.tasks.conftest import until


class Told:
    """A bus, as far as it is asked who lives, and the clock beside it."""

    node_id = "a"

    def __init__(self) -> None:
        self.at = 1000.0
        self.alive: set[str] | None = {"a"}
        self.broken_at = 0.0

    async def nodes(self) -> set[str]:
        if self.alive is None:
            raise BusUnavailableError("Redis is away.")
        return set(self.alive)

    def unbroken_since(self) -> float:
        return self.broken_at

    async def looks(self, of: Solitude, *after_s: float) -> list[bool]:
        found = []
        for seconds in after_s:
            self.at += seconds
            found.append(await of.look())
        return found


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def alone(told: Told) -> Solitude:
    return Solitude(cast("Bus", told), clock=lambda: told.at)


async def test_one_look_is_not_enough_and_some_seconds_are(told: Told, alone: Solitude) -> None:
    assert await told.looks(alone, 0, 1, 1, 2) == [False] * 4
    assert await told.looks(alone, 1, 1) == [True, True]


@pytest.mark.parametrize("alive", [{"a", "b"}, {"b"}, set()])
async def test_whoever_hears_of_others_or_not_of_itself_begins_anew(
    told: Told, alone: Solitude, alive: set[str]
) -> None:
    assert await told.looks(alone, 0, 9) == [False, True]
    told.alive = alive
    assert await told.looks(alone, 1) == [False]
    told.alive = {"a"}
    assert await told.looks(alone, 1, 4.9, 0.1) == [False, False, True]


async def test_a_bus_that_forgot_everybody_between_two_looks_proves_nothing(
    told: Told, alone: Solitude
) -> None:
    assert await told.looks(alone, 0) == [False]
    told.broken_at = told.at + 3
    assert await told.looks(alone, 6, 4.9, 0.1) == [False, False, True]
    # As a bus tells that does not know whether others miss this node.
    for _ in range(10):
        told.broken_at = told.at + 6
        assert await told.looks(alone, 6) == [False]


async def test_a_bus_that_is_away_between_two_looks_proves_nothing(
    told: Told, alone: Solitude
) -> None:
    assert await told.looks(alone, 0) == [False]
    told.alive = None
    with pytest.raises(BusUnavailableError):
        await told.looks(alone, 3)
    told.alive = {"a"}
    assert await told.looks(alone, 3, 5) == [False, True]


async def _run_of_another(deps: Deps) -> str:
    async with work(deps) as unit:
        tool_id = (await unit.session.scalars(select(Tool.id).limit(1))).one()
        run = ToolExecution(tool_id=tool_id, status=RunState.RUNNING, started_at=now())
        unit.session.add(run)
        await unit.session.flush()
        return run.id


async def _status(deps: Deps, run_id: str) -> Any:
    async with deps.db.reading() as connection:
        chosen = select(ToolExecution.status).where(ToolExecution.id == run_id)
        return await connection.scalar(chosen)


async def test_a_worker_that_starts_as_the_bus_forgets_settles_no_run_of_the_living(
    deps: Deps, other: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_ORPHANS_S", 0.01)
    monkeypatch.setattr(worker_module, "_LOST_TOOLS_S", 0.01)
    run_id = await _run_of_another(other)
    bus: Any = deps.bus
    looks, seen = 0, asyncio.Event()

    async def nodes() -> set[str]:
        # Forgotten again and again: the other one is heard of at every third look.
        nonlocal looks
        looks += 1
        if looks > 30:
            seen.set()
        return {bus.node_id, "other"} if looks % 3 == 0 else {bus.node_id}

    monkeypatch.setattr(bus, "nodes", nodes)
    async with asyncio.timeout(60), working(deps):
        await seen.wait()
    assert await _status(deps, run_id) is RunState.RUNNING


async def test_the_last_one_alive_settles_the_runs_of_all_before_it(
    deps: Deps, other: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solitude, "_ALONE_S", 0.1)
    monkeypatch.setattr(worker_module, "_ORPHANS_S", 0.01)
    run_id = await _run_of_another(other)
    bus: Any = deps.bus

    async def is_settled() -> bool:
        return await _status(deps, run_id) is RunState.FAILED

    bus.alive = {bus.node_id}
    async with working(deps):
        await until(is_settled)
