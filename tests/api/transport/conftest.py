"""A real server in the test's own loop, and Node with its pinned packages."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from graphql import GraphQLSchema
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from app.graphql_http import GraphQLHTTP
from app.graphql_outlet import WebSocketProtocol
from app.graphql_request import RequestInfo
from app.graphql_ws import ConnectionState, GraphQLWebSocket, SocketOptions
from schema.execution import Engine
from services.errors import RateLimitedError, UnauthenticatedError
from tests.api.transport.sample import Context, Probe, graphql_schema
from tests.servers import require
from tests.servers.installed import npm_packages

HERE = Path(__file__).parent


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Server:
    """A running server and what its endpoints saw."""

    port: int
    engine: Engine
    http: GraphQLHTTP
    ws: GraphQLWebSocket
    probe: Probe
    states: list[ConnectionState] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/graphql"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/graphql"

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=60, **options)

    async def post(self, query: str, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
        async with self.client() as client:
            return await client.post(self.url, json={"query": query, **body}, headers=headers)

    def connect(self, *subprotocols: str, **options: Any) -> connect:
        names = [Subprotocol(name) for name in subprotocols or ("graphql-transport-ws",)]
        options.setdefault("ping_interval", None)
        options.setdefault("compression", None)
        return connect(self.ws_url, subprotocols=names, max_size=None, **options)

    @asynccontextmanager
    async def socket(
        self, payload: dict[str, Any] | None = None, **options: Any
    ) -> AsyncIterator[ClientConnection]:
        async with self.connect(**options) as socket:
            await say(socket, {"type": "connection_init", "payload": payload})
            assert (await hear(socket))["type"] == "connection_ack"
            yield socket


async def say(socket: ClientConnection, message: Any) -> None:
    await socket.send(json.dumps(message))


async def hear(socket: ClientConnection) -> Any:
    async with asyncio.timeout(60):
        return json.loads(await socket.recv())


async def subscribe(socket: ClientConnection, id_: str, query: str, **rest: Any) -> None:
    await say(socket, {"id": id_, "type": "subscribe", "payload": {"query": query, **rest}})


async def closing(socket: ClientConnection) -> tuple[int | None, str | None]:
    """Wait for the server's close; give its code and reason."""
    async with asyncio.timeout(60):
        await socket.wait_closed()
    return socket.close_code, socket.close_reason


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something true of the server's own loop comes about."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - uvicorn tells of its state by flags alone.
            await asyncio.sleep(0.01)


Serve = Callable[..., AbstractAsyncContextManager[Server]]


def _connector(
    server_states: list[ConnectionState], probe: Probe, context: Callable[..., Any]
) -> Any:
    async def sign_in(scope: Scope, payload: dict[str, Any] | None) -> ConnectionState:
        token = (payload or {}).get("Authorization")
        if token == "Bearer bad":
            raise UnauthenticatedError
        if token == "Bearer busy":
            raise RateLimitedError("Too many sign-ins: wait a little.", 5)
        if token == "Bearer bug":
            raise RuntimeError("the password is hunter2")
        if token == "Bearer slow":
            probe.entered.set()
            await probe.gate.wait()
        viewer = token.removeprefix("Bearer ") if token else None

        async def make_context(request_id: str) -> Any:
            return context(probe, request_id, viewer)

        state = ConnectionState(make_context, revoked=asyncio.Event(), viewer_id=viewer)
        server_states.append(state)
        return state

    return sign_in


def _context_maker(
    probe: Probe, context: Callable[..., Any]
) -> Callable[[RequestInfo], Awaitable[Any]]:
    async def make_context(info: RequestInfo) -> Any:
        token = info.headers.get("authorization")
        if token == "Bearer bad":
            raise UnauthenticatedError
        if token == "Bearer busy":
            raise RateLimitedError("Too many requests: wait a little.", 5)
        if token == "Bearer bug":
            raise RuntimeError("the password is hunter2")
        if token == "Bearer slow":
            await probe.gate.wait()
        return context(probe, info.request_id, token, info.resume_after)

    return make_context


@asynccontextmanager
async def serving(
    *,
    options: SocketOptions | None = None,
    http: dict[str, Any] | None = None,
    ws: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    schema: GraphQLSchema = graphql_schema,
    context: Callable[..., Any] = Context,
    protocol: type[asyncio.Protocol] = WebSocketProtocol,
) -> AsyncIterator[Server]:
    """Serve the sample schema, or another one, on a free port until the block ends."""
    probe = Probe()
    states: list[ConnectionState] = []
    runner = Engine(schema, **(engine or {}))
    over_http = GraphQLHTTP(runner, _context_maker(probe, context), **(http or {}))
    connector = _connector(states, probe, context)
    over_ws = GraphQLWebSocket(runner, connector, options=options, **(ws or {}))
    app = Starlette(routes=[Route("/graphql", over_http), WebSocketRoute("/graphql", over_ws)])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        ws=protocol,
        http="httptools",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=10,
    )
    server = _Server(config)
    # Closed here as well: a test that fails must not leave it to the next one.
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(listener.close)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield Server(listener.getsockname()[1], runner, over_http, over_ws, probe, states)
        finally:
            server.should_exit = True


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Install the pinned Node packages once per lock file; give the folder to run scripts in."""
    return npm_packages(HERE, "node", npm=require("node")["NOOSPHERE_TEST_NPM"])


async def run_node(folder: Path, script: str, *arguments: str) -> Any:
    """Run one of our scripts with the packages of `folder`; give the JSON it prints."""
    # Node looks packages up from where a script really stands, so it must stand beside them.
    copy = folder / f"{Path(script).stem}-{os.getpid()}.mjs"
    shutil.copy(HERE / script, copy)
    try:
        process = await asyncio.create_subprocess_exec(
            require("node")["NOOSPHERE_TEST_NODE"],
            str(copy),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    finally:
        copy.unlink()
    assert process.returncode == 0, err.decode()
    return json.loads(out)
