"""Who may open a socket, from which pages, and for how long."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.types import Scope
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidStatus

from app.graphql_outlet import WebSocketProtocol
from app.graphql_protocol import ConnectionState, SocketOptions
from services.errors import UnauthenticatedError
from tests.api.transport.conftest import Server, closing, hear, say, serving, subscribe, until


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
