"""One WebSocket connection speaking graphql-transport-ws."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app import graphql_protocol as protocol
from app.graphql_documents import Documents
from app.graphql_heartbeat import Heartbeat
from app.graphql_operations import MAX_ID, Operation, Operations
from app.graphql_outbox import Dispatcher, Outbox
from app.graphql_outlet import AsgiOutlet, outlet_of
from app.graphql_preparing import prepare
from app.graphql_protocol import (
    Connect,
    ConnectionState,
    ConnectKnown,
    SocketOptions,
    SocketWords,
    connect_nobody,
)
from app.graphql_request import BadRequestError, Params, read_params
from app.graphql_sign_in import SignIn
from schema.execution import Engine, Prepared, Result, encode, failure, request_failure

if TYPE_CHECKING:
    from app.spans import Tracing

logger = logging.getLogger(__name__)

_WORDS = SocketWords()
_FAREWELL_S = 0.4
"""How long a mutation may go on that ended the sign-in of its own socket.

Short, for a socket is closed within two seconds of the end of its sign-in, and a look that finds
one nobody announced is up to a second and a half late.
"""


class Socket:
    """Reads and answers the messages of one accepted connection until either side closes it.

    Leaving `run` has closed every stream; a mutation under way is finished first, unheard. It is
    called once.
    """

    def __init__(
        self,
        engine: Engine,
        connect: Connect,
        options: SocketOptions,
        dispatcher: Dispatcher,
        *,
        connect_known: ConnectKnown = connect_nobody,
        scope: Scope,
        receive: Receive,
        send: Send,
        is_welcome: Callable[["Socket"], bool] = lambda _: True,
        documents: Documents | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._tracing = tracing
        self._documents = Documents() if documents is None else documents
        self.id = secrets.token_hex(8)
        self._engine = engine
        self._options = options
        self._scope = scope
        self._receive = receive
        self._send = send
        self._is_welcome = is_welcome
        self._loop = asyncio.get_running_loop()
        self._outlet = outlet_of(scope, receive, send)
        self._outbox = Outbox(
            self._outlet,
            dispatcher,
            max_items=options.max_queued_messages,
            max_bytes=options.max_queued_bytes,
        )
        self._operations = Operations(
            engine,
            self._outbox,
            _WORDS,
            self._spawn,
            max_running=options.max_operations,
            timeout_s=options.operation_timeout_s,
        )
        self._sign_in = SignIn(
            connect,
            connect_known,
            scope=scope,
            timeout_s=options.init_timeout_s,
            close=self.close,
            welcome=self._welcome,
            spawn=self._spawn,
            socket_id=self.id,
        )
        self._heartbeat = Heartbeat(
            self._outbox, options, silent=self._is_silent, stalled=self._is_stalled
        )
        self._count = 0
        self._is_handling = False
        self._reading: asyncio.Timeout | None = None
        self._close: tuple[int, str] | None = None
        self._is_lost = False

    @property
    def viewer_id(self) -> str | None:
        """Who is signed in, if anybody is."""
        state = self._sign_in.state
        return None if state is None else state.viewer_id

    # ---- life

    async def run(self) -> None:
        """Serve the connection to its end."""
        self._sign_in.expect()
        self._heartbeat.start()
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                writing: asyncio.Task[None] | None = None
                if isinstance(self._outlet, AsgiOutlet):
                    writing = group.create_task(self._write(self._outlet))
                else:
                    self._outlet.on_text = self._take
                await self._read_to_the_end()
                if self._close is not None and self._close[0] == protocol.FORBIDDEN:
                    # It may have ended its sign-in itself, and waits to hear so.
                    await self._operations.finish(_FAREWELL_S)
                    self._outbox.flush(self._loop.time())
                self._outlet.on_text = None
                self._outbox.close()
                if writing is not None:
                    writing.cancel()
                self._end()
                await self._send_close()
        finally:
            self._end()
            # They know the socket: without them it is gone at once, not when garbage is collected.
            del self._sign_in, self._heartbeat, self._operations

    def _end(self) -> None:
        self._heartbeat.stop()
        self._sign_in.end()
        self._operations.close()

    async def _read_to_the_end(self) -> None:
        """Read until either side closes; this task does nothing else, so that a socket has one."""
        try:
            async with asyncio.timeout(None) as self._reading:
                if self._close is None:
                    await self._read()
        except TimeoutError:
            if self._close is None:
                raise
        finally:
            # Who closes it from here on (the end of a sign-in, say) has nothing to break off.
            self._reading = None

    def close(self, code: int, reason: str) -> None:
        """Begin to close, with a reason cut to the 123 bytes a close frame has room for."""
        if self._close is None:
            self._close = (code, reason.encode()[:123].decode(errors="ignore"))
            if self._reading is not None:
                self._reading.reschedule(self._loop.time())

    def _lost(self) -> None:
        self._is_lost = True
        self.close(1006, "")

    def _is_silent(self) -> None:
        self.close(protocol.TERMINATED, "No pong in time")

    def _is_stalled(self) -> None:
        self._is_lost = True
        self._outlet.abort()
        self.close(protocol.TERMINATED, "")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._group.create_task(work)

    async def _send_close(self) -> None:
        if self._is_lost or self._close is None:
            return
        code, reason = self._close
        try:
            async with asyncio.timeout(self._options.close_timeout_s):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except TimeoutError:
            # The peer takes nothing. Without this its socket would stay until the kernel gives up.
            self._outlet.abort()
        except OSError:
            return

    async def _write(self, outlet: AsgiOutlet) -> None:
        with contextlib.suppress(OSError):
            await outlet.run()
        self._lost()

    async def _read(self) -> None:
        """Handle what comes through ASGI: everything, or what `_take` left to it."""
        try:
            while self._close is None:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    self._lost()
                    return
                self._is_handling = True
                rest = self._handle(message.get("text"))
                if rest is not None:
                    await rest
                self._is_handling = False
        except Exception as error:  # noqa: BLE001 - logged, and the socket is closed.
            self._failed(error)

    def _take(self, text: str) -> bool:
        """Handle a message where it comes; False if that would take waiting."""
        if self._close is not None:
            return True
        if self._is_handling or self._operations.is_full or self._outbox.is_full:
            return False
        try:
            rest = self._handle(text)
        except Exception as error:  # noqa: BLE001 - logged, and the socket is closed.
            self._failed(error)
            return True
        # Nothing waits, for there is room.
        assert rest is None  # noqa: S101 - see above.
        return True

    def _failed(self, error: Exception) -> None:
        logger.error("A socket failed (socket id %s).", self.id, exc_info=error)
        self.close(protocol.INTERNAL, "Internal server error")

    # ---- messages

    def _handle(self, text: str | None) -> Awaitable[None] | None:
        """Handle a message; gives what is left to be waited for before the next one."""
        self._heartbeat.heard()
        if text is None:
            self.close(protocol.BAD_REQUEST, "Invalid message: send text frames, not binary ones")
            return None
        limit = self._options.max_frame_bytes
        if len(text) > limit or (len(text) * 4 > limit and len(text.encode()) > limit):
            self.close(protocol.TOO_BIG, f"The message is larger than {limit} bytes")
            return None
        try:
            message = orjson.loads(text)
        except orjson.JSONDecodeError:
            self.close(protocol.BAD_REQUEST, "Invalid message: not valid JSON")
            return None
        kind = message.get("type") if isinstance(message, dict) else None
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is None:
            self.close(protocol.BAD_REQUEST, f"Invalid message: unknown type {str(kind)[:40]!r}")
            return None
        return handler(self, message)

    def _on_init(self, message: dict[str, Any]) -> None:
        if self._has_map_payload(message):
            self._sign_in.begin(message.get("payload"))

    def _welcome(self, state: ConnectionState) -> bool:
        """Acknowledge who has signed in, unless there are too many of them."""
        if not self._is_welcome(self):
            self.close(protocol.TRY_AGAIN, "Too many open sockets. Close some first")
            return False
        ack: dict[str, Any] = {"type": "connection_ack"}
        if state.ack_payload:
            ack["payload"] = state.ack_payload
        self._outbox.put_nowait(encode(ack))
        self._heartbeat.is_pinging = True
        return True

    def _on_ping(self, message: dict[str, Any]) -> Awaitable[None] | None:
        if not self._has_map_payload(message):
            return None
        pong = {"type": "pong"}
        if message.get("payload") is not None:
            pong["payload"] = message["payload"]
        return self._put(orjson.dumps(pong))

    def _on_pong(self, message: dict[str, Any]) -> None:
        self._has_map_payload(message)

    def _on_complete(self, message: dict[str, Any]) -> None:
        id_ = self._operation_id(message)
        if id_ is not None:
            self._operations.stop(id_)

    def _put(self, message: bytes) -> Awaitable[None] | None:
        if self._outbox.is_full:
            return self._outbox.put(message)
        self._outbox.put_nowait(message)
        return None

    def _has_map_payload(self, message: dict[str, Any]) -> bool:
        payload = message.get("payload")
        if payload is None or isinstance(payload, dict):
            return True
        self.close(protocol.BAD_REQUEST, "Invalid message: `payload` must be a map")
        return False

    def _operation_id(self, message: dict[str, Any]) -> str | None:
        id_ = message.get("id")
        if isinstance(id_, str) and 0 < len(id_) <= MAX_ID:
            return id_
        self.close(
            protocol.BAD_REQUEST,
            f"Invalid message: `id` must be a string of 1 to {MAX_ID} characters",
        )
        return None

    # ---- operations

    def _on_subscribe(self, message: dict[str, Any]) -> Awaitable[None] | None:
        state = self._sign_in.state
        if state is None:
            self.close(protocol.UNAUTHORIZED, "Unauthorized")
            return None
        id_ = self._operation_id(message)
        if id_ is None:
            return None
        if id_ in self._operations:
            self.close(protocol.DUPLICATE_ID, f"Subscriber for {id_} already exists")
            return None
        try:
            params = read_params(message.get("payload"))
        except BadRequestError as error:
            self.close(protocol.BAD_REQUEST, f"Invalid message: {error.message}")
            return None
        if self._operations.is_full:
            return self._begin_when_there_is_room(id_, state, params)
        self._begin(id_, state, params)
        return None

    async def _begin_when_there_is_room(
        self, id_: str, state: ConnectionState, params: Params
    ) -> None:
        await self._operations.settle()
        if not self._operations.is_full:
            self._begin(id_, state, params)
            return
        limit = f"This socket already runs {self._options.max_operations} operations, "
        full = failure("LIMIT", limit + "which is the limit. Complete some of them first.")
        await self._outbox.put(_WORDS.failed(id_, Result.refused([full])))

    def _begin(self, id_: str, state: ConnectionState, params: Params) -> None:
        operation = self._operations.add(id_)
        self._count += 1
        request_id = f"{self.id}-{self._count}"
        work = partial(self._operate, operation, state, params, request_id)
        self._operations.start(
            operation, work() if self._tracing is None else self._traced(work, params)
        )

    async def _traced(self, work: Callable[[], Awaitable[None]], params: Params) -> None:
        """Operate in the trace that the message names, or else the handshake."""
        assert self._tracing is not None  # noqa: S101 - asked before.
        given = params.extensions or {}
        carrier = given if "traceparent" in given else Headers(scope=self._scope)
        attributes = {"noosphere.transport": "ws", "url.path": self._scope["path"]}
        await self._tracing.called(work, carrier, attributes)

    async def _operate(
        self, operation: Operation, state: ConnectionState, params: Params, request_id: str
    ) -> None:
        try:
            async with asyncio.timeout(self._options.operation_timeout_s):
                context = await state.make_context(request_id)
            prepared = await prepare(self._engine, self._documents, params, context)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            failed = Result.refused([request_failure(error, request_id)])
            await self._operations.fail(operation, failed, "error")
            return
        if isinstance(prepared, Prepared):
            await self._operations.run(operation, prepared, context, request_id)
        else:
            await self._operations.fail(operation, prepared, "refused")


_HANDLERS: dict[str, Callable[[Socket, dict[str, Any]], Awaitable[None] | None]] = {
    "ping": Socket._on_ping,
    "pong": Socket._on_pong,
    "subscribe": Socket._on_subscribe,
    "complete": Socket._on_complete,
    "connection_init": Socket._on_init,
}
