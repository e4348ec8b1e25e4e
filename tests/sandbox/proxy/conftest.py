"""The proxy of sandboxes between programs inside and a web of its own."""

import asyncio
import ipaddress
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sandbox.addresses import Address, parse_ranges
from sandbox.errors import PortError
from sandbox.network_rules import NetworkRules
from sandbox.policy import NetworkRule
from sandbox.proxy import Connection, Proxy, Streams

LOOPBACK = parse_ranges(["127.0.0.0/8"])


PUBLIC = "93.184.215.14"


class Program:
    """A connection of a program inside: the far end of what the proxy is given."""

    def __init__(self) -> None:
        self._sent: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._is_ended = False
        self.received = bytearray()
        self._arrived = asyncio.Event()
        self.over = asyncio.Event()
        self.is_closed = False

    def send(self, data: bytes) -> None:
        self._sent.append(data)
        self._more.set()

    def finish(self) -> None:
        self._is_ended = True
        self._more.set()

    async def receive(self, until: bytes) -> bytes:
        """What came, once it has these bytes in it."""
        async with asyncio.timeout(30):
            while until not in self.received:
                self._arrived.clear()
                await self._arrived.wait()
        return bytes(self.received)

    async def answer(self) -> bytes:
        """All that came until the proxy closed the connection."""
        async with asyncio.timeout(30):
            await self.over.wait()
        return bytes(self.received)

    # What the proxy sees.

    async def read(self) -> bytes:
        while not self._sent:
            if self._is_ended or self.is_closed:
                return b""
            self._more.clear()
            await self._more.wait()
        return self._sent.popleft()

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise PortError("The connection is closed.")
        self.received += data
        self._arrived.set()

    async def end(self) -> None:
        # Programs that have their answer go away.
        self.finish()

    async def aclose(self) -> None:
        self.is_closed = True
        self._more.set()
        self.over.set()


@dataclass
class World:
    """A proxy, the names there are, and where connections to addresses really go."""

    names: dict[str, list[str]] = field(default_factory=dict)
    to: dict[tuple[str, int], int] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    reached: list[tuple[str, int]] = field(default_factory=list)
    seen: list[Connection] = field(default_factory=list)
    proxies: list[Proxy] = field(default_factory=list)

    async def resolve(self, name: str) -> Sequence[Address]:
        self.asked.append(name)
        if name not in self.names:
            raise OSError("no such name")
        return [ipaddress.ip_address(text) for text in self.names[name]]

    async def connect(self, address: Address, port: int) -> Streams:
        self.reached.append((str(address), port))
        there = self.to.get((str(address), port))
        if there is None:
            raise ConnectionRefusedError
        return await asyncio.open_connection("127.0.0.1", there)

    def proxy(self, *rules: NetworkRule, private: Sequence[str] = (), **options: object) -> Proxy:
        made = Proxy(
            NetworkRules(rules, parse_ranges(private)),
            max_connections=int(str(options.pop("max_connections", 8))),
            bandwidth=options.pop("bandwidth", None),  # type: ignore[arg-type]
            on_change=self.seen.append,
            resolve=self.resolve,
            connect=self.connect,
            is_own=lambda address: str(address) in self.own,
        )
        self.proxies.append(made)
        return made


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for proxy in made.proxies:
        await proxy.aclose()


@asynccontextmanager
async def serving(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass
class Web:
    """A web server that keeps what it is sent, and answers each connection once."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head)
        at = len(self.requests) - 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
        lower = head.lower()
        if b"chunked" in lower:
            self.requests[at] += await reader.readuntil(b"0\r\n\r\n")
        elif b"content-length: " in lower:
            count = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.requests[at] += await reader.readexactly(count)
        self.arrived.set()
        writer.write(b"ok")
        await writer.drain()
        writer.write_eof()
        # Whatever else comes was smuggled.
        self.requests[at] += await reader.read()


@pytest.fixture
async def web(world: World) -> AsyncIterator[Web]:
    """`example.org` and its subdomains, at a public address."""
    made = Web()
    async with serving(made.handle) as made.port:
        world.names |= {"example.org": [PUBLIC], "a.b.example.org": [PUBLIC]}
        world.to |= {(PUBLIC, 80): made.port, (PUBLIC, 443): made.port}
        yield made


def ask(proxy: Proxy, *parts: bytes) -> Program:
    program = Program()
    for part in parts:
        program.send(part)
    proxy.accept(program)
    return program


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


ORG = NetworkRule("example.org")
