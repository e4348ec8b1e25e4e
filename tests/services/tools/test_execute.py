"""Runs of tools: what is kept of them, and how they fail."""

import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from models.base import now
from models.states import RunState
from models.tools import Tool, ToolExecution
from services import memories, tools
from services.base import ANONYMOUS, work
from services.errors import UnauthenticatedError, UserError, UserErrorCode
from services.tools import ToolContext, builtin, registry
from services.tools.base import Done, ToolError
from tests.services.small_world import person
from tests.services.tools.runs import executions, row_of


@pytest.fixture
def replaced(monkeypatch):
    """Let a built-in tool do something else in this test."""

    def replace_tool(name, run, **changes):
        tool = replace(builtin.BY_NAME[name], run=run, **changes)
        monkeypatch.setitem(builtin.BY_NAME, name, tool)
        monkeypatch.setitem(registry.BY_NAME, name, tool)

    return replace_tool


async def test_models_are_told_of_enabled_tools(deps, admin):
    names = [spec.name for spec in await tools.specs(deps)]
    assert names == ["run_code", "remember", "recall", "create_plan", "run_plan", "current_time"]
    [time] = [spec for spec in await tools.specs(deps) if spec.name == "current_time"]
    assert time.parameters["properties"]["timeZone"]["type"] == "string"
    async with deps.db.reading() as connection:
        tool_id = await connection.scalar(select(Tool.id).where(Tool.name == "recall"))
    await tools.update(deps, admin, tool_id=tool_id, is_enabled=False)
    assert "recall" not in [spec.name for spec in await tools.specs(deps)]


async def test_a_run_is_kept_with_its_times(deps, ann):
    outcome = await tools.execute(
        ToolContext(deps, ann), "current_time", '{"timeZone": "Asia/Seoul"}'
    )
    assert outcome.is_ok
    assert outcome.result["timeZone"] == "Asia/Seoul"
    told = datetime.fromisoformat(outcome.result["iso"])
    assert told.utcoffset() == timedelta(hours=9)
    assert abs(told - datetime.now(UTC)) < timedelta(minutes=5)
    row = await row_of(deps, outcome)
    assert (row.tool_name, row.user_id, row.status) == (
        "current_time",
        ann.user_id,
        RunState.COMPLETED,
    )
    assert row.parameters == {"timeZone": "Asia/Seoul"}
    assert row.result == outcome.result
    assert row.created_at <= row.completed_at
    assert row.started_at <= row.completed_at
    assert row.error_code is None


@pytest.mark.parametrize(
    "zone", ["Mars/Olympus", "../etc/passwd", "America", "/etc/localtime", "."]
)
async def test_an_unknown_time_zone_is_told_the_expected_form(deps, ann, zone):
    outcome = await tools.execute(ToolContext(deps, ann), "current_time", {"timeZone": zone})
    assert not outcome.is_ok
    assert outcome.result["error"]["code"] == "INVALID"
    assert "Asia/Seoul" in outcome.result["error"]["message"]


async def test_a_city_is_a_time_zone_too(deps, ann):
    outcome = await tools.execute(ToolContext(deps, ann), "current_time", {"timeZone": "서울"})
    assert outcome.result["timeZone"] == "Asia/Seoul"


async def test_an_unknown_tool_is_answered_with_those_there_are(deps, ann):
    outcome = await tools.execute(ToolContext(deps, ann), "fly" * 100, "{}")
    assert (outcome.execution_id, outcome.is_ok) == (None, False)
    assert outcome.result["error"]["code"] == "NOT_FOUND"
    assert "current_time, recall, remember" in outcome.result["error"]["message"].replace(
        "create_plan, ", ""
    )
    assert await executions(deps) == []


async def test_a_tool_switched_off_does_not_run(deps, ann, replaced):
    async def never(context, arguments):
        raise AssertionError("it ran")

    replaced("current_time", never)
    async with work(deps) as unit:
        await unit.session.execute(
            update(Tool).where(Tool.name == "current_time").values(enabled=False)
        )
    outcome = await tools.execute(ToolContext(deps, ann), "current_time", {})
    assert outcome.result["error"]["code"] == "FORBIDDEN"
    assert "recall" in outcome.result["error"]["message"]
    assert (await row_of(deps, outcome)).status is RunState.FAILED


async def test_a_tool_of_another_version_is_unavailable(deps, ann):
    async with work(deps) as unit:
        unit.session.add(Tool(name="telepathy", input_schema={}))
    outcome = await tools.execute(ToolContext(deps, ann), "telepathy", {})
    assert outcome.result["error"]["code"] == "UNAVAILABLE"
    assert "telepathy" not in [spec.name for spec in await tools.specs(deps)]


@pytest.mark.parametrize(
    ("arguments", "code", "kept"),
    [
        ('{"first": 3}', "REQUIRED", {"first": 3}),
        ('{"query": 3}', "INVALID", {"query": 3}),
        ("not json", "INVALID", None),
        ('{"query": "a\\u0000"}', "INVALID", None),
        ({"query": float("nan")}, "INVALID", None),
        ({"query": "x" * 300_000}, "LIMIT", None),
    ],
)
async def test_wrong_arguments_are_a_failed_run(deps, ann, arguments, code, kept):
    outcome = await tools.execute(ToolContext(deps, ann), "recall", arguments)
    assert not outcome.is_ok
    assert outcome.result["error"]["code"] == code
    row = await row_of(deps, outcome)
    assert (row.status, row.error_code, row.parameters) == (RunState.FAILED, code, kept)
    assert row.error_message == outcome.result["error"]["message"]
    assert row.started_at is None
    assert row.completed_at is not None


async def test_a_tool_that_takes_too_long_is_stopped(deps, ann, replaced):
    stopped = asyncio.Event()

    async def forever(context, arguments):
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    replaced("current_time", forever, timeout_s=0.01)
    outcome = await tools.execute(ToolContext(deps, ann), "current_time", {})
    assert stopped.is_set()
    assert outcome.result["error"]["code"] == "TIMED_OUT"
    row = await row_of(deps, outcome)
    assert (row.status, row.error_code) == (RunState.TIMED_OUT, "TIMED_OUT")


async def test_a_cancelled_run_is_marked_and_the_cancellation_goes_on(deps, ann, replaced):
    began = asyncio.Event()

    async def forever(context, arguments):
        began.set()
        await asyncio.Event().wait()

    replaced("current_time", forever)
    running = asyncio.create_task(tools.execute(ToolContext(deps, ann), "current_time", {}))
    await began.wait()
    [row] = await executions(deps)
    assert (row.status, row.completed_at) == (RunState.RUNNING, None)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [row] = await executions(deps)
    assert (row.status, row.error_code) == (RunState.CANCELED, "CANCELED")
    assert row.completed_at is not None


async def test_a_tool_cancelled_by_a_callers_timeout_is_canceled(deps, ann, replaced):
    async def forever(context, arguments):
        await asyncio.Event().wait()

    replaced("current_time", forever)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await tools.execute(ToolContext(deps, ann), "current_time", {})
    assert {row.status for row in await executions(deps)} <= {RunState.CANCELED}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError(UserErrorCode.QUOTA, "Too many."), "QUOTA", "Too many."),
        (ToolError("BROKEN", "It broke.", details={"log": "x"}), "BROKEN", "It broke."),
        (
            type("SandboxError", (Exception,), {"code": "LOST", "message": "Gone."})(),
            "LOST",
            "Gone.",
        ),
    ],
)
async def test_errors_meant_for_the_user_are_told(deps, ann, replaced, error, code, message):
    async def fails(context, arguments):
        raise error

    replaced("current_time", fails)
    outcome = await tools.execute(ToolContext(deps, ann), "current_time", {})
    assert outcome.result["error"] == {"code": code, "message": message}
    row = await row_of(deps, outcome)
    assert (row.status, row.error_code, row.error_message) == (RunState.FAILED, code, message)
    assert row.result == outcome.result


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret of the host"),
        TimeoutError("secret of the host"),
        type("SqlError", (Exception,), {"code": "e3q8", "message": "secret of the host"})(),
    ],
)
async def test_unexpected_errors_are_logged_and_masked(deps, ann, replaced, caplog, error):
    async def fails(context, arguments):
        raise error

    replaced("current_time", fails)
    with caplog.at_level(logging.ERROR, logger="noosphere.tools"):
        outcome = await tools.execute(ToolContext(deps, ann), "current_time", {})
    told = outcome.result["error"]
    assert told["code"] == "INTERNAL"
    [record] = caplog.records
    assert record.error_id in told["message"]
    assert record.exc_info[1] is error
    assert "secret" not in json.dumps(outcome.result)
    assert (await row_of(deps, outcome)).error_message == told["message"]


async def test_an_anonymous_viewer_uses_no_tool(deps):
    with pytest.raises(UnauthenticatedError):
        await tools.execute(ToolContext(deps, ANONYMOUS), "current_time", {})
    assert await executions(deps) == []


async def test_a_viewer_who_may_not_write_is_refused_as_an_outcome(deps):
    reader = await person(deps, "reader", role="viewer")
    outcome = await tools.execute(ToolContext(deps, reader), "remember", {"content": "I am Ann"})
    assert outcome.result["error"]["code"] == "FORBIDDEN"
    assert (await row_of(deps, outcome)).status is RunState.FAILED
    assert await memories.search(deps, reader, "Ann") == []


async def test_runs_whose_process_ended_are_settled(deps, ann, replaced):
    began = asyncio.Event()

    async def forever(context, arguments):
        began.set()
        await asyncio.Event().wait()

    replaced("current_time", forever)
    running = asyncio.create_task(tools.execute(ToolContext(deps, ann), "current_time", {}))
    await began.wait()
    assert await tools.settle_lost(deps) == 0
    async with work(deps) as unit:
        await unit.session.execute(
            update(ToolExecution).values(started_at=now() - timedelta(hours=1))
        )
    assert await tools.settle_lost(deps) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [row] = await executions(deps)
    # What was settled stays settled.
    assert (row.status, row.error_code) == (RunState.FAILED, "LOST")


async def test_tools_run_side_by_side(deps, ann, replaced):
    both = asyncio.Barrier(2)

    async def meet(context, arguments):
        async with asyncio.timeout(30), both:
            return Done({"met": True})

    replaced("current_time", meet)
    outcomes = await asyncio.gather(
        *(tools.execute(ToolContext(deps, ann), "current_time", {}) for _ in range(2))
    )
    assert [outcome.result for outcome in outcomes] == [{"met": True}] * 2
