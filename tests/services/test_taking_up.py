"""An answer whose writer was stopped in its middle, and another writer that goes on."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from app import solitude
from app import worker as worker_module
from app.runtime import running
from app.worker import working
from models.base import now
from models.conversations import Message, MessageToolCall
from models.states import MessageStatus, RunState
from models.tools import Tool, ToolExecution
from services import tools
from services.base import Deps, work
from services.conversations import threads
from tests.api import operations as op
from tests.fixtures import Api, Person, Stream, settings_for
from tests.services.llm.scripted_server import (
    DONE,
    Act,
    Hang,
    ScriptedServer,
    Status,
    calls,
    delta,
    says,
)


def begins(*words: str) -> list[Act]:
    """An answer that never ends."""
    return [Status(), delta(role="assistant"), *(delta(word) for word in words), Hang()]


def ends(*words: str) -> list[Act]:
    return [
        Status(),
        delta(role="assistant"),
        *(delta(word) for word in words),
        delta(reason="stop"),
        DONE,
    ]


@asynccontextmanager
async def asked(
    tmp_path: Path, *turns: Sequence[Act]
) -> AsyncIterator[tuple[Deps, ScriptedServer, Api, Person, str]]:
    """A process whose model answers by turns, and a question in a conversation."""
    async with ScriptedServer(turns) as server:
        settings = settings_for(
            tmp_path, llm_base_url=server.base_url, llm_api_key="key", llm_model="scripted"
        )
        async with running(settings) as deps:
            api = Api(deps)
            person = await api.person("asker")
            conversation = (await threads.create(deps, person.viewer)).id
            await api.run(op.SEND, person, id=conversation, content="go on")
            yield deps, server, api, person, conversation


async def until_text(stream: Stream, text: str) -> None:
    """Read until a client shows so much."""
    while "".join(e["text"] for e in stream.seen if e["__typename"] == "MessageDelta") != text:
        assert await stream.next() is not None


def shown(events: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """Give the text a client shows, checked for gaps, and how often it began anew."""
    text, resets = "", 0
    for event in events:
        if event["__typename"] == "ConversationReset":
            nodes = event["conversation"]["messages"]["nodes"]
            text = "".join(node["content"] for node in nodes if node["role"] == "ASSISTANT")
            resets += 1
        elif event["__typename"] == "MessageDelta":
            assert event["offset"] == len(text)
            text += event["text"]
    return text, resets


@pytest.mark.parametrize(
    ("again", "whole", "resets"),
    [
        (ends("Hello ", "wor", "ld!"), "Hello world!", 0),
        (ends("Hello ", "wo"), "Hello wo", 1),
        (ends("Hello ", "moon!"), "Hello moon!", 1),
        (ends("Good evening, all of you!"), "Good evening, all of you!", 1),
    ],
    ids=["the same", "less", "another end", "another text"],
)
async def test_what_is_said_again_is_not_sent_again_and_what_differs_is_a_reset(
    tmp_path: Path, again: list[Act], whole: str, resets: int
) -> None:
    async with asked(tmp_path, begins("Hello ", "wor"), again) as (deps, _, api, person, where):
        async with api.subscribe(op.CONVERSATION_EVENTS, person, id=where) as stream:
            async with working(deps):
                await until_text(stream, "Hello wor")
            async with working(deps):
                done = await stream.until("MessageCompleted")
        assert done["message"]["content"] == whole
        assert shown(stream.seen) == (whole, resets + 1)


async def test_a_log_that_was_lost_meanwhile_is_a_reset(tmp_path: Path) -> None:
    turns = begins("Hello ", "wor"), ends("Hello ", "world!")
    async with asked(tmp_path, *turns) as (deps, _, api, person, where):
        async with api.subscribe(op.CONVERSATION_EVENTS, person, id=where) as stream:
            async with working(deps):
                await until_text(stream, "Hello wor")
            await deps.bus.expire(threads.topic(where), 0)
            async with work(deps) as unit:
                # What was stored last is less than what was sent.
                await unit.session.execute(
                    update(Message)
                    .where(Message.status == MessageStatus.STREAMING)
                    .values(content="Hell")
                )
            async with working(deps):
                await stream.until("MessageCompleted")
        assert shown(stream.seen) == ("Hello world!", 2)


async def test_finished_rounds_are_kept_and_an_open_one_is_asked_for_again(
    tmp_path: Path,
) -> None:
    turns = calls(("current_time", {})), begins("It is "), ends("It is ", "late.")
    async with asked(tmp_path, *turns) as (deps, server, api, person, where):
        async with api.subscribe(op.CONVERSATION_EVENTS, person, id=where) as stream:
            async with working(deps):
                await until_text(stream, "It is ")
            async with working(deps):
                await stream.until("MessageCompleted")
        assert shown(stream.seen) == ("It is late.", 1)
        kinds = [event["__typename"] for event in stream.seen]
        assert kinds.count("ToolCallStarted") == kinds.count("ToolCallFinished") == 1
        # Asked three times, the last two with the same prompt.
        assert len(server.requests) == 3
        assert server.requests[1].body["messages"] == server.requests[2].body["messages"]
        assert server.requests[2].body["messages"][-1]["role"] == "tool"
        async with deps.db.reading() as connection:
            assert len((await connection.scalars(select(ToolExecution.id))).all()) == 1


async def test_a_round_whose_tools_were_killed_is_done_anew(tmp_path: Path) -> None:
    turns = calls(("current_time", {})), begins("x"), calls(("current_time", {})), says("Done.")
    async with asked(tmp_path, *turns) as (deps, server, api, person, where):
        async with api.subscribe(op.CONVERSATION_EVENTS, person, id=where) as stream:
            async with working(deps):
                await until_text(stream, "x")
            async with work(deps) as unit:
                # As a kill in the middle of the call would have left it.
                await unit.session.execute(
                    update(MessageToolCall).values(status=RunState.RUNNING, result=None)
                )
            async with working(deps):
                await stream.until("MessageCompleted")
        assert shown(stream.seen) == ("Done.", 2)
        assert server.unscripted == 0
        data = await api.run(op.MESSAGES, person, id=where)
        (reply,) = [n for n in data["messages"]["nodes"] if n["role"] == "ASSISTANT"]
        assert reply["content"] == "Done."
        assert [call["status"] for call in reply["toolCalls"]] == ["COMPLETED"]


async def test_runs_of_the_process_before_are_settled_soon_after_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solitude, "_ALONE_S", 0.1)
    monkeypatch.setattr(worker_module, "_ORPHANS_S", 0.01)
    settled = asyncio.Event()
    settle = tools.settle_lost

    async def noted(deps: Deps, **options: Any) -> int:
        count = await settle(deps, **options)
        settled.set()
        return count

    monkeypatch.setattr(tools, "settle_lost", noted)
    async with running(settings_for(tmp_path)) as deps:
        ids = [await _begun(deps)]
        async with asyncio.timeout(60), working(deps) as worker:
            ids.append(await _begun(deps))
            await settled.wait()
            await worker._settle_lost_tools()
        async with deps.db.reading() as connection:
            found = await connection.execute(select(ToolExecution.id, ToolExecution.status))
            statuses = {row.id: row.status for row in found}
        # What began since may well be running.
        assert [statuses[id_] for id_ in ids] == [RunState.FAILED, RunState.RUNNING]


async def _begun(deps: Deps) -> str:
    async with work(deps) as unit:
        tool_id = (await unit.session.scalars(select(Tool.id).limit(1))).one()
        run = ToolExecution(tool_id=tool_id, status=RunState.RUNNING, started_at=now())
        unit.session.add(run)
        await unit.session.flush()
        return run.id
