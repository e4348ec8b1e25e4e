"""One operation with the agent: what it answers and what it is sent, as far as credit goes."""

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sandbox.connection import Connection
from sandbox.errors import (
    FileError,
    FileErrorCode,
    InvalidArgumentError,
    NotFoundError,
    PolicyDeniedError,
    PolicyUnsupportedError,
    PortError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    SandboxLostError,
    TimeoutError_,
)
from sandbox.inside import wire

ANSWER_TIMEOUT_S = 30.0
RECORD_BYTES = 256 * 1024
WAITING_FRAMES = 1024  # Of one operation; the agent's frames are large, its lists short.


def refusal(body: bytes, path: str | None = None) -> SandboxError | None:
    """What an ERROR frame means; None for what no agent says. A `path` makes it a file's."""
    code, _, text = body.partition(b"\0")
    message = text.decode("utf-8", "replace")
    if code == b"LOST":
        return SandboxLostError(message)
    if code == b"EXHAUSTED":
        return ResourceExhaustedError(message, resource=Resource.SANDBOX)
    if code in (b"INVALID", b"NOT_STARTED"):
        return InvalidArgumentError(message)
    if code == b"UNSUPPORTED":
        return PolicyUnsupportedError(message)
    if code == b"REFUSED":
        return PortError(message)
    if path is None and code == b"NOT_FOUND":
        return NotFoundError(message)
    if path is None and code == b"DENIED":
        return PolicyDeniedError(message)
    try:
        return FileError(FileErrorCode(code.decode("ascii", "replace")), message, path=path or "")
    except ValueError:
        return None


class Answers:
    """An operation from its first frame to its last; made by `ask`.

    Iterate for the bytes the agent sends, and `grant` what was taken in; `done` is the body of
    the last frame afterwards. `window` is how many bytes the agent may send before more is
    granted; one that sends more is given up. Every wait ends with TimeoutError_ after
    `timeout_s`; None waits for ever.
    """

    def __init__(
        self,
        connection: Connection,
        op: int,
        window: int,
        *,
        path: str | None,
        timeout_s: float | None,
    ) -> None:
        self.op = op
        self.done: bytes | None = None
        self._connection = connection
        self._window = window
        self._path = path
        self._timeout_s = timeout_s
        self._room = wire.WRITE_WINDOW
        self._news = asyncio.Event()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING_FRAMES)
        self._end: SandboxError | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.parts()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """What iterating gives, to be left early through `aclosing`."""
        while True:
            while not self._queue.empty():
                yield self._queue.get_nowait()
            if self._ended:
                self._raise()
                return
            await self._wait()

    async def grant(self, size: int) -> None:
        """Let the agent send `size` more bytes."""
        if not self._ended:
            self._window += size
            await self._connection.send(wire.CREDIT, self.op, wire.AMOUNT.pack(size))

    async def write(self, data: bytes) -> None:
        """Send bytes of an upload as the agent takes them in. Raises what ended it instead."""
        view = memoryview(data)
        while view:
            self._raise()
            if self._ended:
                return  # It needs no more.
            if self._room == 0:
                await self._wait()
                continue
            part = bytes(view[: min(self._room, wire.CHUNK)])
            self._room -= len(part)
            view = view[len(part) :]
            await self._connection.send(wire.WRITE_DATA, self.op, part)

    async def finish(self) -> bytes:
        """Wait for the end where no data belongs; the body of the last frame."""
        async for _ in self:
            raise self._connection.distrust("data where none belongs")
        return self.done or b""

    async def _wait(self) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._news.wait()
        except TimeoutError as error:
            raise TimeoutError_("The sandbox did not answer in time.") from error

    def _raise(self) -> None:
        if self._end is not None:
            raise self._end

    def on_frame(self, kind: int, body: bytes) -> None:
        """Raises SandboxLostError, and whatever unpacking raises, for what no agent sends."""
        if kind == wire.DATA:
            self._window -= len(body)
            if self._window < 0:
                raise SandboxLostError("The sandbox sent more data than it may.")
            self._queue.put_nowait(body)
        elif kind == wire.WRITE_CREDIT:
            self._room += int(wire.AMOUNT.unpack(body)[0])
            if self._room > wire.WRITE_WINDOW:
                raise SandboxLostError("The sandbox took more data than there was.")
        elif kind == wire.DONE:
            self.done = body
            self._close(None)
        elif kind == wire.ERROR:
            error = refusal(body, self._path)
            if error is None:
                raise SandboxLostError("The sandbox refused for an unknown reason.")
            self._close(error)
        else:
            raise SandboxLostError("The sandbox sent an answer of an unknown kind.")
        self._news.set()

    def on_lost(self) -> None:
        self._close(SandboxLostError("The sandbox is gone."))

    def _close(self, error: SandboxError | None) -> None:
        if not self._ended:
            self._ended = True
            self._end = error
            self._news.set()
            self._connection.forget(self.op)

    @property
    def is_over(self) -> bool:
        """Nothing comes any more."""
        return self._ended


@asynccontextmanager
async def ask(
    connection: Connection,
    kind: int,
    body: bytes,
    *,
    window: int = 0,
    path: str | None = None,
    timeout_s: float | None = ANSWER_TIMEOUT_S,
) -> AsyncIterator[Answers]:
    """Begin an operation; leaving early cancels it.

    See `Answers` for the rest. Errors of an operation on files name its `path`.
    """
    op = connection.operation()
    answers = Answers(connection, op, window, path=path, timeout_s=timeout_s)
    connection.register(op, answers)
    try:
        await connection.send(kind, op, body)
        yield answers
    finally:
        if not answers.is_over:
            connection.send_now(wire.CANCEL, op)
        connection.forget(op)


def records(data: bytearray, head: struct.Struct, names: int) -> list[tuple[Any, ...]]:
    """Take whole records (a head, then `names` packed byte strings) off the front of `data`.

    What is not whole yet stays for the next piece. Raises struct.error for a record that is
    larger than any agent sends.
    """
    found: list[tuple[Any, ...]] = []
    whole = bytes(data)
    at = 0
    while len(whole) - at >= head.size:
        record: tuple[Any, ...] = head.unpack_from(whole, at)
        end = at + head.size
        try:
            for _ in range(names):
                name, end = wire.unpack(whole, end)
                record += (name,)
        except (wire.Refused, struct.error):
            if len(whole) - at > RECORD_BYTES:
                raise struct.error("a record without end") from None
            break
        found.append(record)
        at = end
    del data[:at]
    return found
