"""graphql-transport-ws by the letter, with a raw client."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from gql import Client, gql
from gql.transport.websockets import WebsocketsTransport
from prometheus_client import REGISTRY
from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidStatus

from app.graphql_outlet import WebSocketProtocol
from app.graphql_protocol import ConnectionState, SocketOptions
from services.errors import UnauthenticatedError
from tests.api.transport.conftest import Server, closing, hear, say, serving, subscribe, until


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


# ---- close codes


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


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        ("bad", 4403, "Forbidden"),
        ("busy", 1013, "Too many sign-ins: wait a little."),
        ("bug", 4500, "Internal server error"),
    ],
)
async def test_a_refused_sign_in_closes_the_socket(
    server: Server, token: str, code: int, reason: str
) -> None:
    async with server.connect() as socket:
        payload = {"Authorization": f"Bearer {token}"}
        await say(socket, {"type": "connection_init", "payload": payload})
        assert await closing(socket) == (code, reason)


@pytest.mark.parametrize("protocol", [WebSocketProtocol, WebSocketsSansIOProtocol])
async def test_who_is_known_is_signed_in_at_once_and_a_refusal_is_the_same(
    protocol: type[asyncio.Protocol],
) -> None:
    asked: list[str] = []

    def known(_scope: Scope, payload: dict[str, Any] | None) -> ConnectionState | None:
        token = str((payload or {}).get("token"))
        asked.append(token)
        if token == "known":
            return ConnectionState(_no_context, viewer_id="known")
        if token == "bug":
            raise LookupError("a bug")
        if token != "unknown":
            raise UnauthenticatedError("Nobody.")
        return None

    async with serving(ws={"connect_known": known}, protocol=protocol) as server:
        async with server.connect() as socket:
            # Both in one go: who is known is signed in by the time the second is read.
            await say(socket, {"type": "connection_init", "payload": {"token": "known"}})
            await say(socket, {"type": "ping"})
            assert await hear(socket) == {"type": "connection_ack"}
            assert await hear(socket) == {"type": "pong"}
            assert server.ws._register.counts == {"viewer:known": 1}
            assert server.states == []
        async with server.connect() as socket:
            await say(socket, {"type": "connection_init", "payload": {"token": "unknown"}})
            assert await hear(socket) == {"type": "connection_ack"}
            assert len(server.states) == 1
        for token, code in (("bad", 4403), ("bug", 4500)):
            async with server.connect() as socket:
                await say(socket, {"type": "connection_init", "payload": {"token": token}})
                assert (await closing(socket))[0] == code
        assert len(server.states) == 1
        assert asked == ["known", "unknown", "bad", "bug"]
        await until(lambda: not server.ws._register.counts)


async def _no_context(_request_id: str) -> Any:
    raise AssertionError("no operation was begun")


async def test_a_sign_in_without_end_is_given_up_and_may_be_tried_again() -> None:
    async with (
        serving(options=SocketOptions(init_timeout_s=1.0)) as server,
        server.connect() as socket,
    ):
        payload = {"Authorization": "Bearer slow"}
        await say(socket, {"type": "connection_init", "payload": payload})
        assert (await closing(socket))[0] == 1013


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


# ---- origins


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://app.example", True),
        ("https://evil.example", False),
        ("null", False),
        ("https://app.example.evil.example", False),
    ],
)
async def test_pages_of_other_hosts_need_to_be_listed(origin: str, is_allowed: bool) -> None:
    async with serving(ws={"allowed_origins": ["https://app.example"]}) as server:
        if is_allowed:
            async with server.socket(origin=origin):
                pass
            return
        with pytest.raises(InvalidStatus) as raised:
            async with server.connect(origin=origin):
                pass
        assert raised.value.response.status_code == 403


async def test_pages_of_the_same_host_are_let_in(server: Server) -> None:
    async with server.socket(origin=f"http://127.0.0.1:{server.port}"):
        pass


# ---- clocks and sessions


async def test_an_expired_session_closes_with_4403_unless_it_was_prolonged(
    server: Server,
) -> None:
    async with server.socket() as socket:
        (state,) = server.states
        began = datetime.now(UTC)
        state.expires_at = began + timedelta(seconds=0.3)
        (live,) = server.ws._sockets
        live._sign_in._check_expiry()  # As if the session had begun with this end.
        state.expires_at = began + timedelta(seconds=0.6)
        assert await closing(socket) == (4403, "Session expired")
        assert datetime.now(UTC) >= state.expires_at


async def test_a_revoked_session_closes_with_4403_and_ends_its_streams(server: Server) -> None:
    async with server.socket() as socket:
        await subscribe(socket, "1", "subscription { forever }")
        await hear(socket)
        server.states[0].revoked.set()  # type: ignore[union-attr]
        assert await closing(socket) == (4403, "Session revoked")
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_a_peer_that_pongs_stays_and_one_that_does_not_is_dropped() -> None:
    options = SocketOptions(ping_interval_s=0.05, pong_timeout_s=30.0)
    async with serving(options=options) as server, server.socket() as socket:
        for _ in range(3):
            assert await hear(socket) == {"type": "ping"}
            await say(socket, {"type": "pong"})
    options = SocketOptions(ping_interval_s=0.05, pong_timeout_s=0.05)
    async with serving(options=options) as server, server.socket() as socket:
        assert await hear(socket) == {"type": "ping"}
        assert await closing(socket) == (4499, "No pong in time")


# ---- bounds


async def test_one_socket_runs_a_bounded_number_of_operations() -> None:
    async with (
        serving(options=SocketOptions(max_operations=2)) as server,
        server.socket() as socket,
    ):
        for id_ in "ab":
            await subscribe(socket, id_, "subscription { forever }")
            assert (await hear(socket))["type"] == "next"
        await subscribe(socket, "c", "{ hello }")
        message = await hear(socket)
        assert (message["id"], message["type"]) == ("c", "error")
        assert message["payload"][0]["extensions"]["code"] == "LIMIT"
        await say(socket, {"id": "a", "type": "complete"})
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await subscribe(socket, "c", "{ hello }")
        assert (await hear(socket))["type"] == "next"


async def test_one_viewer_opens_a_bounded_number_of_sockets() -> None:
    ann = {"Authorization": "Bearer ann"}
    async with serving(ws={"max_sockets_per_viewer": 2}) as server:
        async with server.socket(ann), server.socket(ann) as second:
            async with server.socket({"Authorization": "Bearer bob"}), server.socket():
                pass
            async with server.connect() as third:
                await say(third, {"type": "connection_init", "payload": ann})
                assert (await closing(third))[0] == 1013
            await second.close()
            await until(lambda: server.ws.open_sockets == 1)
            async with server.socket(ann):
                pass
        await until(lambda: server.ws.open_sockets == 0)
        assert not server.ws._register.counts


async def test_a_reader_that_stops_stops_its_stream_and_loses_nothing(server: Server) -> None:
    async with server.connect(max_queue=1) as socket:
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        await subscribe(socket, "1", "subscription { flood(size: 10000) }")
        (live,) = server.ws._sockets
        # Whatever the kernel still takes, in the end one frame is not taken any more.
        await until(lambda: live._outbox.stalled_s() > 0.2)
        assert len(live._outbox) <= 256
        assert live._outbox.size_bytes <= 1024 * 1024 + 20_000
        assert live._outbox.is_full
        stopped_at = server.probe.produced
        for expected in range(1, stopped_at + 50):  # Reading on lets the stream go on.
            message = await hear(socket)
            number, _, rest = message["payload"]["data"]["flood"].partition(":")
            assert (int(number), len(rest)) == (expected, 10_000)
        assert server.probe.produced > stopped_at > 100
        socket.transport.abort()
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_a_peer_that_takes_nothing_is_dropped() -> None:
    options = SocketOptions(ping_interval_s=0.1, send_timeout_s=0.3, pong_timeout_s=60)
    async with serving(options=options) as server, server.connect(max_queue=1) as socket:
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        socket.transport.pause_reading()
        await subscribe(socket, "1", "subscription { flood(size: 100000) }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: server.ws.open_sockets == 0)
        socket.transport.abort()


async def test_two_hundred_sockets_come_and_go_and_leave_nothing(server: Server) -> None:
    before = len(asyncio.all_tasks())

    async def visit(number: int) -> None:
        async with server.socket({"Authorization": f"Bearer v{number}"}) as socket:
            await subscribe(socket, "1", "subscription { forever }")
            assert (await hear(socket))["type"] == "next"
            if number % 2:
                socket.transport.abort()

    for batch in range(4):
        await asyncio.gather(*(visit(batch * 50 + n) for n in range(50)))
    await until(lambda: server.ws.open_sockets == 0 and server.probe.open_streams == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert not server.ws._register.counts


async def test_draining_closes_every_socket_with_1012_and_refuses_new_ones(
    server: Server,
) -> None:
    async with server.socket() as first, server.socket() as second:
        await subscribe(first, "1", "subscription { forever }")
        await hear(first)
        await server.ws.drain()
        assert server.ws.open_sockets == 0
        assert server.probe.open_streams == 0
        assert await closing(first) == (1012, "Service restart")
        assert await closing(second) == (1012, "Service restart")
    async with server.connect() as late:
        assert await closing(late) == (1012, "Service restart")


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


async def test_streams_with_a_backlog_take_turns(server: Server) -> None:
    async with server.socket() as socket:
        for id_ in ("a", "b"):
            await subscribe(socket, id_, "subscription { count(to: 200) }")
        order = [(await hear(socket))["id"] for _ in range(402)]
    last_of_a = len(order) - 1 - order[::-1].index("a")
    assert order.index("b") < last_of_a
    assert order.count("a") == order.count("b") == 201


# ---- other houses' client


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
