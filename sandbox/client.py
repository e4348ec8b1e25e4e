"""Speaks with the agent inside a sandbox over one channel; the same for every driver."""

import asyncio
import logging
import os
import struct
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Protocol, Self

from sandbox import requests
from sandbox.answers import ANSWER_TIMEOUT_S, Answers, records
from sandbox.base import Channel
from sandbox.errors import (
    InvalidArgumentError,
    SandboxLostError,
    TimeoutError_,
)
from sandbox.execution import (
    WINDOW_BYTES,
    Execution,
    ExecutionResult,
    Output,
    Reason,
    check_size,
)
from sandbox.files import Files
from sandbox.inside import wire
from sandbox.processes import Process, from_record
from sandbox.requests import DEFAULT_ENV, TERMINAL
from sandbox.tunnels import Listener, Tunnel

__all__ = [
    "WINDOW_BYTES",
    "Execution",
    "ExecutionResult",
    "Listener",
    "Output",
    "Process",
    "Reason",
    "SandboxClient",
    "Tunnel",
]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0
START_TIMEOUT_S = 30.0
LISTING_BYTES = 16 * 1024 * 1024  # More than any list of processes that an agent sends.


class _Operation(Protocol):
    """Whom the frames of an operation go to."""

    def on_frame(self, kind: int, body: bytes) -> None: ...

    def on_lost(self) -> None: ...


class SandboxClient:
    """Many executions and file operations at once over one channel.

    `async with SandboxClient(channel) as client:` or `await SandboxClient.connect(channel)` and
    later `aclose()`. Closing ends the executions that still run. `on_accepted` is called with each
    connection that a program makes to a port opened by `listen`, and that port; it must not raise.
    Without it they are broken off.
    """

    def __init__(self, channel: Channel, env: Mapping[str, str] | None = None) -> None:
        self._channel = channel
        self._env = {**DEFAULT_ENV, **(env or {})}
        self._nonce = os.urandom(16)
        self._next = 1
        self._operations: dict[int, _Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeted: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self.tunnels: dict[int, Tunnel] = {}
        self.on_accepted: Callable[[Tunnel, int], None] | None = None
        self.is_distrusted = False  # The agent broke the protocol: it is not to be asked again.
        self.has_zlib = False  # The agent can pack and unpack compressed archives.
        self.files = Files(self)

    @classmethod
    async def connect(cls, channel: Channel, env: Mapping[str, str] | None = None) -> Self:
        """A client whose agent has answered. Raises SandboxLostError, TimeoutError_."""
        client = cls(channel, env)
        try:
            await client._greet()
        except BaseException:
            await client.aclose()
            raise
        return client

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

    def set_env(self, env: Mapping[str, str]) -> None:
        """Give executions from now on this environment, beside what every one has."""
        self._env = {**DEFAULT_ENV, **env}

    async def aclose(self) -> None:
        """Stop listening. What still runs ends as SANDBOX_LOST here."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._on_lost()
        await self._channel.aclose()

    async def execute(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        keep_stdin_open: bool = False,
        terminal: tuple[int, int] | None = None,
        background: bool = False,
        timeout_s: float | None,
        output_limit_bytes: int,
    ) -> Execution:
        """Start a command: a string through `/bin/sh -c`, a sequence as it is.

        `output_limit_bytes` counts for each stream. `stdin` is written and closed, unless it is
        to be kept open for `write_stdin`. `terminal` gives rows and columns of a terminal to run
        on, whose input stays open. A command in the `background` is over when its last process
        is, others when their first process is. Without a `timeout_s` it may run for ever.

        Raises InvalidArgumentError (too large, NUL, no such program or directory),
        ResourceExhaustedError (no room for a process), SandboxLostError. Cancelled while
        starting, the command is killed.
        """
        if terminal is not None:
            check_size(*terminal)
            keep_stdin_open = True
        flags = wire.EXEC_STDIN if stdin or keep_stdin_open else 0
        flags |= wire.EXEC_BACKGROUND if background else 0
        body = requests.execution(
            command,
            cwd=cwd,
            base={**self._env, **({"TERM": TERMINAL} if terminal else {})},
            env=env or {},
            terminal=terminal,
            flags=flags,
            timeout_s=timeout_s,
            output_limit_bytes=output_limit_bytes,
        )
        op = self.operation()
        execution = Execution(self, op, output_limit_bytes, terminal=terminal is not None)
        self._operations[op] = execution
        try:
            await self.send(wire.EXEC, op, body)
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(execution._started)
        except TimeoutError as error:
            self._abandon(execution)
            raise TimeoutError_("The sandbox did not start the command in time.") from error
        except BaseException:
            self._abandon(execution)
            raise
        if stdin:
            self._spawn(self._provide(execution, stdin, close=not keep_stdin_open))
        execution._stdin_closed = not keep_stdin_open and not stdin
        return execution

    def export(self, env: Mapping[str, str], *, without: Collection[str] = ()) -> None:
        """Give commands that start from now on these variables, and not those `without`."""
        kept = {name: value for name, value in self._env.items() if name not in without}
        self._env = {**kept, **env}

    async def processes(self) -> list[Process]:
        """Every process inside but the agent and what belongs to it, by PID."""
        data = bytearray()
        found: list[Process] = []
        async with self.ask(wire.PROCESSES, b"", window=LISTING_BYTES) as answers:
            async for chunk in answers:
                data += chunk
                try:
                    found += [from_record(*record) for record in records(data, wire.PROC, 1)]
                except (struct.error, UnicodeDecodeError) as error:
                    raise self.distrust(error) from error
        if data:
            raise self.distrust("a torn process")
        return found

    async def kill(self, pid: int, signal: int) -> None:
        """Send a signal to one process inside.

        Raises NotFoundError for one that is not there or belongs to the agent,
        InvalidArgumentError for a number that is no signal.
        """
        if not 1 <= signal <= 64:
            raise InvalidArgumentError(f"{signal} is not a signal; signals are 1 to 64.")
        if not 0 < pid <= wire.MAX_PID:
            raise InvalidArgumentError(f"{pid} is not a process.")
        async with self.ask(wire.KILL, wire.KILL_BODY.pack(pid, signal)) as answers:
            await answers.finish()

    async def dial(self, port: int) -> Tunnel:
        """Connect to a TCP port on the loopback of the sandbox.

        Raises PortError when nothing listens there, ResourceExhaustedError when too many
        connections are open, SandboxLostError, TimeoutError_.
        """
        _check_port(port, least=1)
        op = self.operation()
        tunnel = Tunnel(self, op, room=wire.TUNNEL_WINDOW)
        self._operations[op] = self.tunnels[op] = tunnel
        try:
            await self.send(wire.DIAL, op, wire.PORT.pack(port, wire.TUNNEL_WINDOW))
            await self._opened(tunnel)
        except BaseException:
            await tunnel.aclose()
            raise
        return tunnel

    async def listen(self, port: int = 0) -> Listener:
        """Accept TCP connections on the sandbox's loopback; 0 takes any free port.

        Each is passed to `on_accepted`. Raises PortError when the port is taken,
        SandboxLostError, TimeoutError_.
        """
        _check_port(port, least=0)
        op = self.operation()
        listener = Listener(self, op, port)
        self._operations[op] = listener
        try:
            await self.send(wire.LISTEN, op, wire.LISTEN_BODY.pack(port))
            await self._opened(listener)
        except BaseException:
            await listener.aclose()
            raise
        return listener

    async def _opened(self, attempt: Tunnel | Listener) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await attempt.wait_open()
        except TimeoutError as error:
            raise TimeoutError_("The sandbox did not answer in time.") from error

    async def _provide(self, execution: Execution, data: bytes, *, close: bool) -> None:
        await execution.write_stdin(data)
        if close:
            await execution.close_stdin()

    def _abandon(self, execution: Execution) -> None:
        execution._discard()
        if execution._started.done() and not execution._started.cancelled():
            execution._started.exception()  # Retrieved: the caller has it already.
        else:
            self.send_now(wire.CANCEL, execution._op)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except SandboxLostError:
            self._on_lost()

    # What files.py and executions build on.

    def operation(self) -> int:
        """A fresh number for an operation."""
        while True:
            self._next = self._next % wire.LAST_OPERATION + 1
            if self._next not in self._operations:
                return self._next

    def send_now(self, kind: int, op: int, body: bytes = b"") -> None:
        """Queue one frame without waiting for room; for small frames only."""
        if not self._lost.is_set():
            self._channel.write(wire.HEADER.pack(kind, op, len(body)) + body)

    async def send(self, kind: int, op: int, body: bytes = b"") -> None:
        if self._lost.is_set():
            raise SandboxLostError("The sandbox is gone.")
        self._channel.write(wire.HEADER.pack(kind, op, len(body)) + body)
        await self._channel.drain()

    @asynccontextmanager
    async def ask(
        self,
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
        op = self.operation()
        answers = Answers(self, op, window, path=path, timeout_s=timeout_s)
        self._operations[op] = answers
        try:
            await self.send(kind, op, body)
            yield answers
        finally:
            if not answers.is_over:
                self.send_now(wire.CANCEL, op)
            self.forget(op)

    def distrust(self, why: object) -> SandboxLostError:
        """Give a sandbox up whose agent says what no agent says; the error to raise."""
        if not self._lost.is_set():
            log.error("A sandbox was given up: its agent broke the protocol: %r", why)
        self.is_distrusted = True
        self._on_lost()
        return SandboxLostError("The sandbox broke the protocol.")

    def forget(self, op: int) -> None:
        self._operations.pop(op, None)
        self.tunnels.pop(op, None)

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
        if body[:2] != struct.pack(">H", wire.VERSION) or len(body) != wire.HELLO_BODY.size:
            error = SandboxLostError("The sandbox was made by another version of the server.")
            if not self._greeted.done():
                self._greeted.set_exception(error)
            raise error
        _, features = wire.HELLO_BODY.unpack(body)
        self.has_zlib = bool(features & wire.HAS_ZLIB)
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
            elif kind == wire.ACCEPTED:
                self._accept(op, body)
        if at:
            del held[:at]

    def _accept(self, op: int, body: bytes) -> None:
        """A program inside has connected to a port that the agent holds for us."""
        port, room = wire.PORT.unpack(body)
        if op < wire.AGENT_OPERATION or room > wire.TUNNEL_WINDOW:
            raise SandboxLostError("The sandbox began what only a client begins.")
        if len(self.tunnels) > 2 * wire.MAX_TUNNELS:
            raise SandboxLostError("The sandbox opened more connections than it may.")
        if self.on_accepted is None:
            self.send_now(wire.CANCEL, op)
            return
        tunnel = Tunnel(self, op, room)
        self._operations[op] = self.tunnels[op] = tunnel
        self.send_now(wire.CREDIT, op, wire.AMOUNT.pack(wire.TUNNEL_WINDOW))
        self.on_accepted(tunnel, port)

    def _on_lost(self) -> None:
        if self._lost.is_set():
            return
        self._lost.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(SandboxLostError("The sandbox is gone."))
        for operation in list(self._operations.values()):
            operation.on_lost()
        self._operations.clear()
        self.tunnels.clear()


def _check_port(port: int, *, least: int) -> None:
    if not least <= port <= 65535:
        raise InvalidArgumentError(f"{port} is not a port; ports are {least} to 65535.")
