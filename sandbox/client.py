"""Speaks with the agent inside a sandbox over one channel; the same for every driver."""

import asyncio
import logging
import os
import struct
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from sandbox import agent as wire
from sandbox.base import WORKSPACE, Channel, ResourceUsage, check_env
from sandbox.errors import (
    InvalidArgumentError,
    PolicyDeniedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    SandboxLostError,
    TimeoutError_,
)
from sandbox.files import Files, file_error

log = logging.getLogger(__name__)

COMMAND_BYTES = 64 * 1024
WINDOW_BYTES = 1024 * 1024
CONNECT_TIMEOUT_S = 15.0
START_TIMEOUT_S = 30.0
WAITING_FRAMES = 1024  # Of one operation on files; the agent's frames are large, its lists short.
DEFAULT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": WORKSPACE,
    "TMPDIR": "/tmp",  # noqa: S108 - inside the sandbox.
    "LANG": "C.UTF-8",
    "USER": "sandbox",
    "TERM": "dumb",
    # Python buffers whole blocks when it prints to a pipe; lines are wanted as they are printed.
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


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

    At most `WINDOW_BYTES` of output wait here: a reader that stalls stops the program. An agent
    that sends more than it has credit for, or than the limit, is one that somebody took over.
    """

    def __init__(self, client: "SandboxClient", op: int, limit: int) -> None:
        self._client = client
        self._op = op
        self._limit = limit
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
            await self._client.send(wire.CANCEL, self._op)

    async def signal(self, number: int) -> None:
        """Send a signal to the process group of the command."""
        if not 1 <= number <= 64:
            raise InvalidArgumentError(f"{number} is not a signal; signals are 1 to 64.")
        if not self._result.done():
            await self._client.send(wire.SIGNAL, self._op, bytes((number,)))

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
            view = view[len(part) :]
            await self._client.send(wire.STDIN, self._op, part)

    async def close_stdin(self) -> None:
        """Let the program see the end of its input. Idempotent."""
        if not self._stdin_closed and not self._result.done():
            self._stdin_closed = True
            await self._client.send(wire.STDIN_CLOSE, self._op)

    def _discard(self) -> None:
        self._discarding = True
        while self._chunks:
            self._acknowledge(len(self._chunks.popleft().data))

    def _acknowledge(self, size: int) -> None:
        self._unacknowledged += size
        if self._unacknowledged >= WINDOW_BYTES // 4 and not self._result.done():
            credit = struct.pack(">I", self._unacknowledged)
            self._window += self._unacknowledged
            self._unacknowledged = 0
            self._client.send_now(wire.CREDIT, self._op, credit)

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

    def _on_frame(self, kind: int, body: bytes) -> None:
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
            self._refuse(_error(body))

    def _finish(self, result: ExecutionResult) -> None:
        if not self._started.done():
            self._started.set_result(None)
        if not self._result.done():
            self._result.set_result(result)
        self._news.set()
        self._stdin_news.set()
        self._client.forget(self._op)

    def _refuse(self, error: SandboxError) -> None:
        if not self._started.done():
            self._started.set_exception(error)
        self._result.cancel()
        self._client.forget(self._op)

    def _on_lost(self) -> None:
        out, err = self._counts
        lost = Reason.SANDBOX_LOST
        self._finish(ExecutionResult(None, None, lost, False, out, err, ResourceUsage()))


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


def _error(body: bytes) -> SandboxError:
    code, _, text = body.partition(b"\0")
    message = text.decode("utf-8", "replace")
    if code == b"EXHAUSTED":
        return ResourceExhaustedError(message, resource=Resource.SANDBOX)
    if code in (b"INVALID", b"NOT_STARTED"):
        return InvalidArgumentError(message)
    try:
        return file_error(code.decode("ascii", "replace"), message)
    except ValueError:
        return PolicyDeniedError(message)


@dataclass(slots=True)
class _Answers:
    """What an operation on files has been sent, and how many more bytes it may be."""

    queue: asyncio.Queue[tuple[int, bytes]]
    window: int


class SandboxClient:
    """Many executions and file operations at once over one channel.

    `async with SandboxClient(channel) as client:` or `await SandboxClient.connect(channel)` and
    later `aclose()`. Closing ends the executions that still run.
    """

    def __init__(self, channel: Channel, env: Mapping[str, str] | None = None) -> None:
        self._channel = channel
        self._env = {**DEFAULT_ENV, **(env or {})}
        self._nonce = os.urandom(16)
        self._next = 1
        self._executions: dict[int, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeted: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._waits: dict[int, _Answers] = {}
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
        timeout_s: float,
        output_limit_bytes: int,
    ) -> Execution:
        """Start a command: a string through `/bin/sh -c`, a sequence as it is.

        `output_limit_bytes` counts for each stream. `stdin` is written and closed, unless it is
        to be kept open for `write_stdin`. Raises InvalidArgumentError (too large, NUL, no such
        program or directory), ResourceExhaustedError (no room for a process), SandboxLostError.
        Cancelled while starting, the command is killed.
        """
        if isinstance(command, str):
            if not command.strip():
                raise InvalidArgumentError("The command is empty.")
            argv = ["/bin/sh", "-c", command]
        else:
            argv = list(command)
        if sum(map(len, command)) > COMMAND_BYTES:
            raise InvalidArgumentError("The command is larger than 64 KB.")
        body = self._encode(argv, cwd, env or {}, timeout_s, output_limit_bytes)
        flags = wire.EXEC_STDIN if stdin or keep_stdin_open else 0
        head = wire.EXEC_HEAD.pack(
            int(timeout_s * 1000), output_limit_bytes, WINDOW_BYTES, flags, *body[:2]
        )
        op = self.operation()
        execution = Execution(self, op, output_limit_bytes)
        self._executions[op] = execution
        try:
            await self.send(wire.EXEC, op, head + body[2])
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

    def _encode(
        self,
        argv: Sequence[str],
        cwd: str | None,
        env: Mapping[str, str],
        timeout_s: float,
        output_limit_bytes: int,
    ) -> tuple[int, int, bytes]:
        check_env(env)
        if not argv or not argv[0]:
            raise InvalidArgumentError("The command is empty.")
        if not 0 < timeout_s <= 7 * 86400:
            raise InvalidArgumentError("timeout_s must be above 0 and at most 7 days.")
        if output_limit_bytes < 0:
            raise InvalidArgumentError("output_limit_bytes must not be negative.")
        encoded = [encode(part, "command") for part in argv]
        size = sum(map(len, encoded[2:] if argv[:2] == ["/bin/sh", "-c"] else encoded))
        if size > COMMAND_BYTES or len(argv) > 4096:
            raise InvalidArgumentError("The command is larger than 64 KB.")
        merged = {**self._env, **env}
        strings = [*encoded, encode(cwd or WORKSPACE, "cwd")]
        for name, value in merged.items():
            strings += [encode(name, "env"), encode(value, "env")]
        return len(argv), len(merged), b"".join(map(wire.pack, strings))

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
        self._next = self._next % 0xFFFF_FFF0 + 1
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

    def listen(self, op: int, window: int = 0) -> "asyncio.Queue[tuple[int, bytes]]":
        """Frames of an operation from now on; an ERROR of code LOST when the sandbox goes.

        `window` is how many bytes of data the agent may send before `grant` allows more.
        """
        queue: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(WAITING_FRAMES)
        self._waits[op] = _Answers(queue, window)
        return queue

    async def grant(self, op: int, size: int) -> None:
        """Let the agent send `size` more bytes of an operation's data."""
        if (answers := self._waits.get(op)) is not None:
            answers.window += size
        await self.send(wire.CREDIT, op, struct.pack(">I", size))

    def distrust(self, why: object) -> SandboxLostError:
        """Give a sandbox up whose agent says what no agent says; the error to raise."""
        if not self._lost.is_set():
            log.error("A sandbox was given up: its agent broke the protocol: %r", why)
        self._on_lost()
        return SandboxLostError("The sandbox broke the protocol.")

    def forget(self, op: int) -> None:
        self._executions.pop(op, None)
        self._waits.pop(op, None)

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
        ack = wire.HEADER.pack(wire.HELLO_ACK, 0, 18) + self._nonce
        while True:
            data = await self._channel.read()
            if not data:
                return None
            held += data
            at = held.find(ack)
            if at >= 0 and len(held) >= at + len(ack) + 2:
                del held[: at + len(ack) + 2]
                if self._greeted is not None and not self._greeted.done():
                    self._greeted.set_result(None)
                return held
            if at < 0:
                del held[: max(0, len(held) - len(ack))]

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
            if (execution := self._executions.get(op)) is not None:
                execution._on_frame(kind, body)
            elif (answers := self._waits.get(op)) is not None:
                self._answer(op, answers, kind, body)
        if at:
            del held[:at]

    def _answer(self, op: int, answers: _Answers, kind: int, body: bytes) -> None:
        if kind == wire.DATA:
            answers.window -= len(body)
            if answers.window < 0:
                raise SandboxLostError("The sandbox sent more data than it may.")
        elif kind in (wire.DONE, wire.ERROR):
            del self._waits[op]  # Nothing comes after these.
        else:
            raise SandboxLostError("The sandbox sent an answer of an unknown kind.")
        answers.queue.put_nowait((kind, body))

    def _on_lost(self) -> None:
        if self._lost.is_set():
            return
        self._lost.set()
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(SandboxLostError("The sandbox is gone."))
        for execution in list(self._executions.values()):
            execution._on_lost()
        for answers in self._waits.values():
            if answers.queue.full():
                answers.queue.get_nowait()
            answers.queue.put_nowait((wire.ERROR, b"LOST\0The sandbox is gone."))
        self._waits.clear()


def encode(text: str, what: str) -> bytes:
    """UTF-8 (lone surrogates stand for raw bytes). Raises InvalidArgumentError on NUL."""
    if "\0" in text:
        raise InvalidArgumentError(f"A NUL byte cannot be part of the {what}.")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"The {what} is not valid text.") from error
