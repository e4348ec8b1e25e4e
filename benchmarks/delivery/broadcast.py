"""The floor: a process that does nothing but write every frame to every socket as it comes.

Who writes several frames at a time may well be faster.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson

from benchmarks.delivery import frames
from benchmarks.delivery.child import Child
from benchmarks.delivery.subscribers import Subscription
from benchmarks.delivery.texts import TEXT_CHARS, event_text

_UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Protocol: graphql-transport-ws\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)


def _frame(payload: bytes) -> bytes:
    size = len(payload)
    head = bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
    return head + payload


def _next(event: dict[str, Any]) -> bytes:
    payload = {"data": {"conversationEvents": event}}
    return _frame(orjson.dumps({"id": "1", "type": "next", "payload": payload}))


class _Socket(asyncio.Protocol):
    """Answers the three things a subscriber says in the order they come."""

    def __init__(self, sockets: list[asyncio.WriteTransport], answers: list[bytes]) -> None:
        self._sockets, self._answers = sockets, iter(answers)
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._sockets.append(self._transport)

    def data_received(self, data: bytes) -> None:
        answer = next(self._answers, None)
        if answer is not None:
            self._transport.write(answer)


class _Broadcaster:
    """The floor's process; its coroutines are called through a `Child`."""

    def __init__(self, cursor_chars: int) -> None:
        self._cursor = "c" * cursor_chars
        self._sockets: list[asyncio.WriteTransport] = []
        self._frames: list[bytes] = []
        self._server: asyncio.Server | None = None

    async def serve(self) -> int:
        """Listen; gives the port."""
        answers = [
            _UPGRADED % frames.ACCEPT,
            _frame(b'{"type":"connection_ack"}'),
            _next({"__typename": "ConversationReset", "cursor": self._cursor}),
        ]
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Socket(self._sockets, answers), "127.0.0.1", 0, backlog=2048
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def prepare(self, first: int, count: int) -> None:
        """Make the frames of a series."""
        now_ns = time.monotonic_ns()
        self._frames = [
            _next(
                {
                    "__typename": "MessageDelta",
                    "cursor": self._cursor,
                    "offset": number * TEXT_CHARS,
                    "text": event_text(0, number, now_ns, is_last=number == first + count - 1),
                }
            )
            for number in range(first, first + count)
        ]

    async def publish(self) -> int:
        """Write them; gives the time of the first in nanoseconds."""
        begun = time.monotonic_ns()
        for frame in self._frames:
            for socket in self._sockets:
                socket.write(frame)
            await asyncio.sleep(0)
        return begun


class Broadcast:
    """The floor as a server under measurement: one topic, bursts alone."""

    name = "broadcast"

    def __init__(self, cursor_chars: int) -> None:
        self._child = Child(_Broadcaster, cursor_chars)
        self.pid, self.port = self._child.pid, self._child.call("serve")

    def subscriptions(self, topics: int, subscribers: int) -> Sequence[Subscription]:
        """Give what each subscriber follows: the one topic there is."""
        assert topics == 1
        return [Subscription("topic-0", 0)] * subscribers

    def prepare(self, kind: str, series: dict[str, Any]) -> None:
        """Note the series that `publish` begins."""
        assert kind == "burst"
        self._child.call("prepare", series["first"], series["count"])

    def publish(self) -> int:
        """Publish the series; gives the time of the first event in nanoseconds."""
        begun: int = self._child.call("publish")
        return begun

    def close(self) -> None:
        """End it."""
        self._child.close()
