"""Answers written by a model elsewhere: streaming, tools, queueing, stopping, and every failure."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.runtime import running
from app.worker import working
from tests.api import operations as op
from tests.api.conversing import DELETE, RETRY, STOP, begin, codes, send
from tests.api.hostile import assert_decent
from tests.api.people import sign_up
from tests.fixtures import Api, Person, Stream, settings_for
from tests.services.llm.scripted_server import (
    DONE,
    Chunk,
    Cut,
    Hang,
    ScriptedServer,
    Send,
    Status,
    Turn,
    Wait,
    calls,
    delta,
    refuses,
    says,
    usage_chunk,
)

ANSWER = """
query($id: ID!) { message(id: $id) { id status content provider model inputTokens outputTokens
  costUsd completedAt error { code message }
  toolCalls { toolName arguments status result round execution { status errorCode } }
  context { messages { content } } } }
"""
KEY = "sk-secret-key-of-the-operator"


@dataclass
class Talk:
    """A conversation of somebody with a scripted model, followed."""

    api: Api
    ann: Person
    model: ScriptedServer
    id: str
    events: Stream

    async def send(self, content: str = "Hello") -> str:
        """Send a message and give the id of its answer."""
        sent = await send(self.api, self.ann, self.id, content)
        return str(sent["reply"]["id"])

    async def answer(self, id_: str) -> dict[str, Any]:
        """Give an answer as it stands."""
        found = await self.api.run(ANSWER, self.ann, id=id_)
        assert_decent(found)
        return dict(found)

    async def ended(self, id_: str, kind: str = "MessageCompleted") -> dict[str, Any]:
        """Wait until an answer ends, and give it as it stands."""
        while (await self.events.until(kind))["message"]["id"] != id_:
            pass
        return await self.answer(id_)

    async def asked(self, content: str = "Hello", kind: str = "MessageCompleted") -> dict[str, Any]:
        """Send a message and give its answer when it has ended."""
        return await self.ended(await self.send(content), kind)


@asynccontextmanager
async def talking(tmp_path: Path, turns: Sequence[Turn], **settings: Any) -> AsyncIterator[Talk]:
    async with ScriptedServer(turns) as model:
        values = {
            "llm_base_url": model.base_url,
            "llm_api_key": KEY,
            "llm_model": "scripted",
            "llm_max_retries": 0,
            "llm_input_price": "2",
            "llm_output_price": "10",
        }
        async with (
            running(settings_for(tmp_path, **values | settings)) as deps,
            working(deps),
        ):
            api, ann = Api(deps), await sign_up(deps, "ann")
            id_ = await begin(api, ann)
            async with api.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
                await events.until("ConversationReset")
                yield Talk(api, ann, model, id_, events)


async def test_an_answer_streams_in_and_keeps_what_it_cost(tmp_path: Path) -> None:
    async with talking(tmp_path, [says("Trees grow in woods.", usage=(1000, 500))]) as talk:
        answer = await talk.asked("Where do trees grow?")

        assert answer["status"] == "COMPLETED"
        assert answer["content"] == "Trees grow in woods."
        assert (answer["provider"], answer["model"]) == ("openai", "scripted")
        assert (answer["inputTokens"], answer["outputTokens"]) == (1000, 500)
        assert answer["costUsd"] == pytest.approx(0.002 + 0.005)
        assert [m["content"] for m in answer["context"]["messages"]] == ["Where do trees grow?"]
        deltas = [e["text"] for e in talk.events.seen if e["__typename"] == "MessageDelta"]
        assert "".join(deltas) == "Trees grow in woods."
        (request,) = talk.model.requests
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.body["messages"][-1] == {"role": "user", "content": "Where do trees grow?"}
        assert {t["function"]["name"] for t in request.body["tools"]} >= {"remember", "run_code"}


async def test_the_result_of_a_tool_goes_back_to_the_model_and_usage_adds_up(
    tmp_path: Path,
) -> None:
    turns = [
        calls(("current_time", {"timeZone": "UTC"}), usage=(10, 5)),
        says("It is late.", usage=(20, 5)),
    ]
    async with talking(tmp_path, turns) as talk:
        answer = await talk.asked("What time is it?")

        assert answer["content"] == "It is late."
        (call,) = answer["toolCalls"]
        assert (call["toolName"], call["status"], call["round"]) == ("current_time", "COMPLETED", 0)
        assert call["execution"] == {"status": "COMPLETED", "errorCode": None}
        assert (answer["inputTokens"], answer["outputTokens"]) == (30, 10)
        assert answer["costUsd"] == pytest.approx((30 * 2 + 10 * 10) / 1e6)
        asked, told = talk.model.requests[1].body["messages"][-2:]
        assert asked["tool_calls"][0]["function"]["name"] == "current_time"
        assert told["role"] == "tool"
        assert told["tool_call_id"] == asked["tool_calls"][0]["id"]


def _call(name: str, arguments: str) -> Turn:
    function = {"name": name, "arguments": arguments}
    call = {"index": 0, "id": "call_0", "type": "function", "function": function}
    # Escaped, for half a surrogate pair cannot be sent otherwise.
    chunk = json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    return [Status(), Send(f"data: {chunk}\n\n".encode()), delta(reason="tool_calls"), DONE]


BAD_CALLS = {
    "broken JSON": ("recall", '{"query": '),
    "no object": ("recall", "[1]"),
    "a text": ("recall", '"trees"'),
    "a wrong type": ("recall", '{"query": 7}'),
    "a missing argument": ("recall", "{}"),
    "NUL": ("recall", '{"query": "a\\u0000b"}'),
    "half a surrogate pair": ("recall", '{"query": "\\ud800"}'),
    "half a pair, not escaped": ("recall", '{"query": \ud800}'),
    "deep": ("recall", '{"query": ' + "[" * 900 + "]" * 900 + "}"),
    "an unknown tool": ("launch_rocket", "{}"),
    "a strange name": ("🚀" * 60, "{}"),
}


async def test_a_tool_call_that_cannot_be_is_told_to_the_model_which_goes_on(
    tmp_path: Path,
) -> None:
    turns = [turn for call in BAD_CALLS.values() for turn in (_call(*call), says("I see."))]
    async with talking(tmp_path, turns) as talk:
        for what, (name, arguments) in BAD_CALLS.items():
            answer = await talk.asked(what)

            assert answer["status"] == "COMPLETED", (what, answer)
            assert answer["content"] == "I see.", what
            (call,) = answer["toolCalls"]
            assert call["status"] == "FAILED", what
            assert call["toolName"] == name[:100], what
            assert call["arguments"] == arguments.replace("\ud800", "\ufffd"), what
            assert call["result"]["error"]["message"], what
            told = talk.model.requests[-1].body["messages"][-1]
            assert told["role"] == "tool", what
            assert "error" in told["content"], what


async def test_rounds_of_tools_are_bounded_and_the_last_word_is_the_models(
    tmp_path: Path,
) -> None:
    turns = [calls(("current_time", {})) for _ in range(2)] + [says("Enough.")]
    async with talking(tmp_path, turns, answer_tool_rounds=2) as talk:
        answer = await talk.asked()

        assert answer["content"] == "Enough."
        assert [call["round"] for call in answer["toolCalls"]] == [0, 1]
        offered = [bool(request.body.get("tools")) for request in talk.model.requests]
        assert offered == [True, True, False]
        assert talk.model.unscripted == 0


async def test_a_model_that_calls_tools_though_none_are_offered_comes_to_its_end(
    tmp_path: Path,
) -> None:
    turns = [calls(("current_time", {})) for _ in range(3)]
    async with talking(tmp_path, turns, answer_tool_rounds=2) as talk:
        answer = await talk.asked()

        assert answer["status"] == "COMPLETED"
        assert len(answer["toolCalls"]) == 2
        assert talk.model.unscripted == 0


FAILURES: dict[str, tuple[Turn, str, str]] = {
    "429": (refuses(429, headers={"retry-after": "1"}), "RATE_LIMITED", ""),
    "500": (refuses(500), "UNAVAILABLE", ""),
    "a wrong key": (
        refuses(401, body={"message": f"Incorrect API key provided: {KEY}", "type": "auth"}),
        "REFUSED",
        "",
    ),
    "a cut connection": (
        [Status(), delta("Trees "), delta("grow "), Cut()],
        "UNAVAILABLE",
        "Trees grow ",
    ),
    "a cut before the first word": ([Status(), Cut()], "UNAVAILABLE", ""),
    "a malformed chunk": (
        [Status(), delta("Trees "), Send(b"data: {nonsense\n\n"), DONE],
        "BAD_RESPONSE",
        "Trees ",
    ),
    "an error in the stream": (
        [
            Status(),
            delta("Trees "),
            Chunk({"error": {"message": f"overloaded, key {KEY}", "type": "server_error"}}),
            DONE,
        ],
        "UNAVAILABLE",
        "Trees ",
    ),
    "silence": ([Status(), delta("Trees "), Hang()], "TIMED_OUT", "Trees "),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_model_that_fails_makes_an_answer_that_says_so_and_can_be_tried_again(
    tmp_path: Path, what: str
) -> None:
    turn, code, kept = FAILURES[what]
    turns = [turn, says("Trees grow in woods.")]
    async with talking(tmp_path, turns, llm_chunk_timeout=1.0) as talk:
        failed = await talk.asked(kind="MessageFailed")

        assert failed["status"] == "FAILED"
        assert failed["error"]["code"] == code
        assert failed["error"]["message"]
        assert KEY not in str(failed)
        assert failed["content"] == kept
        assert failed["completedAt"]

        retried = await talk.api.run(RETRY, talk.ann, id=failed["id"])
        assert retried["errors"] == []
        assert retried["message"]["content"] == ""
        answer = await talk.ended(failed["id"])
        assert answer["status"] == "COMPLETED"
        assert answer["content"] == "Trees grow in woods."
        assert answer["error"] is None
        assert talk.model.unscripted == 0


async def test_an_answer_that_takes_too_long_fails_and_the_next_is_written(
    tmp_path: Path,
) -> None:
    turns: list[Turn] = [[Status(), delta("Trees "), Hang()], says("Here.")]
    async with talking(tmp_path, turns, answer_timeout=2) as talk:
        failed = await talk.asked(kind="MessageFailed")

        assert failed["content"] == "Trees "
        assert "2 seconds" in failed["error"]["message"] or failed["error"]["code"] == "TIMED_OUT"
        assert (await talk.asked())["content"] == "Here."


async def test_text_with_a_character_cut_between_chunks_arrives_whole_or_replaced(
    tmp_path: Path,
) -> None:
    turn: Turn = [
        Status(),
        Send(b'data: {"choices": [{"index": 0, "delta": {"content": "tree \\ud83c"}}]}\n\n'),
        Send(b'data: {"choices": [{"index": 0, "delta": {"content": "\\udf33 and \\u0000"}}]}\n\n'),
        Send(b'data: {"choices": [{"index": 0, "delta": {"content": " \\ud83c"}}]}\n\n'),
        delta(reason="stop"),
        usage_chunk(1, 1),
        DONE,
    ]
    async with talking(tmp_path, [turn, says("Still here.")]) as talk:
        reply = await talk.send()
        async with asyncio.timeout(30):
            while not (found := await talk.answer(reply))["completedAt"]:
                await talk.events.next()

        assert found["status"] == "COMPLETED", found
        assert found["content"] == "tree 🌳 and \ufffd \ufffd"
        assert (await talk.asked())["content"] == "Still here."


async def test_stopping_keeps_what_was_written_and_lets_the_model_go(tmp_path: Path) -> None:
    turns: list[Turn] = [[Status(), delta("Trees "), delta("grow "), Hang()], says("Next.")]
    async with talking(tmp_path, turns) as talk:
        reply = await talk.send()
        text = ""
        while text != "Trees grow ":
            text += (await talk.events.until("MessageDelta"))["text"]

        stopped = await talk.api.run(STOP, talk.ann, id=reply)

        assert stopped["errors"] == []
        assert stopped["message"]["status"] == "STOPPED"
        assert stopped["message"]["content"] == "Trees grow "
        await talk.model.left()
        answer = await talk.ended(reply)
        assert (answer["status"], answer["error"]) == ("STOPPED", None)
        assert (await talk.asked())["content"] == "Next."
        # What was stopped is told to the model as far as it went.
        told = [m["content"] for m in talk.model.requests[-1].body["messages"]]
        assert any("Trees grow" in str(content) for content in told)


async def test_a_second_message_waits_for_the_first_answer_and_knows_it(tmp_path: Path) -> None:
    held = asyncio.Event()
    turns: list[Turn] = [
        [Status(), delta("First "), Wait(held), delta("answer."), delta(reason="stop"), DONE],
        says("Second answer."),
        says("Third answer."),
    ]
    async with talking(tmp_path, turns) as talk:
        first = await talk.send("One")
        await talk.events.until("MessageDelta")
        second, third = await talk.send("Two"), await talk.send("Three")
        assert (await talk.answer(first))["status"] == "STREAMING"
        assert [(await talk.answer(id_))["status"] for id_ in (second, third)] == ["PENDING"] * 2
        assert len(talk.model.requests) == 1

        held.set()
        assert (await talk.ended(first))["content"] == "First answer."
        assert (await talk.ended(second))["content"] == "Second answer."
        assert (await talk.ended(third))["content"] == "Third answer."

        said = [
            [m["content"] for m in request.body["messages"] if m["role"] != "system"]
            for request in talk.model.requests
        ]
        assert said[0] == ["One"]
        # Each answer knows all that came before its own question.
        assert said[1] == ["One", "First answer.", "Two"]
        assert said[2] == ["One", "First answer.", "Two", "Second answer.", "Three"]


async def test_stopping_a_waiting_answer_leaves_the_one_before_it_alone(tmp_path: Path) -> None:
    held = asyncio.Event()
    turns: list[Turn] = [
        [Status(), delta("First "), Wait(held), delta("answer."), delta(reason="stop"), DONE],
        says("Third answer."),
    ]
    async with talking(tmp_path, turns) as talk:
        first = await talk.send("One")
        await talk.events.until("MessageDelta")
        second, third = await talk.send("Two"), await talk.send("Three")

        stopped = await talk.api.run(STOP, talk.ann, id=second)
        assert stopped["message"]["status"] == "STOPPED"
        held.set()

        assert (await talk.ended(third))["content"] == "Third answer."
        assert (await talk.answer(first))["content"] == "First answer."
        assert (await talk.answer(second))["content"] == ""


async def test_deleting_a_conversation_stops_the_answer_under_way(tmp_path: Path) -> None:
    async with talking(tmp_path, [[Status(), delta("Trees "), Hang()]]) as talk:
        await talk.send()
        await talk.events.until("MessageDelta")

        deleted = await talk.api.run(DELETE, talk.ann, id=talk.id)

        assert codes(deleted) == []
        await talk.model.left()
