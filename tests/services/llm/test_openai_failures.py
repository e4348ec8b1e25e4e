"""What goes wrong between the provider and its server: tried again, reported or ended."""

import asyncio
import email.utils
import json
import time
import traceback
from contextlib import aclosing

import pytest

from services.llm.base import ProviderError
from services.llm.openai import OpenAIProvider, Retries, Timeouts
from tests.services.llm.openai_turns import (
    FAST,
    HELLO,
    KEY,
    collect,
    fail,
    provider_for,
    run,
    text_of,
)
from tests.services.llm.scripted_server import (
    DONE,
    Chunk,
    Cut,
    Hang,
    ScriptedServer,
    Send,
    Status,
    delta,
    refuses,
    says,
)


async def test_429_with_retry_after_is_waited_for_and_tried_again():
    turns = [refuses(429, headers={"retry-after": "0.2"}), says("done")]
    started = time.monotonic()
    events, server = await run(turns, retries=Retries(attempts=2, base_s=0.0))
    assert text_of(events) == "done"
    assert len(server.requests) == 2
    assert time.monotonic() - started >= 0.2


async def test_a_longer_retry_after_than_we_wait_is_reported():
    error, events, server = await fail([refuses(429, headers={"retry-after": "600"})])
    assert (error.code, error.is_retryable, error.retry_after_s) == ("RATE_LIMITED", True, 600.0)
    assert events == []
    assert len(server.requests) == 1


async def test_retry_after_as_a_date_and_in_milliseconds():
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    error, _, _ = await fail([refuses(429, headers={"retry-after": date})])
    assert 3000 < error.retry_after_s < 3700
    turns = [refuses(503, headers={"retry-after-ms": "1"}), says("done")]
    events, _ = await run(turns)
    assert text_of(events) == "done"


async def test_server_errors_are_tried_again_with_growing_waits():
    turns = [refuses(500), refuses(502), says("done")]
    events, server = await run(turns)
    assert text_of(events) == "done"
    assert len(server.requests) == 3


async def test_attempts_are_bounded_and_never_doubled_by_the_sdk():
    error, _, server = await fail([refuses(500)] * 9)
    assert (error.code, error.is_retryable) == ("UNAVAILABLE", True)
    assert len(server.requests) == 3


async def test_backoff_doubles_is_jittered_and_bounded():
    provider = OpenAIProvider(
        base_url="http://127.0.0.1:9/v1",
        api_key=None,
        model="m",
        retries=Retries(attempts=9, base_s=1.0, max_s=5.0),
        jitter=lambda: 1.0,
    )
    error = ProviderError("UNAVAILABLE", "x", is_retryable=True)
    assert [provider._wait_s(error, n) for n in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert provider._wait_s(error, 9) is None
    provider._jitter = lambda: 0.0
    assert provider._wait_s(error, 1) == 0.5
    await provider.aclose()


@pytest.mark.parametrize(
    ("turn", "code", "retryable"),
    [
        (refuses(401, body={"message": f"Incorrect API key provided: {KEY}"}), "REFUSED", False),
        (refuses(403, body={"message": "no"}), "REFUSED", False),
        (refuses(404, body={"message": "no such model"}), "REFUSED", False),
        (refuses(400, body={"message": f"bad {KEY} thing"}), "REFUSED", False),
        (
            refuses(400, body={"message": "maximum context length", "code": "x"}),
            "TOO_LONG",
            False,
        ),
        (refuses(413), "TOO_LONG", False),
        (
            refuses(429, body={"message": "quota", "code": "insufficient_quota"}),
            "REFUSED",
            False,
        ),
    ],
)
async def test_refusals_are_not_tried_again_and_show_no_key(turn, code, retryable):
    error, _, server = await fail([turn])
    assert (error.code, error.is_retryable) == (code, retryable)
    assert len(server.requests) == 1
    assert KEY not in "".join(traceback.format_exception(error))


async def test_no_server_at_all_is_unavailable():
    async with ScriptedServer() as server:
        base_url = server.base_url
    provider = OpenAIProvider(base_url=base_url, api_key=KEY, model="m", retries=FAST)
    with pytest.raises(ProviderError) as caught:
        await collect(provider)
    assert (caught.value.code, caught.value.is_retryable) == ("UNAVAILABLE", True)
    with pytest.raises(ProviderError) as caught:
        await provider.ping()
    assert caught.value.code == "UNAVAILABLE"
    assert KEY not in "".join(traceback.format_exception(caught.value))
    await provider.aclose()


async def test_a_cut_before_anything_was_given_is_tried_again():
    events, server = await run([[Status(), Cut()], says("done")])
    assert text_of(events) == "done"
    assert len(server.requests) == 2


async def test_a_cut_in_the_middle_keeps_the_text_and_is_not_tried_again():
    error, events, server = await fail([[Status(), delta("half an "), Cut()], says("never")])
    assert (error.code, error.is_retryable) == ("UNAVAILABLE", True)
    assert text_of(events) == "half an "
    assert len(server.requests) == 1


async def test_a_stream_that_ends_without_a_reason_is_broken_off():
    error, events, _ = await fail([[Status(), delta("half"), DONE]])
    assert (error.code, error.is_retryable) == ("UNAVAILABLE", True)
    assert text_of(events) == "half"


@pytest.mark.parametrize(
    "broken",
    [
        Send(b"data: {not json\n\n"),
        Send(b'data: "a string"\n\n'),
        Send(b"data: [1, 2]\n\n"),
        Send(b"data: \xff\xfe\n\n"),
        Chunk({"choices": 7}),
        Chunk({"choices": ["x"]}),
        Chunk({"choices": [{"delta": "x"}]}),
        Chunk({"choices": [{"delta": {"tool_calls": [3]}}]}),
    ],
)
async def test_a_malformed_chunk_is_a_bad_response_that_keeps_the_text(broken):
    error, events, _ = await fail([[Status(), delta("so far"), broken, delta(" more"), DONE]])
    assert (error.code, error.is_retryable) == ("BAD_RESPONSE", True)
    assert text_of(events) == "so far"


async def test_an_error_inside_the_stream_is_reported():
    failed = Send(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')
    error, events, _ = await fail([[Status(), delta("so far"), failed]])
    assert (error.code, error.is_retryable) == ("UNAVAILABLE", True)
    assert "overloaded" in error.message
    assert text_of(events) == "so far"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("overloaded", "UNAVAILABLE", "overloaded"),
        ({"message": f"no access for {KEY}"}, "UNAVAILABLE", "no access for ***"),
        ({"message": 7}, "UNAVAILABLE", "an error inside its answer"),
        (["odd"], "UNAVAILABLE", "an error inside its answer"),
        ({"type": "rate_limit_exceeded"}, "RATE_LIMITED", "rate limited"),
        ({"message": "m", "code": "context_length_exceeded"}, "TOO_LONG", "too long"),
    ],
)
async def test_errors_inside_the_stream_of_every_shape_are_told_without_keys(error, code, told):
    failed = Send(b"event: error\ndata: " + json.dumps({"error": error}).encode() + b"\n\n")
    caught, _, _ = await fail([[Status(), delta("so far"), failed]])
    assert caught.code == code
    assert told in caught.message
    assert KEY not in "".join(traceback.format_exception(caught))


async def test_a_character_cut_in_two_by_escapes_arrives_whole():
    halves = [
        Send(b'data: {"choices": [{"delta": {"content": "' + half + b'"}}]}\n\n')
        for half in (b"so \\ud83d", b"\\ude00!")
    ]
    events, _ = await run([[Status(), *halves, delta(reason="stop"), DONE]])
    assert text_of(events) == "so \N{GRINNING FACE}!"


async def test_a_chunk_nested_without_end_is_a_bad_response():
    deep = Send(b'data: {"choices": ' + b"[" * 200_000 + b"\n\n")
    error, _, _ = await fail([[Status(), delta("so far"), deep]])
    assert error.code == "BAD_RESPONSE"


async def test_a_connection_serves_one_turn_after_the_other():
    async with ScriptedServer([says("a"), says("b"), says("c")]) as server:
        provider = provider_for(server)
        used = set()
        for wanted in "abc":
            assert text_of(await collect(provider)) == wanted
            used |= server._connections
        await provider.aclose()
    assert len(used) == 1


async def test_a_call_without_a_name_is_a_bad_response():
    part = {"index": 0, "id": "c", "function": {"arguments": "{}"}}
    turn = [Status(), delta(tool_calls=[part]), delta(reason="tool_calls"), DONE]
    error, _, _ = await fail([turn])
    assert error.code == "BAD_RESPONSE"


async def test_a_chunk_that_does_not_come_times_out_though_comments_keep_coming():
    comments = [Send(b": still here\n\n")] * 3
    turn = [Status(), delta("begun "), *comments, Hang()]
    error, events, _ = await fail([turn], timeouts=Timeouts(chunk_s=0.2))
    assert (error.code, error.is_retryable) == ("TIMED_OUT", True)
    assert text_of(events) == "begun "


async def test_a_server_that_never_begins_times_out_without_another_attempt():
    error, events, server = await fail([[Hang()]] * 3, timeouts=Timeouts(first_chunk_s=1.5))
    assert (error.code, events) == ("TIMED_OUT", [])
    assert len(server.requests) == 1


async def test_a_turn_that_is_too_long_in_all_times_out():
    turn = [Status(), delta("a"), delta("b"), Hang()]
    error, events, _ = await fail([turn], timeouts=Timeouts(total_s=3.0))
    assert error.code == "TIMED_OUT"
    assert text_of(events) == "ab"


async def test_cancelling_the_reader_closes_the_stream_at_the_server():
    async with ScriptedServer([[Status(), delta("begun"), Hang()]]) as server:
        provider = provider_for(server)
        begun = asyncio.Event()

        async def read():
            async with aclosing(provider.stream(HELLO)) as stream:
                async for _ in stream:
                    begun.set()

        task = asyncio.create_task(read())
        async with asyncio.timeout(30):
            await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left()
        await provider.aclose()


async def test_cancelling_before_the_first_chunk_closes_the_request():
    async with ScriptedServer([[Hang()]]) as server:
        provider = provider_for(server)
        task = asyncio.create_task(collect(provider))
        await server.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left()
        await provider.aclose()
