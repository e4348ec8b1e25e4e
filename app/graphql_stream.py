"""Subscriptions over HTTP: responses that go on.

What ends a stream before its natural end (a sign-in that is over, a restart) ends the response
without the words for completion: to clients that is a broken connection, and they come back. Where
clients might not notice, the connection is broken indeed.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.types import Receive

from app import graphql_metrics
from app.graphql_framing import HEADERS, Answers, Framing
from app.graphql_register import Register
from app.graphql_reply import Reply
from app.graphql_request import abort, gone, hang_up
from schema.execution import ErrorDict, Event, Result, request_failure
from services.errors import RateLimitedError, UnavailableError

logger = logging.getLogger(__name__)

OnEnd = Callable[[str], None]

_TURN = 16
"""Events of one stream that are sent before the other streams of the process get their turn."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Times in seconds."""

    # How long the status waits for a first answer, which may be a refusal.
    patience_s: float = 0.25
    keep_alive_s: float = 15.0
    send_timeout_s: float = 30.0
    close_timeout_s: float = 1.0
    # How long a reserved stream waits to be opened.
    unused_s: float = 30.0


class HttpStream:
    """One response that goes on until its answers end, its client leaves, or `end` is called.

    A client that takes nothing for `send_timeout_s` seconds is cut off. Nothing is queued here:
    whoever makes the answers waits, beyond what the connection's own buffers take. If the first
    answer is a failure and comes soon, it is left in `refusal` and nothing is sent.
    """

    def __init__(
        self,
        framing: Framing,
        receive: Receive,
        reply: Reply,
        *,
        options: StreamOptions,
    ) -> None:
        self.framing = framing
        self.refusal: Result | None = None
        self._receive = receive
        self._reply = reply
        self._options = options
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

    async def run(self, answers: Answers) -> str:
        """Send it all; give the outcome for the metrics. Closes `answers` whatever happens."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(answers.aclose)
            try:
                async with asyncio.timeout(None) as self._life:
                    if self._stopped is None:
                        await self._serve(answers)
            except TimeoutError:
                if self._stopped is None:
                    raise
            finally:
                self._life = None
        if not self._is_complete and self.refusal is None:
            await self._finish()
        return self._outcome

    def _stop(self, how: str) -> None:
        if self._stopped is None:
            self._stopped = how
            if self._life is not None:
                self._life.reschedule(self._loop.time())

    async def _serve(self, answers: Answers) -> None:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(self._watch())
            await self._pump(answers)
            watcher.cancel()

    async def _pump(self, answers: Answers) -> None:
        count = 0
        try:
            async for answer in answers:
                if not answer.is_executed:
                    await self._fail(answer.errors)
                    return
                await self._write(self.framing.event(answer))
                if isinstance(answer, Event):
                    graphql_metrics.DELIVERY.observe(self._sent_at - answer.created_at, 1)
                count += 1
                if count % _TURN == 0:
                    # Neither a source with a backlog nor a client that reads need ever suspend.
                    await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            await self._fail([request_failure(error, self._reply.request_id)])
            return
        self._outcome = "ok"
        await self._write_last(b"")

    async def _fail(self, errors: list[ErrorDict]) -> None:
        failed = Result.refused(errors)
        if self._is_started:
            self._outcome = "error"
            await self._write_last(self.framing.failure(errors))
        else:
            self._outcome = graphql_metrics.outcome(failed)
            self.refusal = failed

    # ---- writing

    async def _begin(self) -> None:
        self._is_started = True
        self._sending_since = self._loop.time()
        await self._reply.send(self._reply.head(200, {**HEADERS, **self.framing.headers}))
        await self._put(self.framing.begin())

    async def _write(self, body: bytes) -> None:
        if not self._is_started:
            await self._begin()
        self._sending_since = self._loop.time()
        await self._put(body)

    async def _write_last(self, body: bytes) -> None:
        if not self._is_started:
            await self._begin()
        self._sending_since = self._loop.time()
        await self._put(body + self.framing.end, more=False)
        self._is_complete = True

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        await self._reply.send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = None
        self._sent_at = self._loop.time()

    # ---- beside the answers

    async def _watch(self) -> None:
        """Notice a client that left or takes nothing, and keep the connection in use."""
        while True:
            try:
                async with asyncio.timeout_at(self._due()):
                    message = await self._receive()
            except TimeoutError:
                if self._loop.time() >= self._due():
                    await self._overdue()
            else:
                if message["type"] == "http.disconnect":
                    self._stop("gone")
                    return

    def _due(self) -> float:
        if self._sending_since is not None:
            return self._sending_since + self._options.send_timeout_s
        if not self._is_started:
            return self._sent_at + self._options.patience_s
        return self._sent_at + self._options.keep_alive_s

    async def _overdue(self) -> None:
        """Say what is to be said by now, or give the client up."""
        if self._sending_since is not None:
            self._stop("stalled")
            return
        try:
            async with asyncio.timeout(self._options.send_timeout_s):
                await (self._put(self.framing.idle) if self._is_started else self._begin())
        except TimeoutError:
            self._stop("stalled")

    async def _finish(self) -> None:
        """End a response that was stopped."""
        if self._stopped == "ended":
            try:
                async with asyncio.timeout(self._options.close_timeout_s):
                    await self._end()
            except TimeoutError:
                self._stopped = "stalled"
        if self._stopped != "stalled":
            return
        abort(self._receive)
        try:
            async with asyncio.timeout(self._options.close_timeout_s):
                await gone(self._receive)
        except TimeoutError:
            return

    async def _end(self) -> None:
        if not self._is_started:
            await self._begin()
        if self.framing.breaks_off and hang_up(self._receive):
            await gone(self._receive)
        else:
            await self._put(b"", more=False)


class Streams:
    """The streams a process has open: who may open one more, and how they end when it stops.

    `viewer_id` tells who a context is signed in as, `who` by which sign-in; `hold` registers a
    callback for the end of that sign-in and gives what lets go of it again.
    """

    def __init__(
        self,
        register: Register | None = None,
        *,
        options: StreamOptions | None = None,
        viewer_id: Callable[[Any], str | None] = lambda _: None,
        who: Callable[[Any], object] | None = None,
        hold: Callable[[Any, OnEnd], Callable[[], None]] = lambda _context, _end: _nothing,
    ) -> None:
        self.register = register or Register()
        self.options = options or StreamOptions()
        self.who = who or viewer_id
        self.hold = hold
        self.viewer_id = viewer_id
        self._open: set[HttpStream] = set()
        self._is_draining = False
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, context: Any, address: str | None) -> Iterator[None]:
        """Count a stream while the block lasts; as `enter`."""
        leave = self.enter(context, address)
        try:
            yield
        finally:
            leave()

    def enter(self, context: Any, address: str | None) -> Callable[[], None]:
        """Count a stream until what this gives is called.

        Raises RequestError UNAVAILABLE while the process stops, RATE_LIMITED when there are as many
        connections of this viewer (or of this address, where nobody is signed in) as there may be.
        """
        if self._is_draining:
            raise UnavailableError("The server is restarting. Try again in a moment.", 1.0)
        place = self.register.enter(self.viewer_id(context), address)
        if place is None:
            raise RateLimitedError("Too many open streams and sockets. Close some first.", 5.0)
        return partial(self.register.leave, place)

    async def run(self, stream: HttpStream, context: Any, answers: Answers) -> str:
        """Run a stream to its end, which comes early with the sign-in's or the process's.

        Without a context nobody's sign-in ends it.
        """
        gauge = graphql_metrics.HTTP_STREAMS_OPEN.labels(stream.framing.name)
        self._open.add(stream)
        gauge.inc()
        release = _nothing if context is None else self.hold(context, stream.end)
        if self._is_draining:
            stream.end()
        try:
            return await stream.run(answers)
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
