"""Connections to ports inside a sandbox, and from programs inside to a port the agent holds."""

import asyncio
from collections import deque

from sandbox.answers import refusal
from sandbox.connection import Connection
from sandbox.errors import PortError, SandboxError, SandboxLostError
from sandbox.inside import wire

WINDOW_BYTES = wire.TUNNEL_WINDOW


class Tunnel:
    """Duplex bytes to one TCP connection inside; for one reader and one writer at a time.

    At most 128 KiB wait here unread and as many on their way to the program, so neither side's
    stall costs memory. Both directions end on their own. Close with `aclose`, whatever happened.
    """

    def __init__(self, connection: Connection, op: int, room: int) -> None:
        self._connection = connection
        self._op = op
        self._room = room
        self._window = WINDOW_BYTES
        self._unacknowledged = 0
        self._chunks: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._read_ended = False
        self._write_ended = False
        self._closed = False
        self._error: SandboxError | None = None

    async def read(self) -> bytes:
        """Some bytes, or b"" at the end. Cancellation loses nothing.

        Raises PortError when the connection broke off, SandboxLostError.
        """
        while not self._chunks:
            if self._read_ended:
                return b""
            self._raise()
            self._readable.clear()
            await self._readable.wait()
        data = self._chunks.popleft()
        self._unacknowledged += len(data)
        if self._unacknowledged >= WINDOW_BYTES // 4 and not self._read_ended and not self.is_over:
            self._window += self._unacknowledged
            credit = wire.AMOUNT.pack(self._unacknowledged)
            self._unacknowledged = 0
            self._connection.send_now(wire.CREDIT, self._op, credit)
        return data

    async def write(self, data: bytes) -> None:
        """Pass bytes on, waiting while the program does not read.

        Raises PortError when the connection broke off or was ended here, SandboxLostError.
        """
        view = memoryview(data)
        while view:
            self._raise()
            if self._write_ended or self._closed:
                raise PortError("The connection is ended for writing.")
            if self._room == 0:
                self._writable.clear()
                await self._writable.wait()
                continue
            part = bytes(view[: min(self._room, wire.CHUNK)])
            self._room -= len(part)
            view = view[len(part) :]
            await self._connection.send(wire.TUNNEL_DATA, self._op, part)

    async def end(self) -> None:
        """Let the program see the end of what is written; reading goes on. Idempotent."""
        if not self._write_ended and not self.is_over:
            self._write_ended = True
            self._writable.set()
            self._forget_if_done()
            await self._connection.send(wire.TUNNEL_END, self._op)

    async def aclose(self) -> None:
        """Break the connection off unless it has ended both ways. Idempotent."""
        if not self.is_over and not (self._read_ended and self._write_ended):
            self._connection.send_now(wire.CANCEL, self._op)
        self._closed = True
        self._chunks.clear()
        self._writable.set()
        self._readable.set()
        if not self._opened.done():
            self._opened.cancel()
        if self._error is None:
            self._error = PortError("The connection is closed.")
        self._connection.forget(self._op)

    @property
    def is_over(self) -> bool:
        """Closed here, broken off there, or lost."""
        return self._closed or self._error is not None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def wait_open(self) -> None:
        """Wait for the answer to the attempt. Raises PortError when nothing listens there."""
        await self._opened

    def on_frame(self, kind: int, body: bytes) -> None:
        """Raises SandboxLostError, and whatever unpacking raises, for what no agent sends."""
        if kind == wire.DATA and not self._read_ended:
            self._window -= len(body)
            if self._window < 0 or not body:
                raise SandboxLostError("The sandbox sent more data than it may.")
            self._chunks.append(body)
            self._readable.set()
        elif kind == wire.WRITE_CREDIT:
            self._room += int(wire.AMOUNT.unpack(body)[0])
            if self._room > WINDOW_BYTES:
                raise SandboxLostError("The sandbox took more data than there was.")
            self._writable.set()
        elif kind == wire.OPENED and not self._opened.done():
            self._opened.set_result(None)
        elif kind == wire.TUNNEL_ENDED and not self._read_ended:
            self._read_ended = True
            self._readable.set()
            self._forget_if_done()
        elif kind == wire.ERROR and (error := refusal(body)) is not None:
            self._break(error)
        else:
            raise SandboxLostError("The sandbox sent an answer of an unknown kind.")

    def on_lost(self) -> None:
        self._break(SandboxLostError("The sandbox is gone."))

    def _break(self, error: SandboxError) -> None:
        if self._error is None:
            self._error = error
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()  # Whoever waits has it; perhaps nobody does.
        self._readable.set()
        self._writable.set()
        self._connection.forget(self._op)

    def _forget_if_done(self) -> None:
        if self._read_ended and self._write_ended:
            self._connection.forget(self._op)


class Listener:
    """A port inside on which the agent accepts connections for the client; see `listen`."""

    def __init__(self, connection: Connection, op: int, wanted: int) -> None:
        self.port = wanted
        self._connection = connection
        self._op = op
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed = False

    async def aclose(self) -> None:
        """Accept no more connections; those accepted live on. Idempotent."""
        if not self._closed:
            self._closed = True
            self._connection.send_now(wire.CANCEL, self._op)
            self._connection.forget(self._op)

    async def wait_open(self) -> None:
        """Wait until it listens. Raises PortError when the port is taken."""
        await self._opened

    def on_frame(self, kind: int, body: bytes) -> None:
        """Raises SandboxLostError, and whatever unpacking raises, for what no agent sends."""
        if self._opened.done():
            raise SandboxLostError("The sandbox sent an answer to nothing.")
        if kind == wire.OPENED:
            self.port, _ = wire.PORT.unpack(body)
            self._opened.set_result(None)
        elif kind == wire.ERROR and (error := refusal(body)) is not None:
            self._break(error)
        else:
            raise SandboxLostError("The sandbox sent an answer of an unknown kind.")

    def on_lost(self) -> None:
        self._break(SandboxLostError("The sandbox is gone."))

    def _break(self, error: SandboxError) -> None:
        self._closed = True
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()
        self._connection.forget(self._op)
