"""The way out of a sandbox: an HTTP proxy that reaches what the rules name, and nothing else.

Programs inside connect to a port the agent holds; their connections arrive here as tunnels. Names
are resolved on this side, every address is checked, and the connection goes to an address that was
checked: what a name means later changes nothing. Redirects are the client's own affair.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Protocol

from sandbox import addresses
from sandbox.addresses import Address
from sandbox.bandwidth import Bandwidth
from sandbox.errors import SandboxError
from sandbox.network_rules import NetworkRules
from sandbox.proxy_request import BadRequestError, Inbound, Request, body, read_request

log = logging.getLogger(__name__)
PORT = 3128
HEAD_S = 30.0
RESOLVE_S = 10.0
CONNECT_S = 15.0
IDLE_S = 600.0
LEFT_S = 30.0
_LINGER_S = 2.0
_LOOKUPS = 4
# Each is written down: more than these a second wait.
STARTS_PER_S = 50
STARTS_AT_ONCE = 200
_ADDRESSES = 4
_CHUNK = 32 * 1024
# Of its own: names that take long to resolve must not hold up what others do in threads.
_threads = ThreadPoolExecutor(16, thread_name_prefix="resolve")

Resolve = Callable[[str], Awaitable[Sequence[Address]]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[Address, int], Awaitable[Streams]]


class Verdict(StrEnum):
    ALLOWED = "ALLOWED"
    DENIED = "DENIED"
    FAILED = "FAILED"  # Allowed, but nobody answered.


@dataclass(slots=True, eq=False)
class Connection:
    """What a program asked for, and what became of it. Bytes are those carried, as of now."""

    host: str
    port: int
    address: str | None = None
    verdict: Verdict = Verdict.DENIED
    rule: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    opened_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    closed_at: datetime | None = None


class Duplex(Protocol):
    """The connection of a program inside; see `sandbox.tunnels.Tunnel`."""

    async def read(self) -> bytes: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...

    async def aclose(self) -> None: ...


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


async def resolve(name: str) -> Sequence[Address]:
    """Addresses of a name as this machine resolves it. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(
        _threads, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    )
    texts = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [ipaddress.ip_address(text) for text in texts if "%" not in text]


async def connect(address: Address, port: int) -> Streams:
    """Connect to an address, which is never looked up again. Raises OSError."""
    return await asyncio.open_connection(str(address), port, limit=_CHUNK)


@dataclass(slots=True, eq=False)
class _Open:
    connection: Connection
    name: str | None
    address: Address | None = None
    is_own: bool = False
    task: asyncio.Task[None] | None = None


class Proxy:
    """The proxy of one sandbox. `on_change` is told of connections as they open and close.

    It neither waits nor raises. At most `max_connections` are open at once, and `bandwidth` holds
    for all of them, both ways together. Close with `aclose`.
    """

    def __init__(
        self,
        rules: NetworkRules,
        *,
        max_connections: int,
        bandwidth: Bandwidth | None = None,
        on_change: Callable[[Connection], None] = lambda connection: None,
        resolve: Resolve = resolve,
        connect: Connect = connect,
        is_own: Callable[[Address], bool] = addresses.is_own,
    ) -> None:
        self.bandwidth = bandwidth or Bandwidth()
        self._rules = rules
        self._most = max_connections
        self._on_change = on_change
        self._resolve, self._connect, self._is_own = resolve, connect, is_own
        self._lookups = asyncio.Semaphore(_LOOKUPS)
        self._starts = Bandwidth(STARTS_PER_S, burst=STARTS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Open] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def accept(self, tunnel: Duplex, port: int = PORT) -> None:
        """Serve a connection of a program, as `SandboxClient.on_accepted`."""
        task = asyncio.get_running_loop().create_task(self._serve(tunnel), name="proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def replace(self, rules: NetworkRules) -> None:
        """Go by other rules from now on; connections that none of them allows end at once."""
        self._rules = rules
        for held in list(self._open):
            if held.address is not None and self._rule(held, held.address) is None:
                self._break(held)

    def _break(self, held: _Open) -> None:
        if held.task is not None:
            held.task.cancel()

    async def aclose(self) -> None:
        """End all connections, and accept no more. Idempotent."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One connection of a program.

    async def _serve(self, tunnel: Duplex) -> None:
        try:
            if self._is_closed or len(self._tasks) > self._most:
                raise _RefusedError(503, f"At most {self._most} connections are open at once.")
            await self._answer(tunnel)
        except _RefusedError as refused:
            await self._refuse(tunnel, refused.status, refused.reason)
        except BadRequestError as error:
            await self._refuse(tunnel, error.status, error.reason)
        except (SandboxError, OSError, EOFError, TimeoutError) as error:
            # Either side may go away at any time.
            log.debug("a connection ended: %r", error)
        except Exception:
            log.exception("a connection of a sandbox failed")
        finally:
            await tunnel.aclose()

    async def _answer(self, tunnel: Duplex) -> None:
        inbound = Inbound(tunnel.read)
        try:
            async with asyncio.timeout(HEAD_S):
                request = await read_request(inbound)
        except TimeoutError:
            raise _RefusedError(408, "The request did not come in time.") from None
        if request is None:
            return
        await self._starts.take(1)
        async with self._opened(request) as (connection, reader, writer):
            if request.is_connect:
                await tunnel.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                writer.write(request.head)
                connection.bytes_out += len(request.head)
            carrier = _Carrier(tunnel, inbound, connection, reader, writer, self.bandwidth)
            await carrier.run(request)

    async def _refuse(self, tunnel: Duplex, status: int, reason: str) -> None:
        text = f"{reason}\n".encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(text)}\r\nX-Proxy-Error: {status}\r\nConnection: close\r\n\r\n"
        )
        try:
            async with asyncio.timeout(_LINGER_S):
                await tunnel.write(head.encode() + text)
                await tunnel.end()
                # Closed at once, the answer would be lost with what was not read.
                while await tunnel.read():
                    pass
        except (SandboxError, TimeoutError):
            log.debug("a refusal was not read")

    # The connection to the far end.

    @asynccontextmanager
    async def _opened(
        self, request: Request
    ) -> AsyncIterator[tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
        name = request.host if isinstance(request.host, str) else None
        connection = Connection(str(request.host)[:255], request.port)
        held = _Open(connection, name, task=asyncio.current_task())
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await self._reach(held, request)
            self._on_change(connection)
            yield connection, reader, writer
            writer.close()
            async with asyncio.timeout(CONNECT_S):
                await writer.wait_closed()
        finally:
            self._open.discard(held)
            if writer is not None:
                writer.transport.abort()
            connection.closed_at = datetime.now(UTC)
            self._on_change(connection)

    async def _reach(self, held: _Open, request: Request) -> Streams:
        connection, port = held.connection, request.port
        failure = "Nobody answers there."
        for address in await self._candidates(held, request):
            is_own = self._is_own(address)
            connection.rule = self._rules.reaches(held.name, address, port, is_own=is_own)
            if connection.rule is None:
                continue
            connection.address, connection.verdict = str(address), Verdict.FAILED
            held.address, held.is_own = address, is_own
            self._open.add(held)
            try:
                async with asyncio.timeout(CONNECT_S):
                    streams = await self._connect(address, port)
            except TimeoutError:
                failure = "Nobody answered in time."
                continue
            except OSError:
                continue
            connection.verdict = Verdict.ALLOWED
            return streams
        if connection.verdict is Verdict.FAILED:
            raise _RefusedError(502, failure)
        raise _RefusedError(403, "The sandbox may not connect to that address.")

    async def _candidates(self, held: _Open, request: Request) -> Sequence[Address]:
        if held.name is None:
            assert not isinstance(request.host, str)  # noqa: S101 - as held.name says.
            return [request.host]
        rule = self._rules.for_name(held.name, request.port)
        if rule is None:
            # Not even asked for: names themselves would carry data out.
            raise _RefusedError(403, f"The sandbox may not connect to {held.name}:{request.port}.")
        held.connection.rule = rule.host
        try:
            async with asyncio.timeout(RESOLVE_S), self._lookups:
                found = await self._resolve(held.name)
        except (TimeoutError, OSError):
            held.connection.verdict = Verdict.FAILED
            raise _RefusedError(502, "The name could not be resolved.") from None
        return found[:_ADDRESSES]

    def _rule(self, held: _Open, address: Address) -> str | None:
        port = held.connection.port
        return self._rules.reaches(held.name, address, port, is_own=held.is_own)


@dataclass(slots=True)
class _Carrier:
    """Carries the bytes of one connection, both ways, as fast as the slower side takes them."""

    tunnel: Duplex
    inbound: Inbound
    connection: Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    bandwidth: Bandwidth
    idle: asyncio.Timeout | None = None
    limit_s: float = IDLE_S

    async def run(self, request: Request) -> None:
        """Until both sides have ended, or the far end after its answer. Raises what breaks it."""
        try:
            async with asyncio.timeout(IDLE_S) as self.idle, asyncio.TaskGroup() as group:
                outward = group.create_task(self._send(request))
                await self._receive()
                if request.is_connect:
                    await asyncio.wait({outward})
                # Of a single request nothing more is wanted once it is answered.
                outward.cancel()
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, BadRequestError) and self.connection.bytes_in:
                raise EOFError from first  # Too late to say so.
            raise first from None

    def _carried(self) -> None:
        if self.idle is not None:
            self.idle.reschedule(asyncio.get_running_loop().time() + self.limit_s)

    async def _send(self, request: Request) -> None:
        if request.is_connect:
            while data := await self.inbound.some(_CHUNK):
                if not await self._out(data):
                    return
            if self.writer.can_write_eof() and not self.writer.is_closing():
                self.writer.write_eof()
            return
        async with aclosing(body(self.inbound, request)) as chunks:  # type: ignore[type-var]
            async for data in chunks:
                if not await self._out(data):
                    return
        # What follows the request goes nowhere; whoever has gone away is not waited for as long.
        while await self.inbound.some(_CHUNK):
            pass
        self.limit_s = LEFT_S
        self._carried()

    async def _out(self, data: bytes) -> bool:
        """Whether the far end still takes something; its answer may come all the same."""
        await self.bandwidth.take(len(data))
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        self.connection.bytes_out += len(data)
        self._carried()
        return True

    async def _receive(self) -> None:
        while data := await self.reader.read(_CHUNK):
            await self.bandwidth.take(len(data))
            await self.tunnel.write(data)
            self.connection.bytes_in += len(data)
            self._carried()
        await self.tunnel.end()
