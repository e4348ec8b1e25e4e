"""HTTP/1.1 as Uvicorn speaks it, for clients that take their time with what they ask for."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.http_cycle import Cycle
from app.websocket_protocol import WebSocketProtocol

# What bodies may take is bounded where they are read.
HEAD_TIMEOUT_S = 15.0
HEAD_MAX_BYTES = 65_536
# So long a client may go on sending a body that has been answered; it must be able to read that.
REST_S = 10.0
# Of a body that is still coming when the server stops, so much must come in so long.
PACE_S, PACE_BYTES = 2.0, 65_536
# Headers that say more to the server than to the application.
_EXPECT = b"expect"
_FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")
_REFUSAL = (
    "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {size}\r\n"
    "connection: close\r\n\r\n{reason}"
)


class HttpProtocol(HttpToolsProtocol):
    """Closes connections whose requests do not come to an end.

    Neither the parser nor the server bounds the size of a request line and headers, or the time
    they take; nor how long a body goes on that was answered, or holds up a server that stops.

    What is done for every request is done here once more, in fewer steps: no timer for a head that
    comes in one piece, one for the idle times of a connection, and no layer around an application
    that would only pass the request on.
    """

    cycle: Cycle
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    # Until when the rest of a body may come.
    _rest_timer: asyncio.TimerHandle | None = None
    _came_bytes = 0
    # Until when (of the loop's clock) the next request must begin; None while one is under way.
    _idle_until: float | None = None
    _is_forwarded = False

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        app = self.app
        if type(app) is ProxyHeadersMiddleware:
            app = app.app
        # What answers requests that no proxy says anything about; see `Application.endpoint_of`.
        self._unforwarded = app
        self._endpoint: Callable[[Any], Any] | None = getattr(app, "endpoint_of", None)

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._forget_head()
        self._forget_rest()
        self._forget_idle()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take more of a request."""
        self._came_bytes += len(data)
        self._idle_until = None
        super().data_received(data)
        if self._head_timer is None:
            if self.scope is None or "method" in self.scope:
                # No request has begun whose headers are not all there.
                return
            self._expect_head()
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_MAX_BYTES:
            self._refuse(
                "431 Request Header Fields Too Large",
                f"The headers of a request may have {HEAD_MAX_BYTES} bytes.\n",
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        name = name.lower()
        if name == _EXPECT:
            self.expect_100_continue |= value.lower() == b"100-continue"
        elif name in _FORWARDED:
            self._is_forwarded = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Answer the request."""
        if self._head_timer is not None:
            self._forget_head()
        is_forwarded, self._is_forwarded = self._is_forwarded, False
        scope, parser = self.scope, self.parser
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + url.path
        scope["query_string"] = url.query or b""
        before = self.cycle
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.cycle = cycle = Cycle(self, keep_alive=keep_alive)
        app = self._answering(scope, is_forwarded=is_forwarded)
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        else:
            # Pipelined: answered when what came before it is.
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def _answering(self, scope: Any, *, is_forwarded: bool) -> Any:
        """Give the application that answers a request."""
        most = self.limit_concurrency
        if most is not None and (len(self.connections) >= most or len(self.tasks) >= most):
            self.logger.warning("Exceeded concurrency limit.")
            return service_unavailable
        if is_forwarded:
            return self.app
        endpoint = None if self._endpoint is None else self._endpoint(scope)
        return self._unforwarded if endpoint is None else endpoint

    def on_body(self, body: bytes) -> None:
        """Take more of a body."""
        cycle = self.cycle
        if (self.parser.should_upgrade() and self._should_upgrade()) or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.set()

    def on_message_complete(self) -> None:
        """Have all of the request."""
        if self._rest_timer is not None:
            self._forget_rest()
        cycle = self.cycle
        if (self.parser.should_upgrade() and self._should_upgrade()) or cycle.response_complete:
            return
        cycle.more_body = False
        cycle.set()

    def on_response_complete(self) -> None:
        """Have answered, perhaps before all of the request was there."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_until = self.loop.time() + self.timeout_keep_alive
            if self.timeout_keep_alive_task is None:
                self._expect_request(self.timeout_keep_alive)
        if self.cycle.more_body and self._rest_timer is None:
            self._rest_timer = self.loop.call_later(REST_S, self.transport.close)

    def _expect_request(self, within_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            within_s, self.timeout_keep_alive_handler
        )

    def _unset_keepalive_if_required(self) -> None:
        """Keep the timer: it looks by itself whether the connection has been idle since."""

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that nothing was asked on for a while."""
        self.timeout_keep_alive_task = None
        if self._idle_until is None or self.transport.is_closing():
            return
        left_s = self._idle_until - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._expect_request(left_s)

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
        self._forget_idle()
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

    def _forget_idle(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

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
