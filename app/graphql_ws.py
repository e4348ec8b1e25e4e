"""GraphQL over WebSocket: the endpoint, and the register of open sockets."""

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app import graphql_metrics
from app.graphql_documents import Documents
from app.graphql_outbox import Dispatcher
from app.graphql_protocol import (
    FORBIDDEN,
    RESTART,
    SUBPROTOCOL,
    SUBPROTOCOL_NOT_ACCEPTABLE,
    TRY_AGAIN,
    Connect,
    ConnectionState,
    ConnectKnown,
    SocketOptions,
    connect_nobody,
)
from app.graphql_register import Register
from app.graphql_request import client_host, is_origin_allowed
from app.graphql_socket import Socket
from schema.execution import Engine

if TYPE_CHECKING:
    from app.spans import Tracing

__all__ = ["SUBPROTOCOL", "ConnectionState", "GraphQLWebSocket", "SocketOptions"]

logger = logging.getLogger(__name__)


class GraphQLWebSocket:
    """ASGI endpoint for `WebSocketRoute`, speaking graphql-transport-ws.

    `connect` signs a connection in from its handshake and `connection_init` payload; a RequestError
    it raises closes the socket with 4403, or 1013 (try again later) for RATE_LIMITED and
    UNAVAILABLE. `connect_known` is asked first. `register` counts them with what else is open.
    Pages of other hosts are let in by `allowed_origins` ("*" for all); clients that send no Origin
    are no browsers and always are. `documents` are those known by name.
    """

    def __init__(
        self,
        engine: Engine,
        connect: Connect,
        *,
        connect_known: ConnectKnown = connect_nobody,
        options: SocketOptions | None = None,
        allowed_origins: Collection[str] = (),
        max_sockets_per_viewer: int = 100,
        register: Register | None = None,
        documents: Documents | None = None,
    ) -> None:
        # Whoever traces operations.
        self.tracing: Tracing | None = None
        self._documents = Documents() if documents is None else documents
        self._engine = engine
        self._connect = connect
        self._connect_known = connect_known
        self._options = options or SocketOptions()
        self._allowed_origins = frozenset(allowed_origins)
        self._register = register or Register(max_per_viewer=max_sockets_per_viewer)
        self._sockets: set[Socket] = set()
        self._places: dict[Socket, str] = {}
        self._dispatcher: Dispatcher | None = None
        self._is_draining = False
        self._empty = asyncio.Event()

    @property
    def open_sockets(self) -> int:
        """Sockets accepted and not yet fully closed."""
        return len(self._sockets)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection from handshake to end."""
        message = await receive()
        if message["type"] != "websocket.connect":
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and not is_origin_allowed(origin, headers.get("host"), self._allowed_origins):
            await send(
                {"type": "websocket.close", "code": FORBIDDEN, "reason": "Origin not allowed"}
            )
            return
        if SUBPROTOCOL not in scope["subprotocols"]:
            await send({"type": "websocket.accept"})
            await send(
                {
                    "type": "websocket.close",
                    "code": SUBPROTOCOL_NOT_ACCEPTABLE,
                    "reason": f"Subprotocol not acceptable: speak {SUBPROTOCOL}",
                }
            )
            return
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._dispatcher is None:
            self._dispatcher = Dispatcher()
        address = client_host(scope)
        socket = Socket(
            self._engine,
            self._connect,
            self._options,
            self._dispatcher,
            connect_known=self._connect_known,
            scope=scope,
            receive=receive,
            send=send,
            is_welcome=partial(self._is_welcome, address),
            documents=self._documents,
            tracing=self.tracing,
        )
        place = self._register.open(address)
        if place is None:
            socket.close(TRY_AGAIN, "Too many sockets are being opened. Try again in a moment")
        else:
            self._places[socket] = place
        self._sockets.add(socket)
        graphql_metrics.WEBSOCKETS_OPEN.inc()
        if self._is_draining:
            socket.close(RESTART, "Service restart")
        try:
            await socket.run()
        finally:
            graphql_metrics.WEBSOCKETS_OPEN.dec()
            self._sockets.discard(socket)
            self._forget(socket)
            if not self._sockets:
                self._empty.set()

    def _is_welcome(self, address: str | None, socket: Socket) -> bool:
        self._forget(socket)
        place = self._register.enter(socket.viewer_id, address)
        if place is None:
            return False
        self._places[socket] = place
        return True

    def _forget(self, socket: Socket) -> None:
        place = self._places.pop(socket, None)
        if place is not None:
            self._register.leave(place)

    async def drain(self, timeout_s: float = 10.0) -> None:
        """Close every socket with 1012, which clients answer by connecting anew; refuse new ones.

        Returns when all are closed, mutations under way finished, or after `timeout_s` seconds.
        """
        self._is_draining = True
        for socket in tuple(self._sockets):
            socket.close(RESTART, "Service restart")
        if not self._sockets:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d sockets did not close in time.", len(self._sockets))
