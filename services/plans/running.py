"""The task that runs a plan: ready steps side by side, dependants of failures skipped."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from models.base import now, row_columns, rows_of
from models.plans import PlanExecution, PlanStep, PlanStepDependency, PlanStepExecution
from models.states import RunState
from models.system import Task
from services import memories, tasks
from services.accounts.sessions import viewer_of
from services.base import Deps, Viewer, work
from services.events.base import BusUnavailableError, Tap
from services.llm.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    ProviderError,
    Role,
    TextDelta,
    ToolCall,
)
from services.plans import executing, graph
from services.streams import TextWriter
from services.tools import Outcome, ToolContext
from services.tools import execute as execute_tool
from services.tools import specs as tool_specs

log = logging.getLogger("noosphere.plans")
_CONTROL_POLL_S = 2.0
_PROMPT_ROUNDS = 4
_LOG_TTL_S = 3600.0
_DEPENDENCY_MAX_CHARS = 8_000


@dataclass(slots=True)
class _Run:
    """One run under way, with the state of its steps by index."""

    deps: Deps
    task: Task
    viewer: Viewer
    execution: PlanExecution
    steps: Sequence[PlanStep]
    depends_on: Sequence[Sequence[int]]
    rows: list[PlanStepExecution]
    started: set[int] = field(default_factory=set)

    def outputs(self) -> dict[int, str]:
        return {i: row.output or "" for i, row in enumerate(self.rows)}

    def results(self) -> dict[int, Any]:
        return {i: row.result for i, row in enumerate(self.rows)}


async def _run_is_dead(deps: Deps, task: Task, reason: str) -> None:
    outputs = await executing.sent_outputs(deps, task.payload["id"])
    async with work(deps) as unit:
        execution = await unit.lock(PlanExecution, task.payload["id"])
        if execution is not None and not execution.status.is_final:
            await executing.finish(
                unit,
                execution,
                RunState.FAILED,
                error="The run was interrupted too often.",
                outputs=outputs,
            )


@tasks.handler(executing.RUN_PLAN, dead=_run_is_dead)
async def run(deps: Deps, task: Task) -> None:
    """Run a plan to its end; after a crash, finished steps stay and interrupted ones repeat."""
    started = await _load(deps, task)
    if started is None:
        return
    async with (
        deps.bus.attach(f"control:{started.execution.id}") as control,
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(_schedule(started))
        watching = group.create_task(_watch(started, control, running))
        await asyncio.wait({running})
        watching.cancel()
    await _finish(started, is_canceled=running.cancelled())


async def _load(deps: Deps, task: Task) -> _Run | None:
    execution_id = task.payload["id"]
    async with deps.db.reading() as connection:
        asked_by = (
            await connection.execute(
                select(PlanExecution.user_id, PlanExecution.session_id).where(
                    PlanExecution.id == execution_id
                )
            )
        ).first()
    viewer = None if asked_by is None else await viewer_of(deps, *asked_by)
    outputs = await executing.sent_outputs(deps, execution_id)
    async with work(deps) as unit:
        await tasks.hold(unit, task)
        execution = await unit.lock(PlanExecution, execution_id)
        if execution is None or execution.status.is_final:
            return None
        if execution.cancel_requested_at is not None or viewer is None:
            await executing.finish(unit, execution, RunState.CANCELED, outputs=outputs)
            return None
        execution.status = RunState.RUNNING
        session = unit.session
        steps = rows_of(
            PlanStep,
            await session.execute(
                select(*row_columns(PlanStep))
                .where(PlanStep.plan_id == execution.plan_id)
                .order_by(PlanStep.order_index)
            ),
        )
        index = {step.id: position for position, step in enumerate(steps)}
        depends_on: list[list[int]] = [[] for _ in steps]
        edges = await session.execute(
            select(PlanStepDependency.step_id, PlanStepDependency.depends_on_id).where(
                PlanStepDependency.step_id.in_(index)
            )
        )
        for edge in edges:
            depends_on[index[edge.step_id]].append(index[edge.depends_on_id])
        rows = rows_of(
            PlanStepExecution,
            await session.execute(
                select(*row_columns(PlanStepExecution)).where(
                    PlanStepExecution.execution_id == execution_id
                )
            ),
        )
        rows.sort(key=lambda row: index[row.step_id])
        await session.flush()
        return _Run(deps, task, viewer, execution.frozen(), steps, depends_on, rows)


async def _watch(run: _Run, control: Tap, running: "asyncio.Task[None]") -> None:
    """Cancel the run when that is asked for; news may get lost, so look at the row."""
    while True:
        await control.get(_CONTROL_POLL_S)
        control.lost()
        try:
            async with run.deps.db.reading() as connection:
                requested = await connection.scalar(
                    select(PlanExecution.cancel_requested_at).where(
                        PlanExecution.id == run.execution.id
                    )
                )
        except SQLAlchemyError:
            log.warning("the run could not be looked at", exc_info=True)
            continue
        if requested is not None:
            running.cancel()
            return


async def _schedule(run: _Run) -> None:
    """Start every step as soon as all it waits for is completed; skip what cannot be reached."""
    changed = asyncio.Event()
    slots = asyncio.Semaphore(run.deps.options.plan_parallel_steps)

    async def one(index: int) -> None:
        async with slots:
            await _step(run, index)
        changed.set()

    async with asyncio.TaskGroup() as group:
        while True:
            changed.clear()
            await _skip_unreachable(run)
            for index, row in enumerate(run.rows):
                is_ready = all(
                    run.rows[d].status is RunState.COMPLETED for d in run.depends_on[index]
                )
                if not row.status.is_final and is_ready and index not in run.started:
                    run.started.add(index)
                    group.create_task(one(index))
            if all(row.status.is_final for row in run.rows):
                return
            await changed.wait()


async def _skip_unreachable(run: _Run) -> None:
    while True:
        blocked = [
            index
            for index, row in enumerate(run.rows)
            if row.status is RunState.PENDING
            and any(
                run.rows[d].status.is_final and run.rows[d].status is not RunState.COMPLETED
                for d in run.depends_on[index]
            )
        ]
        if not blocked:
            return
        async with work(run.deps) as unit:
            for index in blocked:
                row = await unit.lock(PlanStepExecution, run.rows[index].id)
                assert row is not None  # noqa: S101 - rows of a run go only with the run.
                row.status, row.completed_at = RunState.SKIPPED, now()
                row.error_message = "A step it depends on did not complete."
                await executing.mirror(unit, row)
                executing.announce(unit, "PlanStepFinished", row)
                run.rows[index] = row.frozen()


async def _step(run: _Run, index: int) -> None:
    row = run.rows[index] = await _begin_step(run, run.rows[index].id)
    writer = TextWriter(
        run.deps,
        executing.topic(run.execution.id),
        executing.output_key(row.id, row.attempt),
        checkpoint=lambda text: _checkpoint(run, row.id, text),
    )
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(writer.run())
        outcome = await _perform(run, run.steps[index], writer)
        sending.cancel()
    if not writer.text:
        await writer.write(_text_of(outcome.result))
    await writer.settle()
    run.rows[index] = await _end_step(run, row.id, outcome, writer.text)


async def _begin_step(run: _Run, row_id: str) -> PlanStepExecution:
    async with work(run.deps) as unit:
        await tasks.hold(unit, run.task)
        row = await unit.lock(PlanStepExecution, row_id)
        assert row is not None  # noqa: S101 - rows of a run go only with the run.
        row.status, row.started_at = RunState.RUNNING, now()
        row.attempt += 1
        row.output = None
        await executing.mirror(unit, row)
        executing.announce(unit, "PlanStepStarted", row)
        await unit.session.flush()
        return row.frozen()


async def _checkpoint(run: _Run, row_id: str, text: str) -> None:
    async with work(run.deps) as unit:
        await tasks.hold(unit, run.task)
        await unit.session.execute(
            update(PlanStepExecution).where(PlanStepExecution.id == row_id).values(output=text)
        )


async def _end_step(run: _Run, row_id: str, outcome: Outcome, output: str) -> PlanStepExecution:
    async with work(run.deps) as unit:
        await tasks.hold(unit, run.task)
        row = await unit.lock(PlanStepExecution, row_id)
        assert row is not None  # noqa: S101 - rows of a run go only with the run.
        row.status = RunState.COMPLETED if outcome.is_ok else RunState.FAILED
        row.completed_at, row.output, row.result = now(), output, outcome.result
        row.tool_execution_id = outcome.execution_id or None
        if not outcome.is_ok:
            error = outcome.result.get("error", {}) if isinstance(outcome.result, Mapping) else {}
            row.error_code, row.error_message = error.get("code"), error.get("message")
        await executing.mirror(unit, row)
        executing.announce(unit, "PlanStepFinished", row)
        await unit.session.flush()
        return row.frozen()


async def _perform(run: _Run, step: PlanStep, writer: TextWriter) -> Outcome:
    outputs, results = run.outputs(), run.results()
    if step.tool_name is not None:
        arguments = graph.resolve(step.arguments or {}, outputs, results)
        return await execute_tool(_context(run, writer), step.tool_name, arguments)
    prompt = graph.resolve(step.description, outputs, results)
    waited_for = run.depends_on[step.order_index]
    return await _prompt(run, prompt, waited_for, writer)


def _context(run: _Run, writer: TextWriter) -> ToolContext:
    return ToolContext(
        deps=run.deps,
        viewer=run.viewer,
        plan_execution_id=run.execution.id,
        on_output=writer.write,
    )


async def _prompt(run: _Run, prompt: str, waited_for: Sequence[int], writer: TextWriter) -> Outcome:
    """Give a step's prompt, and what it waited for, to the model; run the tools it calls."""
    given = [
        f"Result of step {i} ({run.steps[i].description}):\n"
        f"{(run.rows[i].output or '')[:_DEPENDENCY_MAX_CHARS]}"
        for i in sorted(waited_for)
    ]
    chat = [ChatMessage(Role.SYSTEM, "You carry out one step of a plan. Be brief and exact.")]
    chat += [ChatMessage(Role.SYSTEM, text) for text in given]
    chat.append(ChatMessage(Role.USER, prompt))
    recalled = await memories.recall(run.deps, run.viewer, prompt[:2000], first=3)
    try:
        async with asyncio.timeout(run.deps.options.answer_timeout_s):
            for number in range(_PROMPT_ROUNDS):
                is_last = number == _PROMPT_ROUNDS - 1
                tools = () if is_last else tuple(await tool_specs(run.deps))
                request = ChatRequest(tuple(chat), tools, tuple(recalled))
                calls = await _turn(run, request, writer)
                if not calls:
                    break
                chat.append(ChatMessage(Role.ASSISTANT, "", tool_calls=calls))
                for call in calls:
                    done = await execute_tool(_context(run, writer), call.name, call.arguments)
                    text = orjson.dumps(done.result, default=str).decode()
                    chat.append(ChatMessage(Role.TOOL, text, tool_call_id=call.id))
    except ProviderError as error:
        return Outcome("", False, {"error": {"code": error.code, "message": error.message}})
    except TimeoutError:
        return Outcome(
            "", False, {"error": {"code": "TIMED_OUT", "message": "The model took too long."}}
        )
    return Outcome("", True, {"text": writer.text})


async def _turn(run: _Run, request: ChatRequest, writer: TextWriter) -> list[ToolCall]:
    calls: list[ToolCall] = []
    async with aclosing(run.deps.provider.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                await writer.write(event.text)
            elif not isinstance(event, Finished):
                calls.append(event.call)
    return calls


def _text_of(result: Any) -> str:
    if isinstance(result, Mapping) and "stdout" in result:
        return str(result["stdout"]) + str(result.get("stderr", ""))
    return orjson.dumps(result, default=str).decode()


async def _finish(run: _Run, *, is_canceled: bool) -> None:
    outputs = await executing.sent_outputs(run.deps, run.execution.id) if is_canceled else {}
    async with work(run.deps) as unit:
        await tasks.hold(unit, run.task)
        execution = await unit.lock(PlanExecution, run.execution.id)
        if execution is None or execution.status.is_final:
            return
        if is_canceled:
            await executing.finish(unit, execution, RunState.CANCELED, outputs=outputs)
        else:
            failed = [i for i, r in enumerate(run.rows) if r.status is RunState.FAILED]
            execution.result = {
                "outputs": {str(i): row.output for i, row in enumerate(run.rows)},
            }
            if failed:
                reasons = "; ".join(f"step {i}: {run.rows[i].error_message}" for i in failed)
                await executing.finish(unit, execution, RunState.FAILED, error=reasons)
            else:
                await executing.finish(unit, execution, RunState.COMPLETED)
    try:
        await run.deps.bus.expire(executing.topic(run.execution.id), _LOG_TTL_S)
    except BusUnavailableError:
        log.info("the log of a finished run goes with those nobody writes to")
