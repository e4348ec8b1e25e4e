"""Frames between the server and the agent inside a sandbox, and whom each of them is for."""

import asyncio
import logging
import os
import struct
from collections.abc import Coroutine
from types import TracebackType
from typing import Protocol, Self

from sandbox.base import Channel
from sandbox.errors import SandboxLostError, TimeoutError_
from sandbox.inside import wire

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0


class Operation(Protocol):
    """Whom the frames of an operation go to."""

    def on_frame(self, kind: int, body: bytes) -> None: ...

    def on_lost(self) -> None: ...


class Connection:
    """Any number of operations at once over one channel, until it or the sandbox is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._nonce = os.urandom(16)
        self._next = 1
        self._operations: dict[int, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeted: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self.is_distrusted = False  # The agent broke the protocol: it is not to be asked again.
        self.has_zlib = False  # The agent can pack and unpack compressed archives.
        self.holds_archives = False  # The agent lets them be looked at before they are in place.
        self.has_names = False  # The agent lets executions with a name outlive their client.

    async def __aenter__(self) -> Self:
        await self._greet()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    async def wait_lost(self) -> None:
        """Return when the sandbox, or the way to it, is gone."""
        await self._lost.wait()

    async def aclose(self) -> None:
        """Stop listening. What still runs ends as SANDBOX_LOST here, and inside unless named."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._on_lost()
        await self._channel.aclose()

    # Operations.

    def operation(self) -> int:
        """A fresh number for an operation."""
        while True:
            self._next = self._next % wire.LAST_OPERATION + 1
            if self._next not in self._operations:
                return self._next

    def register(self, op: int, operation: Operation) -> None:
        """Have the frames of an operation go to it, until `forget`."""
        self._operations[op] = operation

    def forget(self, op: int) -> None:
        self._operations.pop(op, None)

    def send_now(self, kind: int, op: int, body: bytes = b"") -> None:
        """Queue one frame without waiting for room; for small frames only."""
        if not self._lost.is_set():
            self._channel.write(wire.HEADER.pack(kind, op, len(body)) + body)

    async def send(self, kind: int, op: int, body: bytes = b"") -> None:
        if self._lost.is_set():
            raise SandboxLostError("The sandbox is gone.")
        self._channel.write(wire.HEADER.pack(kind, op, len(body)) + body)
        await self._channel.drain()

    def distrust(self, why: object) -> SandboxLostError:
        """Give a sandbox up whose agent says what no agent says; the error to raise."""
        if not self._lost.is_set():
            log.error("A sandbox was given up: its agent broke the protocol: %r", why)
        self.is_distrusted = True
        self._on_lost()
        return SandboxLostError("The sandbox broke the protocol.")

    # The channel.

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except SandboxLostError:
            self._on_lost()

    async def _greet(self) -> None:
        self._greeted = asyncio.get_running_loop().create_future()
        self._spawn(self._receive())
        # An earlier client may have died in the middle of a frame: the zeros end it.
        self._channel.write(bytes(wire.MAX_PAYLOAD + wire.HEADER.size))
        self._channel.write(wire.HEADER.pack(wire.HELLO, 0, 16) + self._nonce)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._channel.drain()
                await self._greeted
        except TimeoutError as error:
            raise TimeoutError_("The agent in the sandbox did not answer in time.") from error

    async def _receive(self) -> None:
        try:
            held = await self._until_greeted()
            while held is not None and not self._lost.is_set():
                try:
                    self._consume(held)
                except (struct.error, LookupError, UnicodeDecodeError, asyncio.QueueFull) as error:
                    raise self.distrust(error) from error
                data = await self._channel.read()
                if not data:
                    break
                held += data
        finally:
            self._on_lost()

    async def _until_greeted(self) -> bytearray | None:
        """Skip what an earlier client was owed; the rest after our own HELLO_ACK, or None."""
        held = bytearray()
        before = wire.HEADER.size
        while True:
            data = await self._channel.read()
            if not data:
                return None
            held += data
            at = held.find(self._nonce)
            if at < before:
                del held[: max(0, len(held) - before - len(self._nonce))]
                continue
            _, _, length = wire.HEADER.unpack_from(held, at - before)
            if len(held) >= at + length:
                self._on_greeting(bytes(held[at + len(self._nonce) : at + length]))
                del held[: at + length]
                return held

    def _on_greeting(self, body: bytes) -> None:
        assert self._greeted is not None  # noqa: S101 - set by the only caller's caller.
        version = int.from_bytes(body[:2], "big")
        if not wire.OLDEST <= version <= wire.VERSION or len(body) < wire.HELLO_BODY.size:
            error = SandboxLostError("The sandbox was made by another version of the server.")
            if not self._greeted.done():
                self._greeted.set_exception(error)
            raise error
        _, features = wire.HELLO_BODY.unpack_from(body)
        self.has_zlib = bool(features & wire.HAS_ZLIB)
        self.holds_archives = bool(features & wire.HOLDS_ARCHIVES)
        self.has_names = version > wire.OLDEST
        try:
            self.on_kept(body[wire.HELLO_BODY.size :])
        except (struct.error, UnicodeDecodeError, wire.Refused) as error:
            raise self.distrust(error) from error
        if not self._greeted.done():
            self._greeted.set_result(None)

    def _consume(self, held: bytearray) -> None:
        at = 0
        size = len(held)
        while size - at >= wire.HEADER.size:
            kind, op, length = wire.HEADER.unpack_from(held, at)
            end = at + wire.HEADER.size + length
            if length > wire.MAX_PAYLOAD or kind == wire.HELLO_ACK:
                # Nonsense, or another client took the sandbox over.
                raise SandboxLostError("The channel to the sandbox was taken over.")
            if end > size:
                break
            body = bytes(memoryview(held)[at + wire.HEADER.size : end])
            at = end
            if (operation := self._operations.get(op)) is not None:
                operation.on_frame(kind, body)
            else:
                self.on_unasked(kind, op, body)
        if at:
            del held[:at]

    def on_kept(self, records: bytes) -> None:
        """What outlived an earlier client; may raise whatever unpacking raises."""

    def on_unasked(self, kind: int, op: int, body: bytes) -> None:
        """A frame of an operation that nobody here knows, or not any more; ignored unless told.

        May raise SandboxLostError, and whatever unpacking raises, for what no agent sends.
        """

    def _on_lost(self) -> None:
        if self._lost.is_set():
            return
        self._lost.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(SandboxLostError("The sandbox is gone."))
        for operation in list(self._operations.values()):
            operation.on_lost()
        self._operations.clear()
