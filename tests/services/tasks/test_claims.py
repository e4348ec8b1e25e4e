"""Tasks: who may run them, when and for how long."""

import asyncio
from datetime import timedelta
from typing import Any

from app.worker import Worker
from models.base import now
from models.system import TaskStatus
from services import tasks
from services.base import Deps
from tests.services.tasks.conftest import Handled, add, change, row


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
