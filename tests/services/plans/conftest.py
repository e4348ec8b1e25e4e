"""Code of steps that a test steers, and runs of plans."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import select

from models.plans import PlanExecution, PlanStepExecution
from models.states import ExecutionReason, RunState
from services import plans
from services.base import Deps, Viewer, work
from services.plans import StepInput, executing
from services.sandboxes.code import RunResult
from services.streams import Appended, Happened, Item, Restarted
from tests.fixtures import Api, Person


class Sandboxes:
    """Runs "code" that a test steers: `NAME waits`, `NAME fails`, `NAME says TEXT`."""

    def __init__(self) -> None:
        self.started: dict[str, asyncio.Event] = {}
        self.may_go: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.ran: list[str] = []

    def event(self, of: dict[str, asyncio.Event], name: str) -> asyncio.Event:
        return of.setdefault(name, asyncio.Event())

    async def begins(self, name: str) -> None:
        """Wait until a step has begun."""
        async with asyncio.timeout(30):
            await self.event(self.started, name).wait()

    def go(self, *names: str) -> None:
        """Let waiting steps end."""
        for name in names:
            self.event(self.may_go, name).set()

    async def run_code(self, viewer: Viewer, *, code: str, on_output: Any, **_: Any) -> RunResult:
        name, _space, act = code.partition(" ")
        self.ran.append(name)
        self.event(self.started, name).set()
        said = act.removeprefix("says ") if act.startswith("says ") else name
        await on_output(f"{said}\n")
        try:
            if act == "waits":
                await self.event(self.may_go, name).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return RunResult(
            stdout=f"{said}\n",
            stderr="",
            exit_code=1 if act == "fails" else 0,
            reason=ExecutionReason.EXITED,
            duration_ms=1,
            sandbox_id=None,  # type: ignore[arg-type]  # there is no row of one.
            execution_id="exe_none",
        )


@pytest.fixture
def sandboxes(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> Sandboxes:
    made = Sandboxes()
    monkeypatch.setattr(deps.sandboxes, "run_code", made.run_code)
    return made


@pytest.fixture
async def person(deps: Deps) -> Person:
    return await Api(deps).person("planner")


def code(text: str, *depends_on: int) -> StepInput:
    return StepInput(text, "run_code", {"code": text}, depends_on)


async def begin(deps: Deps, viewer: Viewer, *steps: StepInput) -> PlanExecution:
    plan = await plans.create(deps, viewer, title="Plan", steps=steps)
    return await plans.execute(deps, viewer, plan_id=plan.id)


async def states(deps: Deps, execution_id: str) -> list[PlanStepExecution]:
    """Give the steps of a run, in the order of the plan."""
    async with work(deps) as unit:
        rows = await unit.session.scalars(
            select(PlanStepExecution)
            .where(PlanStepExecution.execution_id == execution_id)
            .order_by(PlanStepExecution.id)
        )
        return [row.frozen() for row in rows]


async def status(deps: Deps, execution_id: str) -> RunState:
    async with work(deps) as unit:
        execution = await unit.session.get(PlanExecution, execution_id)
        assert execution is not None
        return execution.status


async def follow(
    deps: Deps,
    viewer: Viewer,
    execution_id: str,
    after: str | None = None,
    *,
    until: Callable[[Sequence[Item]], bool] = lambda _: False,
) -> list[Item]:
    """Follow a run to its end, or until enough was seen."""
    seen: list[Item] = []
    async with (
        asyncio.timeout(60),
        aclosing(executing.follow(deps, viewer, execution_id, after)) as items,
    ):
        async for item in items:
            if isinstance(item, Restarted):
                await item.snapshot.release()
            seen.append(item)
            if until(seen):
                break
    return seen


def has_text(seen: Sequence[Item]) -> bool:
    """Tell whether the last that was seen is what a step wrote."""
    return isinstance(seen[-1], Appended)


def finished(seen: Sequence[Item]) -> int:
    """Count the steps that were seen to end, or to be skipped."""
    return sum(isinstance(item, Happened) and item.type == "PlanStepFinished" for item in seen)
