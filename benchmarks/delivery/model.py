"""A model that speaks OpenAI's streaming chat completions and writes many answers at once, at pace.

Every chunk carries its stream, its number and the moment it was sent.
"""

import asyncio
import heapq
import time
from typing import Any

from benchmarks.delivery.texts import END

_TICK_S = 0.002
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n"
    b'{"object":"list","data": []}'
)
_CHUNK = (
    b'data: {"id":"chat","object":"chat.completion.chunk","created":0,"model":"paced",'
    b'"choices":[{"index":0,"delta":%b,"finish_reason":%b}]}\n\n'
)


def _part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Exchange(asyncio.Protocol):
    """One connection; it holds an answer open until the model is told to write."""

    def __init__(self, streams: "list[_Exchange]") -> None:
        self.transport: Any = None
        self.sent = 0
        self._streams = streams
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, is_whole, body = self._received.partition(b"\r\n\r\n")
        if not is_whole:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(body) < length:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self.transport.write(_MODELS)
            return
        role = _CHUNK % (b'{"role":"assistant","content":""}', b"null")
        self.transport.write(_HEAD + _part(role))
        self._streams.append(self)

    def write_token(self, stream: int, *, is_last: bool) -> None:
        """Send the next token with the time of this moment."""
        stamp = b"[%05d.%07d@%019d]" % (stream, self.sent, time.monotonic_ns())
        text = stamp + (END.encode() if is_last else b"")
        data = _part(_CHUNK % (b'{"content":"%b"}' % text, b"null"))
        if is_last:
            data += _part(_CHUNK % (b"{}", b'"stop"') + b"data: [DONE]\n\n") + b"0\r\n\r\n"
        self.sent += 1
        self.transport.write(data)


class PacedModel:
    """The model; its coroutines are called through a `Child`."""

    def __init__(self) -> None:
        self._streams: list[_Exchange] = []
        self._server: asyncio.Server | None = None

    async def serve(self) -> int:
        """Listen; gives the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Exchange(self._streams), "127.0.0.1", 0, backlog=2048
        )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def waiting(self) -> int:
        """Give the number of answers held open."""
        return len(self._streams)

    async def write(self, tokens: int, per_second: float, ramp_s: float) -> tuple[int, int]:
        """Write all answers to their end; they begin evenly over some seconds.

        Gives the times of the last beginning and of the first end, in nanoseconds: between them
        all are under way.
        """
        interval_s = 1 / per_second
        streams = self._streams
        begun, ended = time.monotonic(), 0
        due = [(begun + ramp_s * number / len(streams), number) for number in range(len(streams))]
        while due:
            at, number = due[0]
            now = time.monotonic()
            if at > now:
                await asyncio.sleep(min(at - now, _TICK_S))
                continue
            exchange = streams[number]
            exchange.write_token(number, is_last=exchange.sent == tokens - 1)
            if exchange.sent < tokens:
                heapq.heapreplace(due, (at + interval_s, number))
            else:
                heapq.heappop(due)
                ended = ended or time.monotonic_ns()
        return int((begun + ramp_s) * 1e9), ended
