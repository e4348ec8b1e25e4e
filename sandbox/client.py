"""Speaks with the agent inside a sandbox over one channel; the same for every driver."""

import asyncio
import struct
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

from sandbox import requests
from sandbox.answers import ANSWER_TIMEOUT_S, Answers, ask, records
from sandbox.base import Channel
from sandbox.connection import Connection
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
    taken_over,
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

START_TIMEOUT_S = 30.0
LISTING_BYTES = 16 * 1024 * 1024  # More than any list of processes that an agent sends.


class SandboxClient(Connection):
    """Many executions and file operations at once over one channel.

    `async with SandboxClient(channel) as client:` or `await SandboxClient.connect(channel)` and
    later `aclose()`. The next client ends the executions that still run, but for those with a name:
    it finds these in `kept`, to be resumed or released. `on_accepted` is called with each
    connection that a program makes to a port opened by `listen`, and that port; it must not raise.
    Without it they are broken off.
    """

    def __init__(self, channel: Channel, env: Mapping[str, str] | None = None) -> None:
        super().__init__(channel)
        self._env = {**DEFAULT_ENV, **(env or {})}
        self.kept: dict[str, Execution] = {}
        self.tunnels: dict[int, Tunnel] = {}
        self.on_accepted: Callable[[Tunnel, int], None] | None = None
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

    def set_env(self, env: Mapping[str, str]) -> None:
        """Give executions from now on this environment, beside what every one has."""
        self._env = {**DEFAULT_ENV, **env}

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
        name: str = "",
    ) -> Execution:
        """Start a command: a string through `/bin/sh -c`, a sequence as it is.

        `output_limit_bytes` counts for each stream. `stdin` is written and closed, unless it is
        to be kept open for `write_stdin`. `terminal` gives rows and columns of a terminal to run
        on, whose input stays open. A command in the `background` is over when its last process
        is, others when their first process is. Without a `timeout_s` it may run for ever. With a
        `name` of its own, of at most 64 bytes, it outlives this client (`Execution`), unless the
        agent is of an older version.

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
            name=name if self.has_names else "",
        )
        op = self.operation()
        is_named = bool(name) and self.has_names
        execution = Execution(
            self, op, output_limit_bytes, terminal=terminal is not None, is_named=is_named
        )
        self.register(op, execution)
        await self._begun(execution, self.send(wire.EXEC, op, body))
        if stdin:
            self._spawn(self._provide(execution, stdin, close=not keep_stdin_open))
        execution._stdin_closed = not keep_stdin_open and not stdin
        return execution

    async def resume(
        self,
        execution: Execution,
        at: tuple[int, int],
        *,
        stdin: bytes | None = None,
        output_limit_bytes: int,
    ) -> None:
        """Go on with one of `kept`: its output comes from `at`, bytes of each stream; then its end.

        `at` is one that is `nearest`. `stdin` is the rest of its input, which is then closed; None
        leaves that as it is. Raises what `execute` raises; it is released then.
        """
        await self._begun(execution, execution.resume(*at, output_limit_bytes))
        if stdin is not None:
            self._spawn(self._provide(execution, stdin, close=True))

    async def _begun(self, execution: Execution, sending: Coroutine[None, None, None]) -> None:
        """Wait until it runs, or has ended."""
        try:
            await sending
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(execution._started)
        except TimeoutError as error:
            self._abandon(execution)
            raise TimeoutError_("The sandbox did not start the command in time.") from error
        except BaseException:
            self._abandon(execution)
            raise

    def on_kept(self, records: bytes) -> None:
        """Take over what outlived an earlier client."""
        at = 0
        while at < len(records):
            record = wire.KEPT.unpack_from(records, at)
            name, at = wire.unpack(records, at + wire.KEPT.size)
            execution = taken_over(self, record)
            self.register(execution.operation, execution)
            self.kept[name.decode()] = execution
            # Numbers of theirs are not given again: of what is released something may yet come.
            self._next = max(self._next, execution.operation)

    def export(self, env: Mapping[str, str], *, without: Collection[str] = ()) -> None:
        """Give commands that start from now on these variables, and not those `without`."""
        kept = {name: value for name, value in self._env.items() if name not in without}
        self._env = {**kept, **env}

    async def processes(self) -> list[Process]:
        """Every process inside but the agent and what belongs to it, by PID."""
        data = bytearray()
        found: list[Process] = []
        async with ask(self, wire.PROCESSES, b"", window=LISTING_BYTES) as answers:
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
        async with ask(self, wire.KILL, wire.KILL_BODY.pack(pid, signal)) as answers:
            await answers.finish()

    async def dial(self, port: int) -> Tunnel:
        """Connect to a TCP port on the loopback of the sandbox.

        Raises PortError when nothing listens there, ResourceExhaustedError when too many
        connections are open, SandboxLostError, TimeoutError_.
        """
        _check_port(port, least=1)
        op = self.operation()
        tunnel = Tunnel(self, op, room=wire.TUNNEL_WINDOW)
        self.tunnels[op] = tunnel
        self.register(op, tunnel)
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
        self.register(op, listener)
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
        execution.release()
        if execution._started.done() and not execution._started.cancelled():
            execution._started.exception()  # Retrieved: the caller has it already.
        else:
            self.send_now(wire.CANCEL, execution._op)

    def ask(
        self,
        kind: int,
        body: bytes,
        *,
        window: int = 0,
        path: str | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> AbstractAsyncContextManager[Answers]:
        """Begin an operation of any kind; see `sandbox.answers.ask`."""
        return ask(self, kind, body, window=window, path=path, timeout_s=timeout_s)

    def forget(self, op: int) -> None:
        super().forget(op)
        self.tunnels.pop(op, None)

    def on_unasked(self, kind: int, op: int, body: bytes) -> None:
        """A program inside has connected to a port that the agent holds for us."""
        if kind != wire.ACCEPTED:
            return
        port, room = wire.PORT.unpack(body)
        if op < wire.AGENT_OPERATION or room > wire.TUNNEL_WINDOW:
            raise SandboxLostError("The sandbox began what only a client begins.")
        if len(self.tunnels) > 2 * wire.MAX_TUNNELS:
            raise SandboxLostError("The sandbox opened more connections than it may.")
        if self.on_accepted is None:
            self.send_now(wire.CANCEL, op)
            return
        tunnel = self.tunnels[op] = Tunnel(self, op, room)
        self.register(op, tunnel)
        self.send_now(wire.CREDIT, op, wire.AMOUNT.pack(wire.TUNNEL_WINDOW))
        self.on_accepted(tunnel, port)

    def _on_lost(self) -> None:
        super()._on_lost()
        self.tunnels.clear()


def _check_port(port: int, *, least: int) -> None:
    if not least <= port <= 65535:
        raise InvalidArgumentError(f"{port} is not a port; ports are {least} to 65535.")
