"""The reverse proxy as it is configured, before two servers of the test."""

import asyncio
import contextlib
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from app.graphql_outlet import WebSocketProtocol
from app.graphql_single import TOKEN_HEADER
from tests.servers import require
from tests.servers.base import Place, free_port

_CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy.cfg"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Upstream:
    """A server that tells its name, streams when it is let, and echoes on its WebSocket."""

    name: str
    port: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    is_ready: bool = True

    async def ready(self, _request: Request) -> Response:
        return Response(status_code=200 if self.is_ready else 503)

    async def answer(self, request: Request) -> Response:
        forwarded = request.headers.get("x-forwarded-for")
        return JSONResponse({"name": self.name, "forwarded_for": forwarded})

    async def reserve(self, _request: Request) -> Response:
        token = f"{self.name}-{secrets.token_hex(8)}"
        return Response(token, 201, headers={TOKEN_HEADER: token})

    async def stream(self, _request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first "
            async with asyncio.timeout(60):
                await self.go_on.wait()
            yield b"second"

        return StreamingResponse(pieces(), media_type="text/plain")

    async def echo(self, socket: WebSocket) -> None:
        await socket.accept(subprotocol="graphql-transport-ws")
        async for text in socket.iter_text():
            await socket.send_text(f"{self.name}: {text}")

    async def metrics(self, _request: Request) -> Response:
        return Response("secrets 1")

    async def start(self) -> None:
        routes = [
            Route("/readyz", self.ready),
            Route("/graphql", self.answer, methods=["POST", "GET", "DELETE"]),
            Route("/graphql", self.reserve, methods=["PUT"]),
            WebSocketRoute("/graphql", self.echo),
            Route("/stream", self.stream),
            Route("/metrics", self.metrics),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            lifespan="off",
            log_config=None,
            ws=WebSocketProtocol,
            timeout_graceful_shutdown=5,
        )
        self._server = _Server(config)
        # Listening from now on: what is not accepted yet waits, and is not refused.
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def aclose(self) -> None:
        """Stop as a server that is being replaced does. Idempotent."""
        self._server.should_exit = True
        async with asyncio.timeout(30):
            await self._serving


@dataclass
class Proxied:
    url: str
    upstreams: tuple[Upstream, Upstream]
    client: httpx.AsyncClient

    async def names(self, count: int) -> list[str]:
        """Post `count` requests one after the other; give who answered."""
        answers = [await self.client.post(f"{self.url}/graphql", json={}) for _ in range(count)]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.json()["name"] for answer in answers]


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what other processes bring about."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - a process of its own has no events.
            await asyncio.sleep(0.05)


@pytest.fixture
async def proxied(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxied]:
    program = await asyncio.to_thread(require, "haproxy")
    first, second = Upstream("first"), Upstream("second")
    port = free_port()
    async with AsyncExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        for upstream in (first, second):
            await upstream.start()
            stack.push_async_callback(upstream.aclose)
        monkeypatch.setenv("NOOSPHERE_BIND", f"127.0.0.1:{port}")
        monkeypatch.setenv("NOOSPHERE_FIRST", f"127.0.0.1:{first.port}")
        monkeypatch.setenv("NOOSPHERE_SECOND", f"127.0.0.1:{second.port}")
        place = Place(Path(home), print)
        stack.push_async_callback(place.aclose)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60, trust_env=False))
        url = f"http://127.0.0.1:{port}"

        async def is_ready() -> bool:
            try:
                return (await client.get(f"{url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        haproxy = await place.run(
            "haproxy", program["NOOSPHERE_TEST_HAPROXY"], "-W", "-f", _CONFIGURATION
        )
        await haproxy.answer(is_ready)
        yield Proxied(url, (first, second), client)


async def test_requests_go_to_both_servers(proxied: Proxied) -> None:
    assert set(await proxied.names(40)) == {"first", "second"}


async def test_what_belongs_to_a_reserved_stream_goes_to_the_server_that_keeps_it(
    proxied: Proxied,
) -> None:
    url, client = f"{proxied.url}/graphql", proxied.client
    tokens = [(await client.put(url)).text for _ in range(6)]
    assert {token.split("-")[0] for token in tokens} == {"first", "second"}
    for token in tokens * 2:
        headers, params = {TOKEN_HEADER: token}, {"token": token}
        answers = [
            await client.post(url, json={}, headers=headers),
            await client.get(url, headers=headers),
            await client.delete(url, headers=headers),
            await client.get(url, params=params),
        ]
        names = {answer.json()["name"] for answer in answers}
        assert names == {token.split("-")[0]}
    assert set(await proxied.names(6)) == {"first", "second"}


async def test_a_client_cannot_forge_its_address(proxied: Proxied) -> None:
    answer = await proxied.client.post(
        f"{proxied.url}/graphql", json={}, headers={"X-Forwarded-For": "10.1.2.3"}
    )
    assert answer.json()["forwarded_for"] == "127.0.0.1"


async def test_a_websocket_passes(proxied: Proxied) -> None:
    url = proxied.url.replace("http:", "ws:") + "/graphql"
    async with (
        asyncio.timeout(60),
        connect(url, subprotocols=[Subprotocol("graphql-transport-ws")], proxy=None) as connection,
    ):
        assert connection.subprotocol == "graphql-transport-ws"
        await connection.send("hi")
        assert await connection.recv() in ("first: hi", "second: hi")


async def test_a_stream_arrives_piece_by_piece(proxied: Proxied) -> None:
    async with proxied.client.stream("GET", f"{proxied.url}/stream") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"first "
        for upstream in proxied.upstreams:
            upstream.go_on.set()
        assert await anext(pieces) == b"second"


async def test_metrics_stay_inside(proxied: Proxied) -> None:
    answer = await proxied.client.get(f"{proxied.url}/metrics")
    assert (answer.status_code, answer.text) == (404, "")


async def test_a_server_that_is_not_ready_gets_no_requests(proxied: Proxied) -> None:
    first, _second = proxied.upstreams
    first.is_ready = False

    async def is_left_out() -> bool:
        return set(await proxied.names(6)) == {"second"}

    await _until(is_left_out)
    first.is_ready = True

    async def is_back() -> bool:
        return "first" in await proxied.names(6)

    await _until(is_back)


async def test_a_server_that_has_gone_costs_no_request(proxied: Proxied) -> None:
    first, _second = proxied.upstreams
    assert "first" in await proxied.names(20)
    await first.aclose()
    assert set(await proxied.names(20)) == {"second"}
