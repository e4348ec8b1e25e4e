"""Many subscribers in one process: they keep the bytes that come, and check them afterwards.

While a series is under way a subscriber does nothing but keep what it receives with the time, so
that the client is not what is measured. All that was received is checked when the series is over.
"""

import asyncio
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from benchmarks.delivery import frames
from benchmarks.delivery.texts import STAMP, TEXT_CHARS, check_texts

_WAIT_S = 120.0
_SPLIT = 32
_PING = b'{"type":"ping"}'
_PING_FRAME = b"\x89\x00"
_CURSOR = re.compile(rb'"cursor":"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one subscriber follows: the conversation, its number, and how it signs in."""

    conversation_id: str
    topic: int
    sign_in: dict[str, str] | None = None


@dataclass(slots=True)
class Seen:
    """What many subscribers received of a series; times in nanoseconds, sizes in bytes."""

    frames: int = 0
    merged: int = 0
    size: int = 0
    ended: int = 0
    cursor_chars: int = 0
    latencies: list[int] = field(default_factory=list)

    def add(self, other: "Seen") -> None:
        """Add what others received."""
        self.frames += other.frames
        self.merged += other.merged
        self.size += other.size
        self.ended = max(self.ended, other.ended)
        self.cursor_chars = max(self.cursor_chars, other.cursor_chars)
        self.latencies += other.latencies


class Subscriber(asyncio.Protocol):
    """One socket with one subscription, whose operation is called `1`."""

    def __init__(self, owner: "Subscribers", subscription: Subscription) -> None:
        self.subscription = subscription
        self.is_live: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.chunks: list[bytes] = []
        self.times: list[int] = []
        self.is_done = False
        self._owner = owner
        self._begun = b""
        self._step = self._upgraded
        self._keep = False
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket."""
        self.transport = transport
        self.transport.write(frames.upgrade("localhost", "/graphql"))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail whoever waits."""
        tail = b"".join(self.chunks[-2:])[-200:] or self._begun
        lost = AssertionError(f"a subscriber was disconnected ({error}), last heard: {tail!r}")
        if not self.is_live.done():
            self.is_live.set_exception(lost)
        self._owner.lost(lost)

    def data_received(self, data: bytes) -> None:
        """Keep what comes once live; go through the handshakes before."""
        if not self._keep:
            self._begun += data
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - given to whoever waits.
                if not self.is_live.done():
                    self.is_live.set_exception(error)
            return
        before = self.chunks[-1][-_SPLIT:] if self.chunks else b""
        self.chunks.append(data)
        self.times.append(time.monotonic_ns())
        if _PING in data:
            self.transport.write(frames.message("pong"))
        elif _PING_FRAME in data:
            self.transport.write(frames.frame(b"", frames.PONG))
        if not self.is_done:
            mark = self._owner.mark
            if mark in data or mark in before + data[:_SPLIT]:
                self.is_done = True
                self._owner.one_is_done()

    def _upgraded(self) -> None:
        head, is_whole, rest = self._begun.partition(b"\r\n\r\n")
        if not is_whole:
            return
        frames.check_upgraded(head)
        sign_in = self.subscription.sign_in
        self.transport.write(frames.message("connection_init", payload=sign_in))
        self._begun, self._step = rest, self._acknowledged

    def _acknowledged(self) -> None:
        for opcode, begin, end in frames.split(self._begun):
            assert opcode == frames.TEXT, self._begun
            assert b'"connection_ack"' in self._begun[begin:end], self._begun
            variables = {"id": self.subscription.conversation_id}
            payload = {"query": frames.EVENTS, "variables": variables}
            self.transport.write(frames.message("subscribe", id="1", payload=payload))
            self._begun, self._step = self._begun[end:], self._subscribed
            return

    def _subscribed(self) -> None:
        for opcode, begin, end in frames.split(self._begun):
            assert opcode == frames.TEXT, self._begun
            event = frames.event_of(self._begun[begin:end])
            assert event is not None
            assert event["__typename"] == "ConversationReset", event
            assert end == len(self._begun), self._begun[end:]
            self._keep = True
            self.is_live.set_result(None)
            return

    def await_mark(self) -> None:
        """Forget what came between two series; nothing but pings may have."""
        data = b"".join(self.chunks)
        for opcode, begin, end in frames.split(data):
            payload = data[begin:end]
            assert opcode == frames.PING or payload == _PING, payload
        self.chunks, self.times, self.is_done = [], [], False

    def is_whole(self) -> bool:
        """Tell whether what came ends with the end of a frame."""
        data = b"".join(self.chunks)
        return max((end for _, _, end in frames.split(data)), default=0) == len(data)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One stream taken apart: the ends of its text frames, and (end, time) of every stamp."""

    data: bytes
    frames: int
    cursor_chars: int
    stamps: Sequence[tuple[int, int]]


class Subscribers:
    """All subscribers of one process; its coroutines are called through a `Child`."""

    def __init__(self) -> None:
        self.mark = b""
        self._subscribers: list[Subscriber] = []
        self._left = 0
        self._all_done: asyncio.Future[None] | None = None

    async def connect(
        self, port: int, subscriptions: Sequence[Subscription], in_flight: int
    ) -> tuple[int, int]:
        """Open all, so many at a time; gives the times of the first connect and the last event."""
        loop = asyncio.get_running_loop()
        waiting = iter(subscriptions)

        async def open_some() -> None:
            for subscription in waiting:
                _, subscriber = await loop.create_connection(
                    lambda which=subscription: Subscriber(self, which),  # type: ignore[misc]
                    "127.0.0.1",
                    port,
                )
                self._subscribers.append(subscriber)
                await subscriber.is_live

        begun = time.monotonic_ns()
        async with asyncio.timeout(_WAIT_S), asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(open_some())
        return begun, time.monotonic_ns()

    async def follow(self, mark: bytes) -> None:
        """Get ready for a series; a subscriber has all of it when it received `mark`."""
        for subscriber in self._subscribers:
            subscriber.await_mark()
        self.mark = mark
        self._left = len(self._subscribers)
        self._all_done = asyncio.get_running_loop().create_future()

    def one_is_done(self) -> None:
        """Count a subscriber that received the mark."""
        self._left -= 1
        if self._left == 0 and self._all_done is not None and not self._all_done.done():
            self._all_done.set_result(None)

    def lost(self, error: AssertionError) -> None:
        """Fail the series under way when a subscriber is disconnected."""
        if self._all_done is not None and not self._all_done.done():
            self._all_done.set_exception(error)

    async def received(self) -> None:
        """Wait until all received the mark and the frame it is in."""
        assert self._all_done is not None
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._all_done
        except TimeoutError:
            raise AssertionError(f"{self._left} subscribers miss the end of the series") from None
        deadline = time.monotonic() + _WAIT_S
        while not all(subscriber.is_whole() for subscriber in self._subscribers):
            assert time.monotonic() < deadline, "the last frame of the series stays cut off"
            await asyncio.sleep(0.01)

    async def check_series(self, first: int, count: int) -> Seen:
        """Check that every subscriber has the whole series, and give what they received."""
        seen = Seen()
        reference: _Reading | None = None
        for subscriber in self._subscribers:
            data = b"".join(subscriber.chunks)
            if reference is None or data != reference.data:
                # Another topic, merged appends, or a ping in between: taken apart on its own.
                reference = _read(data)
                text = _text_of(data, first * TEXT_CHARS)
                topic = subscriber.subscription.topic
                check_texts(text, topic=topic, first=first, count=count)
            seen.add(_seen(subscriber, reference, count))
            subscriber.chunks, subscriber.times = [], []
        return seen

    async def check_tokens(self, per_stream: int, begun: int, ended: int) -> tuple[Seen, set[int]]:
        """Check that every subscriber has one stream's tokens, all and in order.

        Gives what they received, with the latencies of what was sent between two times, and the
        numbers of the streams.
        """
        seen, streams = Seen(), set()
        for subscriber in self._subscribers:
            data = b"".join(subscriber.chunks)
            text = _text_of(data, 0)
            stamps = STAMP.findall(text.encode())
            assert [int(number) for _, number, _ in stamps] == list(range(per_stream)), text[-200:]
            owners = {int(stream) for stream, _, _ in stamps}
            assert len(owners) == 1, owners
            streams |= owners
            reading = _read(data)
            recent = [stamp for stamp in reading.stamps if begun <= stamp[1] < ended]
            seen.add(_seen(subscriber, replace(reading, stamps=recent), per_stream))
        return seen, streams


def _text_of(data: bytes, offset: int) -> str:
    """Put the text of a stream together from its events, each of which must continue it."""
    parts: list[str] = []
    for opcode, begin, end in frames.split(data):
        if opcode != frames.TEXT:
            assert opcode == frames.PING, data[begin:end]
            continue
        event = frames.event_of(data[begin:end])
        if event is None or event["__typename"] in ("MessageAdded", "MessageCompleted"):
            continue
        assert event["__typename"] == "MessageDelta", event
        assert event["cursor"], event
        assert event["offset"] == offset, f"offset {event['offset']} instead of {offset}"
        parts.append(event["text"])
        offset += len(event["text"])
    return "".join(parts)


def _read(data: bytes) -> _Reading:
    count, cursor_chars, stamps = 0, 0, []
    for opcode, begin, end in frames.split(data):
        found = STAMP.findall(data, begin, end) if opcode == frames.TEXT else []
        if found:
            count += 1
            cursor = _CURSOR.search(data, begin, end)
            cursor_chars = len(cursor[1]) if cursor else 0
        stamps += [(end, int(now_ns)) for _, _, now_ns in found]
    return _Reading(data, count, cursor_chars, stamps)


def _seen(subscriber: Subscriber, reading: _Reading, count: int) -> Seen:
    ends = list(accumulate(map(len, subscriber.chunks)))
    times = subscriber.times
    return Seen(
        frames=reading.frames,
        merged=count - reading.frames,
        size=len(reading.data),
        ended=times[-1],
        cursor_chars=reading.cursor_chars,
        latencies=[times[bisect_left(ends, end)] - then for end, then in reading.stamps],
    )
