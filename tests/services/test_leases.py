"""Whoever lost the lease of a task, because another took it for dead, writes nothing more."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.worker import working
from models.base import now
from models.conversations import Message
from models.plans import PlanExecution, PlanStepExecution
from models.states import MessageStatus, RunState
from models.system import Task, TaskStatus
from services import plans, tasks
from services.base import Deps, work
from services.conversations import messages, threads
from services.plans import StepInput
from services.tasks import Kind, LeaseLostError
from tests.fixtures import Api

KIND = "test"


async def is_held(deps: Deps, task: Task) -> bool:
    try:
        async with work(deps) as unit:
            await tasks.hold(unit, task)
    except LeaseLostError:
        return False
    return True


async def lose(deps: Deps, task_id: str) -> None:
    """Give a task to another node, as one that took this one for dead would take it."""
    async with work(deps) as unit:
        await unit.session.execute(
            update(Task)
            .where(Task.id == task_id)
            .values(lease_owner="other", retry_count=Task.retry_count + 1)
        )


async def task_of(deps: Deps, payload_id: str) -> Any:
    async with deps.db.reading() as connection:
        rows = await connection.execute(select(Task.__table__))
        return next(row for row in rows if row.payload.get("id") == payload_id)


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kind of task that fails; gives the reasons its dead handler was given."""
    died: list[str] = []

    async def run(deps: Deps, task: Task) -> None:
        await lose(deps, task.id)
        raise ValueError("late")

    async def dead(_deps: Deps, _task: Task, reason: str) -> None:
        died.append(reason)

    monkeypatch.setitem(tasks.kinds, KIND, Kind(run, dead))
    return died


async def test_a_lease_is_held_by_the_newest_claim_alone(deps: Deps, kind: list[str]) -> None:
    async with work(deps) as unit:
        task = tasks.enqueue(unit, KIND, {})
        await unit.session.flush()
        task_id = task.id
    (first,) = await tasks.claim(deps, limit=1)
    assert await is_held(deps, first)
    async with work(deps) as unit:
        ago = now() - timedelta(seconds=1)
        await unit.session.execute(update(Task).where(Task.id == task_id).values(leased_until=ago))
    # The same node claims it again, as after a restart: what it did before is over.
    (second,) = await tasks.claim(deps, limit=1)
    assert (await is_held(deps, first), await is_held(deps, second)) == (False, True)
    await tasks.complete(deps, second, None)
    assert not await is_held(deps, second)


async def test_who_lost_a_task_neither_fails_nor_buries_it(deps: Deps, kind: list[str]) -> None:
    async with work(deps) as unit:
        task = tasks.enqueue(unit, KIND, {"id": "it"}, max_retries=0)
        await unit.session.flush()
        task_id = task.id
    async with working(deps) as worker, asyncio.timeout(30):
        # Rows tell nobody.
        while (await task_of(deps, "it")).lease_owner != "other" or task_id in worker._running:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    row = await task_of(deps, "it")
    assert (row.status, row.retry_count, row.error_message) == (TaskStatus.RUNNING, 1, None)
    assert kind == []


async def test_an_answer_of_another_writer_is_neither_stored_nor_ended(deps: Deps) -> None:
    person = await Api(deps).person("asker")
    conversation = await threads.create(deps, person.viewer)
    _, reply = await messages.send(
        deps, person.viewer, conversation_id=conversation.id, content="what can you do?"
    )
    (task,) = await tasks.claim(deps, limit=1)
    await lose(deps, task.id)
    with pytest.raises(LeaseLostError):
        await tasks.kinds[task.task_type].run(deps, task)
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(Message.status, Message.content).where(Message.id == reply.id)
        )
        assert found.one() == (MessageStatus.PENDING, "")


async def test_a_run_of_another_worker_begins_no_step(deps: Deps) -> None:
    person = await Api(deps).person("planner")
    plan = await plans.create(
        deps, person.viewer, title="Plan", steps=[StepInput(description="what can you do?")]
    )
    execution = await plans.execute(deps, person.viewer, plan_id=plan.id)
    (task,) = await tasks.claim(deps, limit=1)
    await lose(deps, task.id)
    with pytest.raises(LeaseLostError):
        await tasks.kinds[task.task_type].run(deps, task)
    async with deps.db.reading() as connection:
        status = await connection.scalar(
            select(PlanExecution.status).where(PlanExecution.id == execution.id)
        )
        steps = await connection.scalars(select(PlanStepExecution.status))
        assert (status, list(steps)) == (RunState.PENDING, [RunState.PENDING])
