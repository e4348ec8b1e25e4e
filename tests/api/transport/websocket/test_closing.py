"""The codes a socket is closed with, and why."""

import asyncio
import json

import pytest

from app.graphql_protocol import SocketOptions
from tests.api.transport.conftest import Server, closing, hear, say, serving, subscribe


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("{", "Invalid message: not valid JSON"),
        ("[]", "Invalid message: unknown type 'None'"),
        ('{"type": "nonsense"}', "Invalid message: unknown type 'nonsense'"),
        ('{"type": "connection_ack"}', "Invalid message: unknown type 'connection_ack'"),
        ('{"type": 3}', "Invalid message: unknown type '3'"),
        ('{"type": "ping", "payload": []}', "Invalid message: `payload` must be a map"),
        (
            '{"type": "subscribe", "payload": {"query": "{ hello }"}}',
            "Invalid message: `id` must be a string of 1 to 256 characters",
        ),
        (
            '{"type": "complete", "id": ""}',
            "Invalid message: `id` must be a string of 1 to 256 characters",
        ),
        (
            '{"type": "subscribe", "id": "1"}',
            "Invalid message: The request must be a map with the entry `query`.",
        ),
        (
            '{"type": "subscribe", "id": "1", "payload": {"query": 1}}',
            "Invalid message: `query` must be a string: the text of a GraphQL document.",
        ),
        (
            '{"type": "subscribe", "id": "1", "payload": {"query": "{a}", "variables": []}}',
            "Invalid message: `variables` must be a map or null.",
        ),
        (b"\x00", "Invalid message: send text frames, not binary ones"),
    ],
)
async def test_messages_outside_the_protocol_close_with_4400_and_say_why(
    server: Server, message: str | bytes, reason: str
) -> None:
    async with server.socket() as socket:
        await socket.send(message)
        assert await closing(socket) == (4400, reason)


async def test_reasons_never_exceed_what_a_close_frame_holds(server: Server) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "ü" * 100, "subscription { forever }")
        await hear(socket)
        await subscribe(socket, "ü" * 100, "subscription { forever }")
        code, reason = await closing(socket)
    assert code == 4409
    assert reason is not None
    assert reason.startswith("Subscriber for üüü")
    assert len(reason.encode()) <= 123


async def test_a_duplicate_id_closes_with_4409(server: Server) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "1", "subscription { forever }")
        await hear(socket)
        await subscribe(socket, "1", "{ hello }")
        assert await closing(socket) == (4409, "Subscriber for 1 already exists")
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_subscribing_before_the_acknowledgement_closes_with_4401(server: Server) -> None:
    async with server.connect() as socket:
        await subscribe(socket, "1", "{ hello }")
        assert await closing(socket) == (4401, "Unauthorized")
    async with server.connect() as socket:
        await say(socket, {"type": "connection_init", "payload": {"Authorization": "Bearer slow"}})
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        await subscribe(socket, "1", "{ hello }")
        assert await closing(socket) == (4401, "Unauthorized")


async def test_a_second_initialisation_closes_with_4429(server: Server) -> None:
    async with server.socket() as socket:
        await say(socket, {"type": "connection_init"})
        assert await closing(socket) == (4429, "Too many initialisation requests")


async def test_no_initialisation_in_time_closes_with_4408() -> None:
    async with (
        serving(options=SocketOptions(init_timeout_s=0.05)) as server,
        server.connect() as socket,
    ):
        assert await closing(socket) == (4408, "Connection initialisation timeout")


@pytest.mark.parametrize("subprotocols", [("graphql-ws",), ("chat", "superchat")])
async def test_other_subprotocols_close_with_4406(
    server: Server, subprotocols: tuple[str, ...]
) -> None:
    async with server.connect(*subprotocols) as socket:
        assert (await closing(socket))[0] == 4406


async def test_no_subprotocol_at_all_closes_with_4406(server: Server) -> None:
    from websockets.asyncio.client import connect

    async with connect(server.ws_url) as socket:
        assert (await closing(socket))[0] == 4406


async def test_the_right_subprotocol_is_found_among_others(server: Server) -> None:
    async with server.connect("graphql-ws", "graphql-transport-ws") as socket:
        assert socket.subprotocol == "graphql-transport-ws"


async def test_a_frame_too_large_closes_with_1009() -> None:
    async with (
        serving(options=SocketOptions(max_frame_bytes=1000)) as server,
        server.socket() as socket,
    ):
        await say(socket, {"type": "ping", "payload": {"a": "x" * 900}})
        assert (await hear(socket))["type"] == "pong"
        text = json.dumps({"type": "ping", "payload": {"a": "ü" * 500}}, ensure_ascii=False)
        assert len(text) < 1000 < len(text.encode())
        await socket.send(text)
        assert await closing(socket) == (1009, "The message is larger than 1000 bytes")
