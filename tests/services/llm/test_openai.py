"""Turns of an OpenAI-compatible provider: texts, calls of tools, and what goes over the wire."""

import asyncio
import json
from contextlib import aclosing
from decimal import Decimal

import pytest

from services.language.embeddings import Embedder
from services.llm import open_provider
from services.llm.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    RecalledMemory,
    Role,
    TextDelta,
    ToolCall,
    ToolCallRequested,
    ToolSpec,
    Usage,
)
from services.llm.embedded import EmbeddedProvider
from services.llm.openai import OpenAIProvider, Prices
from tests.services.llm.openai_turns import HELLO, KEY, collect, provider_for, run, text_of
from tests.services.llm.scripted_server import (
    DONE,
    Hang,
    ScriptedServer,
    Status,
    calls,
    delta,
    refuses,
    says,
    usage_chunk,
)


async def test_text_streams_in_pieces_and_ends_with_usage_and_cost():
    prices = Prices(Decimal("2.50"), Decimal(10))
    events, server = await run([says("Hello there, world", usage=(1000, 200))], prices=prices)
    assert [event.text for event in events[:-1]] == ["Hello ", "there, ", "world"]
    assert events[-1] == Finished("stop", Usage(1000, 200, Decimal("0.0045")))
    body = server.requests[0].body
    assert body["model"] == "m1"
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert "tools" not in body
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_the_first_words_arrive_before_the_answer_ends():
    async with ScriptedServer([[Status(), delta("first "), Hang()]]) as server:
        provider = provider_for(server)
        async with aclosing(provider.stream(HELLO)) as stream:
            assert await anext(stream) == TextDelta("first ")
        await server.left()
        await provider.aclose()


async def test_a_server_that_reports_no_usage_is_tolerated():
    events, _ = await run([says("hi", usage=None)])
    assert events[-1] == Finished("stop", None)


async def test_a_server_that_refuses_stream_options_is_asked_without_them_from_then_on():
    refusal = refuses(400, body={"message": "unknown field: stream_options", "type": "invalid"})
    async with ScriptedServer([refusal, says("a", usage=None), says("b", usage=None)]) as server:
        provider = provider_for(server)
        assert text_of(await collect(provider)) == "a"
        assert text_of(await collect(provider)) == "b"
        await provider.aclose()
    assert ["stream_options" in request.body for request in server.requests] == [True, False, False]


async def test_several_tool_calls_are_assembled_from_interleaved_fragments():
    wanted = [
        ("run_code", {"code": "print('안녕')", "language": "python"}),
        ("recall", {"query": "units"}),
    ]
    tools = [ToolSpec("run_code", "Run code.", {"type": "object", "properties": {}})]
    request = ChatRequest(HELLO.messages, tools)
    events, server = await run([calls(*wanted, size=3)], request)
    asked = [event.call for event in events if isinstance(event, ToolCallRequested)]
    assert [(call.id, call.name) for call in asked] == [
        ("call_0", "run_code"),
        ("call_1", "recall"),
    ]
    assert [json.loads(call.arguments) for call in asked] == [args for _, args in wanted]
    assert events[-1] == Finished("tool_calls", Usage(7, 11))
    assert server.requests[0].body["tools"][0]["function"] == {
        "name": "run_code",
        "description": "Run code.",
        "parameters": {"type": "object", "properties": {}},
    }


async def test_text_and_a_call_without_id_index_or_right_reason():
    part = {"function": {"name": "current_time", "arguments": ""}}
    turn = [Status(), delta("Let me see."), delta(tool_calls=[part]), delta(reason="stop"), DONE]
    events, _ = await run([turn])
    assert events == [
        TextDelta("Let me see."),
        ToolCallRequested(ToolCall("call_0", "current_time", "{}")),
        Finished("tool_calls", None),
    ]


async def test_a_conversation_with_tools_and_memories_on_the_wire():
    request = ChatRequest(
        [
            ChatMessage(Role.SYSTEM, "Be brief."),
            ChatMessage(Role.USER, "time?"),
            ChatMessage(Role.ASSISTANT, "", [ToolCall("c1", "current_time", "{}")]),
            ChatMessage(Role.TOOL, '{"iso": "2026-01-01T00:00:00Z"}', tool_call_id="c1"),
        ],
        memories=[RecalledMemory("mem_1", "preference", "I prefer\nmetric units", 0.9)],
        max_output_tokens=50,
        user_id="u1",
    )
    events, server = await run([says("Noted [memory mem_1] and [memory mem_9].")], request)
    body = server.requests[0].body
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "system",
        "user",
        "assistant",
        "tool",
    ]
    memory = body["messages"][1]["content"]
    assert json.loads(memory.splitlines()[-1]) == {
        "id": "mem_1",
        "type": "preference",
        "content": "I prefer\nmetric units",
    }
    assert body["messages"][3]["content"] is None
    assert body["messages"][3]["tool_calls"][0]["function"]["name"] == "current_time"
    assert body["messages"][4]["tool_call_id"] == "c1"
    assert body["max_tokens"] == 50
    assert body["user"] == "u1"
    assert events[-1].cited_memory_ids == ("mem_1",)


async def test_many_turns_share_the_connection_and_stay_apart():
    turns = [says(f"answer {n}") for n in range(20)]
    async with ScriptedServer(turns) as server:
        provider = provider_for(server)
        answers = await asyncio.gather(*(collect(provider) for _ in range(20)))
        await provider.aclose()
    assert sorted(map(text_of, answers)) == sorted(f"answer {n}" for n in range(20))


async def test_length_and_usage_in_every_chunk():
    turn = [
        Status(),
        delta("cut"),
        usage_chunk(1, 1),
        delta(reason="length"),
        usage_chunk(5, 6),
        DONE,
    ]
    events, _ = await run([turn])
    assert events[-1] == Finished("length", Usage(5, 6))


async def test_ping_reaches_the_server():
    async with ScriptedServer() as server:
        provider = provider_for(server)
        await provider.ping()
        await provider.aclose()


async def test_keys_are_in_no_repr():
    provider = OpenAIProvider(base_url="http://127.0.0.1:9/v1", api_key=KEY, model="m")
    assert KEY not in repr(provider)
    await provider.aclose()


class Secret:
    def get_secret_value(self):
        return KEY


async def test_open_provider_chooses_by_what_is_configured():
    embedder = Embedder()
    nothing = open_provider(base_url=None, api_key=None, model=None, embedder=embedder)
    assert isinstance(nothing, EmbeddedProvider)
    assert not nothing.is_generative
    with pytest.raises(ValueError, match="NOOSPHERE_LLM_MODEL"):
        open_provider(base_url="http://127.0.0.1:9/v1", api_key=None, model=None, embedder=embedder)
    async with ScriptedServer([says("hi")]) as server:
        chosen = open_provider(
            base_url=server.base_url,
            api_key=Secret(),
            model="m2",
            embedder=embedder,
            input_usd_per_million=Decimal(1),
            output_usd_per_million=Decimal(2),
        )
        events = await collect(chosen)
        await chosen.aclose()
    assert (chosen.name, chosen.model, chosen.is_generative) == ("openai", "m2", True)
    assert events[-1].usage.cost_usd == Decimal("0.000029")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    official = open_provider(base_url=None, api_key=KEY, model="m", embedder=embedder)
    assert isinstance(official, OpenAIProvider)
    await official.aclose()
    await embedder.aclose()
