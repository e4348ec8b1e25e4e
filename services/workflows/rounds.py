"""Rounds of an answer: the model writes, and tools run, until it calls nothing more."""

import asyncio
from contextlib import aclosing
from decimal import Decimal
from typing import Any

from sqlalchemy import delete, update

from models.base import now
from models.conversations import Message, MessageToolCall
from models.states import MessageStatus, RunState
from models.system import Task
from services import tasks
from services.base import Deps, work
from services.conversations import prompts
from services.llm.base import ChatMessage, ChatRequest, Finished, Role, TextDelta, ToolCall
from services.tools import ToolContext
from services.tools import execute as execute_tool
from services.tools import specs as tool_specs
from services.workflows.draft import Draft


async def checkpoint(deps: Deps, task: Task, text: str) -> None:
    """Store what was written so far. Raises LeaseLostError when another writer holds the task."""
    async with work(deps) as unit:
        await tasks.hold(unit, task)
        await unit.session.execute(
            update(Message)
            .where(Message.id == task.payload["id"], Message.status == MessageStatus.STREAMING)
            .values(content=text)
        )


async def write(draft: Draft) -> BaseException | None:
    """Write rounds until the model calls nothing more; give the error that ended it, if any."""
    options = draft.deps.options
    try:
        async with asyncio.timeout(options.answer_timeout_s):
            while True:
                is_last = draft.round >= options.answer_tool_rounds
                calls = await _turn(draft, with_tools=not is_last)
                if not calls or is_last:
                    return None
                await draft.text.settle()
                await checkpoint(draft.deps, draft.task, draft.text.text)
                await _call_tools(draft, calls)
                draft.round += 1
    except Exception as error:  # noqa: BLE001 - handed to the caller, which sorts it out.
        return error


async def _turn(draft: Draft, *, with_tools: bool) -> list[ToolCall]:
    """Let the model write once; give the calls it asks for."""
    deps = draft.deps
    request = ChatRequest(
        messages=tuple(draft.prompt),
        tools=tuple(await tool_specs(deps)) if with_tools else (),
        memories=tuple(draft.memories),
        max_output_tokens=deps.options.answer_max_output_tokens,
        user_id=draft.viewer.user_id,
    )
    start, calls = len(draft.text.text), []
    async with aclosing(deps.provider.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                await draft.text.write(event.text)
            elif isinstance(event, Finished):
                _count(draft, event)
            else:
                calls.append(event.call)
    if calls:
        draft.prompt.append(
            ChatMessage(role=Role.ASSISTANT, content=draft.text.text[start:], tool_calls=calls)
        )
    return calls


def _count(draft: Draft, finished: Finished) -> None:
    draft.cited += [id_ for id_ in finished.cited_memory_ids if id_ not in draft.cited]
    usage = finished.usage
    if usage is not None:
        draft.input_tokens += usage.input_tokens
        draft.output_tokens += usage.output_tokens
        if usage.cost_usd is not None:
            draft.cost_usd = (draft.cost_usd or Decimal(0)) + usage.cost_usd


async def _call_tools(draft: Draft, calls: list[ToolCall]) -> None:
    """Run the calls of one round side by side and add their results to the prompt."""
    ids = await _open_calls(draft, calls)
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(_call_tool(draft, call_id, call))
            for call_id, call in zip(ids, calls, strict=True)
        ]
    for call, done in zip(calls, running, strict=True):
        draft.prompt.append(
            ChatMessage(Role.TOOL, prompts.result_text(done.result()), tool_call_id=call.id)
        )


async def _open_calls(draft: Draft, calls: list[ToolCall]) -> list[str]:
    async with work(draft.deps) as unit:
        await tasks.hold(unit, draft.task)
        # A killed writer may have left this round half done; it is done anew.
        await unit.session.execute(
            delete(MessageToolCall).where(
                MessageToolCall.message_id == draft.message.id,
                MessageToolCall.round >= draft.round,
            )
        )
        rows = [
            MessageToolCall(
                message_id=draft.message.id,
                call_id=call.id[:100],
                round=draft.round,
                position=position,
                text_offset=len(draft.text.text),
                tool_name=call.name[:100],
                arguments=call.arguments,
                status=RunState.RUNNING,
            )
            for position, call in enumerate(calls)
        ]
        unit.session.add_all(rows)
        await unit.session.flush()
        for row in rows:
            unit.record(
                draft.topic,
                "ToolCallStarted",
                {"tool_call_id": row.id, "message_id": draft.message.id},
            )
        return [row.id for row in rows]


async def _call_tool(draft: Draft, call_id: str, call: ToolCall) -> Any:
    message = draft.message
    outcome = await execute_tool(
        ToolContext(
            deps=draft.deps,
            viewer=draft.viewer,
            conversation_id=message.conversation_id,
            message_id=message.id,
        ),
        call.name,
        call.arguments,
    )
    async with work(draft.deps) as unit:
        row = await unit.lock(MessageToolCall, call_id)
        if row is not None:
            row.status = RunState.COMPLETED if outcome.is_ok else RunState.FAILED
            row.result, row.completed_at = outcome.result, now()
            row.tool_execution_id = outcome.execution_id
            unit.record(
                draft.topic,
                "ToolCallFinished",
                {"tool_call_id": call_id, "message_id": message.id},
            )
    return outcome.result
