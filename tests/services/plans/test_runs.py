"""Runs of plans: what runs beside what; what a failure, a cancel and a crash leave."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app.runtime import running
from app.worker import working
from models.base import now
from models.states import RunState
from models.system import Task
from models.tools import ToolExecution
from services import plans
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.plans import executing
from services.streams import Appended, Happened, Item, Restarted
from tests.fixtures import Api, Person, settings_for
from tests.services.plans.conftest import (
    Sandboxes,
    begin,
    code,
    finished,
    follow,
    has_text,
    states,
    status,
)


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
        # The failure and what it skips are told while the rest still runs.
        await follow(deps, person.viewer, execution.id, until=lambda seen: finished(seen) == 3)
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
        await follow(deps, person.viewer, execution.id, until=has_text)
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
