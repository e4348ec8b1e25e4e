"""The tools there are: code, memories and plans."""

from types import SimpleNamespace

import pytest
from sqlalchemy import select

from models.memories import Memory
from models.states import MemoryType, RunState
from services import memories, tools
from services.tools import ToolContext
from tests.services.small_world import message
from tests.services.tools.runs import row_of


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


async def test_importance_and_type_are_told_from_the_wording(deps, ann):
    outcome = await tools.execute(
        ToolContext(deps, ann), "remember", {"content": "I am allergic to peanuts"}
    )
    [match] = await memories.search(deps, ann, "allergy")
    assert match.memory.id == outcome.result["memoryId"]
    assert match.memory.importance > 0.5
    assert match.memory.type is MemoryType.SEMANTIC
