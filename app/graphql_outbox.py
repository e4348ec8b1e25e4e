"""What waits to be sent on one socket: a bounded queue of messages, and the streams that are ready.

Streams are not copied into the queue: their events wait in their own bounded queues, are merged or
let go there, and are taken only when the connection takes more. So a client that stops reading
costs what its streams may hold and not a byte more.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from app.graphql_metrics import DELIVERY
from app.graphql_outlet import Outlet
from schema.execution import Event, Room, Stream

logger = logging.getLogger(__name__)

_REST, _LONGEST_REST_S = 2.0, 0.04
_WRITE_BYTES = 64 * 1024
"""Bytes that are framed and written at once."""


class Dispatcher:
    """Flushes the outboxes that have something to send, all in one go.

    In the next turn of the loop, as long as that leaves time for other things: after a flush that
    took long the next one waits twice as long, at most 40 ms. Under load events are so written
    several at a time, which is what saves system calls; without load nothing waits.
    """

    def __init__(self) -> None:
        self._outboxes: list[Outbox] = []
        self._loop = asyncio.get_running_loop()
        self._rest_until = 0.0

    def add(self, outbox: "Outbox") -> None:
        """Flush an outbox soon."""
        if not self._outboxes:
            if self._rest_until > self._loop.time():
                self._loop.call_at(self._rest_until, self._flush)
            else:
                self._loop.call_soon(self._flush)
        self._outboxes.append(outbox)

    def _flush(self) -> None:
        outboxes, self._outboxes = self._outboxes, []
        now = self._loop.time()
        for outbox in outboxes:
            try:
                outbox.flush(now)
            except Exception:
                # What one socket cannot send must not silence those behind it.
                logger.exception("A socket's messages could not be sent")
                outbox.abort()
        end = self._loop.time()
        self._rest_until = end + min(_REST * (end - now), _LONGEST_REST_S)


class Line:
    """A stream on its way out under one operation's id.

    `head` comes before every payload. `ended(stream)` gives the last message and is called once the
    stream is done.
    """

    __slots__ = ("_outbox", "ended", "head", "is_ready", "stream")

    def __init__(
        self, outbox: "Outbox", head: bytes, stream: Stream, ended: Callable[[Stream], bytes | None]
    ) -> None:
        self._outbox = outbox
        self.head = head
        self.stream = stream
        self.ended = ended
        self.is_ready = False
        stream.on_ready = self.ready

    def ready(self) -> None:
        """Let the stream be looked at in the next turn."""
        if not self.is_ready:
            self.is_ready = True
            self._outbox.line_is_ready(self)

    def close(self) -> None:
        """Take no more from the stream."""
        self.stream.close()
        self._outbox.line_is_gone(self)


class Outbox:
    """Sends messages and the events of streams in turn, as the connection takes them.

    Holds at most `max_items` messages or `max_bytes` bytes of them (one larger message is let into
    an empty queue): `put` waits while it is full. `tail_of` gives what follows an event's payload,
    where that is not the same for all.
    """

    def __init__(
        self,
        outlet: Outlet,
        dispatcher: Dispatcher,
        *,
        max_items: int,
        max_bytes: int,
        tail_of: Callable[[Event], bytes] | None = None,
    ) -> None:
        self._tail_of = tail_of
        self._outlet = outlet
        self._dispatcher = dispatcher
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._messages: deque[bytes] = deque()
        self._size_bytes = 0
        self._lines: dict[Line, None] = {}
        self._streams_room = Room()
        self.is_full = False
        self._room: asyncio.Event | None = None
        self._is_waiting = False
        self._is_closed = False
        outlet.on_writable = self._wake

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def size_bytes(self) -> int:
        """Bytes of messages queued now; what streams hold is theirs."""
        return self._size_bytes

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._messages and not self._lines and self._outlet.is_writable

    async def put(self, message: bytes) -> None:
        """Queue a message once there is room. Does nothing when closed."""
        while self.is_full:
            if self._room is None:
                self._room = asyncio.Event()
            self._room.clear()
            await self._room.wait()
        self.put_nowait(message)

    def put_nowait(self, message: bytes) -> None:
        """Queue a message even past the bounds; for the few the server itself begins."""
        if self._is_closed:
            return
        self._messages.append(message)
        self._size_bytes += len(message)
        if len(self._messages) >= self._max_items or self._size_bytes >= self._max_bytes:
            self.is_full = True
        self._wake()

    def connect(self, head: bytes, stream: Stream, ended: Callable[[Stream], bytes | None]) -> Line:
        """Send the events of a stream from now on."""
        stream.share(self._streams_room)
        line = Line(self, head, stream, ended)
        line.ready()
        return line

    def line_is_ready(self, line: Line) -> None:
        """Look at a line in the next turn."""
        self._lines[line] = None
        self._wake()

    def line_is_gone(self, line: Line) -> None:
        """Look at a line no more."""
        self._lines.pop(line, None)

    def flush(self, now: float) -> None:
        """Write as much as the connection takes. `now` is the time of the loop."""
        self._is_waiting = False
        outlet = self._outlet
        while (self._messages or self._lines) and outlet.is_writable and not self._is_closed:
            size = self._add_messages()
            while self._lines and size < _WRITE_BYTES:
                size += self._add_events(next(iter(self._lines)), _WRITE_BYTES - size, now)
            outlet.flush()
        if (
            self.is_full
            and len(self._messages) * 2 <= self._max_items
            and self._size_bytes * 2 <= self._max_bytes
        ):
            # Let in again at half the bounds: once per batch, not once per message.
            self._let_in()

    def _let_in(self) -> None:
        self.is_full = False
        if self._room is not None:
            self._room.set()

    def _add_messages(self) -> int:
        size = 0
        while self._messages and size < _WRITE_BYTES:
            message = self._messages.popleft()
            self._size_bytes -= len(message)
            self._outlet.add(len(message), message)
            size += len(message)
        return size

    def _add_events(self, line: Line, max_bytes: int, now: float) -> int:
        """Add what a line has, up to about `max_bytes`; it goes to the end of the queue."""
        del self._lines[line]
        line.is_ready = False
        stream, head, add = line.stream, line.head, self._outlet.add
        events = stream.take(max_bytes)
        size = 0
        tail_of, tail = self._tail_of, b"}"
        for event in events:
            json = event.json()
            if tail_of is not None:
                tail = tail_of(event)
            length = len(head) + len(json) + len(tail)
            add(length, head, json, tail)
            size += length
        if events:
            DELIVERY.observe(now - events[0].created_at, len(events))
        if stream.is_done:
            last = line.ended(stream)
            if last is not None:
                add(len(last), last)
        elif len(stream):
            line.is_ready = True
            self._lines[line] = None
        return size

    def abort(self) -> None:
        """Drop the connection: what it was to be sent next cannot be."""
        self._outlet.abort()

    def stalled_s(self) -> float:
        """Seconds for which the connection has taken nothing of what waits."""
        return self._outlet.stalled_s()

    def close(self) -> None:
        """Forget what is queued and let everybody go who waits for room."""
        self._is_closed = True
        self._messages.clear()
        self._lines.clear()
        self._size_bytes = 0
        self._let_in()

    def _wake(self) -> None:
        if not self._is_waiting and not self._is_closed:
            self._is_waiting = True
            self._dispatcher.add(self)
