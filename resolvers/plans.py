"""Computed fields of plans and their executions."""

from collections.abc import Sequence

from models.accounts import User
from models.plans import Plan, PlanExecution, PlanStep, PlanStepDependency, PlanStepExecution
from models.states import RunState
from models.tools import ToolExecution
from resolvers.base import Info, Order, Page, PageArgs, by_id_alone, known_by, reads


async def one(info: Info, id_: str) -> Plan | None:
    """Give a plan the viewer may see, or None."""
    return (await info.context.load.one(Plan, Plan.id, [id_]))[0]


async def one_execution(info: Info, id_: str) -> PlanExecution | None:
    """Give an execution the viewer may see, or None."""
    return (await info.context.load.one(PlanExecution, PlanExecution.id, [id_]))[0]


async def listed(info: Info, page: PageArgs, status: RunState | None) -> Page[Plan]:
    """Give a page of the viewer's own plans, the newest first."""
    where = []
    if status is not None:
        where.append(Plan.status == status)
    return await info.context.load.list(
        Plan, page, order=Order(is_descending=True), owner=Plan.user_id, where=where
    )


@reads()
async def of_users(users: Sequence[User], info: Info, page: PageArgs) -> list[Page[Plan]]:
    """Plans of users, the newest first."""
    ids = [user.id for user in users]
    return await info.context.load.page(
        Plan, Plan.user_id, ids, page, order=Order(is_descending=True)
    )


@reads("user_id")
async def owner(plans: Sequence[Plan], info: Info) -> list[User | None]:
    """Owners of plans."""
    return await info.context.load.one(User, User.id, [plan.user_id for plan in plans])


@reads()
async def steps(plans: Sequence[Plan], info: Info) -> list[list[PlanStep]]:
    """Steps of plans, in order."""
    return await info.context.load.many(
        PlanStep,
        PlanStep.plan_id,
        [plan.id for plan in plans],
        order_by=PlanStep.order_index,
    )


@reads()
async def executions(
    plans: Sequence[Plan], info: Info, page: PageArgs
) -> list[Page[PlanExecution]]:
    """Executions of plans, the newest first."""
    return await info.context.load.page(
        PlanExecution,
        PlanExecution.plan_id,
        [plan.id for plan in plans],
        page,
        order=Order(is_descending=True),
    )


@reads("plan_id")
async def step_plan(steps: Sequence[PlanStep], info: Info) -> list[Plan | None]:
    """Plans of steps."""
    return await info.context.load.one(Plan, Plan.id, [step.plan_id for step in steps])


@reads()
async def depends_on(steps: Sequence[PlanStep], info: Info) -> list[list[PlanStep]]:
    """Steps that steps wait for, in order."""
    return await info.context.load.through(
        PlanStep,
        PlanStepDependency.step_id,
        PlanStepDependency.depends_on_id,
        [step.id for step in steps],
        order_by=PlanStep.order_index,
    )


@reads("plan_id")
async def execution_plan(executions: Sequence[PlanExecution], info: Info) -> list[Plan | None]:
    """Plans of executions."""
    return await info.context.load.one(Plan, Plan.id, [e.plan_id for e in executions])


@reads()
async def execution_steps(
    executions: Sequence[PlanExecution], info: Info
) -> list[list[PlanStepExecution]]:
    """Step runs of executions, in the steps' order (their ids were made in it)."""
    return await info.context.load.many(
        PlanStepExecution, PlanStepExecution.execution_id, [e.id for e in executions]
    )


@reads("step_id")
async def run_step(runs: Sequence[PlanStepExecution], info: Info) -> list[PlanStep | None]:
    """Steps of step runs."""
    return await info.context.load.one(PlanStep, PlanStep.id, [run.step_id for run in runs])


@reads("tool_execution_id")
async def run_tool_execution(
    runs: Sequence[PlanStepExecution], info: Info
) -> list[ToolExecution | None]:
    """The tool executions behind step runs."""
    ids = [run.tool_execution_id for run in runs]
    return await info.context.load.one(ToolExecution, ToolExecution.id, ids)


@reads()
async def event_step(events: Sequence[object], info: Info) -> list[PlanStep | None]:
    """The steps that events are about."""
    ids = [event.step_id for event in events]  # type: ignore[attr-defined]
    return await info.context.load.one(PlanStep, PlanStep.id, ids)


@known_by("step_execution_id")
@reads()
async def event_run(events: Sequence[object], info: Info) -> list[PlanStepExecution | None]:
    """The step runs that events are about."""
    ids = [event.step_execution_id for event in events]  # type: ignore[attr-defined]
    known = by_id_alone(PlanStepExecution, ids, info)
    return (
        known
        if known is not None
        else await info.context.load.one(PlanStepExecution, PlanStepExecution.id, ids)
    )


@reads()
async def event_execution(events: Sequence[object], info: Info) -> list[PlanExecution | None]:
    """The executions that events are about."""
    ids = [event.execution_id for event in events]  # type: ignore[attr-defined]
    return await info.context.load.one(PlanExecution, PlanExecution.id, ids)
