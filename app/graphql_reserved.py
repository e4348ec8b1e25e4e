"""One reserved event stream: the operations that run under it, and the response that tells of all.

This is the single connection mode of graphql-sse (its PROTOCOL.md): `next` and `complete` carry the
id of their operation. What waits is bounded as on a WebSocket: streams hold their own events, the
rest waits for room.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from app import graphql_metrics
from app.graphql_framing import Answer, EventStream
from app.graphql_outbox import Dispatcher, Line, Outbox
from app.graphql_protocol import MAX_ID
from app.graphql_request import BadRequestError
from app.graphql_stream import HttpStream
from schema.execution import (
    Engine,
    ErrorDict,
    Event,
    Prepared,
    Result,
    Stream,
    encode,
    request_failure,
)

_MAX_MESSAGES, _MAX_BYTES = 256, 1024 * 1024
_TURN = 16


class _Piece:
    """Bytes of the response, framed already."""

    __slots__ = ("body",)

    cursor: str | None = None
    errors: list[ErrorDict] = []  # noqa: RUF012 - of all pieces: they have none.
    is_executed = True

    def __init__(self, body: bytes) -> None:
        self.body = body

    def json(self) -> bytes:
        return self.body


class Framing(EventStream):
    """A response of pieces that are server-sent events already."""

    name = "sse_single"
    end = b""
    # An operation's request and the stream come over two connections. A client that sees the end of
    # the stream before it reads that an operation was accepted (graphql-sse 2.6) takes a whole
    # response for one with nothing left to wait for, and then waits for that operation for ever.
    breaks_off = True

    def event(self, answer: Answer) -> bytes:
        """Give a piece as it is."""
        return answer.json()

    def failure(self, _errors: list[ErrorDict]) -> bytes:
        """Say nothing: what ends before its completion is begun anew by clients."""
        return b""


class _Outlet:
    """The way out of an outbox into a response, which takes piece after piece."""

    def __init__(self) -> None:
        self.on_writable: Callable[[], None] | None = None
        self.on_text: Callable[[str], bool] | None = None
        self.on_abort: Callable[[], None] | None = None
        self.is_writable = False
        self._parts: list[bytes] = []
        self._news = asyncio.Event()

    def add(self, _size: int, *parts: bytes) -> None:
        """Add a message that is made of parts."""
        self._parts.extend(parts)

    def flush(self) -> None:
        """Let what was added be taken."""
        if self._parts:
            self.is_writable = False
            self._news.set()

    def stalled_s(self) -> float:
        """Give 0: the response itself watches its client."""
        return 0.0

    def abort(self) -> None:
        """End the stream."""
        if self.on_abort is not None:
            self.on_abort()

    async def pieces(self) -> AsyncGenerator[_Piece, None]:
        """Give what comes, without end. The first piece is there at once: the stream is open."""
        yield _Piece(b":\n\n")
        while True:
            self.is_writable = True
            if self.on_writable is not None:
                self.on_writable()
            await self._news.wait()
            self._news.clear()
            body = b"".join(self._parts)
            self._parts.clear()
            yield _Piece(body)


@dataclass(slots=True, eq=False)
class Operation:
    """One operation of a reserved stream."""

    id: str
    type: str = "unknown"
    outcome: str = "canceled"
    is_silent: bool = False
    started: float = field(default_factory=time.perf_counter)
    task: "asyncio.Task[None] | None" = None
    line: Line | None = None

    @property
    def head(self) -> bytes:
        """All of a `next` event that comes before its payload."""
        return b'event: next\ndata: {"id":' + orjson.dumps(self.id) + b',"payload":'

    @property
    def last(self) -> bytes:
        """The `complete` event."""
        return b'event: complete\ndata: {"id":' + orjson.dumps(self.id) + b"}\n\n"


class ReservedStream:
    """A stream that `who` reserved. It lives until `close`, which says so to `on_close`.

    At most `max_operations` run at once. Tasks of operations are kept in `tasks`, whose owner waits
    for them: a mutation under way when the stream closes is finished unheard.
    """

    def __init__(
        self,
        who: Any,
        engine: Engine,
        dispatcher: Dispatcher,
        *,
        max_operations: int,
        timeout_s: float,
        tasks: set["asyncio.Task[None]"],
        on_close: Callable[["ReservedStream"], None],
    ) -> None:
        self.who = who
        self.is_closed = False
        self._engine = engine
        self._max_operations = max_operations
        self._timeout_s = timeout_s
        self._tasks = tasks
        self._on_close = on_close
        self._operations: dict[str, Operation] = {}
        self._running: set[Operation] = set()
        self._response: HttpStream | None = None
        self._outlet = _Outlet()
        self._outlet.on_abort = self.end
        self._outbox = Outbox(
            self._outlet,
            dispatcher,
            max_items=_MAX_MESSAGES,
            max_bytes=_MAX_BYTES,
            tail_of=_tail,
        )

    # ---- the response

    @property
    def is_open(self) -> bool:
        """Whether somebody reads it."""
        return self._response is not None

    def open(self, response: HttpStream) -> AsyncGenerator[_Piece, None]:
        """Give what `response` tells; the stream is closed with it by whoever runs it."""
        self._response = response
        return self._outlet.pieces()

    def end(self, _reason: str = "") -> None:
        """Break the response off without completing anything, so that the client comes back."""
        if self._response is not None:
            self._response.end()
        self.close()

    def close(self) -> None:
        """Stop every operation and forget what waits."""
        if self.is_closed:
            return
        self.is_closed = True
        self._outbox.close()
        for operation in tuple(self._running):
            self._silence(operation)
        self._operations.clear()
        self._on_close(self)

    # ---- operations

    def reserve(self, id_: Any) -> Operation:
        """Give a new operation its place. Raises BadRequestError."""
        if not isinstance(id_, str) or not 0 < len(id_) <= MAX_ID:
            raise BadRequestError(
                "An operation of a reserved stream needs `extensions.operationId`: a string of 1 "
                f"to {MAX_ID} characters, by which its events are told apart."
            )
        if id_ in self._operations:
            raise BadRequestError(
                "An operation with this `operationId` is under way: choose another id.",
                status=409,
                code="CONFLICT",
            )
        if len(self._running) >= self._max_operations:
            raise BadRequestError(
                f"This stream already runs {self._max_operations} operations, which is the limit. "
                "Complete some of them first.",
                code="LIMIT",
            )
        operation = self._operations[id_] = Operation(id_)
        self._running.add(operation)
        return operation

    def start(
        self, operation: Operation, prepared: Prepared, context: Any, request_id: str
    ) -> None:
        """Run an operation that has its place."""
        operation.type = prepared.type
        run = self._run(operation, prepared, context, request_id)
        task = operation.task = asyncio.get_running_loop().create_task(run)
        self._tasks.add(task)
        # A callback, for a task cancelled before its first step never reaches a `finally`.
        task.add_done_callback(partial(self._ended, operation))

    def stop(self, id_: str) -> None:
        """Stop an operation and say no more about it; one that is not there is over already."""
        operation = self._operations.pop(id_, None)
        if operation is not None:
            self._silence(operation)

    def give_up(self, operation: Operation) -> None:
        """Let go of the place of an operation that did not start."""
        self._running.discard(operation)
        if self._operations.get(operation.id) is operation:
            del self._operations[operation.id]

    async def _run(
        self, operation: Operation, prepared: Prepared, context: Any, request_id: str
    ) -> None:
        try:
            if prepared.type == "subscription":
                await self._stream(operation, prepared, context)
                return
            result = await self._engine.execute(prepared, context, timeout_s=self._timeout_s)
            await self._say_last(operation, result)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            operation.outcome = "error"
            await self._say(operation, _failed(operation, [request_failure(error, request_id)]))

    async def _stream(self, operation: Operation, prepared: Prepared, context: Any) -> None:
        source = await self._engine.subscribe(prepared, context, timeout_s=self._timeout_s)
        if isinstance(source, Result):
            await self._say_last(operation, source)
        elif isinstance(source, Stream):
            # From here on nothing but the stream's queue costs: no task waits for its events.
            ended = partial(self._stream_ended, operation)
            operation.line = self._outbox.connect(operation.head, source, ended)
        else:
            count = 0
            async with aclosing(source):
                async for result in source:
                    if not result.is_executed:
                        await self._say_last(operation, result)
                        return
                    await self._say(operation, operation.head + result.json() + _tail(result))
                    count += 1
                    if count % _TURN == 0:
                        # Neither a source with a backlog nor the queue need ever suspend.
                        await asyncio.sleep(0)
            operation.outcome = "ok"
            await self._say(operation, operation.last)

    def _stream_ended(self, operation: Operation, stream: Stream) -> bytes:
        end = stream.end
        operation.outcome = "ok" if end is None else graphql_metrics.outcome(end)
        self._forget(operation)
        return operation.last if end is None else _failed(operation, end.errors)

    async def _say_last(self, operation: Operation, result: Result) -> None:
        operation.outcome = graphql_metrics.outcome(result)
        told = operation.head + result.json() + _tail(result) + operation.last
        await self._say(operation, told)

    async def _say(self, operation: Operation, message: bytes) -> None:
        if not operation.is_silent:
            await self._outbox.put(message)

    def _silence(self, operation: Operation) -> None:
        """Say no more about an operation, and cancel it unless it is a mutation."""
        operation.is_silent = True
        if operation.line is not None:
            self._forget(operation)
        elif operation.type != "mutation" and operation.task is not None:
            operation.task.cancel()

    def _ended(self, operation: Operation, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        operation.task = None
        if operation.line is None:
            self._forget(operation)

    def _forget(self, operation: Operation) -> None:
        if operation not in self._running:
            return
        if operation.line is not None:
            operation.line.close()
        self.give_up(operation)
        is_stream = operation.type == "subscription"
        seconds = None if is_stream else time.perf_counter() - operation.started
        graphql_metrics.record(operation.type, Framing.name, operation.outcome, seconds)


def _tail(answer: Event | Result) -> bytes:
    """Give what follows a payload: the cursor is the id of the event."""
    if answer.cursor is None:
        return b"}\n\n"
    return b"}\nid: %b\n\n" % answer.cursor.encode()


def _failed(operation: Operation, errors: list[ErrorDict]) -> bytes:
    """Give the errors as an answer, for the protocol has no other word for them, and complete."""
    return operation.head + encode({"errors": errors}) + b"}\n\n" + operation.last
