"""Work that outlives the request that caused it: enqueue, claim, renew, settle.

A task is written in the transaction of its cause. A worker claims it with a lease and renews the
lease while it works; when the lease runs out (the worker was killed), another claims it again.
"""

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, exists, or_, select, update
from sqlalchemy.orm import aliased

from models.base import now
from models.journal import traceparent
from models.system import Task, TaskStatus
from services.base import Deps, Work, work

Handler = Callable[[Deps, Task], Awaitable[Any]]
DeadHandler = Callable[[Deps, Task, str], Awaitable[None]]
WAKE_TOPIC = "tasks"
_BACKOFF_BASE_S = 1.0
_BACKOFF_MAX_S = 300.0
_RENEWED_AT = "tasks.renewed_at"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a type of task is run, and what happens when it failed for the last time."""

    run: Handler
    dead: DeadHandler | None


kinds: dict[str, Kind] = {}


def handler(task_type: str, *, dead: DeadHandler | None = None) -> Callable[[Handler], Handler]:
    """Register the decorated function as the way to run tasks of `task_type`.

    It may run more than once (a worker can be killed at any point): it must look at what is done.
    When it is cancelled, because the process ends or the lease was lost, it leaves a state from
    which another run can go on. `dead(deps, task, message)` runs when no retry is left.
    """

    def register(run: Handler) -> Handler:
        kinds[task_type] = Kind(run, dead)
        return run

    return register


class RetryLaterError(Exception):
    """Raised by a handler: try again after `delay_s` seconds, without counting it as a failure."""

    def __init__(self, message: str, delay_s: float) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class LeaseLostError(Exception):
    """Another worker was given the task, because this one seemed dead."""


def enqueue(
    unit: Work,
    task_type: str,
    payload: Mapping[str, Any],
    *,
    lane: str | None = None,
    node_id: str | None = None,
    priority: int = 0,
    max_retries: int = 3,
    delay_s: float = 0.0,
) -> Task:
    """Add a task to the caller's transaction and wake the workers after its commit.

    Tasks of one `lane` run one at a time, in order. `node_id` binds the task to one process.
    """
    if task_type not in kinds:
        raise LookupError(f"no handler for tasks of type {task_type}")
    origin = traceparent()
    task = Task(
        task_type=task_type,
        payload={**payload, **({"traceparent": origin} if origin else {})},
        lane=lane,
        node_id=node_id,
        priority=priority,
        max_retries=max_retries,
        run_at=now() + timedelta(seconds=delay_s),
    )
    unit.session.add(task)
    bus = unit.deps.bus
    unit.after_commit(lambda: bus.publish(WAKE_TOPIC, {}))
    return task


async def claim(deps: Deps, *, limit: int, running: Collection[str] = ()) -> list[Task]:
    """Lease up to `limit` tasks that are due to this node, the most urgent and oldest first.

    Those in `running` are not taken: this node runs them, though a lease may just have run out.
    """
    other = aliased(Task)
    at = now()
    due = or_(
        and_(Task.status == TaskStatus.PENDING, Task.run_at <= at),
        and_(Task.status == TaskStatus.RUNNING, Task.leased_until < at),
    )
    is_earlier = and_(
        other.id < Task.id, other.status.in_((TaskStatus.PENDING, TaskStatus.RUNNING))
    )
    # Ids are made by many clocks: one that runs is waited for, whatever its id.
    is_held = and_(other.status == TaskStatus.RUNNING, other.leased_until >= at)
    is_first = ~exists().where(
        other.lane == Task.lane, other.id != Task.id, or_(is_earlier, is_held)
    )
    mine = or_(Task.node_id.is_(None), Task.node_id == deps.bus.node_id)
    statement = (
        select(Task)
        .where(due, mine, is_first, Task.task_type.in_(kinds), Task.id.not_in(running))
        .order_by(Task.priority.desc(), Task.id)
        .limit(limit)
    )
    async with deps.db.reading() as connection:
        # A look without a lock: an idle server must not take the writer's lock again and again.
        if (await connection.execute(statement.with_only_columns(Task.id))).first() is None:
            return []
    async with work(deps) as unit:
        tasks = (await unit.session.scalars(statement.with_for_update(skip_locked=True))).all()
        for task in tasks:
            if task.status is TaskStatus.RUNNING:
                # Its worker is gone. Counted, so that a task which kills workers ends as dead.
                task.retry_count += 1
            task.status = TaskStatus.RUNNING
            task.lease_owner = deps.bus.node_id
            task.leased_until = at + timedelta(seconds=deps.options.task_lease_s)
            task.started_at = task.started_at or at
        await unit.session.flush()
        return [task.frozen() for task in tasks]


async def renew(deps: Deps, task_ids: Sequence[str]) -> set[str]:
    """Lengthen the leases held by this node and give the ids it still holds."""
    if not task_ids:
        return set()
    held = and_(
        Task.id.in_(task_ids),
        Task.lease_owner == deps.bus.node_id,
        Task.status == TaskStatus.RUNNING,
    )
    until = now() + timedelta(seconds=deps.options.task_lease_s)
    asked_at = asyncio.get_running_loop().time()
    async with work(deps) as unit:
        await unit.session.execute(update(Task).where(held).values(leased_until=until))
        ids = set(await unit.session.scalars(select(Task.id).where(held)))
    deps.caches[_RENEWED_AT] = asked_at
    return ids


def renewed_at(deps: Deps) -> float:
    """Give the loop time at which the worker of this process last lengthened its leases.

    The tasks that run since before then, and still do, have a whole lease from then on. It is minus
    infinity before the first time.
    """
    return float(deps.caches.get(_RENEWED_AT, -math.inf))


async def hold(unit: Work, task: Task) -> None:
    """Keep the lease of a task that runs here until the end of the transaction.

    So that what a handler writes never mixes with what another worker writes that was given the
    task meanwhile. Raises LeaseLostError when that has happened.
    """
    held = select(Task.id).where(
        Task.id == task.id,
        Task.status == TaskStatus.RUNNING,
        Task.lease_owner == unit.deps.bus.node_id,
        # It grows whenever a task is taken from somebody, also from an earlier run of this node.
        Task.retry_count == task.retry_count,
    )
    if await unit.session.scalar(held.with_for_update(read=True)) is None:
        raise LeaseLostError(f"Another worker has the {task.task_type} task {task.id}.")


async def complete(deps: Deps, task: Task, result: Any) -> None:
    """Mark a task done."""
    await _settle(
        deps,
        task,
        status=TaskStatus.COMPLETED,
        result=result,
        completed_at=now(),
        leased_until=None,
    )


async def release(deps: Deps, task: Task, *, delay_s: float = 0.0) -> None:
    """Give a task back unfinished, for anybody to take after `delay_s` seconds."""
    await _settle(
        deps,
        task,
        status=TaskStatus.PENDING,
        lease_owner=None,
        leased_until=None,
        run_at=now() + timedelta(seconds=delay_s),
    )


async def fail(deps: Deps, task: Task, message: str) -> bool:
    """Note a failure: retry later with exponential backoff and jitter, or bury the task.

    Gives True when the task is dead.
    """
    if task.retry_count >= task.max_retries:
        await _settle(
            deps,
            task,
            status=TaskStatus.DEAD,
            error_message=message,
            completed_at=now(),
            leased_until=None,
        )
        return True
    delay_s = min(_BACKOFF_MAX_S, _BACKOFF_BASE_S * 2.0**task.retry_count)
    await _settle(
        deps,
        task,
        status=TaskStatus.PENDING,
        error_message=message,
        retry_count=task.retry_count + 1,
        lease_owner=None,
        leased_until=None,
        run_at=now() + timedelta(seconds=delay_s * random.uniform(0.5, 1.0)),  # noqa: S311
    )
    return False


async def _settle(deps: Deps, task: Task, **values: Any) -> None:
    async with work(deps) as unit:
        await unit.session.execute(
            update(Task)
            .where(
                Task.id == task.id,
                Task.lease_owner == deps.bus.node_id,
                # What is settled stays so: a cancellation may come just after.
                Task.status == TaskStatus.RUNNING,
            )
            .values(**values)
        )
        unit.after_commit(lambda: deps.bus.publish(WAKE_TOPIC, {}))


async def cancel_pending(unit: Work, *, task_type: str, lane: str, payload_id: str) -> None:
    """Cancel a task that has not begun, found by its lane and the `id` in its payload."""
    pending = await unit.session.scalars(
        select(Task).where(
            Task.lane == lane, Task.task_type == task_type, Task.status == TaskStatus.PENDING
        )
    )
    for task in pending:
        if task.payload.get("id") == payload_id:
            task.status, task.completed_at = TaskStatus.CANCELED, now()


async def owners(deps: Deps) -> set[str]:
    """Give the nodes that hold leases."""
    async with deps.db.reading() as connection:
        found = await connection.scalars(
            select(Task.lease_owner).where(Task.status == TaskStatus.RUNNING).distinct()
        )
        return {owner for owner in found if owner is not None}


async def free_orphans(deps: Deps, dead: set[str]) -> int:
    """Let the leases of dead nodes run out at once; give how many there were."""
    async with work(deps) as unit:
        freed = await unit.session.execute(
            update(Task)
            .where(Task.status == TaskStatus.RUNNING, Task.lease_owner.in_(dead))
            .values(leased_until=now() - timedelta(seconds=1))
        )
        unit.after_commit(lambda: deps.bus.publish(WAKE_TOPIC, {}))
        return int(freed.rowcount)  # type: ignore[attr-defined]


async def free_own(deps: Deps) -> int:
    """Free what an earlier process of this very node left running."""
    async with work(deps) as unit:
        freed = await unit.session.execute(
            update(Task)
            .where(Task.status == TaskStatus.RUNNING, Task.lease_owner == deps.bus.node_id)
            .values(leased_until=now() - timedelta(seconds=1))
        )
        return int(freed.rowcount)  # type: ignore[attr-defined]
