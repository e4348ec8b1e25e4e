"""An ASGI application behind the protocol, and the bytes its peers send."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.http_protocol import HttpProtocol
from app.websocket_protocol import WebSocketProtocol

App = Callable[[Scope, Receive, Send], Awaitable[None]]
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEAD = (
    "GET {target} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: {version}\r\n{keys}\r\n"
)
MAX_BYTES = 100_000


class Served:
    """A server for one application, in the test's own loop."""

    def __init__(self, port: int, state: ServerState) -> None:
        self.port, self.state = port, state
        self.stack = AsyncExitStack()

    def connect(self, **options: Any) -> connect:
        options = {"compression": None, "ping_interval": None, **options}
        return connect(f"ws://127.0.0.1:{self.port}/a%20b?c=d", **options)

    async def ask(
        self, target: str = "/", version: str = "13", keys: str = f"Sec-WebSocket-Key: {KEY}\r\n"
    ) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for a WebSocket; gives the head of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.stack.push_async_callback(_drop, writer)
        writer.write(HEAD.format(target=target, version=version, keys=keys).encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        return head, reader, writer


async def _drop(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def serving(app: App, http: type[HttpToolsProtocol] = HttpProtocol) -> AsyncIterator[Served]:
    config = uvicorn.Config(
        app,
        http=http,
        ws=WebSocketProtocol,
        ws_max_size=MAX_BYTES,
        log_config=None,
        lifespan="off",
        proxy_headers=False,
    )
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: http(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        served = Served(server.sockets[0].getsockname()[1], state)
        async with served.stack:
            yield served
        async with asyncio.timeout(30):
            while state.connections or state.tasks:  # noqa: ASYNC110 - they tell nobody.
                await asyncio.sleep(0.01)
    finally:
        server.close()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Say what one hears, until the end."""
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """Give what the server closed with."""
    with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012 - what comes before is no matter.
        async with asyncio.timeout(30):
            while True:
                await socket.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason
