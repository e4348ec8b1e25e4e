"""Subscriptions to what has an end: a run of a plan, an execution in a sandbox."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState
from schema.execution import stream as bounds
from services import plans
from services.base import Deps, work
from services.sandboxes import rows
from services.sandboxes.recording import OutputLog, OutputStream
from tests.api import operations as op
from tests.api.following import Follower, OutputFollower, PlanFollower
from tests.api.people import sign_up
from tests.fixtures import Api, Person, Stream
from tests.schema.journal import until
from tests.services.plans.conftest import Sandboxes, code


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


async def rest(stream: Stream) -> list[dict[str, Any]]:
    """Read until the subscription completes."""
    events = []
    while (event := await stream.next()) is not None:
        events.append(event)
    assert stream.refusal == []
    return events


def check(follower: Follower, events: list[dict[str, Any]]) -> None:
    """See that events are in order, without gap or duplicate, and come to the end."""
    for event in events:
        follower.take(event)


def plan_follower() -> PlanFollower:
    return PlanFollower(str, None, "")


def output_follower() -> OutputFollower:
    return OutputFollower(str, None, "")


# ---- a run of a plan


async def test_the_end_of_a_run_completes_all_who_follow_it(
    live: Api, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    steered = Sandboxes()
    monkeypatch.setattr(live.deps.sandboxes, "run_code", steered.run_code)
    steps = [code("first waits"), code("second says hello", 0), code("third fails", 1)]
    plan = await plans.create(live.deps, ann.viewer, title="Plan", steps=steps)
    run = await plans.execute(live.deps, ann.viewer, plan_id=plan.id)
    async with AsyncExitStack() as stack:

        async def join(after: str | None = None) -> Stream:
            opened = live.subscribe(op.PLAN_EVENTS, ann, id=run.id, after=after)
            return await stack.enter_async_context(opened)

        early = [await join() for _ in range(3)]
        reading = [asyncio.create_task(rest(stream)) for stream in early[:2]]
        await steered.begins("first")
        late = await join()
        reading.append(asyncio.create_task(rest(late)))
        steered.go("first")
        told = [await task for task in reading]
        # One that had taken nothing yet is told everything, too.
        told.append(await rest(early[2]))
        for events in told:
            follower = plan_follower()
            check(follower, events)
            assert follower.status == "FAILED"
            assert follower.finished == {0: "COMPLETED", 1: "COMPLETED", 2: "FAILED"}
        await until(lambda: live.engine.feeds.open_feeds == 0)

        # Long after: from every cursor the rest, and nothing from the last.
        whole = told[0]
        for place, event in enumerate(whole):
            again = await rest(await join(event["cursor"]))
            assert "PlanExecutionReset" not in {e["__typename"] for e in again}, place
            follower = plan_follower()
            check(follower, whole[: place + 1])
            if place == len(whole) - 1:
                assert again == []
            else:
                check(follower, again)
            assert follower.status == "FAILED"
        await until(lambda: live.engine.feeds.open_feeds == 0)


# ---- an execution


class Execution:
    """An execution whose program is the test."""

    def __init__(self, deps: Deps, owner: Person) -> None:
        self.deps, self.owner = deps, owner
        self.id = ""

    async def begin(self) -> "Execution":
        async with work(self.deps) as unit:
            box = Sandbox(user_id=self.owner.id, driver="test", node_id="local", image_name="none")
            unit.session.add(box)
            await unit.session.flush()
            row = SandboxExecution(
                sandbox_id=box.id,
                user_id=self.owner.id,
                command="test",
                status=RunState.RUNNING,
            )
            unit.session.add(row)
            await unit.session.flush()
            self.id = row.id
        self.log = OutputLog(self.deps, self.id)
        return self

    async def write(self, text: str, stream: OutputStream = OutputStream.STDOUT) -> None:
        await self.log.write(stream, text.encode())
        await self.log.flush()

    async def end(self) -> None:
        await self.log.finish()
        async with work(self.deps) as unit:
            row = await unit.lock(SandboxExecution, self.id)
            assert row is not None
            for name, value in self.log.kept.values().items():
                setattr(row, name, value)
            row.status, row.completed_at = RunState.COMPLETED, now()
            row.reason, row.exit_code = ExecutionReason.EXITED, 0
        await self.deps.bus.publish(rows.topic(self.id), {})


async def test_the_end_of_an_execution_completes_all_who_follow_it(api: Api, ann: Person) -> None:
    execution = await Execution(api.deps, ann).begin()
    async with AsyncExitStack() as stack:

        async def join(after: str | None = None) -> Stream:
            opened = api.subscribe(op.OUTPUT, ann, id=execution.id, after=after)
            return await stack.enter_async_context(opened)

        early = [await join() for _ in range(3)]
        reading = [asyncio.create_task(rest(stream)) for stream in early[:2]]
        await execution.write("one ")
        await execution.write("two é ", OutputStream.STDERR)
        reading.append(asyncio.create_task(rest(await join())))
        await execution.write("three ")
        await execution.end()
        told = [await task for task in reading]
        told.append(await rest(early[2]))
        for events in told:
            follower = output_follower()
            check(follower, events)
            assert follower.execution is not None
            assert follower.execution["status"] == "COMPLETED"
            assert follower.text == "one two é three "
        await until(lambda: api.engine.feeds.open_feeds == 0)

        whole = told[0]
        for place, event in enumerate(whole):
            again = await rest(await join(event["cursor"]))
            assert "SandboxOutputReset" not in {e["__typename"] for e in again}
            follower = output_follower()
            check(follower, [*whole[: place + 1], *again])
            assert follower.text == "one two é three "
            assert (again == []) == (place == len(whole) - 1)
        assert [e["__typename"] for e in await rest(await join())][-1] == "SandboxExecutionExited"


async def test_one_who_takes_no_output_until_the_end_is_told_all_of_it(
    api: Api, ann: Person
) -> None:
    execution = await Execution(api.deps, ann).begin()
    async with (
        api.subscribe(op.OUTPUT, ann, id=execution.id) as slow,
        api.subscribe(op.OUTPUT, ann, id=execution.id) as quick,
    ):
        await execution.write("0 ")
        assert (await quick.next() or {})["text"] == "0 "
        await until(lambda: api.engine.feeds.open_feeds == 1)
        text = "0 "
        for number in range(1, 3 * bounds.MAX_EVENTS):
            # By turns to both streams, so that nothing can be merged.
            await execution.write(f"{number} ", list(OutputStream)[number % 2])
            text += f"{number} "
            assert (await quick.next() or {})["text"] == f"{number} "
        assert api.engine.feeds.stats.lagged == 1
        await execution.end()
        assert [event["__typename"] for event in await rest(quick)] == ["SandboxExecutionExited"]
        follower = output_follower()
        check(follower, await rest(slow))
        assert follower.text == text
        assert follower.execution is not None
        assert follower.resets == 0
