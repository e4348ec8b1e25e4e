"""Workers: what they run beside what, how often, and what becomes of it."""

import asyncio
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app import worker as worker_module
from app.worker import working
from models.base import now
from models.conversations import Message
from models.states import MessageStatus, RunState
from models.system import Task, TaskStatus
from models.tools import Tool, ToolExecution
from services import streams, tasks
from services.base import Deps, work
from services.conversations import messages, threads
from services.events.base import BusUnavailableError, NodeUnavailableError
from services.tasks import RetryLaterError
from tests.api import operations as op
from tests.fixtures import Api
from tests.services.tasks.conftest import (
    Handled,
    add,
    all_working,
    change,
    row,
    until,
    until_status,
)


async def test_a_lane_runs_in_order_and_one_at_a_time_while_lanes_overlap(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    order: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()
    most = 0
    both = asyncio.Event()

    async def run(_deps: Deps, task: Task) -> None:
        nonlocal most
        assert task.lane is not None
        assert task.lane not in running
        running.add(task.lane)
        most = max(most, len(running))
        if most == 2:
            both.set()
        async with asyncio.timeout(30):
            await both.wait()
        order[task.lane].append(task.payload["n"])
        running.remove(task.lane)

    handled.run = run
    lanes = [(number, lane) for number in range(8) for lane in ("left", "right")]
    added = [await add(deps, lane=lane, payload={"n": number}) for number, lane in lanes]
    async with all_working(deps, other):
        for task_id in added:
            await until_status(deps, task_id, TaskStatus.COMPLETED)
    assert order == {"left": list(range(8)), "right": list(range(8))}


async def test_two_workers_never_run_one_task_both(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    ran: list[str] = []

    async def run(_deps: Deps, task: Task) -> None:
        ran.append(task.id)

    handled.run = run
    expected = [await add(deps) for _ in range(60)]
    async with all_working(deps, other):
        # A worker that stops gives back what is not settled yet, and it runs again.
        for task_id in expected:
            await until_status(deps, task_id, TaskStatus.COMPLETED)
    assert sorted(ran) == sorted(expected)


async def test_what_fails_for_the_last_time_is_kept_and_its_dead_handler_runs(
    deps: Deps, handled: Handled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_BACKOFF_BASE_S", 0.01)
    tries = 0

    async def run(_deps: Deps, _task: Task) -> None:
        nonlocal tries
        tries += 1
        raise ValueError("never works")

    handled.run = run
    task_id = await add(deps, lane="lane", max_retries=2)
    next_id = await add(deps, lane="lane", max_retries=0)
    async with working(deps):
        buried = await until_status(deps, task_id, TaskStatus.DEAD)
        # The lane goes on behind it.
        await until_status(deps, next_id, TaskStatus.DEAD)

    assert tries == 4
    assert buried.error_message == "ValueError: never works"
    assert buried.completed_at is not None
    assert handled.died == [(id_, "ValueError: never works") for id_ in (task_id, next_id)]


async def test_a_lost_lease_interrupts_the_handler(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    started, interrupted = asyncio.Event(), asyncio.Event()

    async def run(_deps: Deps, _task: Task) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            interrupted.set()

    handled.run = run
    task_id = await add(deps)
    async with working(deps) as worker, asyncio.timeout(30):
        await started.wait()
        await change(deps, task_id, lease_owner="other")
        await worker._renew()
        await interrupted.wait()
        # The worker itself goes on.
        again = asyncio.Event()

        async def run_again(_deps: Deps, _task: Task) -> None:
            again.set()

        handled.run = run_again
        await add(deps)
        await again.wait()
    kept = await row(deps, task_id)
    assert (kept.status, kept.lease_owner) == (TaskStatus.RUNNING, "other")


async def test_a_worker_that_stops_gives_its_tasks_back_uncounted(
    deps: Deps, handled: Handled
) -> None:
    started = asyncio.Event()

    async def run(_deps: Deps, _task: Task) -> None:
        started.set()
        await asyncio.Event().wait()

    handled.run = run
    task_id = await add(deps)
    async with working(deps), asyncio.timeout(30):
        await started.wait()

    given_back = await row(deps, task_id)
    assert given_back.status is TaskStatus.PENDING
    assert (given_back.lease_owner, given_back.retry_count) == (None, 0)


@pytest.mark.parametrize(
    "error",
    [
        RetryLaterError("later", 0.0),
        BusUnavailableError("away"),
        ExceptionGroup("both", [BusUnavailableError("away"), BusUnavailableError("away")]),
    ],
    ids=["asked for", "no bus", "no bus, in a group"],
)
async def test_what_must_wait_is_not_counted_as_a_failure(
    deps: Deps, handled: Handled, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_OUTAGE_S", 0.0)
    monkeypatch.setattr(worker_module, "_POLL_S", 0.05)
    tries = 0

    async def run(_deps: Deps, _task: Task) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise error

    handled.run = run
    task_id = await add(deps, max_retries=0)
    async with working(deps):
        done = await until_status(deps, task_id, TaskStatus.COMPLETED)
    assert (tries, done.retry_count) == (4, 0)


async def test_a_node_that_is_gone_is_a_failure(deps: Deps, handled: Handled) -> None:
    async def run(_deps: Deps, _task: Task) -> None:
        raise NodeUnavailableError("gone")

    handled.run = run
    task_id = await add(deps, max_retries=0)
    async with working(deps):
        await until_status(deps, task_id, TaskStatus.DEAD)


async def test_a_restart_takes_its_own_tasks_up_at_once(deps: Deps, handled: Handled) -> None:
    task_id = await add(deps)
    await tasks.claim(deps, limit=1)
    # The process is killed here, and starts again under its name.
    async with working(deps):
        done = await until_status(deps, task_id, TaskStatus.COMPLETED)
    assert done.retry_count == 1


async def test_a_task_that_keeps_killing_its_worker_is_given_up(
    deps: Deps, handled: Handled
) -> None:
    task_id = await add(deps, max_retries=2)
    for _ in range(3):
        assert len(await tasks.claim(deps, limit=1)) == 1
        assert await tasks.free_own(deps) == 1
    async with working(deps):
        await until_status(deps, task_id, TaskStatus.DEAD)
    assert handled.died == [(task_id, "It was interrupted too often.")]


async def test_a_worker_outlives_a_database_that_is_away(
    deps: Deps, handled: Handled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_POLL_S", 0.01)
    free_own, claim = tasks.free_own, tasks.claim
    faults = iter(range(4))

    def failing(action: Any) -> Any:
        async def wrapped(*args: Any, **values: Any) -> Any:
            if next(faults, None) is not None:
                raise OperationalError("SELECT", {}, Exception("gone away"))
            return await action(*args, **values)

        return wrapped

    monkeypatch.setattr(tasks, "free_own", failing(free_own))
    monkeypatch.setattr(tasks, "claim", failing(claim))
    task_id = await add(deps)
    async with working(deps):
        await until_status(deps, task_id, TaskStatus.COMPLETED)


async def test_the_worker_settles_runs_of_tools_whose_process_ended(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LOST_TOOLS_S", 0.01)
    person = await Api(deps).person("owner")
    async with work(deps) as unit:
        tool_id = await unit.session.scalar(select(Tool.id).limit(1))
        lost = ToolExecution(
            tool_id=tool_id,
            user_id=person.viewer.id,
            status=RunState.RUNNING,
            started_at=now() - timedelta(days=1),
        )
        unit.session.add(lost)
        await unit.session.flush()
        lost_id = lost.id

    async def is_settled() -> bool:
        async with deps.db.reading() as connection:
            statement = select(ToolExecution.status).where(ToolExecution.id == lost_id)
            return await connection.scalar(statement) is RunState.FAILED

    async with working(deps):
        await until(is_settled)


async def test_an_answer_given_up_keeps_all_that_was_sent(deps: Deps) -> None:
    api = Api(deps)
    person = await api.person("asker")
    conversation = await threads.create(deps, person.viewer)
    sent = await api.run(op.SEND, person, id=conversation.id, content="hello")
    reply = sent["reply"]["id"]
    async with work(deps) as unit:
        values = {"status": MessageStatus.STREAMING, "content": "stored"}
        await unit.session.execute(update(Message).where(Message.id == reply).values(**values))
        await unit.session.execute(
            update(Task)
            .where(Task.task_type == messages.ANSWER)
            .values(
                status=TaskStatus.RUNNING,
                retry_count=3,
                lease_owner=deps.bus.node_id,
                leased_until=now() + timedelta(seconds=60),
            )
        )
    key = messages.text_key(reply, 0)
    topic = threads.topic(conversation.id)
    await streams.append_text(deps, topic, key, 0, "stored")
    await streams.append_text(deps, topic, key, 6, " and sent")

    async with (
        api.subscribe(op.CONVERSATION_EVENTS, person, id=conversation.id) as stream,
        working(deps),
    ):
        await stream.until("MessageFailed")

    deltas = [event for event in stream.seen if event["__typename"] == "MessageDelta"]
    assert [(event["offset"], event["text"]) for event in deltas] == [(6, " and sent")]
    data = await api.run(op.MESSAGES, person, id=conversation.id)
    node = next(n for n in data["messages"]["nodes"] if n["id"] == reply)
    assert (node["status"], node["content"]) == ("FAILED", "stored and sent")
