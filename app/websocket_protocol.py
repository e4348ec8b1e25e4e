"""WebSocket as this product serves it, in the place of Uvicorn's own protocols.

A thousand clients that come back at once pay for every object and every turn of the loop between
their bytes and the application. So a handshake is one look at the headers that were parsed already,
frames are read in one pass, and there is a way past ASGI, the extension `noosphere.outlet` of the
scope: texts go to `on_text` where they come, and many messages are framed and written at once, the
bodies they share with other sockets never copied before that.

There are no extensions: compression would hide a reader that stalls, and costs time on every event.
Nor are there pings of the protocol; applications know better what silence means to them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from starlette.types import Message, Scope
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected, get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from app import websocket_frames as frames
from app import websocket_handshake as handshake
from app.websocket_frames import FrameReader
from app.websocket_handshake import Headers, Refusal

EXTENSION = "noosphere.outlet"

_CLOSE_TIMEOUT_S, _FAULT_TIMEOUT_S = 10.0, 2.0
_ABNORMAL, _INTERNAL, _RESTART = 1006, 1011, 1012
# Messages the application has not taken, and their characters or bytes, before reading pauses.
_WAITING, _WAITING_SIZE = 16, 64 * 1024

logger = logging.getLogger("noosphere.websocket")


class WebSocketProtocol(asyncio.Protocol):
    """One connection from its upgrade to its end: ASGI, and the outlet beside it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.transport: Any = None
        self.on_writable: Callable[[], None] | None = None
        # Given texts where they come while nothing waits; those it answers True for are dealt with.
        self.on_text: Callable[[str], bool] | None = None
        self.is_writable = False
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._reader: FrameReader | None = None
        self._accept = b""
        self._response: tuple[int, Headers, bytearray] | None = None
        self._inbox: deque[Message] = deque()
        self._inbox_size = 0
        self._last: Message | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._resumed: asyncio.Event | None = None
        self._paused_at: float | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._parts: list[bytes] = []
        self._is_answered = False
        self._is_open = False
        self._is_close_sent = False
        self._is_lost = False
        self._is_reading_paused = False

    # ---- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a connection on which an upgrade was asked for."""
        self.transport = transport
        self._state.connections.add(self)  # type: ignore[arg-type] # It knows its own alone.

    def connection_lost(self, exc: Exception | None) -> None:
        """Let everybody know who waits."""
        self._is_lost, self.is_writable = True, False
        self._state.connections.discard(self)
        self._end(frames.NO_STATUS if self._is_answered else _ABNORMAL)
        self._parts = []
        if self._resumed is not None:
            self._resumed.set()
        self._stop_close_timer()
        if exc is None:
            self.transport.close()

    def eof_received(self) -> None:
        """Close: nobody reads what a peer is told that has stopped to speak without a word."""

    def pause_writing(self) -> None:
        """Remember since when the peer does not keep up."""
        self._paused_at = self.loop.time()
        self.is_writable = False

    def resume_writing(self) -> None:
        """Let what waits be written."""
        self._paused_at = None
        self._judge()
        if self._resumed is not None:
            self._resumed.set()
        if self.on_writable is not None:
            self.on_writable()

    def data_received(self, data: bytes) -> None:
        """Read frames; the request first, where another protocol passes it on as bytes."""
        reader = self._reader
        if reader is None:
            self._read_request(data)
            return
        for opcode, payload in reader.feed(data):
            if opcode in (frames.TEXT, frames.BINARY):
                self._take(payload)
            elif opcode == frames.PING:
                # A peer that reads no answers gets none: they would pile up here.
                if self._paused_at is None and not self._is_close_sent:
                    self.transport.write(frames.frame(frames.PONG, payload))  # type: ignore[arg-type]
            elif opcode == frames.CLOSE:
                self._take_close(payload)  # type: ignore[arg-type]
                return
        if reader.fault is not None:
            self._fail(*reader.fault)
            return
        is_much = self._inbox_size > _WAITING_SIZE or len(self._inbox) > _WAITING
        if is_much and not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def shutdown(self) -> None:
        """End now, for the server ends."""
        if not self._is_close_sent:
            self._end(_RESTART)
            if self._is_open:
                self._write_close(_RESTART, "")
            else:
                self._refuse(handshake.FAILED)
        self._hang_up()

    # ---- the handshake

    def _read_request(self, data: bytes) -> None:
        transport = self.transport
        self.begin(
            *handshake.parse(data),
            server=get_local_addr(transport),
            client=get_remote_addr(transport),
            is_secure=is_ssl(transport),
        )

    def begin(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        *,
        server: tuple[str, int | None] | None,
        client: tuple[str, int] | None,
        is_secure: bool,
    ) -> None:
        """Answer a request for a WebSocket, the names of whose `headers` are lower case."""
        self._reader = FrameReader(self._config.ws_max_size)
        offer = handshake.read(method, target, headers)
        if isinstance(offer, Refusal):
            self._refuse(offer)
            return
        self._accept = offer.accept
        scope = {
            **offer.scope(self._config.root_path),
            "asgi": {"version": self._config.asgi_version, "spec_version": "2.4"},
            "scheme": "wss" if is_secure else "ws",
            "server": server,
            "client": client,
            "headers": headers,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, EXTENSION: self},
        }
        self._inbox.append({"type": "websocket.connect"})
        task = self.loop.create_task(self._run(scope))
        task.add_done_callback(self._state.tasks.discard)
        self._state.tasks.add(task)

    async def _run(self, scope: Scope) -> None:
        try:
            await self._config.loaded_app(scope, self.receive, self.send)
            if not self._is_answered:
                logger.error("the application did not answer a request for a WebSocket")
                self._refuse(handshake.FAILED)
        except ClientDisconnected:
            pass
        except Exception:
            logger.exception("the application failed on a WebSocket")
            if not self._is_answered:
                self._refuse(handshake.FAILED)
            elif self._is_open and not self._is_close_sent:
                self._write_close(_INTERNAL, "")
        finally:
            if self._close_timer is None:
                self._hang_up()

    def _open(self, message: Message) -> None:
        fields = [*self._state.default_headers, *message.get("headers", ())]
        head = handshake.granted(self._accept, message.get("subprotocol"), fields)
        self._is_answered = True
        if not self.transport.is_closing():
            self._is_open = True
            self._judge()
            self.transport.write(head)

    def _refuse(self, refusal: Refusal) -> None:
        self._is_answered = self._is_close_sent = True
        self._end(_ABNORMAL)
        self.transport.write(handshake.refused(refusal, self._state.default_headers))
        self._hang_up()

    # ---- what comes

    def _take(self, payload: str | bytes) -> None:
        if self._is_close_sent:
            # The application is past its close: only the peer's answer to that is waited for.
            return
        if isinstance(payload, str):
            if self.on_text is not None and not self._inbox and self.on_text(payload):
                return
            self._inbox.append({"type": "websocket.receive", "text": payload})
        else:
            self._inbox.append({"type": "websocket.receive", "bytes": payload})
        self._inbox_size += len(payload)
        self._wake()

    def _take_close(self, payload: bytes) -> None:
        found = frames.read_close(payload)
        if isinstance(found, frames.Fault):
            self._fail(*found)
            return
        if not self._is_close_sent:
            self._end(*found)
            self._write_close(found[0], "")
        self._hang_up()

    def _fail(self, code: int, reason: str) -> None:
        if self._is_close_sent:
            return
        self._end(code, reason)
        self._write_close(code, reason)
        # What it is still sending is read and dropped for a moment: closing on unread data would
        # reset the connection, and the peer never hear why.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._await_end(_FAULT_TIMEOUT_S)

    def _end(self, code: int, reason: str = "") -> None:
        """Let the application hear, after all else and once, that the connection is over."""
        if self._last is None:
            self._last = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """Give what comes next, as ASGI says; the end again and again. One task at a time."""
        while not self._inbox:
            if self._last is not None:
                return self._last
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        message = self._inbox.popleft()
        payload = message.get("text") or message.get("bytes")
        if payload:
            self._inbox_size -= len(payload)
        if self._is_reading_paused and not self._inbox:
            self._is_reading_paused = False
            self.transport.resume_reading()
        return message

    # ---- what goes

    async def send(self, message: Message) -> None:
        """Answer the handshake, send a message or close, as ASGI says.

        Waits while the peer does not keep up. Raises ClientDisconnected when it has gone, and
        RuntimeError for what makes no sense now.
        """
        while self._paused_at is not None and not self._is_lost:
            if self._resumed is None:
                self._resumed = asyncio.Event()
            self._resumed.clear()
            await self._resumed.wait()
        if self._is_lost:
            raise ClientDisconnected
        kind = message["type"]
        if self._is_open and kind == "websocket.send":
            if self._is_close_sent:
                raise ClientDisconnected
            data, text = message.get("bytes"), message.get("text")
            if data is not None:
                self.transport.write(frames.frame(frames.BINARY, data))
            elif text is not None:
                self.transport.write(frames.frame(frames.TEXT, text.encode()))
        elif self._is_open and kind == "websocket.close":
            self._close(message.get("code", 1000), message.get("reason") or "")
        elif not self._is_answered and self._answers(message):
            return
        else:
            raise RuntimeError(f"{kind!r} makes no sense in this state of a WebSocket.")

    def _answers(self, message: Message) -> bool:
        """Answer the request for a WebSocket; tells whether the message is one that does."""
        response = self._response
        match message["type"]:
            case "websocket.accept" if response is None:
                self._open(message)
            case "websocket.close" if response is None:
                self._refuse(handshake.FORBIDDEN)
            case "websocket.http.response.start" if response is None:
                fields = [(bytes(name), bytes(value)) for name, value in message["headers"]]
                self._response = (message["status"], fields, bytearray())
            case "websocket.http.response.body" if response is not None:
                status, given, body = response
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    self._refuse(Refusal(status, given, bytes(body)))
            case _:
                return False
        return True

    def _close(self, code: int, reason: str) -> None:
        if self._is_close_sent or self.transport.is_closing():
            return
        self._end(code, reason)
        self._write_close(code, reason)
        self._await_end(_CLOSE_TIMEOUT_S)

    def _await_end(self, timeout_s: float) -> None:
        """Give the peer a moment to close the connection."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            self.transport.resume_reading()
        self._stop_close_timer()
        self._close_timer = self.loop.call_later(timeout_s, self._hang_up)

    def _hang_up(self) -> None:
        """Close once all is written; a peer that does not take it is dropped after a while."""
        self._stop_close_timer()
        self.transport.close()
        if not self._is_lost and self.transport.get_write_buffer_size():
            self._close_timer = self.loop.call_later(_CLOSE_TIMEOUT_S, self.transport.abort)

    def _write_close(self, code: int, reason: str) -> None:
        self._is_close_sent, self.is_writable = True, False
        self.transport.write(frames.close_frame(code, reason))

    def _stop_close_timer(self) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None

    # ---- the outlet

    def _judge(self) -> None:
        self.is_writable = (
            self._is_open
            and self._paused_at is None
            and not self._is_close_sent
            and not self._is_lost
        )

    def add(self, size: int, *parts: bytes) -> None:
        """Add a text message of `size` bytes that is made of parts."""
        self._parts += (frames.text_head(size), *parts)

    def flush(self) -> None:
        """Write what was added."""
        parts, self._parts = self._parts, []
        if parts and not self._is_lost and not self._is_close_sent:
            self.transport.write(b"".join(parts))

    def stalled_s(self) -> float:
        """Give the seconds since which the connection has taken nothing."""
        return 0.0 if self._paused_at is None else self.loop.time() - self._paused_at

    def abort(self) -> None:
        """Drop the connection with what was not sent yet."""
        self.transport.abort()
