"""Running plans: starting, canceling, and the events of a run."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from models.base import now
from models.plans import Plan, PlanExecution, PlanStep, PlanStepExecution
from models.statements import Reading
from models.states import RunState
from services import access, streams, tasks
from services.base import Deps, Viewer, Work, work
from services.contention import repeatable
from services.errors import RequestError, UserError, UserErrorCode
from services.streams import Fact, Item, Kind, Source, Texts, TopicFollower, position

RUN_PLAN = "run_plan"
OPEN = (RunState.PENDING, RunState.RUNNING)


def topic(execution_id: str) -> str:
    """Name the topic of an execution's events."""
    return f"plan-execution:{execution_id}"


def output_key(step_execution_id: str, attempt: int) -> str:
    """Name the growing output of one attempt at a step."""
    return f"{step_execution_id}:{attempt}"


@repeatable
async def execute(deps: Deps, viewer: Viewer, *, plan_id: str) -> PlanExecution:
    """Begin a run of a plan; it goes on when the request is over.

    Raises UserError NOT_FOUND, CONFLICT while another run of the plan is under way.
    """
    user_id = viewer.require("plans:execute")
    async with work(deps) as unit:
        plan = await unit.lock(Plan, plan_id)
        if plan is None or plan.user_id != user_id:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such plan.", ("id",))
        running = await unit.session.scalar(
            select(PlanExecution.id).where(
                PlanExecution.plan_id == plan_id, PlanExecution.status.in_(OPEN)
            )
        )
        if running is not None:
            raise UserError(
                UserErrorCode.CONFLICT,
                f"The plan is being executed already ({running}); wait for it, or cancel it.",
                ("id",),
            )
        execution = PlanExecution(plan_id=plan_id, user_id=user_id, session_id=viewer.session_id)
        unit.session.add(execution)
        await unit.session.flush()
        unit.open_topic(topic(execution.id))
        step_ids = await unit.session.scalars(
            select(PlanStep.id).where(PlanStep.plan_id == plan_id).order_by(PlanStep.order_index)
        )
        unit.session.add_all(
            PlanStepExecution(execution_id=execution.id, step_id=step_id) for step_id in step_ids
        )
        await unit.session.execute(
            update(PlanStep)
            .where(PlanStep.plan_id == plan_id)
            .values(
                status=RunState.PENDING,
                started_at=None,
                completed_at=None,
                execution_details=None,
            )
        )
        plan.status, plan.started_at, plan.completed_at = RunState.RUNNING, now(), None
        tasks.enqueue(unit, RUN_PLAN, {"id": execution.id}, lane=execution.id, priority=5)
        await unit.session.flush()
        return execution.frozen()


@repeatable
async def cancel(deps: Deps, viewer: Viewer, *, execution_id: str) -> PlanExecution:
    """Cancel a run, also in the middle of a step. Canceling a finished run changes nothing.

    Raises UserError NOT_FOUND.
    """
    viewer.require("plans:execute")
    async with work(deps) as unit:
        execution = await unit.lock(PlanExecution, execution_id)
        if execution is None or (
            execution.user_id != viewer.user_id and not viewer.may("everything:manage")
        ):
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such execution.", ("id",))
        if not execution.status.is_final:
            execution.cancel_requested_at = execution.cancel_requested_at or now()
            if execution.status is RunState.PENDING:
                await tasks.cancel_pending(
                    unit, task_type=RUN_PLAN, lane=execution_id, payload_id=execution_id
                )
                await finish(unit, execution, RunState.CANCELED)
            else:
                control = f"control:{execution_id}"
                unit.after_commit(lambda: deps.bus.publish(control, {"cancel": True}))
        await unit.session.flush()
        return execution.frozen()


async def finish(
    unit: Work,
    execution: PlanExecution,
    status: RunState,
    *,
    error: str | None = None,
    outputs: Mapping[str, str] | None = None,
) -> None:
    """Bring a run to its end in the caller's transaction: open steps are closed, and announced.

    `outputs` are what `sent_outputs` gave before the transaction.
    """
    open_steps = (
        await unit.session.scalars(
            select(PlanStepExecution).where(
                PlanStepExecution.execution_id == execution.id,
                PlanStepExecution.status.in_(OPEN),
            )
        )
    ).all()
    for step in open_steps:
        was_running = step.status is RunState.RUNNING
        is_canceled = status is RunState.CANCELED
        step.status = RunState.CANCELED if was_running or is_canceled else RunState.SKIPPED
        step.completed_at = now()
        if was_running:
            sent = (outputs or {}).get(step.id, "")
            step.output = max(step.output or "", sent, key=len)
        await mirror(unit, step)
        announce(unit, "PlanStepFinished", step)
    execution.status, execution.completed_at = status, now()
    execution.error_details = error
    plan = await unit.lock(Plan, execution.plan_id)
    if plan is not None:
        plan.status, plan.completed_at = status, execution.completed_at
    unit.record(topic(execution.id), "PlanExecutionFinished", {"execution_id": execution.id})


async def sent_outputs(deps: Deps, execution_id: str) -> dict[str, str]:
    """Give, by step run, all output sent by the steps that run, stored or not.

    Asks the bus, so it is called before a transaction and not within one.
    """
    async with deps.db.reading() as connection:
        running = (
            await connection.execute(
                select(
                    PlanStepExecution.id, PlanStepExecution.attempt, PlanStepExecution.output
                ).where(
                    PlanStepExecution.execution_id == execution_id,
                    PlanStepExecution.status == RunState.RUNNING,
                )
            )
        ).all()
    return {
        row.id: await streams.read_text(
            deps, topic(execution_id), output_key(row.id, row.attempt), row.output or ""
        )
        for row in running
    }


async def mirror(unit: Work, step: PlanStepExecution) -> None:
    """Show a step's newest run on the step itself."""
    details = {
        "executionId": step.execution_id,
        "attempt": step.attempt,
        "error": step.error_message,
        "result": step.result,
    }
    await unit.session.execute(
        update(PlanStep)
        .where(PlanStep.id == step.step_id)
        .values(
            status=step.status,
            started_at=step.started_at,
            completed_at=step.completed_at,
            execution_details=details,
        )
    )


def announce(unit: Work, kind: str, step: PlanStepExecution) -> None:
    """Record an event of a step."""
    unit.record(
        topic(step.execution_id),
        kind,
        {
            "step_execution_id": step.id,
            "step_id": step.step_id,
            "key": output_key(step.id, step.attempt),
        },
    )


async def source(deps: Deps, viewer: Viewer, execution_id: str) -> Source:
    """Give what is followed of a run.

    Raises RequestError NOT_FOUND when the viewer cannot see it.
    """
    if not await access.may_see(deps, viewer, PlanExecution, execution_id):
        raise RequestError("NOT_FOUND", "There is no such execution.")
    return Source(_KIND, execution_id, topic(execution_id))


async def follow(
    deps: Deps, viewer: Viewer, execution_id: str, after: str | None
) -> AsyncGenerator[Item, None]:
    """Follow a run from its beginning or from a cursor; ends with the run.

    Raises RequestError NOT_FOUND when the viewer cannot see it, BAD_USER_INPUT for a bad cursor.
    """
    follower = TopicFollower(deps, await source(deps, viewer, execution_id), position(after))
    async with aclosing(streams.follow(deps, follower)) as items:
        async for item in items:
            yield item


# Everybody who begins to follow asks these.
_GROWING = Reading(
    select(
        PlanStepExecution.execution_id,
        PlanStepExecution.id,
        PlanStepExecution.attempt,
        PlanStepExecution.output,
    ).where(
        PlanStepExecution.execution_id.in_(bindparam("ids", expanding=True)),
        PlanStepExecution.status == RunState.RUNNING,
    )
)
_STATUS = Reading(
    select(PlanExecution.id, PlanExecution.status).where(
        PlanExecution.id.in_(bindparam("ids", expanding=True))
    )
)


async def _growing(connection: AsyncConnection, ids: Sequence[str]) -> Mapping[str, Texts]:
    rows = await _GROWING.rows(connection, ids=ids)
    texts: dict[str, Texts] = defaultdict(dict)
    for execution_id, id_, attempt, output in rows:
        texts[execution_id][output_key(id_, attempt)] = output or ""
    return texts


async def _stored(connection: AsyncConnection, key: str) -> str | None:
    row_id = key.split(":", maxsplit=1)[0]
    return await connection.scalar(
        select(PlanStepExecution.output).where(PlanStepExecution.id == row_id)
    )


async def _complete(connection: AsyncConnection, ids: Sequence[str]) -> set[str]:
    rows = await _STATUS.rows(connection, ids=ids)
    return set(ids) - {id_ for id_, status in rows if not status.is_final}


def _key_of(fact: Fact, kind: str) -> str | None:
    return str(fact.payload["key"]) if fact.type == kind else None


_KIND = Kind(
    growing=_growing,
    stored=_stored,
    complete=_complete,
    begins=lambda fact: _key_of(fact, "PlanStepStarted"),
    ends=lambda fact: _key_of(fact, "PlanStepFinished"),
    is_last=lambda fact: fact.type == "PlanExecutionFinished",
    replays=True,
)
