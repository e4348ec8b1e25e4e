"""One running command, as its client sees it."""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from sandbox.answers import refusal
from sandbox.base import ResourceUsage
from sandbox.connection import Connection
from sandbox.errors import InvalidArgumentError, SandboxError, SandboxLostError
from sandbox.inside import wire

WINDOW_BYTES = 1024 * 1024
MAX_SIDE = 4096  # Rows or columns of a terminal.
_MOST_WINDOW = 16 * 1024 * 1024  # Another version may have given another one.


class Reason(StrEnum):
    """Why an execution ended."""

    EXITED = "EXITED"
    TIMED_OUT = "TIMED_OUT"
    OOM_KILLED = "OOM_KILLED"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    KILLED = "KILLED"
    SANDBOX_LOST = "SANDBOX_LOST"


_REASONS = {
    wire.EXITED: Reason.EXITED,
    wire.TIMED_OUT: Reason.TIMED_OUT,
    wire.OOM_KILLED: Reason.OOM_KILLED,
    wire.OUTPUT_LIMIT: Reason.OUTPUT_LIMIT,
    wire.KILLED: Reason.KILLED,
}


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes as the program wrote them; `stream` is "stdout" or "stderr"."""

    stream: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How an execution ended. `exit_code` and `signal` are both None only for SANDBOX_LOST.

    `stdout_bytes` and `stderr_bytes` count what was sent to the client; `truncated` says that
    more had been written.
    """

    exit_code: int | None
    signal: int | None
    reason: Reason
    truncated: bool
    stdout_bytes: int
    stderr_bytes: int
    usage: ResourceUsage


class Execution:
    """One running command. Read `output()` or only await `result()`; the latter then discards.

    On a terminal everything arrives as "stdout", and what is written to it is echoed as its
    settings say; closing the input types the terminal's end-of-file character there. At most
    `WINDOW_BYTES` of output wait here: a reader that stalls stops the program. An agent that sends
    more than it has credit for, or than the limit, is one that somebody took over.

    One with a name outlives this client: its reader says what is safe (`acknowledge`), for only
    what is not can be had again, and stops the program by not saying so. When its end is safe too,
    `release` has the agent forget it.
    """

    def __init__(
        self,
        connection: Connection,
        op: int,
        limit: int,
        *,
        terminal: bool = False,
        is_named: bool = False,
    ) -> None:
        self._connection = connection
        self._op = op
        self.has_terminal = terminal
        self._limit = limit
        self._is_named = is_named
        self._safe = [0, 0]
        self._window = WINDOW_BYTES
        self._chunks: deque[Output] = deque()
        self._news = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._result: asyncio.Future[ExecutionResult] = asyncio.get_running_loop().create_future()
        self._read_by_caller = False
        self._discarding = False
        self._unacknowledged = 0
        self._stdin_room = wire.STDIN_WINDOW
        self._stdin_news = asyncio.Event()
        self._stdin_closed = False
        self._counts = [0, 0]
        self.pid: int | None = None
        self.stdin_bytes = 0  # Input that was passed on, whatever became of who wrote it.

    async def output(self) -> AsyncIterator[Output]:
        """Chunks in the order they arrived, until the execution ends; for one reader.

        Ends early, without an error, when the sandbox is lost: `result()` says so.
        """
        self._read_by_caller = True
        try:
            while True:
                while self._chunks:
                    chunk = self._chunks.popleft()
                    self._acknowledge(len(chunk.data))
                    yield chunk
                if self._result.done():
                    return
                self._news.clear()
                await self._news.wait()
        finally:
            self._read_by_caller = False

    async def result(self) -> ExecutionResult:
        """The end of the execution. Cancelling the wait does not end the execution.

        Where nobody reads `output()`, what the program still writes is discarded.
        """
        if not self._read_by_caller:
            self._discard()
        return await asyncio.shield(self._result)

    async def cancel(self) -> None:
        """Kill every process of this execution; `result()` then says KILLED. Idempotent."""
        if not self._result.done():
            await self._connection.send(wire.CANCEL, self._op)

    async def signal(self, number: int) -> None:
        """Send a signal to the process group of the command."""
        if not 1 <= number <= 64:
            raise InvalidArgumentError(f"{number} is not a signal; signals are 1 to 64.")
        if not self._result.done():
            await self._connection.send(wire.SIGNAL, self._op, bytes((number,)))

    async def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal. Raises InvalidArgumentError where it has none."""
        if not self.has_terminal:
            raise InvalidArgumentError("The execution has no terminal.")
        check_size(rows, columns)
        if not self._result.done():
            await self._connection.send(wire.RESIZE, self._op, wire.SIZE.pack(rows, columns))

    async def write_stdin(self, data: bytes) -> None:
        """Pass bytes on, waiting while the program does not read. Ignored once it has ended."""
        if self._stdin_closed:
            raise InvalidArgumentError("The standard input is closed.")
        view = memoryview(data)
        while view and not self._result.done():
            if self._stdin_room == 0:
                self._stdin_news.clear()
                await self._stdin_news.wait()
                continue
            part = bytes(view[: min(self._stdin_room, wire.CHUNK)])
            self._stdin_room -= len(part)
            self.stdin_bytes += len(part)
            view = view[len(part) :]
            await self._connection.send(wire.STDIN, self._op, part)

    async def close_stdin(self) -> None:
        """Let the program see the end of its input. Idempotent."""
        if not self._stdin_closed and not self._result.done():
            self._stdin_closed = True
            await self._connection.send(wire.STDIN_CLOSE, self._op)

    @property
    def operation(self) -> int:
        """Its number on the channel, by which `SandboxClient.processes` names it."""
        return self._op

    @property
    def is_over(self) -> bool:
        """Whether it has ended, whatever of its output is still to be read."""
        return self._result.done()

    @property
    def is_input_closed(self) -> bool:
        """Whether nothing more can be written to it."""
        return self._stdin_closed

    def acknowledge(self, stdout: int, stderr: int) -> None:
        """Say how many bytes of each stream, from its beginning, are safe: the agent drops them."""
        size = stdout + stderr - sum(self._safe)
        if size >= WINDOW_BYTES // 4 and self._is_named and not self._result.done():
            self._safe = [stdout, stderr]
            self._window += size
            offsets = wire.OFFSETS.pack(stdout, stderr)
            self._connection.send_now(wire.ACKNOWLEDGE, self._op, offsets)

    def nearest(self, stdout: int, stderr: int) -> tuple[int, int]:
        """Where it can be resumed: there, unless the agent holds too little or never had it."""
        asked = zip((stdout, stderr), self._safe, self._counts, strict=True)
        out, err = (min(max(offset, safe), count) for offset, safe, count in asked)
        return out, err

    async def resume(self, stdout: int, stderr: int, limit: int) -> None:
        """Have all sent that is behind these bytes; see `nearest` and `SandboxClient.resume`."""
        self._limit = limit
        self._safe, self._counts = [stdout, stderr], [stdout, stderr]
        offsets = wire.OFFSETS.pack(stdout, stderr)
        await self._connection.send(wire.RESUME, self._op, offsets)

    def release(self) -> None:
        """Have the agent forget it, and end it first if it runs. Without a name it does nothing."""
        if self._is_named:
            self._is_named = False
            self._connection.send_now(wire.RELEASE, self._op)
            self.on_lost()
            if not self._started.cancelled():
                self._started.exception()  # Retrieved: nobody may have waited for it.

    def _discard(self) -> None:
        self._discarding = True
        while self._chunks:
            self._acknowledge(len(self._chunks.popleft().data))

    def _acknowledge(self, size: int) -> None:
        if self._is_named:
            if self._discarding:
                self.acknowledge(*self._counts)
            return
        self._unacknowledged += size
        if self._unacknowledged >= WINDOW_BYTES // 4 and not self._result.done():
            credit = struct.pack(">I", self._unacknowledged)
            self._window += self._unacknowledged
            self._unacknowledged = 0
            self._connection.send_now(wire.CREDIT, self._op, credit)

    def _on_output(self, stream: int, data: bytes) -> None:
        self._counts[stream] += len(data)
        self._window -= len(data)
        if not data or self._window < 0 or self._counts[stream] > self._limit:
            raise SandboxLostError("The sandbox sent more output than it may.")
        if self._discarding and not self._read_by_caller:
            self._acknowledge(len(data))
            return
        self._chunks.append(Output("stderr" if stream else "stdout", data))
        self._news.set()

    def on_frame(self, kind: int, body: bytes) -> None:
        """Raises SandboxLostError, and whatever unpacking raises, for what no agent sends."""
        if kind == wire.OUTPUT:
            self._on_output(body[0], body[1:])
        elif kind == wire.STARTED:
            (self.pid,) = struct.unpack(">I", body)
            if not self._started.done():
                self._started.set_result(None)
        elif kind == wire.STDIN_CREDIT:
            self._stdin_room += int(struct.unpack(">I", body)[0])
            if self._stdin_room > wire.STDIN_WINDOW:
                raise SandboxLostError("The sandbox took more input than there was.")
            self._stdin_news.set()
        elif kind == wire.RESULT:
            self._finish(_result(body))
        elif kind == wire.ERROR:
            if self._started.done() and not self._started.cancelled():
                raise SandboxLostError("The sandbox refused what it had begun.")
            self._refuse(refusal(body))

    def _finish(self, result: ExecutionResult) -> None:
        if not self._started.done():
            self._started.set_result(None)
        if not self._result.done():
            self._result.set_result(result)
        self._news.set()
        self._stdin_news.set()
        self._connection.forget(self._op)

    def _refuse(self, error: SandboxError | None) -> None:
        if error is None:
            raise SandboxLostError("The sandbox refused for an unknown reason.")
        if not self._started.done():
            self._started.set_exception(error)
        self._result.cancel()
        self._connection.forget(self._op)

    def on_lost(self) -> None:
        out, err = self._counts
        lost = Reason.SANDBOX_LOST
        self._finish(ExecutionResult(None, None, lost, False, out, err, ResourceUsage()))


def taken_over(connection: Connection, record: tuple[int, ...]) -> Execution:
    """An execution that outlived another client, as KEPT tells of it: silent until it is resumed.

    Raises SandboxLostError for what no agent says.
    """
    op, pid, window, safe_out, safe_err, out, err, taken, waiting, flags = record
    held = (out - safe_out, err - safe_err)
    is_sound = min(held) >= 0 and sum(held) <= window <= _MOST_WINDOW
    if not is_sound or waiting > wire.STDIN_WINDOW or not 0 < op <= wire.LAST_OPERATION:
        raise connection.distrust("an execution that cannot be")
    on_terminal = bool(flags & wire.KEPT_TERMINAL)
    execution = Execution(connection, op, 0, terminal=on_terminal, is_named=True)
    execution.pid = pid or None
    execution._window = window
    execution._safe, execution._counts = [safe_out, safe_err], [out, err]
    execution._stdin_room -= waiting
    execution.stdin_bytes = taken
    execution._stdin_closed = bool(flags & wire.KEPT_ENDED)
    return execution


def _result(body: bytes) -> ExecutionResult:
    reason, truncated, code, number, out, err, cpu, wall, peak = wire.RESULT_BODY.unpack(body)
    return ExecutionResult(
        exit_code=None if code < 0 else code,
        signal=number or None,
        reason=_REASONS[reason],
        truncated=bool(truncated),
        stdout_bytes=out,
        stderr_bytes=err,
        usage=ResourceUsage(cpu_ms=cpu / 1000, wall_ms=wall / 1000, memory_peak_bytes=peak or None),
    )


def check_size(rows: int, columns: int) -> None:
    """Raise InvalidArgumentError for a size that no terminal has."""
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise InvalidArgumentError(f"A terminal has 1 to {MAX_SIDE} rows and columns.")
