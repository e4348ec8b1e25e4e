"""Running one execution on the node that hosts its sandbox, from PENDING to its end."""

import asyncio
import base64
import dataclasses
import logging
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import SandboxExecution
from models.states import ExecutionReason, RunState
from sandbox.base import ResourceUsage
from sandbox.client import Execution, ExecutionResult, Reason, SandboxClient
from sandbox.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    SandboxError,
    SandboxLostError,
)
from sandbox.limits import Limits
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.events.base import BusUnavailableError
from services.options import Options
from services.sandboxes import rows
from services.sandboxes.recording import Kept, OutputLog, OutputStream, Snapshot, snapshot
from services.sandboxes.settling import CANCELED, LOST, End, settle

log = logging.getLogger("noosphere.sandboxes")
_STREAMS = {"stdout": OutputStream.STDOUT, "stderr": OutputStream.STDERR}
# Stored while it runs every second; more rarely as it grows, so that writes stay below 64 KiB/s.
_CHECKPOINT_BYTES_PER_S = 65_536
_NOT_STARTED = 126
_TRIES = 12
# The agent ends an execution at its timeout; one that has not by then does not answer.
_MARGIN_S = 60.0
# So long an order waits for its execution to begin, and input for the program to read it.
BEGIN_S = 20.0
READ_S = 10.0
# More than people and terminals have on their way at once.
WRITERS = 32


@dataclass(slots=True)
class Run:
    """An execution under way on this node. `left_s` is what is left of its time and a margin.

    With a `name` it outlives the way to its sandbox, as that is what the agent knows it by.
    """

    execution_id: str
    name: str = ""
    left_s: float = float("inf")
    is_canceled: bool = False
    execution: Execution | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    writers: int = 0
    is_interactive: bool = False
    is_background: bool = False
    is_input_closed: bool = False

    @property
    def is_left(self) -> bool:
        """Whether, when it is lost here, others may go on with it."""
        return bool(self.name) and not self.is_canceled

    def is_of(self, row: SandboxExecution) -> None:
        """Take in what the row says of it."""
        if row.timeout_s:
            self.left_s = row.timeout_s + _MARGIN_S
        self.is_interactive, self.is_background = row.is_interactive, row.is_background
        self.is_canceled = self.is_canceled or row.cancel_requested_at is not None

    async def started(self) -> Execution:
        """Give what runs, as soon as it does. Raises UserError CONFLICT when it does not."""
        try:
            async with asyncio.timeout(BEGIN_S):
                await self.begun.wait()
        except TimeoutError as error:
            raise _conflict("The execution has not begun yet; try again.") from error
        if self.execution is None or self.execution.is_over:
            raise _conflict("The execution has ended.")
        return self.execution

    async def write(self, data: bytes, *, is_last: bool) -> int:
        """Pass input on, in the order of the calls; gives the bytes of input there were in all.

        Waits while the program does not read. Raises UserError CONFLICT, saying how much was
        taken, when it does not read for long or has ended; CONFLICT for input that was closed.
        """
        execution = await self.started()
        if self.writers >= WRITERS:
            raise _conflict(f"{WRITERS} writes wait for the program to read; wait for them.")
        self.writers += 1
        before = taken = 0
        try:
            async with asyncio.timeout(READ_S), self.writing:
                if self.is_input_closed:
                    raise _conflict("Its input is closed.")
                before = execution.stdin_bytes
                try:
                    await execution.write_stdin(data)
                finally:
                    taken = execution.stdin_bytes - before
                if is_last and taken == len(data):
                    self.is_input_closed = True
                    await execution.close_stdin()
        except TimeoutError as error:
            raise _unread("The program does not read its input", taken, len(data)) from error
        finally:
            self.writers -= 1
        if taken < len(data):
            raise _unread("The execution has ended", taken, len(data))
        return before + taken

    async def provide(self, data: bytes) -> None:
        """Pass on what the execution was given to begin with, before everything else."""
        async with self.writing:
            self.begun.set()
            if self.execution is not None and data:
                try:
                    await self.execution.write_stdin(data)
                except SandboxLostError:
                    log.debug("a lost execution got no input", extra={"id": self.execution_id})

    def values(self) -> dict[str, Any]:
        """Give the columns of the row that tell of it, beside its output."""
        if self.execution is None:
            return {}
        return {"pid": self.execution.pid, "stdin_bytes": self.execution.stdin_bytes}

    async def cancel(self) -> None:
        """End it; its row then says KILLED. Harmless when it has ended or was lost."""
        self.is_canceled = True
        if self.execution is not None:
            try:
                await self.execution.cancel()
            except SandboxLostError:
                log.debug("a lost execution was canceled", extra={"id": self.execution_id})


def _conflict(message: str) -> UserError:
    return UserError(UserErrorCode.CONFLICT, message, ("execution_id",))


def _unread(why: str, taken: int, size: int) -> UserError:
    return _conflict(f"{why}: {taken:,} of {size:,} bytes were taken.")


async def run(deps: Deps, client: SandboxClient, current: Run) -> None:
    """Start a PENDING execution, record what it writes, and settle its row at its end.

    Does nothing unless it is PENDING. One with a name outlives the way to it: its row is left as it
    stands when that breaks off, for whoever finds another way to `resume` it. Cancelled, it leaves
    the row for the caller to settle.
    """
    try:
        await _run(deps, client, current)
    finally:
        current.begun.set()


async def _run(deps: Deps, client: SandboxClient, current: Run) -> None:
    claimed = await _claim(deps, current.execution_id)
    if claimed is None:
        return
    row, stdin = claimed
    current.is_of(row)
    if current.is_canceled:
        await settle(deps, row.id, CANCELED)
        return
    output = OutputLog(deps, row.id, is_prompt=row.is_interactive)
    begin = client.execute(
        row.argv or row.command,
        cwd=row.working_dir,
        env=row.environment,
        # What is interactive is fed from here, in one line with what is written later.
        stdin=b"" if row.is_interactive else stdin,
        keep_stdin_open=row.is_interactive,
        terminal=_terminal(row),
        background=row.is_background,
        timeout_s=row.timeout_s or None,
        output_limit_bytes=_limit(deps, row),
        name=current.name,
    )
    await _see_through(deps, current, begin, row, output, stdin)


async def resume(deps: Deps, client: SandboxClient, current: Run, execution: Execution) -> None:
    """Go on with an execution that outlived an earlier client, from where its log ends.

    Releases it where its row has ended, and where this fails: database and bus are away for long.
    """
    try:
        known = await _known(deps, current.execution_id)
        if known is None:
            execution.release()
        else:
            await _resume(deps, client, current, execution, *known)
    except Exception:
        execution.release()
        raise
    finally:
        current.begun.set()


async def _resume(
    deps: Deps,
    client: SandboxClient,
    current: Run,
    execution: Execution,
    known: Snapshot,
    stdin: bytes,
) -> None:
    row = known.row
    current.is_of(row)
    kept = Kept.of(row, deps.options.execution_output_bytes)
    at = execution.nearest(*kept.sizes.values())
    kept.go_on_at(at)
    output = OutputLog(deps, row.id, is_prompt=row.is_interactive, kept=kept, head=known.seq)
    rest = stdin[execution.stdin_bytes :]
    current.is_input_closed = row.is_interactive and execution.is_input_closed
    is_fed = bool(stdin) and not row.is_interactive and not execution.is_input_closed

    async def begin() -> Execution:
        await client.resume(
            execution,
            at,
            stdin=rest if is_fed else None,
            output_limit_bytes=_limit(deps, row),
        )
        return execution

    await _see_through(deps, current, begin(), row, output, rest)


async def _known(deps: Deps, execution_id: str) -> tuple[Snapshot, bytes] | None:
    """Give what row and log have of a RUNNING execution, and its input; None of one that is not."""
    for attempt in range(_TRIES):
        try:
            row = await rows.execution(deps, execution_id)
            if row is None or row.status is not RunState.RUNNING:
                return None
            async with deps.db.reading() as connection:
                stdin = await connection.scalar(
                    select(SandboxExecution.stdin).where(SandboxExecution.id == execution_id)
                )
            return await snapshot(deps, row), _stdin(stdin, row.is_stdin_base64)
        except (BusUnavailableError, SQLAlchemyError):
            if attempt == _TRIES - 1:
                raise
            log.warning("execution was not resumed yet", extra={"id": execution_id}, exc_info=True)
            await asyncio.sleep(min(0.1 * 2**attempt, 10.0))
    raise AssertionError("unreachable")


async def _see_through(
    deps: Deps,
    current: Run,
    begin: Awaitable[Execution],
    row: SandboxExecution,
    output: OutputLog,
    stdin: bytes,
) -> None:
    """Begin an execution, or go on with it, and settle its row at its end."""
    execution = None
    try:
        execution = await begin
    except SandboxError as error:
        if isinstance(error, SandboxLostError) and current.is_left:
            return
        # Told where a shell would tell it: there is no such directory, for example.
        await output.write(OutputStream.STDERR, f"{error.message}\n".encode())
        await output.finish()
        is_refused = isinstance(error, InvalidArgumentError | ResourceExhaustedError)
        lost = CANCELED if current.is_canceled else LOST
        end = End(ExecutionReason.EXITED, exit_code=_NOT_STARTED) if is_refused else lost
    else:
        current.execution = execution
        output.on_safe = execution.acknowledge
        if current.is_canceled:
            await current.cancel()
        result = await _record(deps, current, execution, output, stdin)
        if result.reason is Reason.SANDBOX_LOST and current.is_left:
            # With what was said to be safe and is not in the log, should the bus have been away.
            await _store(deps, current, output.kept)
            return
        end = _end(result, current)
        if end.reason is ExecutionReason.OUTPUT_LIMIT:
            output.kept.end_at(_limit(deps, row))
    await settle(deps, row.id, end, kept=output.kept, head=output.head, values=current.values())
    if execution is not None:
        execution.release()


def _limit(deps: Deps, row: SandboxExecution) -> int:
    return row.output_limit or output_bytes(deps.options)


def output_bytes(options: Options) -> int:
    """Give how much an execution may write to each stream unless it says so itself."""
    return max(Limits().output_bytes, options.execution_output_bytes)


def _terminal(row: SandboxExecution) -> tuple[int, int] | None:
    if row.terminal_rows is None or row.terminal_cols is None:
        return None
    return row.terminal_rows, row.terminal_cols


async def _claim(deps: Deps, execution_id: str) -> tuple[SandboxExecution, bytes] | None:
    """Take a PENDING execution, with its input: from here on it is never started again."""
    async with work(deps) as unit:
        row = await unit.lock(SandboxExecution, execution_id)
        if row is None or row.status is not RunState.PENDING:
            return None
        row.status, row.started_at = RunState.RUNNING, now()
        await unit.session.flush()
        return row.frozen(), _stdin(row.stdin, row.is_stdin_base64)


def _stdin(stored: str | None, is_base64: bool) -> bytes:
    return base64.b64decode(stored or "") if is_base64 else (stored or "").encode()


async def _record(
    deps: Deps, current: Run, execution: Execution, output: OutputLog, stdin: bytes
) -> ExecutionResult:
    if current.is_interactive or current.is_background:
        # Others want to know which process it is, before they hear from it.
        await _store(deps, current, output.kept)
    async with asyncio.TaskGroup() as group:
        feeding = group.create_task(current.provide(stdin if current.is_interactive else b""))
        sending = group.create_task(output.run())
        storing = group.create_task(_checkpoint(deps, current, output.kept))
        async with aclosing(execution.output()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await output.write(_STREAMS[chunk.stream], chunk.data)
        result = await execution.result()
        if result.reason is Reason.SANDBOX_LOST and current.is_left:
            # The end of a character cut in two may still come.
            await output.flush()
        else:
            await output.finish()
        for task in (feeding, sending, storing):
            task.cancel()
    return result


def _end(result: ExecutionResult, current: Run) -> End:
    reason = ExecutionReason(result.reason.value)
    if current.is_canceled and result.reason is Reason.SANDBOX_LOST:
        # The sandbox was ended on request before the execution could say how it ended.
        reason = ExecutionReason.KILLED
    return End(reason, result.exit_code, result.signal, result.truncated, _usage(result.usage))


def _usage(usage: ResourceUsage) -> dict[str, Any] | None:
    known = {key: value for key, value in dataclasses.asdict(usage).items() if value is not None}
    return known or None


async def _checkpoint(deps: Deps, current: Run, kept: Kept) -> None:
    """Store what was written so far from time to time, until cancelled."""
    stored: tuple[int, dict[str, Any]] = (0, {})
    while True:
        size = sum(len(text) for text in kept.texts.values())
        await asyncio.sleep(deps.options.text_checkpoint_s + size / _CHECKPOINT_BYTES_PER_S)
        values = current.values()
        if (kept.total, values) == stored:
            continue
        stored = kept.total, values
        await _store(deps, current, kept)


async def _store(deps: Deps, current: Run, kept: Kept) -> None:
    execution_id = current.execution_id
    try:
        async with work(deps) as unit:
            await unit.session.execute(
                update(SandboxExecution)
                .where(
                    SandboxExecution.id == execution_id,
                    SandboxExecution.status == RunState.RUNNING,
                )
                .values(**kept.values(), **current.values())
            )
    except SQLAlchemyError:
        # Nothing is lost: the log has it, and the end of the execution stores everything.
        log.warning("output was not stored yet", extra={"id": execution_id}, exc_info=True)
