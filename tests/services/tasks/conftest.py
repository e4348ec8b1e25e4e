"""Tasks of two processes, and what a test has them do."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import select, update

from app.worker import Worker, working
from models.database import Database
from models.system import Task, TaskStatus
from services import tasks
from services.base import Deps, work
from services.tasks import Kind

KIND = "test"
Run = Callable[[Deps, Task], Awaitable[Any]]


class NodeBus:
    """One bus under the name of another node."""

    def __init__(self, bus: Any, node_id: str) -> None:
        self._bus = bus
        self.node_id = node_id
        self.alive = {node_id, bus.node_id}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def nodes(self) -> set[str]:
        return self.alive


@pytest.fixture
async def deps(deps: Deps) -> Deps:
    """One process, which knows of the other one."""
    deps.bus = NodeBus(deps.bus, deps.bus.node_id)
    return deps


@pytest.fixture
async def other(deps: Deps) -> AsyncIterator[Deps]:
    """Another process on the same database and bus."""
    url = deps.db.url.render_as_string(hide_password=False)
    database = Database(url)
    bus: Any = deps.bus
    bus.alive.add("other")
    yield replace(deps, db=database, bus=NodeBus(bus, "other"))
    await database.aclose()


@dataclass
class Handled:
    """What the registered handler does, and what it was given."""

    run: Run
    died: list[tuple[str, str]]


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Handled:
    async def nothing(_deps: Deps, _task: Task) -> None:
        return None

    made = Handled(nothing, [])

    async def run(deps: Deps, task: Task) -> Any:
        return await made.run(deps, task)

    async def dead(_deps: Deps, task: Task, message: str) -> None:
        made.died.append((task.id, message))

    monkeypatch.setitem(tasks.kinds, KIND, Kind(run, dead))
    return made


async def add(deps: Deps, **values: Any) -> str:
    async with work(deps) as unit:
        task = tasks.enqueue(unit, KIND, values.pop("payload", {}), **values)
        await unit.session.flush()
        return task.id


async def row(deps: Deps, task_id: str) -> Any:
    async with deps.db.reading() as connection:
        return (await connection.execute(select(Task.__table__).where(Task.id == task_id))).one()


async def change(deps: Deps, task_id: str, **values: Any) -> None:
    async with work(deps) as unit:
        await unit.session.execute(update(Task).where(Task.id == task_id).values(**values))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something in the database, which tells nobody of it."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - see above.
            await asyncio.sleep(0.02)


async def until_status(deps: Deps, task_id: str, status: TaskStatus) -> Any:
    async def is_there() -> bool:
        return bool((await row(deps, task_id)).status is status)

    await until(is_there)
    return await row(deps, task_id)


@asynccontextmanager
async def all_working(*nodes: Deps) -> AsyncIterator[list[Worker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(working(node)) for node in nodes]
