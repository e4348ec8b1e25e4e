"""Tasks: who runs them, when, how often, and what becomes of them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app import worker as worker_module
from app.worker import Worker, working
from models.base import now
from models.conversations import Message
from models.database import Database
from models.states import MessageStatus, RunState
from models.system import Task, TaskStatus
from models.tools import Tool, ToolExecution
from services import streams, tasks
from services.base import Deps, work
from services.conversations import messages, threads
from services.events.base import BusUnavailableError, NodeUnavailableError
from services.tasks import Kind, RetryLaterError
from tests.api import operations as op
from tests.fixtures import Api

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


async def test_claims_at_the_same_moment_share_no_task(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    for _ in range(40):
        await add(deps)

    claimed = await asyncio.gather(
        *(tasks.claim(node, limit=5) for node in (deps, other) for _ in range(4))
    )

    ids = [task.id for batch in claimed for task in batch]
    assert len(ids) == len(set(ids))
    assert ids


async def test_the_most_urgent_and_then_the_oldest_comes_first(
    deps: Deps, handled: Handled
) -> None:
    low = await add(deps, priority=-1)
    old = await add(deps)
    new = await add(deps)
    high = await add(deps, priority=5)
    late = await add(deps, priority=9, delay_s=3600)

    order = [(await tasks.claim(deps, limit=1))[0].id for _ in range(4)]

    assert order == [high, old, new, low]
    assert await tasks.claim(deps, limit=1) == []
    assert (await row(deps, late)).status is TaskStatus.PENDING


async def test_a_task_bound_to_a_node_runs_only_there(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    bound = await add(deps, node_id="other")

    assert await tasks.claim(deps, limit=5) == []
    assert [task.id for task in await tasks.claim(other, limit=5)] == [bound]


async def test_failures_are_retried_ever_later(deps: Deps, handled: Handled) -> None:
    task_id = await add(deps, max_retries=3)
    for number, at_least_s in enumerate((0.5, 1.0, 2.0)):
        (task,) = await tasks.claim(deps, limit=1)
        before = now()
        assert not await tasks.fail(deps, task, "no luck")
        failed = await row(deps, task_id)
        assert (failed.status, failed.retry_count) == (TaskStatus.PENDING, number + 1)
        assert failed.error_message == "no luck"
        assert failed.run_at >= before + timedelta(seconds=at_least_s)
        assert await tasks.claim(deps, limit=1) == []
        await change(deps, task_id, run_at=now())
    (task,) = await tasks.claim(deps, limit=1)
    assert await tasks.fail(deps, task, "no luck")
    assert (await row(deps, task_id)).status is TaskStatus.DEAD


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


async def test_a_lease_that_ran_out_is_anothers_and_the_first_holder_changes_nothing(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    task_id = await add(deps)
    (mine,) = await tasks.claim(deps, limit=1)
    assert await tasks.claim(other, limit=1) == []
    await change(deps, task_id, leased_until=now() - timedelta(seconds=1))
    (theirs,) = await tasks.claim(other, limit=1)

    assert (theirs.id, theirs.retry_count) == (task_id, 1)
    assert await tasks.renew(deps, [task_id]) == set()
    await tasks.complete(deps, mine, "late")
    await tasks.fail(deps, mine, "late")
    await tasks.release(deps, mine)
    assert (await row(deps, task_id)).lease_owner == "other"
    assert await tasks.renew(other, [task_id]) == {task_id}
    await tasks.complete(other, theirs, {"done": True})
    done = await row(deps, task_id)
    assert (done.status, done.result) == (TaskStatus.COMPLETED, {"done": True})


async def test_what_is_settled_cannot_be_given_back(deps: Deps, handled: Handled) -> None:
    task_id = await add(deps)
    (task,) = await tasks.claim(deps, limit=1)
    await tasks.complete(deps, task, None)
    await tasks.release(deps, task)
    assert (await row(deps, task_id)).status is TaskStatus.COMPLETED


async def test_a_node_does_not_take_what_it_runs_itself(deps: Deps, handled: Handled) -> None:
    task_id = await add(deps)
    await tasks.claim(deps, limit=1)
    await change(deps, task_id, leased_until=now() - timedelta(seconds=1))

    assert await tasks.claim(deps, limit=1, running=[task_id]) == []
    assert len(await tasks.claim(deps, limit=1)) == 1


async def test_a_lane_waits_for_a_running_task_of_a_later_id(deps: Deps, handled: Handled) -> None:
    first, second = sorted([await add(deps, lane="lane"), await add(deps, lane="lane")])
    # As ids of processes whose clocks differ: the later one was there first.
    await change(
        deps,
        second,
        status=TaskStatus.RUNNING,
        lease_owner="other",
        leased_until=now() + timedelta(seconds=60),
    )
    assert await tasks.claim(deps, limit=5) == []
    await change(deps, second, status=TaskStatus.COMPLETED)
    assert [task.id for task in await tasks.claim(deps, limit=5)] == [first]


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


async def test_tasks_of_a_node_found_dead_twice_are_freed(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    task_id = await add(deps)
    await tasks.claim(other, limit=1)
    assert await tasks.owners(deps) == {"other"}
    bus: Any = deps.bus
    bus.alive.remove("other")
    worker = Worker(deps)
    suspects: set[str] = set()

    await worker._free_orphans(suspects)
    assert suspects == {"other"}
    assert await tasks.claim(deps, limit=1) == []
    await worker._free_orphans(suspects)

    assert [task.id for task in await tasks.claim(deps, limit=1)] == [task_id]


async def test_a_node_that_is_heard_of_again_keeps_its_tasks(
    deps: Deps, other: Deps, handled: Handled
) -> None:
    await add(deps)
    await tasks.claim(other, limit=1)
    bus: Any = deps.bus
    worker = Worker(deps)
    suspects: set[str] = set()

    bus.alive = {bus.node_id}
    await worker._free_orphans(suspects)
    bus.alive = {bus.node_id, "other"}
    await worker._free_orphans(suspects)
    bus.alive = {bus.node_id}
    await worker._free_orphans(suspects)
    # A node that is not heard of itself judges nobody.
    bus.alive = set()
    await worker._free_orphans(suspects)

    assert await tasks.claim(deps, limit=1) == []


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
