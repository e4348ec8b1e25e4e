"""A lean HTTP/1.1 load generator: keep-alive connections, every body compared.

It is one process; what it uses of a core is told with every round, for it must not be the
bottleneck.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

_PATIENCE_S = 60.0
_EXTENSIONS = b',"extensions":'


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round: requests per second, latency percentiles and CPU in seconds.

    `load` is the share of a core that the load generator used.
    """

    requests: int
    rate: float
    p50_s: float
    p99_s: float
    load: float


@dataclass(slots=True)
class Answers:
    """The bodies a server gives to its requests; those of one request must all be alike.

    The first body of a request is compared as JSON with what is expected, the others with the first
    byte by byte. Whatever comes after the data is free to change, but errors never are.
    """

    name: str
    expected: Sequence[Any]
    ignored: frozenset[str] = frozenset()
    _known: dict[int, bytes] = field(default_factory=dict)

    def check(self, index: int, body: bytes) -> None:
        """Raise AssertionError unless the body is the right answer to the request `index`."""
        known = self._known.get(index)
        if known is not None and body.startswith(known):
            rest = body[len(known) :]
            if not rest or (rest.startswith(_EXTENSIONS) and b'"errors":' not in rest):
                return
        answer = orjson.loads(body)
        data = without(answer.get("data"), self.ignored)
        if "errors" in answer or data != without(self.expected[index], self.ignored):
            raise AssertionError(f"{self.name} gave another answer: {body[:2000].decode()}")
        # Without extensions the whole body must stay as it is.
        self._known[index] = body[: body.rindex(_EXTENSIONS)] if _EXTENSIONS in body else body


def without(data: Any, names: frozenset[str]) -> Any:
    """Give data with the texts of some fields left out; null stays null."""
    if not names:
        return data
    if isinstance(data, list):
        return [without(item, names) for item in data]
    if not isinstance(data, dict):
        return data
    return {
        name: "…" if name in names and isinstance(value, str) and value else without(value, names)
        for name, value in data.items()
    }


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Give the bytes of a POST request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Accept: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(slots=True)
class _Run:
    requests: Sequence[bytes]
    answers: Answers
    deadline: float
    latencies: list[float] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends its next request when an answer is whole."""

    def __init__(self, run: _Run, index: int, step: int) -> None:
        self._run, self._index, self._step = run, index, step
        self._buffer = bytearray()
        self._length = self._start = 0
        self._is_chunked = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the round unless it was done."""
        if not self.done.done():
            self.done.set_exception(AssertionError(f"the server closed a connection: {exc!r}"))

    def _send(self) -> None:
        self._which = self._index % len(self._run.requests)
        self._index += self._step
        self._begun = time.perf_counter()
        self._transport.write(self._run.requests[self._which])

    def data_received(self, data: bytes) -> None:
        """Read on; when the answer is whole, check it and go on until the time is up."""
        self._buffer += data
        try:
            body = self._body()
            if body is None:
                return
            ended = time.perf_counter()
            self._run.latencies.append(ended - self._begun)
            self._run.answers.check(self._which, body)
        except Exception as error:  # noqa: BLE001 - fails the round.
            self._finish(error)
            return
        self._buffer.clear()
        self._start = 0
        if ended < self._run.deadline:
            self._send()
        else:
            self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        self._transport.close()

    def _body(self) -> bytes | None:
        buffer = self._buffer
        if self._start == 0:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._read_head(bytes(buffer[:end]))
            self._start = end + 4
        if self._is_chunked:
            return _dechunked(bytes(buffer[self._start :])) if buffer[-5:] == _LAST_CHUNK else None
        if len(buffer) < self._start + self._length:
            return None
        return bytes(buffer[self._start :])

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(f"{self._run.answers.name}: {bytes(self._buffer)[:1000].decode()}")
        lower = head.lower()
        self._is_chunked = b"transfer-encoding: chunked" in lower
        if not self._is_chunked:
            at = lower.index(b"content-length:") + 15
            self._length = int(lower[at:].split(b"\r\n", 1)[0])


_LAST_CHUNK = b"0\r\n\r\n"


def _dechunked(data: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size


async def measure(
    ports: Sequence[int],
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    answers: Answers,
) -> Round:
    """Send requests in turn over many connections for some time, and check every answer.

    Connections are spread over the ports in turn. Raises AssertionError for any wrong answer.
    """
    loop = asyncio.get_running_loop()
    begun, cpu = time.perf_counter(), time.process_time()
    run = _Run(requests, answers, begun + seconds)
    opened = [
        (
            await loop.create_connection(
                lambda number=number: _Connection(run, number, connections),  # type: ignore[misc]
                "127.0.0.1",
                ports[number % len(ports)],
            )
        )[1]
        for number in range(connections)
    ]
    async with asyncio.timeout(seconds + _PATIENCE_S):
        await asyncio.gather(*(connection.done for connection in opened))
    elapsed = time.perf_counter() - begun
    count = len(run.latencies)
    cuts = statistics.quantiles(run.latencies, n=100) if count > 1 else run.latencies * 99
    load = (time.process_time() - cpu) / elapsed
    return Round(count, count / elapsed, cuts[49], cuts[98], load)
