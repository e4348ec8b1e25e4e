"""Far ends of pipes that carry whole files and archives: in small pieces, with room for few."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from sandbox.errors import FileError, SandboxError
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.events.calls import TaskSet

log = logging.getLogger("noosphere.sandboxes")
AHEAD_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024


def _unexpected(error: Exception) -> Exception:
    """Give the error to raise; what nobody foresaw is logged and told without its words."""
    if isinstance(error, UserError | SandboxError):
        return error
    log.error("a transfer failed", exc_info=error)
    return UserError(UserErrorCode.UNAVAILABLE, "The transfer failed; try again.")


class Outflow:
    """A pipe out of a sandbox: what `chunks` gives, at most a mebibyte ahead of its reader."""

    def __init__(self, head: Json, chunks: AsyncGenerator[bytes, None]) -> None:
        self.head = head
        self._chunks = chunks
        self._held: deque[bytes] = deque()
        self._size = 0
        self._error: Exception | None = None
        self._is_ended = False
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._tasks = TaskSet()
        self._tasks.start(self._pump(), name="sandbox outflow")

    async def _pump(self) -> None:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    while self._size >= AHEAD_BYTES:
                        self._room.clear()
                        await self._room.wait()
                    self._held.append(chunk)
                    self._size += len(chunk)
                    self._news.set()
        except Exception as error:  # noqa: BLE001 - raised to the reader.
            self._error = _unexpected(error)
        finally:
            self._is_ended = True
            self._news.set()

    async def begun(self) -> None:
        """Wait for the first bytes or the end. Raises what kept it from beginning."""
        while not self._held and not self._is_ended:
            self._news.clear()
            await self._news.wait()
        if not self._held and self._error is not None:
            raise self._error

    async def read(self) -> bytes:
        """Give what is there, at most 256 KiB, or b"" at the end."""
        await self.begun()
        parts = []
        size = 0
        while self._held and size + len(self._held[0]) <= max(CHUNK_BYTES, len(self._held[0])):
            parts.append(self._held.popleft())
            size += len(parts[-1])
        self._size -= size
        self._room.set()
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Nothing is written to it."""
        raise UserError(UserErrorCode.INVALID, "This is only read.")

    async def end(self) -> None:
        """Nothing is written to it."""

    async def aclose(self) -> None:
        """Stop making more of it."""
        await self._tasks.aclose()
        self._held.clear()


def _retrieve(task: "asyncio.Task[Mapping[str, Any]]") -> None:
    """Look at an error, for whoever broke a transfer off does not."""
    if not task.cancelled():
        task.exception()


Consume = Callable[[AsyncIterator[bytes]], Awaitable[Mapping[str, Any]]]


class Inflow:
    """A pipe into a sandbox: `consume` is given the bytes, and what it gives is read at the end.

    `end` returns when everything is in its place. What goes wrong is raised by `write` and `end`,
    and told once more by `read`: as JSON with `result`, or `error` (the reason, where it is about
    a file).
    """

    def __init__(self, consume: Consume) -> None:
        self.head: Json = {}
        self._held: deque[bytes] = deque()
        self._size = 0
        self._is_ended = self._is_told = self._is_over = False
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._tasks = TaskSet()
        self._task = self._tasks.start(self._run(consume), name="sandbox inflow")
        self._task.add_done_callback(_retrieve)

    async def _run(self, consume: Consume) -> Mapping[str, Any]:
        try:
            return await consume(self._chunks())
        except Exception as error:
            raised = _unexpected(error)
            if raised is error:
                raise
            raise raised from error
        finally:
            self._is_over = True
            self._room.set()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            while self._held:
                chunk = self._held.popleft()
                self._size -= len(chunk)
                self._room.set()
                yield chunk
            if self._is_ended:
                return
            self._news.clear()
            await self._news.wait()

    async def write(self, data: bytes) -> None:
        """Take bytes in, or wait until there is room for them."""
        while self._size >= AHEAD_BYTES and not self._is_over:
            self._room.clear()
            await self._room.wait()
        if self._is_over:
            await self._settled()
            return  # It needs no more.
        self._held.append(data)
        self._size += len(data)
        self._news.set()

    async def _settled(self) -> Mapping[str, Any]:
        await asyncio.wait({self._task})
        return self._task.result()

    async def end(self) -> None:
        """Say that this was all, and wait until it is in its place."""
        self._is_ended = True
        self._news.set()
        await self._settled()

    async def read(self) -> bytes:
        """Give what came of it as JSON, then b""."""
        if self._is_told:
            return b""
        try:
            outcome: dict[str, Any] = {"result": dict(await self._settled())}
        except FileError as error:
            outcome = {"error": error.code}
        except Exception:  # noqa: BLE001 - told by `write` and `end`.
            outcome = {"error": None}
        self._is_told = True
        return json.dumps(outcome).encode()

    async def aclose(self) -> None:
        """Break it off: nothing of it is left, unless it is in its place already."""
        await self._tasks.aclose()
        self._held.clear()
