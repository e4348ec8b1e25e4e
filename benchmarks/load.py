"""A small HTTP/1.1 load generator: keep-alive connections, bodies handed back."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Round:
    """One measured round: requests per second, and latency percentiles in seconds."""

    rate: float
    p50_s: float
    p99_s: float


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))

    async def send(self, request: bytes) -> bytes:
        """Send a whole request and give the body of its answer; anything but 200 is an error."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise AssertionError(head.decode())
        lower = head.lower()
        start = lower.index(b"content-length:") + 15
        length = int(lower[start : lower.index(b"\r\n", start)])
        return await self._reader.readexactly(length)

    def close(self) -> None:
        """Close."""
        self._writer.close()


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


async def measure(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    check: Callable[[int, bytes], None],
) -> Round:
    """Send requests in turn over many connections for some time; `check(index, body)` every one."""
    latencies: list[float] = []
    opened = [await Connection.open(port) for _ in range(connections)]
    deadline = time.perf_counter() + seconds

    async def one(number: int, connection: Connection) -> None:
        index = number
        while time.perf_counter() < deadline:
            which = index % len(requests)
            begun = time.perf_counter()
            body = await connection.send(requests[which])
            latencies.append(time.perf_counter() - begun)
            check(which, body)
            index += connections

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(opened):
            group.create_task(one(number, connection))
    elapsed = time.perf_counter() - begun
    for connection in opened:
        connection.close()
    cuts = statistics.quantiles(latencies, n=100)
    return Round(len(latencies) / elapsed, cuts[49], cuts[98])
