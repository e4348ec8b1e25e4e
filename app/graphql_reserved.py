"""One reserved event stream: the operations that run under it, and the response that tells of all.

This is the single connection mode of graphql-sse (its PROTOCOL.md): `next` and `complete` carry the
id of their operation. What waits is bounded as on a WebSocket: streams hold their own events, the
rest waits for room.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

import orjson

from app.graphql_framing import Answer, EventStream
from app.graphql_operations import MAX_ID, Operation, Operations
from app.graphql_outbox import Dispatcher, Outbox
from app.graphql_request import BadRequestError
from app.graphql_stream import HttpStream
from schema.execution import Engine, ErrorDict, Event, Prepared, Result

_MAX_MESSAGES, _MAX_BYTES = 256, 1024 * 1024


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


class _Words:
    """The events of an operation: `next`, and `complete`."""

    transport = Framing.name

    def head(self, id_: str) -> bytes:
        """Give all of a `next` event that comes before its payload."""
        return b'event: next\ndata: {"id":' + orjson.dumps(id_) + b',"payload":'

    def tail(self, answer: Event | Result) -> bytes:
        """Give what follows a payload: the cursor is the id of the event."""
        if answer.cursor is None:
            return b"}\n\n"
        return b"}\nid: %b\n\n" % answer.cursor.encode()

    def complete(self, id_: str) -> bytes:
        """Give the event that ends an operation."""
        return b'event: complete\ndata: {"id":' + orjson.dumps(id_) + b"}\n\n"

    def failed(self, id_: str, refusal: Result) -> bytes:
        """Give the errors as an answer, for the protocol has no other word, and complete."""
        return self.head(id_) + refusal.json() + self.tail(refusal) + self.complete(id_)


_WORDS = _Words()


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
        self._on_close = on_close
        self._response: HttpStream | None = None
        self._outlet = _Outlet()
        self._outlet.on_abort = self.end
        self._outbox = Outbox(
            self._outlet,
            dispatcher,
            max_items=_MAX_MESSAGES,
            max_bytes=_MAX_BYTES,
            tail_of=_WORDS.tail,
        )
        self._operations = Operations(
            engine,
            self._outbox,
            _WORDS,
            partial(_spawn, tasks),
            max_running=max_operations,
            timeout_s=timeout_s,
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
        self._outlet.on_abort = None
        self._outbox.close()
        self._operations.close()
        self._on_close(self)

    # ---- operations

    async def reserve(self, id_: Any) -> Operation:
        """Give a new operation its place. Raises BadRequestError."""
        if self._operations.is_full:
            await self._operations.settle()
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
        if self._operations.is_full:
            raise BadRequestError(
                f"This stream already runs {self._operations.max_running} operations, which is the "
                "limit. Complete some of them first.",
                code="LIMIT",
            )
        return self._operations.add(id_)

    def start(
        self, operation: Operation, prepared: Prepared, context: Any, request_id: str
    ) -> None:
        """Run an operation that has its place."""
        operation.type = prepared.type
        run = self._operations.run(operation, prepared, context, request_id)
        self._operations.start(operation, run)

    def stop(self, id_: str) -> None:
        """Stop an operation and say no more about it; one that is not there is over already."""
        self._operations.stop(id_)

    def give_up(self, operation: Operation) -> None:
        """Let go of the place of an operation that did not start."""
        self._operations.drop(operation)


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
