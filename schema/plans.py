"""Plans, their executions, and the events of a run."""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

import strawberry
from strawberry.scalars import JSON

from models import plans as tables
from resolvers import plans
from resolvers.base import Info, PageArgs, reads
from schema.accounts import User
from schema.base import (
    After,
    Before,
    Connection,
    First,
    Id,
    Last,
    Node,
    Payload,
    RunState,
    answer,
    arg,
    attr,
    connection,
    field,
    mutation,
)
from schema.live import live_topic, shared
from schema.tools import ToolExecution
from services import streams
from services.errors import UserError, UserErrorCode
from services.plans import StepInput, cancel, create, delete, execute
from services.plans.executing import source


@strawberry.type(description="One step of a plan.")
class PlanStep(Node, row=tables.PlanStep):
    order_index: int = attr("Its place in the plan, from 0.")
    description: str = attr("What is to be done; without a tool, the prompt itself.")
    tool_name: str | None = attr("Name of the tool it calls; null for a prompt.", name="tool")
    arguments: JSON | None = attr("Arguments of the tool, references not yet replaced.")
    status: RunState = attr("Where it stands in the newest execution.")
    started_at: datetime | None = attr("When it began in the newest execution.")
    completed_at: datetime | None = attr("When it ended in the newest execution.")
    execution_details: JSON | None = attr("Attempt, result and error of the newest execution.")
    depends_on: list[Annotated["PlanStep", strawberry.lazy("schema.plans")]] = field(
        plans.depends_on, "Steps it waits for, in order."
    )
    plan: Annotated["Plan", strawberry.lazy("schema.plans")] | None = field(
        plans.step_plan, "The plan it belongs to."
    )


@strawberry.type(description="One step in one execution.")
class PlanStepExecution(Node, row=tables.PlanStepExecution):
    status: RunState = attr("Where it stands.")
    attempt: int = attr("How often it was begun; more than 1 after an interruption.")
    output: str | None = attr("Text it gave: what code printed, what the model wrote.")
    result: JSON | None = attr("What the tool gave.")
    error_code: str | None = attr("Kind of its error.")
    error_message: str | None = attr("Its error, in words.")
    started_at: datetime | None = attr("When its last attempt began.")
    completed_at: datetime | None = attr("When it ended.")
    step: PlanStep | None = field(plans.run_step, "The step.")
    tool_execution: ToolExecution | None = field(
        plans.run_tool_execution, "The tool's execution; null for a prompt."
    )


@strawberry.type(description="One run of a plan.")
class PlanExecution(Node, row=tables.PlanExecution):
    status: RunState = attr("Where it stands.")
    started_at: datetime = attr("When it was asked for.")
    completed_at: datetime | None = attr("When it ended.")
    result: JSON | None = attr("The steps' outputs by their order index.")
    error_details: str | None = attr("Why it failed.")
    plan: Annotated["Plan", strawberry.lazy("schema.plans")] | None = field(
        plans.execution_plan, "The plan."
    )
    steps: list[PlanStepExecution] = field(plans.execution_steps, "Its steps, in order.")


@strawberry.type(description="A goal cut into steps that may depend on each other.")
class Plan(Node, row=tables.Plan):
    title: str = attr("Its title.")
    description: str | None = attr("What it is for.")
    status: RunState = attr("Where its newest execution stands; PENDING before the first.")
    started_at: datetime | None = attr("When its newest execution began.")
    completed_at: datetime | None = attr("When its newest execution ended.")
    created_at: datetime = attr("When it was made.")
    updated_at: datetime = attr("When it last changed.")
    user: User | None = field(plans.owner, "Whose it is.")
    steps: list[PlanStep] = field(plans.steps, "Its steps, in order.")
    executions: Connection[PlanExecution] = connection(
        plans.executions, "Its executions, newest first."
    )


@strawberry.type
class PlansQuery:
    @strawberry.field(description="A plan of yours; null when there is no such.")
    @reads()
    async def plan(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the plan.")]
    ) -> Plan | None:
        return await plans.one(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your plans, newest first.")
    @reads()
    async def plans(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        status: Annotated[RunState | None, arg("Only those that stand so.")] = None,
    ) -> Connection[Plan]:
        page = PageArgs(first, after, last, before)
        return await plans.listed(info, page, status)  # type: ignore[return-value]

    @strawberry.field(description="An execution of yours; null when there is no such.")
    @reads()
    async def plan_execution(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the execution.")]
    ) -> PlanExecution | None:
        return await plans.one_execution(info, id)  # type: ignore[return-value]


@strawberry.input(description="A step to be: a tool call, or a prompt when no tool is named.")
class PlanStepInput:
    description: str = attr("What is to be done, 1 to 2,000 characters.")
    tool: str | None = attr("Name of a tool.", default=None)
    arguments: JSON | None = attr(
        "Arguments of the tool. Texts may hold `{{steps.N.output}}` and "
        "`{{steps.N.result.path}}` of steps it depends on.",
        default=None,
    )
    depends_on: list[int] = attr("Indexes of the steps it waits for.", default_factory=list)


@strawberry.input(description="A new plan.")
class PlanCreateInput:
    title: str = attr("1 to 200 characters.")
    description: str | None = attr("What it is for, at most 10,000 characters.", default=None)
    steps: list[PlanStepInput] = attr("1 to 100 steps.")


@strawberry.type(description="Answer to `planCreate`.")
class PlanCreatePayload(Payload):
    plan: Plan | None = answer("The new plan.")


@strawberry.type(description="Answer to `planDelete`.")
class PlanDeletePayload(Payload):
    pass


@strawberry.type(description="Answer to `planExecute`.")
class PlanExecutePayload(Payload):
    execution: PlanExecution | None = answer("The run, PENDING until a worker takes it.")


@strawberry.type(description="Answer to `planExecutionCancel`.")
class PlanExecutionCancelPayload(Payload):
    execution: PlanExecution | None = answer("The run.")


def _step(index: int, step: PlanStepInput) -> StepInput:
    arguments: Any = step.arguments
    if arguments is not None and not isinstance(arguments, dict):
        raise UserError(
            UserErrorCode.INVALID,
            f"The arguments of step {index} must be an object of names and values.",
            ("steps", str(index), "arguments"),
        )
    return StepInput(step.description, step.tool, arguments, tuple(step.depends_on))


async def _create(info: Info, input: PlanCreateInput) -> dict[str, object]:
    plan = await create(
        info.context.deps,
        info.context.viewer,
        title=input.title,
        description=input.description,
        steps=[_step(index, step) for index, step in enumerate(input.steps)],
    )
    return {"plan": plan}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    await delete(info.context.deps, info.context.viewer, plan_id=id)
    return {}


async def _execute(info: Info, id: Id) -> dict[str, object]:
    return {"execution": await execute(info.context.deps, info.context.viewer, plan_id=id)}


async def _cancel(info: Info, id: Id) -> dict[str, object]:
    return {"execution": await cancel(info.context.deps, info.context.viewer, execution_id=id)}


@strawberry.type
class PlansMutation:
    plan_create = mutation(
        PlanCreatePayload, "Make a plan. Its steps must not depend on each other in a cycle."
    )(_create)
    plan_delete = mutation(PlanDeletePayload, "Delete a plan with its executions.")(_delete)
    plan_execute = mutation(
        PlanExecutePayload, "Run a plan in the background; independent steps run side by side."
    )(_execute)
    plan_execution_cancel = mutation(
        PlanExecutionCancelPayload, "Cancel a run, also in the middle of a step."
    )(_cancel)


@strawberry.interface(description="Something that happened in a run of a plan.")
class PlanExecutionEvent:
    cursor: str = attr("Give it as `after` to go on from here.")


@strawberry.type(description="A step began (again, after an interruption).")
class PlanStepStarted(PlanExecutionEvent):
    step_id: strawberry.Private[str]
    step_execution_id: strawberry.Private[str]
    step: PlanStep | None = field(plans.event_step, "The step.")
    step_execution: PlanStepExecution | None = field(plans.event_run, "The step in this run.")


@strawberry.type(description="More output of a step.")
class PlanStepOutput(PlanExecutionEvent):
    step_execution_id: strawberry.Private[str]
    step_execution: PlanStepExecution | None = field(plans.event_run, "The step in this run.")
    offset: int = attr("Where the text begins, in characters of the step's output.")
    text: str = attr("The text to append.")


@strawberry.type(description="A step ended, or was skipped.")
class PlanStepFinished(PlanExecutionEvent):
    step_id: strawberry.Private[str]
    step_execution_id: strawberry.Private[str]
    step: PlanStep | None = field(plans.event_step, "The step.")
    step_execution: PlanStepExecution | None = field(plans.event_run, "The step in this run.")


@strawberry.type(description="The run ended; nothing follows.")
class PlanExecutionFinished(PlanExecutionEvent):
    execution_id: strawberry.Private[str]
    execution: PlanExecution | None = field(plans.event_execution, "The run.")


@strawberry.type(
    description="Begin anew from this snapshot: at the start, and when the cursor is unknown or "
    "too old. All events of the run follow, those of before included, as long as they are kept."
)
class PlanExecutionReset(PlanExecutionEvent):
    execution_id: strawberry.Private[str]
    execution: PlanExecution | None = field(plans.event_execution, "The run.")


def _event(item: streams.Item, execution_id: str) -> PlanExecutionEvent:
    if isinstance(item, streams.Appended):
        return PlanStepOutput(
            cursor=item.cursor,
            step_execution_id=item.key.split(":")[0],
            offset=item.offset,
            text=item.text,
        )
    if isinstance(item, streams.Restarted):
        return PlanExecutionReset(cursor=item.cursor, execution_id=execution_id)
    if item.type == "PlanExecutionFinished":
        return PlanExecutionFinished(cursor=item.cursor, execution_id=execution_id)
    kind = PlanStepStarted if item.type == "PlanStepStarted" else PlanStepFinished
    return kind(
        cursor=item.cursor,
        step_id=item.payload["step_id"],
        step_execution_id=item.payload["step_execution_id"],
    )


@strawberry.type
class PlansSubscription:
    @strawberry.subscription(
        description="What happens in a run: first a PlanExecutionReset and all events so far, or, "
        "with `after`, what you missed; then everything as it happens, until the run ends."
    )
    async def plan_execution_events(
        self,
        info: Info,
        execution_id: Annotated[strawberry.ID, arg("Id of the execution.")],
        after: Annotated[str | None, arg("The cursor of the last event you have.")] = None,
    ) -> AsyncGenerator[PlanExecutionEvent, None]:
        context = info.context
        followed = await shared(
            context,
            ("plan execution", execution_id),
            lambda: source(context.deps, context.viewer, execution_id),
        )
        return live_topic(context, followed, after, lambda item: _event(item, execution_id))
