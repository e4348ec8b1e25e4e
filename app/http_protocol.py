"""HTTP/1.1 as Uvicorn speaks it, for clients that take their time with what they ask for."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.websocket_protocol import WebSocketProtocol

# What bodies may take is bounded where they are read.
HEAD_TIMEOUT_S = 15.0
HEAD_MAX_BYTES = 65_536
# So long a client may go on sending a body that has been answered; it must be able to read that.
REST_S = 10.0
# Of a body that is still coming when the server stops, so much must come in so long.
PACE_S, PACE_BYTES = 2.0, 65_536
_REFUSAL = (
    "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {size}\r\n"
    "connection: close\r\n\r\n{reason}"
)


class HttpProtocol(HttpToolsProtocol):
    """Closes connections whose requests do not come to an end.

    Neither the parser nor the server bounds the size of a request line and headers, or the time
    they take; nor how long a body goes on that was answered, or holds up a server that stops.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    # Until when the rest of a body may come.
    _rest_timer: asyncio.TimerHandle | None = None
    _came_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        self._forget_rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take more of a request."""
        self._came_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._refuse(
                    "431 Request Header Fields Too Large",
                    f"The headers of a request may have {HEAD_MAX_BYTES} bytes.\n",
                )

    def on_message_begin(self) -> None:
        """Wait for the headers of the next request."""
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """Answer the request."""
        self._forget_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Have all of the request."""
        self._forget_rest()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Have answered, perhaps before all of the request was there."""
        super().on_response_complete()
        if self.cycle.more_body and self._rest_timer is None and not self.transport.is_closing():
            self._rest_timer = self.loop.call_later(REST_S, self.transport.close)

    def shutdown(self) -> None:
        """Answer what is under way, and close; break off a body that hardly comes."""
        super().shutdown()
        if self.cycle is not None and self.cycle.more_body and not self.transport.is_closing():
            self._forget_rest()
            self._rest_timer = self.loop.call_later(PACE_S, self._pace, self._came_bytes)

    def _pace(self, came_bytes: int) -> None:
        if self._came_bytes - came_bytes < PACE_BYTES:
            self.transport.abort()
        else:
            self._rest_timer = self.loop.call_later(PACE_S, self._pace, self._came_bytes)

    def handle_websocket_upgrade(self) -> None:
        """Give the connection away, with the request as it was parsed."""
        if self.ws_protocol_class is not WebSocketProtocol:
            super().handle_websocket_upgrade()
            return
        self.connections.discard(self)
        protocol = WebSocketProtocol(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        protocol.begin(
            self.scope["method"].encode(),
            self.url,
            self.headers,
            server=self.server,
            client=self.client,
            is_secure=self.scheme == "https",
        )
        self.transport.set_protocol(protocol)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer, self._head_bytes = None, 0

    def _forget_rest(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(
                "408 Request Timeout", f"The request did not come within {HEAD_TIMEOUT_S:g} s.\n"
            )
        else:
            # Nothing was asked; a browser that connects in advance wants no answer.
            self._forget_head()
            self.transport.close()

    def _refuse(self, status: str, reason: str) -> None:
        self._forget_head()
        if not self.transport.is_closing():
            answer = _REFUSAL.format(status=status, size=len(reason), reason=reason)
            self.transport.write(answer.encode())
            self.transport.close()
