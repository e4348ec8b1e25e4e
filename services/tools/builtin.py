"""The tools that ship with the application."""

import asyncio
import zoneinfo
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from models.conversations import Message
from models.states import MemoryType, RunState, ToolEnvironment
from services import memories
from services.language import planning, scripts, zones
from services.language.memories import candidate
from services.tools.base import Arguments, BuiltIn, Done, ToolContext, ToolError

_CODE_MAX_CHARS = 65_536
# What a model and a row of `tool_executions` get of one output stream; the rest is in the sandbox's
# execution.
_OUTPUT_MAX_CHARS = 8_000
_CODE_TIMEOUT_S = 60
_TITLE_MAX_CHARS = 120
# The sandbox ends the code at its timeout; the tool waits longer for that news.
_MARGIN_S = 30


def _clipped(text: str) -> str:
    """Keep the beginning and the end, where results and errors stand."""
    if len(text) <= _OUTPUT_MAX_CHARS:
        return text
    half = _OUTPUT_MAX_CHARS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


async def _run_code(context: ToolContext, arguments: Arguments) -> Done:
    """Run code in the conversation's sandbox; code that ends badly fails, its output still told."""
    timeout_s = min(_CODE_TIMEOUT_S, context.deps.options.execution_max_timeout_s)
    ran = await context.deps.sandboxes.run_code(
        context.viewer,
        code=arguments["code"],
        language=arguments["language"],
        conversation_id=context.conversation_id,
        timeout_s=timeout_s,
        on_output=context.on_output,
    )
    value = {
        "stdout": _clipped(ran.stdout),
        "stderr": _clipped(ran.stderr),
        "exitCode": ran.exit_code,
        "reason": str(ran.reason),
        "durationMs": ran.duration_ms,
        "sandboxId": ran.sandbox_id,
    }
    reason = str(ran.reason)
    if reason == "EXITED" and ran.exit_code == 0:
        return Done(value, ran.sandbox_id)
    raise ToolError(
        "EXIT_CODE" if reason == "EXITED" else reason,
        _complaint(reason, ran.exit_code, ran.stderr, timeout_s),
        details=value,
        sandbox_id=ran.sandbox_id,
        status=RunState.TIMED_OUT if reason == "TIMED_OUT" else RunState.FAILED,
    )


def _complaint(reason: str, exit_code: int | None, stderr: str, timeout_s: int) -> str:
    if reason == "TIMED_OUT":
        return f"The code ran longer than {timeout_s} seconds and was stopped."
    said = {
        "EXITED": f"The code exited with status {exit_code}",
        "OOM_KILLED": "The code used more memory than the sandbox has",
        "OUTPUT_LIMIT": "The code wrote more output than is allowed",
        "KILLED": "The code was stopped",
        "SANDBOX_LOST": "The sandbox ended while the code ran",
    }.get(reason, "The code did not end well")
    last = stderr.strip().splitlines()[-1:]
    return f"{said}: {last[0].strip()[:500]}" if last else f"{said}."


async def _remember(context: ToolContext, arguments: Arguments) -> Done:
    """Keep a fact about the user."""
    content = arguments["content"]
    told = candidate(content, is_explicit=True)
    made = await memories.create(
        context.deps,
        context.viewer,
        type=MemoryType[arguments.get("type", told.type.name)],
        content=content,
        importance=arguments.get("importance", told.importance),
        source_message_id=await _question(context),
    )
    return Done(
        {
            "memoryId": made.memory.id,
            "content": made.memory.content,
            "type": made.memory.type.value,
            "isNew": made.is_new,
            "supersededId": made.superseded[0].id if made.superseded else None,
        }
    )


async def _question(context: ToolContext) -> str | None:
    """Give the message that is being answered: what is kept of it was said there."""
    if context.message_id is None:
        return None
    async with context.deps.db.reading() as connection:
        question: str | None = await connection.scalar(
            select(Message.reply_to_id).where(Message.id == context.message_id)
        )
    return question


async def _recall(context: ToolContext, arguments: Arguments) -> Done:
    """Find what is known about the user."""
    found = await memories.recall(
        context.deps, context.viewer, arguments["query"], first=int(arguments["first"])
    )
    return Done(
        {
            "memories": [
                {
                    "id": memory.id,
                    "type": memory.type,
                    "content": memory.content,
                    "score": round(memory.score, 4),
                }
                for memory in found
            ]
        }
    )


async def _create_plan(context: ToolContext, arguments: Arguments) -> Done:
    """Cut a goal into steps and keep them as a plan."""
    # Plans check their steps with the registry, so they come to know each other late.
    from services import plans

    goal = arguments["goal"]
    try:
        outlined = await asyncio.to_thread(planning.outline, goal)
    except ValueError as error:
        raise ToolError("INVALID", f"{error} Say in words what shall be reached.") from error
    steps = [
        plans.StepInput(
            description=step.description,
            tool=step.tool,
            arguments=step.arguments if step.tool else None,
            depends_on=step.depends_on,
        )
        for step in outlined
    ]
    plan = await plans.create(
        context.deps,
        context.viewer,
        title=_title(goal),
        description=goal,
        steps=steps,
    )
    return Done(
        {
            "planId": plan.id,
            "title": plan.title,
            "steps": [
                {"description": step.description, "dependsOn": list(step.depends_on)}
                for step in steps
            ],
        }
    )


def _title(goal: str) -> str:
    line = " ".join(scripts.clean(goal).split())
    return line if len(line) <= _TITLE_MAX_CHARS else f"{line[: _TITLE_MAX_CHARS - 1].rstrip()}…"


async def _run_plan(context: ToolContext, arguments: Arguments) -> Done:
    """Begin to execute a plan; its progress is followed elsewhere."""
    from services import plans

    execution = await plans.execute(context.deps, context.viewer, plan_id=arguments["planId"])
    return Done(
        {
            "executionId": execution.id,
            "planId": execution.plan_id,
            "status": execution.status.value,
        }
    )


async def _current_time(_context: ToolContext, arguments: Arguments) -> Done:
    """Tell the time of a zone, to the second."""
    zone = _zone(arguments["timeZone"])
    return Done(
        {
            "iso": datetime.now(UTC).astimezone(zone).isoformat(timespec="seconds"),
            "timeZone": zone.key,
        }
    )


def _zone(name: str) -> zoneinfo.ZoneInfo:
    known = zones.find(name)
    try:
        return zoneinfo.ZoneInfo(known or name)
    except (ValueError, KeyError, OSError) as error:
        raise ToolError(
            "INVALID",
            f"There is no time zone {name!r}. Give a name of the IANA database such as "
            "'Europe/Berlin', 'Asia/Seoul' or 'UTC'.",
        ) from error


def _text(description: str, max_chars: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "string",
        "description": description,
        "minLength": 1,
        "maxLength": max_chars,
        **more,
    }


BUILT_IN: tuple[BuiltIn, ...] = (
    BuiltIn(
        name="run_code",
        description="Run code in an isolated sandbox and give what it prints. Files stay there for "
        "the next call of the same conversation. There is no network.",
        category="code",
        environment=ToolEnvironment.SANDBOX,
        timeout_s=_CODE_TIMEOUT_S + _MARGIN_S,
        run=_run_code,
        properties={
            "code": _text("The program. Print what you want to see.", _CODE_MAX_CHARS),
            "language": {
                "type": "string",
                "description": "What it is written in.",
                "enum": ["python", "bash", "sh"],
                "default": "python",
            },
        },
        required=("code",),
    ),
    BuiltIn(
        name="remember",
        description="Keep a fact about the user for later conversations. It replaces what it "
        "contradicts.",
        category="memory",
        environment=ToolEnvironment.HOST,
        timeout_s=30,
        run=_remember,
        properties={
            "content": _text("The fact, in one sentence that stands alone.", 4_000),
            "type": {
                "type": "string",
                "description": "EPISODIC: what happened. SEMANTIC: what is so. PROCEDURAL: how "
                "to do things. PREFERENCE: what the user likes. By default told from the wording.",
                "enum": [member.value for member in MemoryType],
            },
            "importance": {
                "type": "number",
                "description": "How much it matters, 0 to 1; by default told from the wording.",
                "minimum": 0,
                "maximum": 1,
            },
        },
        required=("content",),
    ),
    BuiltIn(
        name="recall",
        description="Search what is remembered about the user, by meaning.",
        category="memory",
        environment=ToolEnvironment.HOST,
        timeout_s=30,
        run=_recall,
        properties={
            "query": _text("What to look for, in words of any language.", 2_000),
            "first": {
                "type": "integer",
                "description": "How many memories at most.",
                "minimum": 1,
                "maximum": 20,
                "default": 5,
            },
        },
        required=("query",),
    ),
    BuiltIn(
        name="create_plan",
        description="Make a plan of steps for a goal. It is kept and can be run.",
        category="planning",
        environment=ToolEnvironment.HOST,
        timeout_s=30,
        run=_create_plan,
        properties={"goal": _text("What shall be reached, with all details known.", 10_000)},
        required=("goal",),
    ),
    BuiltIn(
        name="run_plan",
        description="Begin to execute a plan that exists.",
        category="planning",
        environment=ToolEnvironment.HOST,
        timeout_s=30,
        run=_run_plan,
        properties={"planId": _text("The plan's id, pln_…", 36)},
        required=("planId",),
    ),
    BuiltIn(
        name="current_time",
        description="Tell the present date and time.",
        category="time",
        environment=ToolEnvironment.HOST,
        timeout_s=10,
        run=_current_time,
        properties={
            "timeZone": _text(
                "A name of the IANA time zone database, such as Asia/Seoul.", 100, default="UTC"
            ),
        },
    ),
)
BY_NAME = {tool.name: tool for tool in BUILT_IN}
