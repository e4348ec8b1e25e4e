"""Plans: what is refused, what runs beside what, and what a failure, a cancel and a crash leave."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from app.runtime import running
from app.worker import working
from models.base import now
from models.plans import Plan, PlanExecution, PlanStepExecution
from models.states import ExecutionReason, RunState
from models.system import Task
from models.tools import ToolExecution
from services import plans
from services.base import Deps, Viewer, work
from services.errors import UserError, UserErrorCode, UserErrors
from services.plans import StepInput, executing, graph
from services.sandboxes.code import RunResult
from services.streams import Appended, Happened, Item, Restarted
from tests.fixtures import Api, Person, settings_for
from tests.services.llm.scripted_server import Hang, ScriptedServer, Status, calls, delta, says


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
    deps: Deps, viewer: Viewer, execution_id: str, after: str | None = None
) -> list[Item]:
    """Follow a run to its end."""
    seen: list[Item] = []
    async with (
        asyncio.timeout(60),
        aclosing(executing.follow(deps, viewer, execution_id, after)) as items,
    ):
        async for item in items:
            if isinstance(item, Restarted):
                await item.snapshot.release()
            seen.append(item)
    return seen


# Graphs.


@given(st.lists(st.lists(st.integers(0, 7), max_size=3), min_size=8, max_size=8))
def test_a_graph_is_acyclic_or_shows_its_cycle(depends_on: list[list[int]]) -> None:
    found = graph.cycle(depends_on)
    if found is None:
        waits_for = graph.ancestors(depends_on)
        for step, direct in enumerate(depends_on):
            assert step not in waits_for[step]
            expected = set(direct).union(*(waits_for[d] for d in direct))
            assert waits_for[step] == expected
    else:
        assert found[0] == found[-1]
        assert all(b in depends_on[a] for a, b in pairwise(found))


def test_references_are_found_and_replaced_wherever_they_stand() -> None:
    value = {"a": ["{{steps.0.output}}!", {"b": "{{ steps.2.result.x.1 }}"}], "c": 3}
    assert sorted(graph.references(value)) == [0, 2]
    resolved = graph.resolve(value, {0: "zero\n"}, {2: {"x": [1, {"deep": True}]}})
    assert resolved == {"a": ["zero!", {"b": {"deep": True}}], "c": 3}


@pytest.mark.parametrize("path", ["nothing", "x.9", "x.y", "x.0.z"])
def test_a_reference_that_leads_nowhere_is_empty(path: str) -> None:
    results = {0: {"x": [1]}}
    assert graph.resolve("{{steps.0.result.%s}}" % path, {}, results) is None  # noqa: UP031
    assert graph.resolve("a {{steps.0.result.%s}} b" % path, {}, results) == "a  b"  # noqa: UP031


# Making.


@pytest.mark.parametrize(
    ("steps", "path", "said"),
    [
        ([], "steps", "at least one"),
        ([code("a"), code("b", 0), code("c", 3), code("d", 2)], "steps.2.depends_on", "2 → 3 → 2"),
        ([code("a", 0)], "steps.0.depends_on", "itself"),
        ([code("a", 5)], "steps.0.depends_on", "steps 0 to 0"),
        ([code("a"), code("b", 0, 0)], "steps.1.depends_on", "more than once"),
        ([code("a"), code("{{steps.0.output}}")], "steps.1.arguments", "without depending"),
        ([StepInput("a", "no_such_tool", {})], "steps.0.tool", "no_such_tool"),
        ([StepInput("a", "run_code", {"code": 3})], "steps.0.arguments.code", "string"),
        ([StepInput("a", None, {"code": "x"})], "steps.0.arguments", "no tool"),
        ([StepInput("", "run_code", {"code": "x"})], "steps.0.description", ""),
    ],
)
async def test_what_cannot_run_is_refused_and_shown(
    deps: Deps, person: Person, steps: Sequence[StepInput], path: str, said: str
) -> None:
    with pytest.raises((UserError, UserErrors)) as refused:
        await plans.create(deps, person.viewer, title="Plan", steps=steps)
    error = refused.value
    assert isinstance(error, UserError | UserErrors)
    (found,) = error.errors if isinstance(error, UserErrors) else (error,)
    assert ".".join(found.path) == path
    assert said in found.message
    async with deps.db.reading() as connection:
        assert (await connection.execute(select(Plan.id))).all() == []


# Running.


async def test_independent_steps_run_at_the_same_time_and_pass_their_outputs_on(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(
        deps,
        person.viewer,
        code("first says 6"),
        code("left waits", 0),
        code("right waits", 0),
        code("join says {{steps.0.output}} {{steps.1.result.stdout}}{{steps.2.output}}", 1, 2, 0),
    )
    async with working(deps):
        await sandboxes.begins("left")
        await sandboxes.begins("right")
        assert "join" not in sandboxes.ran
        sandboxes.go("right")
        sandboxes.go("left")
        seen = await follow(deps, person.viewer, execution.id)

    assert await status(deps, execution.id) is RunState.COMPLETED
    rows = await states(deps, execution.id)
    assert [row.output for row in rows] == ["6\n", "left\n", "right\n", "6 left\nright\n"]
    assert [row.attempt for row in rows] == [1, 1, 1, 1]
    kinds = [item.type for item in seen if isinstance(item, Happened)]
    assert kinds.count("PlanStepStarted") == kinds.count("PlanStepFinished") == 4
    assert kinds[-1] == "PlanExecutionFinished"


async def test_no_more_steps_run_at_once_than_allowed(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, database_url=database_url, plan_parallel_steps=2)
    async with running(settings) as deps:
        made = Sandboxes()
        monkeypatch.setattr(deps.sandboxes, "run_code", made.run_code)
        person = await Api(deps).person("planner")
        names = ["a", "b", "c", "d"]
        execution = await begin(deps, person.viewer, *(code(f"{n} waits") for n in names))
        async with working(deps):
            await made.begins("a")
            await made.begins("b")
            assert sorted(made.ran) == ["a", "b"]
            made.go("a")
            await made.begins("c")
            assert "d" not in made.ran
            made.go(*names)
            await follow(deps, person.viewer, execution.id)
        assert await status(deps, execution.id) is RunState.COMPLETED


async def test_a_failure_stops_what_depends_on_it_and_nothing_else(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(
        deps,
        person.viewer,
        code("bad fails"),
        code("after", 0),
        code("far", 1),
        code("free waits"),
        code("later", 3),
    )
    async with working(deps):
        await sandboxes.begins("free")
        async with aclosing(executing.follow(deps, person.viewer, execution.id, None)) as items:
            skipped = 0
            async for item in items:
                skipped += isinstance(item, Happened) and item.type == "PlanStepFinished"
                if skipped == 3:
                    # The failure and what it skips are told while the rest still runs.
                    break
        sandboxes.go("free")
        await follow(deps, person.viewer, execution.id)

    rows = await states(deps, execution.id)
    assert [row.status for row in rows] == [
        RunState.FAILED,
        RunState.SKIPPED,
        RunState.SKIPPED,
        RunState.COMPLETED,
        RunState.COMPLETED,
    ]
    assert rows[0].error_code == "EXIT_CODE"
    assert await status(deps, execution.id) is RunState.FAILED
    assert {"after", "far"}.isdisjoint(sandboxes.ran)


async def test_cancelling_ends_steps_in_their_middle_and_keeps_what_they_wrote(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(
        deps, person.viewer, code("done"), code("one waits", 0), code("two waits", 0), code("x", 1)
    )
    async with working(deps):
        await sandboxes.begins("one")
        await sandboxes.begins("two")
        await plans.cancel(deps, person.viewer, execution_id=execution.id)
        await follow(deps, person.viewer, execution.id)

    assert sorted(sandboxes.cancelled) == ["one", "two"]
    rows = await states(deps, execution.id)
    assert [row.status for row in rows] == [RunState.COMPLETED, *[RunState.CANCELED] * 3]
    assert rows[0].output == "done\n"
    assert await status(deps, execution.id) is RunState.CANCELED
    async with deps.db.reading() as connection:
        found = (await connection.scalars(select(ToolExecution.status))).all()
    assert sorted(found) == [RunState.CANCELED, RunState.CANCELED, RunState.COMPLETED]
    # Again, and after the end, it changes nothing.
    await plans.cancel(deps, person.viewer, execution_id=execution.id)
    assert await status(deps, execution.id) is RunState.CANCELED


async def test_a_run_that_has_not_begun_is_cancelled_at_once(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(deps, person.viewer, code("one"), code("two", 0))
    await plans.cancel(deps, person.viewer, execution_id=execution.id)
    assert await status(deps, execution.id) is RunState.CANCELED
    async with working(deps):
        await follow(deps, person.viewer, execution.id)
    assert sandboxes.ran == []


async def test_an_interrupted_run_goes_on_and_repeats_only_what_was_under_way(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(
        deps, person.viewer, code("done"), code("half waits", 0), code("rest", 1)
    )
    async with working(deps):
        await sandboxes.begins("half")
    sandboxes.go("half")
    async with working(deps):
        seen = await follow(deps, person.viewer, execution.id)

    assert sandboxes.ran == ["done", "half", "half", "rest"]
    rows = await states(deps, execution.id)
    assert [row.attempt for row in rows] == [1, 2, 1]
    assert [row.output for row in rows] == ["done\n", "half\n", "rest\n"]
    assert await status(deps, execution.id) is RunState.COMPLETED
    _check_story(seen)


def _check_story(seen: Sequence[Item]) -> dict[str, str]:
    """Check that texts have no gap and no duplicate, and events their order; give the texts."""
    texts: dict[str, str] = {}
    last = 0
    for item in seen:
        if isinstance(item, Appended):
            assert item.offset == len(texts[item.key])
            texts[item.key] += item.text
        elif isinstance(item, Happened):
            assert item.seq == last + 1
            last = item.seq
            if item.type == "PlanStepStarted":
                texts[item.payload["key"]] = ""
    return texts


async def test_every_cursor_of_a_run_leads_to_the_same_story(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(
        deps, person.viewer, code("a says first"), code("b waits", 0), code("c says last", 1)
    )
    async with working(deps):
        await sandboxes.begins("b")
        sandboxes.go("b")
        seen = await follow(deps, person.viewer, execution.id)
    assert isinstance(seen[0], Restarted)
    whole = _check_story(seen)

    for position, item in enumerate(seen):
        rest = await follow(deps, person.viewer, execution.id, item.cursor)
        assert not any(isinstance(item, Restarted) for item in rest)
        assert _check_story([*seen[: position + 1], *rest]) == whole
        events = [i.seq for i in [*seen[: position + 1], *rest] if isinstance(i, Happened)]
        assert events == list(range(1, len(events) + 1))
    again = await follow(deps, person.viewer, execution.id)
    assert _check_story(again) == whole


async def test_a_plan_runs_again_and_again_but_not_twice_at_once(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    plan = await plans.create(deps, person.viewer, title="Again", steps=[code("a waits")])
    first = await plans.execute(deps, person.viewer, plan_id=plan.id)
    with pytest.raises(UserError) as refused:
        await plans.execute(deps, person.viewer, plan_id=plan.id)
    assert refused.value.code is UserErrorCode.CONFLICT
    assert first.id in refused.value.message
    with pytest.raises(UserError) as kept:
        await plans.delete(deps, person.viewer, plan_id=plan.id)
    assert kept.value.code is UserErrorCode.CONFLICT
    sandboxes.go("a")
    async with working(deps):
        await follow(deps, person.viewer, first.id)
        second = await plans.execute(deps, person.viewer, plan_id=plan.id)
        await follow(deps, person.viewer, second.id)
    assert await status(deps, first.id) is RunState.COMPLETED
    assert await status(deps, second.id) is RunState.COMPLETED
    assert [row.attempt for row in await states(deps, first.id)] == [1]


async def test_a_run_interrupted_too_often_fails_with_what_it_wrote(
    deps: Deps, person: Person, sandboxes: Sandboxes
) -> None:
    execution = await begin(deps, person.viewer, code("a waits"), code("b", 0))
    async with working(deps):
        await sandboxes.begins("a")
        async with aclosing(executing.follow(deps, person.viewer, execution.id, None)) as items:
            async for item in items:
                if isinstance(item, Appended):
                    break
    async with work(deps) as unit:
        await unit.session.execute(
            update(Task)
            .where(Task.task_type == executing.RUN_PLAN)
            .values(retry_count=4, run_at=now())
        )
    async with working(deps):
        seen = await follow(deps, person.viewer, execution.id)

    rows = await states(deps, execution.id)
    assert await status(deps, execution.id) is RunState.FAILED
    assert [row.status for row in rows] == [RunState.CANCELED, RunState.SKIPPED]
    assert rows[0].output == "a\n"
    assert _check_story(seen) == {executing.output_key(rows[0].id, 1): "a\n"}


# Prompts.


@asynccontextmanager
async def prompted(tmp_path: Path, *turns: Any) -> AsyncIterator[tuple[Deps, ScriptedServer]]:
    async with ScriptedServer(turns) as server:
        settings = settings_for(
            tmp_path, llm_base_url=server.base_url, llm_api_key="key", llm_model="scripted"
        )
        async with running(settings) as deps:
            yield deps, server


async def test_a_prompt_is_told_what_it_waited_for_and_may_call_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (calls(("run_code", {"code": "inner says 42"})), says("It is 42."))
    async with prompted(tmp_path, *turns) as (deps, server):
        sandboxes = Sandboxes()
        monkeypatch.setattr(deps.sandboxes, "run_code", sandboxes.run_code)
        person = await Api(deps).person("planner")
        execution = await begin(
            deps,
            person.viewer,
            code("first says seven"),
            StepInput("What is {{steps.0.output}} times six?", depends_on=[0]),
            code("last says {{steps.1.result.text}}", 1),
        )
        async with working(deps):
            await follow(deps, person.viewer, execution.id)

        rows = await states(deps, execution.id)
        assert [row.status for row in rows] == [RunState.COMPLETED] * 3
        assert rows[1].output is not None
        assert rows[1].output.endswith("It is 42.")
        assert rows[2].output is not None
        assert rows[2].output.endswith("It is 42.\n")
        asked = server.requests[0].body["messages"]
        assert asked[-1] == {"role": "user", "content": "What is seven times six?"}
        assert any("seven" in m["content"] for m in asked if m["role"] == "system")
        assert server.requests[1].body["messages"][-1]["role"] == "tool"
        assert "42" in server.requests[1].body["messages"][-1]["content"]


async def test_cancelling_a_prompt_closes_the_stream_of_the_model(tmp_path: Path) -> None:
    turn = [Status(), delta(role="assistant"), delta("Begun"), Hang()]
    async with prompted(tmp_path, turn) as (deps, server):
        person = await Api(deps).person("planner")
        execution = await begin(deps, person.viewer, StepInput("Think for ever"))
        async with working(deps):
            async with aclosing(executing.follow(deps, person.viewer, execution.id, None)) as items:
                async for item in items:
                    if isinstance(item, Appended):
                        break
            await plans.cancel(deps, person.viewer, execution_id=execution.id)
            await server.left()
            await follow(deps, person.viewer, execution.id)
        (row,) = await states(deps, execution.id)
        assert (row.status, row.output) == (RunState.CANCELED, "Begun")


@pytest.mark.bubblewrap
async def test_cancelling_a_step_ends_its_process(tmp_path: Path) -> None:
    marker = f"sleep {31_536_000 + hash(str(tmp_path)) % 1_000_000}"
    settings = settings_for(tmp_path, sandbox_driver="bubblewrap")
    async with running(settings) as deps:
        person = await Api(deps).person("planner")
        program = f"import os, subprocess\nos.write(1, b'up')\nsubprocess.run('{marker}'.split())"
        execution = await begin(
            deps, person.viewer, StepInput("Sleep", "run_code", {"code": program})
        )
        async with working(deps):
            async with (
                asyncio.timeout(60),
                aclosing(executing.follow(deps, person.viewer, execution.id, None)) as items,
            ):
                async for item in items:
                    if isinstance(item, Appended):
                        break
                while not _runs(marker):  # noqa: ASYNC110 - other processes tell nobody.
                    await asyncio.sleep(0.02)
                await plans.cancel(deps, person.viewer, execution_id=execution.id)
            await follow(deps, person.viewer, execution.id)
        assert not _runs(marker)
        (row,) = await states(deps, execution.id)
        assert (row.status, row.output) == (RunState.CANCELED, "up")


def _runs(command: str) -> bool:
    """Whether a process of this very command line is alive on the machine."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == wanted:
                    return True
            except OSError:
                continue
    return False
