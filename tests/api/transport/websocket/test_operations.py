"""Operations over graphql-transport-ws, with a raw client."""

import asyncio
import json

import pytest
from gql import Client, gql
from gql.transport.websockets import WebsocketsTransport
from prometheus_client import REGISTRY

from tests.api.transport.conftest import Server, hear, say, subscribe, until


async def test_a_subscription_gives_its_events_with_extensions_and_completes(
    server: Server,
) -> None:
    async with server.socket() as socket:
        await subscribe(
            socket, "1", "subscription S($to: Int) { count(to: $to) }", variables={"to": 2}
        )
        first, second, complete = [await hear(socket) for _ in range(3)]
    assert first["payload"]["data"] == {"count": 1}
    assert first["payload"]["extensions"]["event"] == 1
    assert (second["id"], second["type"]) == ("1", "next")
    assert second["payload"]["data"] == {"count": 2}
    assert complete == {"id": "1", "type": "complete"}


async def test_what_a_subscription_does_at_its_end_is_done_though_the_socket_ends_too(
    server: Server,
) -> None:
    async with asyncio.timeout(60):
        async with server.socket() as socket:
            await subscribe(socket, "1", "subscription { lingering }")
            await hear(socket)
            await say(socket, {"id": "1", "type": "complete"})
            await server.probe.entered.wait()
        (closing,) = server.ws._sockets
        closing.close(1000, "")
        await until(lambda: closing._outbox._is_closed)
        server.probe.gate.set()
        await server.probe.closed.wait()


async def test_queries_and_mutations_run_over_a_socket(server: Server) -> None:
    async with server.socket({"Authorization": "Bearer ann"}) as socket:
        await subscribe(socket, "q", "{ viewer }")
        answer = await hear(socket)
        assert answer["payload"]["data"] == {"viewer": "ann"}
        assert answer["payload"]["extensions"]["requestId"].endswith("-1")
        assert await hear(socket) == {"id": "q", "type": "complete"}
        await subscribe(socket, "q", 'mutation { note(text: "hi") }')
        assert (await hear(socket))["payload"]["data"] == {"note": "hi"}
        assert await hear(socket) == {"id": "q", "type": "complete"}
    first, second = server.probe.contexts
    assert first is not second


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{", "GRAPHQL_PARSE_FAILED"),
        ("{ nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription { limited }", "RATE_LIMITED"),
        ("subscription($to: Int!) { count(to: $to) }", "BAD_USER_INPUT"),
    ],
)
async def test_what_cannot_start_gets_an_error_message_and_no_complete(
    server: Server, query: str, code: str
) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "e", query)
        message = await hear(socket)
        assert (message["id"], message["type"]) == ("e", "error")
        assert isinstance(message["payload"], list)
        assert message["payload"][0]["extensions"]["code"] == code
        await subscribe(socket, "e", "{ hello }")  # The id is free again.
        assert (await hear(socket))["type"] == "next"


async def test_a_stream_that_breaks_ends_with_a_masked_error(server: Server) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "1", "subscription { failing }")
        assert (await hear(socket))["payload"]["data"] == {"failing": 1}
        message = await hear(socket)
        assert message["type"] == "error"
        assert message["payload"][0]["extensions"]["code"] == "INTERNAL"
        assert "hunter2" not in json.dumps(message)
        await say(socket, {"type": "ping"})
        assert await hear(socket) == {"type": "pong"}


async def test_completing_a_subscription_closes_its_source_and_frees_its_id(
    server: Server,
) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "1", "subscription { forever }")
        assert (await hear(socket))["type"] == "next"
        await say(socket, {"id": "1", "type": "complete"})
        await subscribe(socket, "1", "subscription { count(to: 1) }")
        assert (await hear(socket))["payload"]["data"] == {"count": 1}
        assert await hear(socket) == {"id": "1", "type": "complete"}
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        assert server.probe.open_streams == 0
        await say(socket, {"id": "never", "type": "complete"})
        await say(socket, {"type": "ping", "payload": {"n": 1}})
        assert await hear(socket) == {"type": "pong", "payload": {"n": 1}}


async def test_completing_a_query_cancels_it_and_a_mutation_is_finished_unheard(
    server: Server,
) -> None:
    probe = server.probe
    async with server.socket() as socket:
        await subscribe(socket, "q", "{ wait }")
        await asyncio.wait_for(probe.entered.wait(), 60)
        await say(socket, {"id": "q", "type": "complete"})
        await asyncio.wait_for(probe.cancelled.wait(), 60)
        probe.entered.clear()
        await subscribe(socket, "m", 'mutation { slowNote(text: "kept") }')
        await asyncio.wait_for(probe.entered.wait(), 60)
        await say(socket, {"id": "m", "type": "complete"})
        await say(socket, {"type": "ping"})
        assert await hear(socket) == {"type": "pong"}
        probe.gate.set()
        await asyncio.wait_for(probe.finished.wait(), 60)
        await say(socket, {"type": "ping"})
        assert await hear(socket) == {"type": "pong"}
    assert probe.mutations == ["kept"]


async def test_a_client_that_leaves_closes_its_sources_but_not_its_mutation(
    server: Server,
) -> None:
    probe = server.probe
    async with server.socket() as socket:
        await subscribe(socket, "1", "subscription { forever }")
        await hear(socket)
        await asyncio.wait_for(probe.entered.wait(), 60)
        probe.entered.clear()
        await subscribe(socket, "2", 'mutation { slowNote(text: "kept") }')
        await asyncio.wait_for(probe.entered.wait(), 60)
        socket.transport.abort()
    await asyncio.wait_for(probe.closed.wait(), 60)
    assert probe.open_streams == 0
    assert server.ws.open_sockets == 1
    probe.gate.set()
    await until(lambda: server.ws.open_sockets == 0)
    assert probe.mutations == ["kept"]


async def test_streams_with_a_backlog_take_turns(server: Server) -> None:
    async with server.socket() as socket:
        for id_ in ("a", "b"):
            await subscribe(socket, id_, "subscription { count(to: 200) }")
        order = [(await hear(socket))["id"] for _ in range(402)]
    last_of_a = len(order) - 1 - order[::-1].index("a")
    assert order.index("b") < last_of_a
    assert order.count("a") == order.count("b") == 201


async def test_operations_and_sockets_are_counted(server: Server) -> None:
    def count(type_: str, transport: str, outcome: str) -> float:
        labels = {"type": type_, "transport": transport, "outcome": outcome}
        return REGISTRY.get_sample_value("noosphere_operations_total", labels) or 0.0

    cases = [
        ("query", "http", "ok"),
        ("query", "http", "error"),
        ("unknown", "http", "refused"),
        ("query", "ws", "ok"),
        ("subscription", "ws", "ok"),
        ("subscription", "ws", "canceled"),
        ("unknown", "ws", "refused"),
    ]
    before = [count(*case) for case in cases]
    open_before = REGISTRY.get_sample_value("noosphere_websockets_open") or 0.0
    for query in ("{ hello }", "{ broken }", "{ nothing }"):
        await server.post(query)
    async with server.socket() as socket:
        assert REGISTRY.get_sample_value("noosphere_websockets_open") == open_before + 1
        for query in ("{ hello }", "subscription { count(to: 1) }", "{ nothing }"):
            await subscribe(socket, "1", query)
            while (await hear(socket))["type"] == "next":
                pass
        await subscribe(socket, "1", "subscription { forever }")
        await hear(socket)
    await until(lambda: server.ws.open_sockets == 0)
    assert [count(*case) for case in cases] == [value + 1 for value in before]
    assert REGISTRY.get_sample_value("noosphere_websockets_open") == open_before


async def test_the_gql_client_subscribes_and_completes(server: Server) -> None:
    transport = WebsocketsTransport(
        url=server.ws_url,
        init_payload={"Authorization": "Bearer ann"},
        subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],
    )
    async with Client(transport=transport, fetch_schema_from_transport=True) as session:
        stream = session.subscribe(gql("subscription { count(to: 4) }"))
        numbers = [result["count"] async for result in stream]
        assert await session.execute(gql("{ viewer }")) == {"viewer": "ann"}
    assert numbers == [1, 2, 3, 4]
    await until(lambda: server.ws.open_sockets == 0)
