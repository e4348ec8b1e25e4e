"""Making plans: checking the steps and their graph, and storing them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy.sql.elements import ColumnElement

from models.base import new_id
from models.plans import Plan, PlanExecution, PlanStep, PlanStepDependency, PlanStepExecution
from models.states import RunState
from services import access
from services.base import Deps, Viewer, work
from services.contention import repeatable
from services.errors import UserError, UserErrorCode, UserErrors
from services.plans import graph
from services.text import clean
from services.tools import check_arguments


@dataclass(frozen=True, slots=True)
class StepInput:
    """A step to be: a tool call, or a prompt when `tool` is None.

    `depends_on` are indexes of other steps; `arguments` may refer to the steps it depends on as
    `{{steps.N.output}}` or `{{steps.N.result.path}}`.
    """

    description: str
    tool: str | None = None
    arguments: Mapping[str, Any] | None = None
    depends_on: Sequence[int] = ()


@access.rule(Plan)
def _plans(viewer: Viewer) -> ColumnElement[bool]:
    return Plan.user_id == viewer.user_id


@access.rule(PlanExecution)
def _executions(viewer: Viewer) -> ColumnElement[bool]:
    return PlanExecution.user_id == viewer.user_id


access.follows(PlanStep.plan_id, Plan)
access.follows(PlanStepDependency.step_id, PlanStep)
access.follows(PlanStepExecution.execution_id, PlanExecution)


@repeatable
async def create(
    deps: Deps,
    viewer: Viewer,
    *,
    title: str,
    description: str | None = None,
    steps: Sequence[StepInput],
) -> Plan:
    """Store a plan of the viewer.

    Raises UserErrors naming every step at fault: unknown tools, wrong arguments, dependencies out
    of range, on the step itself or in a cycle (which is shown), references to steps not waited for.
    """
    user_id = viewer.require("plans:write")
    clean(title, "title", max_chars=200, multiline=False)
    if description is not None:
        clean(description, "description", max_chars=10_000, min_chars=0)
    await _check(deps, steps)
    async with work(deps) as unit:
        plan = Plan(user_id=user_id, title=title.strip(), description=description)
        unit.session.add(plan)
        await unit.session.flush()
        ids = [new_id(PlanStep.prefix) for _ in steps]
        unit.session.add_all(
            PlanStep(
                id=id_,
                plan_id=plan.id,
                order_index=index,
                description=step.description,
                tool_name=step.tool,
                arguments=None if step.arguments is None else dict(step.arguments),
            )
            for index, (id_, step) in enumerate(zip(ids, steps, strict=True))
        )
        await unit.session.flush()
        unit.session.add_all(
            PlanStepDependency(step_id=id_, depends_on_id=ids[dependency])
            for id_, step in zip(ids, steps, strict=True)
            for dependency in step.depends_on
        )
        await unit.session.flush()
        return plan.frozen()


async def _check(deps: Deps, steps: Sequence[StepInput]) -> None:
    limit = deps.options.plan_max_steps
    if not steps:
        raise UserError(UserErrorCode.REQUIRED, "A plan needs at least one step.", ("steps",))
    if len(steps) > limit:
        raise UserError(
            UserErrorCode.LIMIT,
            f"A plan may have {limit} steps; this one has {len(steps)}.",
            ("steps",),
        )
    errors: list[UserError] = []
    for index, step in enumerate(steps):
        errors += await _check_step(deps, index, step, len(steps))
    if errors:
        raise UserErrors(errors)
    _check_graph(steps)


async def _check_step(deps: Deps, index: int, step: StepInput, count: int) -> list[UserError]:
    where = ("steps", str(index))
    errors: list[UserError] = []
    try:
        clean(step.description, "description", max_chars=2_000)
    except UserError as error:
        errors.append(UserError(error.code, error.message, (*where, *error.path)))
    if step.tool is not None:
        errors += [
            UserError(error.code, error.message, (*where, *error.path))
            for error in await check_arguments(deps, step.tool, step.arguments or {})
        ]
    elif step.arguments:
        errors.append(
            UserError(
                UserErrorCode.INVALID,
                f"Step {index} has arguments but no tool; name the tool, or leave them out.",
                (*where, "arguments"),
            )
        )
    for dependency in step.depends_on:
        if dependency == index:
            reason = f"Step {index} cannot depend on itself."
        elif not 0 <= dependency < count:
            reason = f"Step {index} depends on step {dependency}; there are steps 0 to {count - 1}."
        elif list(step.depends_on).count(dependency) > 1:
            reason = f"Step {index} names step {dependency} more than once."
        else:
            continue
        errors.append(UserError(UserErrorCode.INVALID, reason, (*where, "depends_on")))
        break
    return errors


def _check_graph(steps: Sequence[StepInput]) -> None:
    depends_on = [list(step.depends_on) for step in steps]
    found = graph.cycle(depends_on)
    if found is not None:
        shown = " → ".join(str(index) for index in found)
        raise UserError(
            UserErrorCode.INVALID,
            f"The steps depend on each other in a cycle: {shown}. Remove one of these edges.",
            ("steps", str(found[0]), "depends_on"),
        )
    waits_for = graph.ancestors(depends_on)
    for index, step in enumerate(steps):
        used = {*graph.references(step.arguments or {}), *graph.references(step.description)}
        stray = sorted(used - waits_for[index])
        if stray:
            raise UserError(
                UserErrorCode.INVALID,
                f"Step {index} refers to step {stray[0]} without depending on it; "
                f"add {stray[0]} to its dependsOn.",
                ("steps", str(index), "arguments"),
            )


@repeatable
async def delete(deps: Deps, viewer: Viewer, *, plan_id: str) -> None:
    """Delete a plan with its executions. Raises UserError NOT_FOUND, CONFLICT while it runs."""
    viewer.require("plans:write")
    async with work(deps) as unit:
        plan = await unit.lock(Plan, plan_id)
        if plan is None or plan.user_id != viewer.user_id:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such plan.", ("id",))
        if plan.status is RunState.RUNNING:
            raise UserError(
                UserErrorCode.CONFLICT, "The plan is running; cancel the execution first.", ("id",)
            )
        await unit.session.execute(sql_delete(Plan).where(Plan.id == plan_id))
