"""Subscriptions over HTTP: a response that goes on, as server-sent events or in parts.

Server-sent events follow the distinct connections mode of graphql-sse (its PROTOCOL.md), parts the
multipart protocol of Apollo's router. What ends a stream here without its natural end (a sign-in
that is over, a restart) ends the response without the words for completion: to clients that is a
broken connection, and they come back.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Message, Receive, Send

from app import graphql_metrics
from app.graphql_media import EVENT_STREAM, MULTIPART
from app.graphql_register import Register
from app.graphql_request import abort
from schema.execution import ErrorDict, Result, encode, request_failure
from services.errors import RateLimitedError, UnavailableError

logger = logging.getLogger(__name__)

OnEnd = Callable[[str], None]

_TURN = 16
"""Events of one stream that are sent before the other streams of the process get their turn."""


class Answer(Protocol):
    """One answer of a stream, such as a Result."""

    cursor: str | None
    errors: list[ErrorDict]

    @property
    def is_executed(self) -> bool:
        """Whether this is an event; if not, it tells why the stream failed, and is its last."""

    def json(self) -> bytes:
        """Give the payload, which many readers share."""


class Answers(Protocol):
    """The answers of one operation; closing them closes their source."""

    def __aiter__(self) -> AsyncIterator[Answer]:
        """Give them in order."""

    async def aclose(self) -> None:
        """Stop."""


class Framing(Protocol):
    """How answers are written into one response."""

    name: str
    headers: Mapping[str, str]
    idle: bytes
    end: bytes

    def begin(self) -> bytes:
        """Give what comes first."""

    def event(self, answer: Answer) -> bytes:
        """Give an answer."""

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give why nothing follows, which `end` must follow."""


def _part(body: bytes) -> bytes:
    return b"\r\ncontent-type: application/json\r\n\r\n%b\r\n--graphql" % body


class EventStream:
    """Server-sent events: `next` with the cursor as their id, and `complete`."""

    name = "sse"
    headers: Mapping[str, str] = {"content-type": f"{EVENT_STREAM}; charset=utf-8"}
    idle = b":\n\n"
    end = b"event: complete\ndata:\n\n"

    def begin(self) -> bytes:
        """Tell how long to wait before coming back: not the same time for all after a restart."""
        return b"retry: %d\n\n" % random.randint(1000, 3000)  # noqa: S311

    def event(self, answer: Answer) -> bytes:
        """Give an answer. JSON as we write it has no line breaks, and neither do cursors."""
        if answer.cursor is None:
            return b"event: next\ndata: %b\n\n" % answer.json()
        return b"event: next\nid: %b\ndata: %b\n\n" % (answer.cursor.encode(), answer.json())

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give the errors as an answer, for the protocol has no other word for them."""
        return b"event: next\ndata: %b\n\n" % encode({"errors": errors})


class Parts:
    """A multipart response. A boundary follows each part at once: clients wait for it."""

    name = "multipart"
    headers: Mapping[str, str] = {
        "content-type": 'multipart/mixed; boundary="graphql"; subscriptionSpec=1.0'
    }
    idle = _part(b"{}")
    end = b"--\r\n"

    def begin(self) -> bytes:
        """Give the first boundary."""
        return b"\r\n--graphql"

    def event(self, answer: Answer) -> bytes:
        """Give an answer."""
        return _part(b'{"payload":%b}' % answer.json())

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give errors that are the transport's, not an answer's."""
        return _part(encode({"payload": None, "errors": errors}))


FRAMINGS: Mapping[str, Framing] = {EVENT_STREAM: EventStream(), MULTIPART: Parts()}
"""By the media type a client asks for."""

HEADERS: Mapping[str, str] = {
    "cache-control": "no-cache, no-store, no-transform",
    # Proxies of the nginx kind would keep events until they have enough of them.
    "x-accel-buffering": "no",
}


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Times in seconds."""

    keep_alive_s: float = 15.0
    send_timeout_s: float = 30.0
    close_timeout_s: float = 1.0


class HttpStream:
    """One response that goes on until its answers end, its client leaves, or `end` is called.

    A client that takes nothing for `send_timeout_s` seconds is cut off. Nothing is queued here:
    whoever makes the answers waits, beyond what the connection's own buffers take.
    """

    def __init__(
        self,
        framing: Framing,
        receive: Receive,
        send: Send,
        *,
        options: StreamOptions,
        request_id: str,
    ) -> None:
        self.framing = framing
        self._receive = receive
        self._send = send
        self._options = options
        self._request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._life: asyncio.Timeout | None = None
        self._stopped: str | None = None
        self._outcome = "canceled"
        self._is_started = False
        self._is_complete = False
        self._sent_at = self._loop.time()
        self._sending_since: float | None = None

    def end(self, _reason: str = "") -> None:
        """End the response without completing it, so that the client comes back."""
        self._stop("ended")

    async def run(self, head: Message, answers: Answers) -> str:
        """Send it all; give the outcome for the metrics. Closes `answers` whatever happens."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(answers.aclose)
            try:
                async with asyncio.timeout(None) as self._life:
                    await self._serve(head, answers)
            except TimeoutError:
                if self._stopped is None:
                    raise
            finally:
                self._life = None
        await self._finish()
        return self._outcome

    def _stop(self, how: str) -> None:
        if self._stopped is None:
            self._stopped = how
            if self._life is not None:
                self._life.reschedule(self._loop.time())

    async def _serve(self, head: Message, answers: Answers) -> None:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._watch())
            self._sending_since = self._loop.time()
            await self._send(head)
            self._is_started = True
            await self._write(self.framing.begin())
            if self._stopped is None:
                await self._pump(answers)
            watcher.cancel()

    async def _pump(self, answers: Answers) -> None:
        count = 0
        try:
            async for answer in answers:
                if not answer.is_executed:
                    self._outcome = "error"
                    await self._write_last(self.framing.failure(answer.errors))
                    return
                await self._write(self.framing.event(answer))
                count += 1
                if count % _TURN == 0:
                    # Neither a source with a backlog nor a client that reads need ever suspend.
                    await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            self._outcome = "error"
            failed = request_failure(error, self._request_id)
            await self._write_last(self.framing.failure([failed]))
            return
        self._outcome = "ok"
        await self._write_last(b"")

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        self._sending_since = self._loop.time()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = None
        self._sent_at = self._loop.time()

    async def _write_last(self, body: bytes) -> None:
        await self._write(body + self.framing.end, more=False)
        self._is_complete = True

    # ---- beside the answers

    async def _watch(self) -> None:
        """Notice a client that left or takes nothing, and keep the connection in use."""
        while True:
            try:
                async with asyncio.timeout_at(self._due()):
                    message = await self._receive()
            except TimeoutError:
                if self._sending_since is None:
                    await self._keep_alive()
                elif self._loop.time() >= self._due():
                    self._stop("stalled")
                    return
            else:
                if message["type"] == "http.disconnect":
                    self._stop("gone")
                    return

    def _due(self) -> float:
        if self._sending_since is None:
            return self._sent_at + self._options.keep_alive_s
        return self._sending_since + self._options.send_timeout_s

    async def _keep_alive(self) -> None:
        if self._loop.time() < self._due():
            return
        try:
            async with asyncio.timeout(self._options.send_timeout_s):
                await self._send(
                    {"type": "http.response.body", "body": self.framing.idle, "more_body": True}
                )
        except TimeoutError:
            self._stop("stalled")
        self._sent_at = self._loop.time()

    async def _finish(self) -> None:
        if self._is_complete or self._stopped == "gone":
            return
        if self._stopped == "ended" and self._is_started:
            try:
                async with asyncio.timeout(self._options.close_timeout_s):
                    await self._send({"type": "http.response.body", "body": b""})
            except TimeoutError:
                pass
            else:
                return
        abort(self._receive)
        try:
            async with asyncio.timeout(self._options.close_timeout_s):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return


def whole(framing: Framing, result: Result) -> bytes:
    """Give the body of a stream with one answer. Raises TypeError for what has no JSON form."""
    answer = framing.event(result) if result.is_executed else framing.failure(result.errors)
    return framing.begin() + answer + framing.end


class Streams:
    """The streams a process has open: who may open one more, and how they end when it stops.

    `viewer_id` tells who a context is signed in as, `hold` registers a callback for the end of that
    sign-in and gives what lets go of it again.
    """

    def __init__(
        self,
        register: Register | None = None,
        *,
        options: StreamOptions | None = None,
        viewer_id: Callable[[Any], str | None] = lambda _: None,
        hold: Callable[[Any, OnEnd], Callable[[], None]] = lambda _context, _end: _nothing,
    ) -> None:
        self.register = register or Register()
        self.options = options or StreamOptions()
        self._viewer_id = viewer_id
        self._hold = hold
        self._open: set[HttpStream] = set()
        self._is_draining = False
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, context: Any, address: str | None) -> Iterator[None]:
        """Count a stream while the block lasts.

        Raises RequestError UNAVAILABLE while the process stops, RATE_LIMITED when there are as many
        connections of this viewer (or of this address, where nobody is signed in) as there may be.
        """
        if self._is_draining:
            raise UnavailableError("The server is restarting. Try again in a moment.", 1.0)
        place = self.register.enter(self._viewer_id(context), address)
        if place is None:
            raise RateLimitedError("Too many open streams and sockets. Close some first.", 5.0)
        try:
            yield
        finally:
            self.register.leave(place)

    async def run(self, stream: HttpStream, context: Any, head: Message, answers: Answers) -> str:
        """Run a stream to its end, which comes early with the sign-in's or the process's."""
        gauge = graphql_metrics.HTTP_STREAMS_OPEN.labels(stream.framing.name)
        self._open.add(stream)
        gauge.inc()
        release = self._hold(context, stream.end)
        if self._is_draining:
            stream.end()
        try:
            return await stream.run(head, answers)
        finally:
            release()
            gauge.dec()
            self._open.discard(stream)
            if not self._open:
                self._empty.set()

    async def drain(self, timeout_s: float = 10.0) -> None:
        """End every stream so that its client comes back, and refuse new ones.

        Returns when all have ended, or after `timeout_s` seconds.
        """
        self._is_draining = True
        for stream in tuple(self._open):
            stream.end()
        if not self._open:
            return
        self._empty.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d streams did not end in time.", len(self._open))


def _nothing() -> None:
    return None
