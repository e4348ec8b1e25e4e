"""Byte pipes into sandboxes, from any node: uploads, downloads, archives, ports, terminals.

A call between nodes is one JSON answer; a pipe is as long as it likes. Whoever has something to
carry registers a kind, and `open` gives its far end wherever the sandbox is hosted:

    @relay.kind("download")
    async def _download(node: Node, sandbox_id: str, request: Json) -> relay.Pipe: ...

    async with aclosing(await relay.open(deps, row, "download", path="a.txt")) as pipe:
        while data := await pipe.read(): ...
"""

import asyncio
import base64
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from models.sandboxes import Sandbox
from sandbox.errors import SandboxError
from services.base import Deps
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.events.calls import TaskSet
from services.sandboxes import operations, refusals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
T = TypeVar("T")
CHUNK_BYTES = 256 * 1024
WAIT_S = 20.0
IDLE_S = 60.0
CALL_S = 45.0
PER_SANDBOX = 64


class Pipe(Protocol):
    """Bytes both ways. Errors of the sandbox are raised as UserError by whatever `open` gives."""

    @property
    def head(self) -> Json:
        """What was known when it was opened, such as the size of a file; JSON."""

    async def read(self) -> bytes:
        """Give some bytes, or b"" at the end. Cancelled, it loses nothing."""

    async def write(self, data: bytes) -> None:
        """Send bytes; returns when there is room for more. Cancelled, some may have gone."""

    async def end(self) -> None:
        """Say that nothing more is written; reading goes on. Idempotent."""

    async def aclose(self) -> None:
        """Let go of it, whatever is under way. Idempotent; never raises."""


Opener = Callable[["Node", str, Json], Awaitable[Pipe]]
KINDS: dict[str, Opener] = {}


def kind(name: str) -> Callable[[Opener], Opener]:
    """Register how a pipe of this kind is opened on the node that hosts the sandbox."""

    def register(opener: Opener) -> Opener:
        if name in KINDS:
            raise TypeError(f"there is a kind of pipe {name} already")
        KINDS[name] = opener
        return opener

    return register


async def open(deps: Deps, row: Sandbox, name: str, **arguments: Any) -> Pipe:
    """Open a pipe to a sandbox whose row the viewer was shown. Close it with `aclosing`.

    Raises UserError as `SandboxHost.ask` does, and what the kind raises.
    """
    if row.node_id == deps.bus.node_id:
        node = await deps.sandboxes.node()
        return _Direct(node, row.id, await _told(KINDS[name](node, row.id, arguments)))
    return await open_remote(deps, row, name, **arguments)


async def open_remote(deps: Deps, row: Sandbox, name: str, **arguments: Any) -> Pipe:
    """Open a pipe over the bus, though the sandbox may be hosted here."""
    answer = await deps.sandboxes.ask(row, "relay_open", kind=name, arguments=arguments)
    return _Remote(deps, row, answer["pipe"], answer["head"])


async def _told(action: Awaitable[T]) -> T:
    try:
        return await action
    except SandboxError as error:
        raise refusals.explain(error) from error


class _Direct:
    """A pipe of this very node. What goes through it is use of the sandbox."""

    def __init__(self, node: "Node", sandbox_id: str, pipe: Pipe) -> None:
        self._node, self._sandbox_id, self._pipe = node, sandbox_id, pipe
        self.head = pipe.head

    async def read(self) -> bytes:
        data = await _told(self._pipe.read())
        self._node.touch(self._sandbox_id)
        return data

    async def write(self, data: bytes) -> None:
        await _told(self._pipe.write(data))
        self._node.touch(self._sandbox_id)

    async def end(self) -> None:
        await _told(self._pipe.end())

    async def aclose(self) -> None:
        await self._pipe.aclose()


class _Remote:
    """A pipe of another node: every call names the position it is at, so that none counts twice."""

    def __init__(self, deps: Deps, row: Sandbox, pipe: str, head: Json) -> None:
        self.head = head
        self._deps, self._row, self._pipe = deps, row, pipe
        self._read = self._written = 0
        self._is_broken = self._is_closed = False

    async def _ask(self, operation: str, **arguments: Any) -> Json:
        return await self._deps.sandboxes.ask(
            self._row, operation, wait_s=CALL_S, pipe=self._pipe, **arguments
        )

    async def read(self) -> bytes:
        while True:
            answer = await self._ask("relay_pull", at=self._read)
            if not answer["is_waiting"]:
                break
        data = base64.b64decode(answer["data"])
        self._read += len(data)
        return data

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK_BYTES):
            await self._push(data[start : start + CHUNK_BYTES])

    async def end(self) -> None:
        await self._push(b"", is_last=True)

    async def _push(self, data: bytes, *, is_last: bool = False) -> None:
        if self._is_broken:
            raise _broken()
        # What becomes of a call that is given up is not known: nothing can be sent after it.
        self._is_broken = True
        content = base64.b64encode(data).decode("ascii")
        is_waiting = True
        while is_waiting:
            answer = await self._ask("relay_push", at=self._written, data=content, last=is_last)
            is_waiting = answer["is_waiting"]
        self._written += len(data)
        self._is_broken = False

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = self._is_broken = True
        try:
            await self._ask("relay_close")
        except Exception:
            # Its node lets go of it by itself, for nobody reads or writes any more.
            log.info("a pipe was not closed", extra={"sandbox_id": self._row.id}, exc_info=True)


def _broken() -> UserError:
    return UserError(UserErrorCode.UNAVAILABLE, "The way into the sandbox was lost; try again.")


@dataclass(slots=True)
class _End:
    """The near end of a pipe that another node uses."""

    sandbox_id: str
    pipe: Pipe
    tasks: TaskSet
    # What was read and may be asked for again, from `pulled` on.
    buffer: bytes = b""
    pulled: int = 0
    pushed: int = 0
    is_ended: bool = False
    reading: asyncio.Task[bytes] | None = None
    writing: asyncio.Task[None] | None = None
    idling: asyncio.Task[None] | None = None
    used: asyncio.Event = field(default_factory=asyncio.Event)
    pulling: asyncio.Lock = field(default_factory=asyncio.Lock)
    pushing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def pull(self, at: int) -> Json:
        """Give bytes from position `at` on; `is_waiting` when none came for a while."""
        async with self.pulling:
            self._forget(at)
            if not self.buffer:
                data = await self._next()
                if data is None:
                    return {"data": "", "is_waiting": True}
                self.buffer = data
            chunk = self.buffer[:CHUNK_BYTES]
            return {"data": base64.b64encode(chunk).decode("ascii"), "is_waiting": False}

    def _forget(self, at: int) -> None:
        seen = at - self.pulled
        if not 0 <= seen <= len(self.buffer):
            raise _broken()
        self.buffer, self.pulled = self.buffer[seen:], at

    async def _next(self) -> bytes | None:
        # Kept over calls: a caller that gave up must not take bytes along.
        if self.reading is None:
            self.reading = self.tasks.start(_read(self.pipe), name="relay read")
        await asyncio.wait({self.reading}, timeout=WAIT_S)
        if not self.reading.done():
            return None
        done, self.reading = self.reading, None
        return _outcome(done)

    async def push(self, at: int, data: bytes, *, is_last: bool) -> Json:
        """Write bytes that belong at position `at`; what was written already is not again."""
        async with self.pushing:
            if at + len(data) > self.pushed or (is_last and not self.is_ended):
                if at != self.pushed:
                    raise _broken()
                if self.writing is None:
                    self.writing = self.tasks.start(
                        _write(self.pipe, data, is_last=is_last), name="relay write"
                    )
                await asyncio.wait({self.writing}, timeout=WAIT_S)
                if not self.writing.done():
                    return {"is_waiting": True}
                done, self.writing = self.writing, None
                _outcome(done)
                self.pushed += len(data)
                self.is_ended = self.is_ended or is_last
        return {"is_waiting": False}


def _outcome(done: asyncio.Task[T]) -> T:
    """Give what was waited for. Raises UserError where the pipe was closed meanwhile.

    Who waits for that was not cancelled itself, and must hear of it.
    """
    if done.cancelled():
        raise _broken()
    return done.result()


async def _read(pipe: Pipe) -> bytes:
    return await pipe.read()


async def _write(pipe: Pipe, data: bytes, *, is_last: bool) -> None:
    if data:
        await pipe.write(data)
    if is_last:
        await pipe.end()


class Relays:
    """The near ends of pipes that other nodes use; those nobody uses for a minute are closed."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._ends: dict[str, _End] = {}
        self._tasks = TaskSet()

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, sandbox_id: str, pipe: Pipe) -> str:
        """Keep an open pipe, and give the name it is asked for by."""
        name = secrets.token_hex(8)
        end = self._ends[name] = _End(sandbox_id, pipe, TaskSet())
        end.idling = self._tasks.start(self._expire(name, end), name="relay idle")
        return name

    def require_room(self, sandbox_id: str) -> None:
        """Raise UserError LIMIT when a sandbox has as many pipes as it may."""
        count = sum(end.sandbox_id == sandbox_id for end in self._ends.values())
        if count >= PER_SANDBOX:
            raise UserError(
                UserErrorCode.LIMIT,
                f"The sandbox has {count} transfers and connections under way, and may have "
                f"{PER_SANDBOX}; wait for one to end.",
            )

    def get(self, sandbox_id: str, name: str) -> _End:
        """Give a pipe that is being used. Raises UserError UNAVAILABLE when it is gone."""
        end = self._ends.get(name)
        if end is None or end.sandbox_id != sandbox_id:
            raise _broken()
        end.used.set()
        return end

    async def _expire(self, name: str, end: _End) -> None:
        # A call that waits counts as use: it takes less than the limit.
        is_used = True
        while is_used:
            end.used.clear()
            try:
                async with asyncio.timeout(self._idle_s):
                    await end.used.wait()
            except TimeoutError:
                is_used = False
        if self._ends.pop(name, None) is not None:
            log.info("an idle pipe is closed", extra={"sandbox_id": end.sandbox_id})
            await _let_go(end)

    async def close(self, name: str) -> None:
        """Close a pipe. Idempotent."""
        end = self._ends.pop(name, None)
        if end is not None:
            if end.idling is not None:
                end.idling.cancel()
            await _let_go(end)

    def closing(self, sandbox_id: str) -> None:
        """Close what goes into a sandbox that ends, beside the caller."""
        for name in [n for n, end in self._ends.items() if end.sandbox_id == sandbox_id]:
            self._tasks.start(self.close(name), name="relay close")

    async def aclose(self) -> None:
        """Close everything."""
        await self._tasks.aclose()
        for name in list(self._ends):
            await self.close(name)


async def _let_go(end: _End) -> None:
    await end.tasks.aclose()
    try:
        await end.pipe.aclose()
    except Exception:
        log.exception("a pipe was not closed cleanly")


@operations.operation("relay_open")
async def _open(node: "Node", sandbox_id: str, request: Json) -> Mapping[str, Any]:
    node.relays.require_room(sandbox_id)
    pipe = await KINDS[request["kind"]](node, sandbox_id, request["arguments"])
    return {"pipe": node.relays.add(sandbox_id, pipe), "head": pipe.head}


@operations.operation("relay_pull")
async def _pull(node: "Node", sandbox_id: str, request: Json) -> Mapping[str, Any]:
    answer = await node.relays.get(sandbox_id, request["pipe"]).pull(request["at"])
    if answer["data"]:
        node.touch(sandbox_id)
    return answer


@operations.operation("relay_push")
async def _push(node: "Node", sandbox_id: str, request: Json) -> Mapping[str, Any]:
    end = node.relays.get(sandbox_id, request["pipe"])
    data = base64.b64decode(request["data"])
    node.touch(sandbox_id)
    return await end.push(request["at"], data, is_last=request["last"])


@operations.operation("relay_close")
async def _close(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.relays.close(request["pipe"])


@operations.attachment
@asynccontextmanager
async def _relaying(node: "Node") -> "AsyncIterator[None]":
    node.on_ending.append(lambda live: node.relays.closing(live.sandbox_id))
    try:
        yield
    finally:
        await node.relays.aclose()
