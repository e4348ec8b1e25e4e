"""Channels over a socket that lives as long as its sandbox."""

import asyncio
import socket
from collections import deque
from typing import cast

from sandbox.errors import SandboxLostError

READ_AHEAD_BYTES = 4 * 1024 * 1024


class Wire(asyncio.Protocol):
    """The server's end of a sandbox's socket. One lease at a time speaks over it."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._lease: Lease | None = None
        self.closed = asyncio.Event()

    @classmethod
    async def over(cls, end: socket.socket) -> "Wire":
        loop = asyncio.get_running_loop()
        _, protocol = await loop.create_connection(cls, sock=end)
        return protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Of uvloop too, whose transports are not registered as subclasses of asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=512 * 1024)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held += len(data)
        self._news.set()
        if self._held > READ_AHEAD_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._news.set()
        self._room.set()

    def lease(self) -> "Lease":
        """A channel that takes over from the one before."""
        if self._lease is not None:
            self._lease.revoked = True
            self._news.set()
        self._lease = Lease(self)
        return self._lease

    async def read(self, lease: "Lease | None" = None) -> bytes:
        while not (lease is not None and lease.revoked):
            if self._chunks:
                data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
                self._chunks.clear()
                self._held = 0
                if self._paused and self._transport and not self.closed.is_set():
                    self._paused = False
                    self._transport.resume_reading()
                return data
            if self.closed.is_set():
                break
            self._news.clear()
            await self._news.wait()
        # A revoked lease may have swallowed the wake-up of its successor.
        self._news.set()
        return b""

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.closed.is_set():
            self._transport.write(data)

    async def drain(self) -> None:
        await self._room.wait()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Lease:
    """The channel of one client over a wire; see `sandbox.base.Channel`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.revoked = False

    async def read(self) -> bytes:
        return await self._wire.read(self)

    def write(self, data: bytes) -> None:
        if not self.revoked:
            self._wire.write(data)

    async def drain(self) -> None:
        await self._wire.drain()
        if self.revoked or self._wire.closed.is_set():
            raise SandboxLostError("The sandbox is gone.")

    async def aclose(self) -> None:
        self.revoked = True
        self._wire._news.set()
