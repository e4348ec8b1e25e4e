"""One WebSocket connection speaking graphql-transport-ws."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app import graphql_budget, graphql_metrics
from app import graphql_protocol as protocol
from app.graphql_documents import Documents
from app.graphql_outbox import Dispatcher, Line, Outbox
from app.graphql_outlet import AsgiOutlet, outlet_of
from app.graphql_protocol import (
    Connect,
    ConnectionState,
    ConnectKnown,
    Signal,
    SocketOptions,
    connect_nobody,
)
from app.graphql_request import BadRequestError, Params, read_params
from schema.execution import (
    Engine,
    ErrorDict,
    Prepared,
    Result,
    Stream,
    encode,
    failure,
    request_failure,
)
from services.errors import RequestError

if TYPE_CHECKING:
    from app.spans import Tracing

logger = logging.getLogger(__name__)

_EXPIRY_CHECK_S = 60.0
"""A client that signs in anew on the open socket moves its expiry: look again now and then."""

_SETTLE_S = 1.0
_TURN = 16
"""Events of one stream that are handled before the other streams of the process get their turn."""


@dataclass(slots=True, eq=False)
class _Operation:
    id: str
    type: str = "unknown"
    outcome: str = "canceled"
    is_silent: bool = False
    started: float = field(default_factory=time.perf_counter)
    task: "asyncio.Task[None] | None" = None
    line: Line | None = None


class Socket:
    """Reads and answers the messages of one accepted connection until either side closes it.

    Leaving `run` has closed every stream; a mutation under way is finished first, unheard.
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
        self.state: ConnectionState | None = None
        self.viewer_id: str | None = None
        self._engine = engine
        self._connect = connect
        self._connect_known = connect_known
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
        self._operations: dict[str, _Operation] = {}
        self._running: set[_Operation] = set()
        self._count = 0
        self._has_init = False
        self._is_handling = False
        self._reading: asyncio.Timeout | None = None
        self._close: tuple[int, str] | None = None
        self._is_lost = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._release: Callable[[], None] | None = None
        self._helpers: list[asyncio.Task[None]] = []

    # ---- life

    async def run(self) -> None:
        """Serve the connection to its end."""
        self._timer("init", self._options.init_timeout_s, self._init_timed_out)
        self._timer("tick", self._options.ping_interval_s, self._tick)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                if isinstance(self._outlet, AsgiOutlet):
                    self._helpers.append(group.create_task(self._write(self._outlet)))
                else:
                    self._outlet.on_text = self._take
                await self._read_to_the_end()
                self._stop_timers()
                self._outlet.on_text = None
                self._outbox.close()
                for task in self._helpers:
                    task.cancel()
                for operation in tuple(self._running):
                    self._silence(operation)
                await self._send_close()
        finally:
            self._stop_timers()
            if self._release is not None:
                self._release()
            for operation in tuple(self._running):
                self._silence(operation)

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
        is_full = len(self._running) >= self._options.max_operations
        if self._is_handling or is_full or self._outbox.is_full:
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
        self._cancel_timer("pong")
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
        if self._has_init:
            self.close(protocol.TOO_MANY_INITS, "Too many initialisation requests")
            return
        if not self._has_map_payload(message):
            return
        self._has_init = True
        self._cancel_timer("init")
        payload = message.get("payload")
        try:
            state = self._connect_known(self._scope, payload)
        except Exception as error:  # noqa: BLE001 - told, and logged unless it is a refusal.
            self._sign_in_failed(error)
            return
        if state is not None:
            self._signed_in(state)
            return
        # In a task of its own, for what arrives before the acknowledgement must be refused.
        self._helpers.append(self._group.create_task(self._sign_in(payload)))

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
        operation = self._operations.pop(id_, None) if id_ is not None else None
        if operation is not None:
            self._silence(operation)

    def _put(self, message: bytes) -> Awaitable[None] | None:
        if self._outbox.is_full:
            return self._outbox.put(message)
        self._outbox.put_nowait(message)
        return None

    def _on_subscribe(self, message: dict[str, Any]) -> Awaitable[None] | None:
        state = self.state
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
        if len(self._running) >= self._options.max_operations:
            return self._begin_when_there_is_room(id_, state, params)
        self._begin(id_, state, params)
        return None

    async def _begin_when_there_is_room(
        self, id_: str, state: ConnectionState, params: Params
    ) -> None:
        await self._settle()
        if len(self._running) < self._options.max_operations:
            self._begin(id_, state, params)
            return
        limit = f"This socket already runs {self._options.max_operations} operations, "
        full = failure("LIMIT", limit + "which is the limit. Complete some of them first.")
        await self._outbox.put(protocol.frame(protocol.head(id_, b"error"), encode([full])))

    def _begin(self, id_: str, state: ConnectionState, params: Params) -> None:
        operation = _Operation(id_)
        self._operations[id_] = operation
        self._running.add(operation)
        self._count += 1
        request_id = f"{self.id}-{self._count}"
        work = partial(self._operate, operation, state, params, request_id)
        task = self._group.create_task(
            work() if self._tracing is None else self._traced(work, params)
        )
        operation.task = task
        # A callback, for a task cancelled before its first step never reaches a `finally`.
        task.add_done_callback(partial(self._ended, operation))

    async def _traced(self, work: Callable[[], Awaitable[None]], params: Params) -> None:
        """Operate in the trace that the message names, or else the handshake."""
        assert self._tracing is not None  # noqa: S101 - asked before.
        given = params.extensions or {}
        carrier = given if "traceparent" in given else Headers(scope=self._scope)
        attributes = {"noosphere.transport": "ws", "url.path": self._scope["path"]}
        await self._tracing.called(work, carrier, attributes)

    async def _settle(self) -> None:
        """Let an operation end that is about to, such as one the client has given up."""
        tasks = [operation.task for operation in self._running if operation.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_S, return_when=asyncio.FIRST_COMPLETED)

    def _has_map_payload(self, message: dict[str, Any]) -> bool:
        payload = message.get("payload")
        if payload is None or isinstance(payload, dict):
            return True
        self.close(protocol.BAD_REQUEST, "Invalid message: `payload` must be a map")
        return False

    def _operation_id(self, message: dict[str, Any]) -> str | None:
        id_ = message.get("id")
        if isinstance(id_, str) and 0 < len(id_) <= protocol.MAX_ID:
            return id_
        self.close(
            protocol.BAD_REQUEST,
            f"Invalid message: `id` must be a string of 1 to {protocol.MAX_ID} characters",
        )
        return None

    # ---- sign-in

    async def _sign_in(self, payload: dict[str, Any] | None) -> None:
        try:
            async with asyncio.timeout(self._options.init_timeout_s):
                state = await self._connect(self._scope, payload)
        except Exception as error:  # noqa: BLE001 - told, and logged unless it is a refusal.
            self._sign_in_failed(error)
            return
        self._signed_in(state)

    def _sign_in_failed(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            self.close(protocol.TRY_AGAIN, "Signing in took too long. Try again later")
        elif isinstance(error, RequestError) and error.code in ("RATE_LIMITED", "UNAVAILABLE"):
            self.close(protocol.TRY_AGAIN, error.message)
        elif isinstance(error, RequestError):
            self.close(protocol.FORBIDDEN, "Forbidden")
        else:
            logger.error("Signing in on a socket failed (socket id %s).", self.id, exc_info=error)
            self.close(protocol.INTERNAL, "Internal server error")

    def _signed_in(self, state: ConnectionState) -> None:
        self.state = state
        self.viewer_id = state.viewer_id
        if not self._is_welcome(self):
            self.close(protocol.TRY_AGAIN, "Too many open sockets. Close some first")
            return
        ack: dict[str, Any] = {"type": "connection_ack"}
        if state.ack_payload:
            ack["payload"] = state.ack_payload
        self._outbox.put_nowait(encode(ack))
        self._release = state.on_end(self._sign_in_ended)
        if self._release is not None:
            return
        self._check_expiry()
        if state.revoked is not None:
            self._helpers.append(self._group.create_task(self._heed(state.revoked)))

    async def _heed(self, revoked: Signal) -> None:
        await revoked.wait()
        self.close(protocol.FORBIDDEN, "Session revoked")

    def _sign_in_ended(self, reason: str) -> None:
        self.close(protocol.FORBIDDEN, reason)

    def _check_expiry(self) -> None:
        expires_at = self.state.expires_at if self.state else None
        if expires_at is None:
            self._timer("expiry", _EXPIRY_CHECK_S, self._check_expiry)
            return
        left_s = (expires_at - datetime.now(UTC)).total_seconds()
        if left_s <= 0:
            self.close(protocol.FORBIDDEN, "Session expired")
            return
        self._timer("expiry", min(left_s, _EXPIRY_CHECK_S), self._check_expiry)

    # ---- operations

    async def _operate(
        self, operation: _Operation, state: ConnectionState, params: Params, request_id: str
    ) -> None:
        try:
            async with asyncio.timeout(self._options.operation_timeout_s):
                context = await state.make_context(request_id)
            graphql_budget.check(context)
            is_permitted = graphql_budget.may_run_anything(context)
            text = self._documents.text(params, is_permitted=is_permitted)
            is_new = text not in self._engine.documents
            prepared = await self._engine.prepare_async(
                text, params.operation_name, params.variables
            )
            is_refused = not isinstance(prepared, Prepared)
            await graphql_budget.charge_reading(context, text, is_new=is_new, is_refused=is_refused)
            if not isinstance(prepared, Prepared):
                operation.outcome = "refused"
                await self._say_error(operation, prepared)
                return
            self._documents.register(params)
            operation.type = prepared.type
            if prepared.type == "subscription":
                await self._stream(operation, prepared, context)
            else:
                result = await self._engine.execute(
                    prepared, context, timeout_s=self._options.operation_timeout_s
                )
                await self._say_last(operation, result)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            operation.outcome = "error"
            await self._say_error(operation, [request_failure(error, request_id)])

    async def _stream(self, operation: _Operation, prepared: Prepared, context: Any) -> None:
        stream = await self._engine.subscribe(
            prepared, context, timeout_s=self._options.operation_timeout_s
        )
        if isinstance(stream, Result):
            await self._say_last(operation, stream)
            return
        head = protocol.head(operation.id, b"next")
        if isinstance(stream, Stream):
            # From here on nothing but the stream's queue costs: no task waits for its events.
            ended = partial(self._stream_ended, operation)
            operation.line = self._outbox.connect(head, stream, ended)
            return
        put = self._outbox.put
        count = 0
        async with aclosing(stream):
            async for result in stream:
                if not result.is_executed:
                    await self._say_last(operation, result)
                    return
                await put(protocol.frame(head, result.json()))
                count += 1
                if count % _TURN == 0:
                    # Neither a source with a backlog nor `put` need ever suspend: let others in.
                    await asyncio.sleep(0)
        operation.outcome = "ok"
        await self._say(operation, protocol.complete(operation.id))

    def _stream_ended(self, operation: _Operation, stream: Stream) -> bytes:
        """Give the last message of an operation, and forget it."""
        end = stream.end
        operation.outcome = "ok" if end is None else graphql_metrics.outcome(end)
        self._forget(operation)
        if end is None:
            return protocol.complete(operation.id)
        return protocol.frame(protocol.head(operation.id, b"error"), encode(end.errors))

    async def _say_last(self, operation: _Operation, result: Result) -> None:
        if not result.is_executed:
            operation.outcome = graphql_metrics.outcome(result)
            await self._say_error(operation, result.errors)
            return
        frame = protocol.frame(protocol.head(operation.id, b"next"), result.json())
        operation.outcome = graphql_metrics.outcome(result)
        await self._say(operation, frame)
        await self._say(operation, protocol.complete(operation.id))

    async def _say_error(self, operation: _Operation, errors: list[ErrorDict]) -> None:
        await self._say(
            operation, protocol.frame(protocol.head(operation.id, b"error"), encode(errors))
        )

    async def _say(self, operation: _Operation, frame: bytes) -> None:
        if not operation.is_silent:
            await self._outbox.put(frame)

    def _silence(self, operation: _Operation) -> None:
        """Say no more about an operation, and cancel it unless it is a mutation."""
        operation.is_silent = True
        if operation.line is not None:
            self._forget(operation)
        elif operation.type != "mutation" and operation.task is not None:
            operation.task.cancel()

    def _ended(self, operation: _Operation, _task: "asyncio.Task[None]") -> None:
        operation.task = None
        if operation.line is None:
            self._forget(operation)

    def _forget(self, operation: _Operation) -> None:
        if operation not in self._running:
            return
        if operation.line is not None:
            operation.line.close()
        self._running.discard(operation)
        if self._operations.get(operation.id) is operation:
            del self._operations[operation.id]
        is_stream = operation.type in ("subscription", "unknown")
        seconds = None if is_stream else time.perf_counter() - operation.started
        graphql_metrics.record(operation.type, "ws", operation.outcome, seconds)

    # ---- clocks

    def _timer(self, name: str, after_s: float, callback: Callable[[], None]) -> None:
        self._cancel_timer(name)
        self._timers[name] = self._loop.call_later(after_s, callback)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _stop_timers(self) -> None:
        for name in list(self._timers):
            self._cancel_timer(name)

    def _init_timed_out(self) -> None:
        self.close(protocol.INIT_TIMEOUT, "Connection initialisation timeout")

    def _tick(self) -> None:
        """Ping, and give up a peer that takes nothing."""
        if self._outbox.stalled_s() > self._options.send_timeout_s:
            self._is_lost = True
            self._outlet.abort()
            self.close(protocol.TERMINATED, "")
            return
        self._timer("tick", self._options.ping_interval_s, self._tick)
        # Behind a queue that does not move a ping would time out for the wrong reason.
        if self.state is not None and "pong" not in self._timers and self._outbox.is_empty:
            self._outbox.put_nowait(b'{"type":"ping"}')
            self._timer("pong", self._options.pong_timeout_s, self._pong_timed_out)

    def _pong_timed_out(self) -> None:
        self.close(protocol.TERMINATED, "No pong in time")


_HANDLERS: dict[str, Callable[[Socket, dict[str, Any]], Awaitable[None] | None]] = {
    "ping": Socket._on_ping,
    "pong": Socket._on_pong,
    "subscribe": Socket._on_subscribe,
    "complete": Socket._on_complete,
    "connection_init": Socket._on_init,
}
