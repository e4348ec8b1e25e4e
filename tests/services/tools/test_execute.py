import asyncio
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update

from models.base import now
from models.memories import Memory
from models.states import MemoryType, RunState
from models.tools import Tool, ToolExecution
from services import memories, tools
from services.base import ANONYMOUS, work
from services.errors import UnauthenticatedError, UserError, UserErrorCode
from services.tools import ToolContext, builtin, registry
from services.tools.base import Done, ToolError
from tests.services.small_world import message, person


async def row_of(deps, outcome):
    async with deps.db.reading() as connection:
        return (
            await connection.execute(
                select(*ToolExecution.__table__.c, Tool.name.label("tool_name"))
                .join(Tool, Tool.id == ToolExecution.tool_id)
                .where(ToolExecution.id == outcome.execution_id)
            )
        ).one()


async def executions(deps):
    async with deps.db.reading() as connection:
        return (await connection.execute(select(*ToolExecution.__table__.c))).all()


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


class Sandboxes:
    """Stands for the sandboxes: notes what it is asked, and answers as told."""

    def __init__(self, **answer):
        self.asked = []
        self.answer = {
            "stdout": "",
            "stderr": "",
            "exit_code": 0,
            "reason": "EXITED",
            "duration_ms": 12,
            "sandbox_id": None,
            "execution_id": "sxe_1",
        } | answer

    async def run_code(self, viewer, **asked):
        self.asked.append((viewer, asked))
        if asked["on_output"]:
            await asked["on_output"](self.answer["stdout"])
        return SimpleNamespace(**self.answer)


async def test_code_runs_in_the_conversations_sandbox(deps, ann):
    heard = []

    async def hear(text):
        heard.append(text)

    deps.sandboxes = Sandboxes(stdout="1024\n")
    context = ToolContext(deps, ann, conversation_id="cnv_1", on_output=hear)
    outcome = await tools.execute(context, "run_code", {"code": "print(2**10)"})
    assert outcome.is_ok
    assert outcome.result == {
        "stdout": "1024\n",
        "stderr": "",
        "exitCode": 0,
        "reason": "EXITED",
        "durationMs": 12,
        "sandboxId": None,
    }
    assert heard == ["1024\n"]
    [(viewer, asked)] = deps.sandboxes.asked
    assert viewer is ann
    assert (asked["code"], asked["language"], asked["conversation_id"], asked["timeout_s"]) == (
        "print(2**10)",
        "python",
        "cnv_1",
        60,
    )


@pytest.mark.parametrize(
    ("answer", "code", "status", "words"),
    [
        (
            {"exit_code": 1, "stderr": "Traceback…\nNameError: x", "stdout": "so far"},
            "EXIT_CODE",
            RunState.FAILED,
            ["status 1", "NameError: x"],
        ),
        (
            {"exit_code": None, "reason": "TIMED_OUT"},
            "TIMED_OUT",
            RunState.TIMED_OUT,
            ["60 seconds"],
        ),
        ({"exit_code": None, "reason": "OOM_KILLED"}, "OOM_KILLED", RunState.FAILED, ["memory"]),
    ],
)
async def test_code_that_ends_badly_fails_with_its_output(deps, ann, answer, code, status, words):
    deps.sandboxes = Sandboxes(**answer)
    outcome = await tools.execute(ToolContext(deps, ann), "run_code", {"code": "x"})
    assert not outcome.is_ok
    assert outcome.result["error"]["code"] == code
    for word in words:
        assert word in outcome.result["error"]["message"]
    assert outcome.result["stdout"] == answer.get("stdout", "")
    assert outcome.result["exitCode"] == answer["exit_code"]
    assert (await row_of(deps, outcome)).status is status


async def test_long_output_keeps_its_beginning_and_end(deps, ann):
    deps.sandboxes = Sandboxes(stdout="a" * 50_000 + "z")
    outcome = await tools.execute(ToolContext(deps, ann), "run_code", {"code": "x"})
    stdout = outcome.result["stdout"]
    assert len(stdout) < 9_000
    assert stdout.startswith("aaa")
    assert stdout.endswith("az")
    assert "42,001 characters left out" in stdout


async def test_remember_and_recall(deps, ann):
    context = ToolContext(deps, ann)
    first = await tools.execute(context, "remember", {"content": "I prefer metric units"})
    assert first.result == {
        "memoryId": first.result["memoryId"],
        "content": "I prefer metric units",
        "type": "PREFERENCE",
        "isNew": True,
        "supersededId": None,
    }
    again = await tools.execute(context, "remember", {"content": "I prefer metric units"})
    assert (again.result["memoryId"], again.result["isNew"]) == (first.result["memoryId"], False)
    other = await tools.execute(
        context, "remember", {"content": "I prefer imperial units", "type": "semantic"}
    )
    assert other.result["supersededId"] == first.result["memoryId"]
    assert other.result["type"] == "SEMANTIC"
    found = await tools.execute(context, "recall", {"query": "which units?", "first": 3})
    [memory] = found.result["memories"]
    assert (memory["id"], memory["type"], memory["content"]) == (
        other.result["memoryId"],
        "SEMANTIC",
        "I prefer imperial units",
    )
    assert 0 < memory["score"] <= 1


async def test_what_the_assistant_notes_belongs_to_the_message_it_answers(deps, ann):
    asked = await message(deps, ann, "Remember that I prefer metric units")
    reply = await message(
        deps, ann, "", conversation_id=asked.conversation_id, user_id=None, reply_to_id=asked.id
    )
    # The automatic reading came first.
    [found] = await memories.remember_from_message(deps, ann, asked.id, asked.content)
    outcome = await tools.execute(
        ToolContext(deps, ann, message_id=reply.id),
        "remember",
        {"content": "I prefer metric units"},
    )
    assert outcome.result["memoryId"] == found.memory.id
    assert outcome.result["isNew"] is True
    async with deps.db.reading() as connection:
        assert await connection.scalar(select(Memory.source_message_id)) == asked.id


async def test_a_viewer_who_may_not_write_is_refused_as_an_outcome(deps):
    reader = await person(deps, "reader", role="viewer")
    outcome = await tools.execute(ToolContext(deps, reader), "remember", {"content": "I am Ann"})
    assert outcome.result["error"]["code"] == "FORBIDDEN"
    assert (await row_of(deps, outcome)).status is RunState.FAILED
    assert await memories.search(deps, reader, "Ann") == []


async def test_a_plan_is_made_and_begun(deps, ann):
    goal = "First gather the numbers, then run `print(2**10)`, then write a report"
    made = await tools.execute(ToolContext(deps, ann), "create_plan", {"goal": goal})
    assert made.is_ok, made.result
    steps = made.result["steps"]
    assert made.result["title"] == goal
    assert len(steps) == 3
    assert steps[0]["dependsOn"] == []
    assert all(set(step["dependsOn"]) <= set(range(n)) for n, step in enumerate(steps))
    begun = await tools.execute(
        ToolContext(deps, ann), "run_plan", {"planId": made.result["planId"]}
    )
    assert begun.is_ok, begun.result
    assert begun.result["planId"] == made.result["planId"]
    assert begun.result["status"] == "PENDING"
    assert begun.result["executionId"].startswith("pex_")
    missing = await tools.execute(ToolContext(deps, ann), "run_plan", {"planId": "pln_0"})
    assert missing.result["error"]["code"] == "NOT_FOUND"
    wordless = await tools.execute(ToolContext(deps, ann), "create_plan", {"goal": "…?!"})
    assert wordless.result["error"]["code"] == "INVALID"


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


async def test_importance_and_type_are_told_from_the_wording(deps, ann):
    outcome = await tools.execute(
        ToolContext(deps, ann), "remember", {"content": "I am allergic to peanuts"}
    )
    [match] = await memories.search(deps, ann, "allergy")
    assert match.memory.id == outcome.result["memoryId"]
    assert match.memory.importance > 0.5
    assert match.memory.type is MemoryType.SEMANTIC
