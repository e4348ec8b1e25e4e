"""Running code on behalf of a conversation or a plan."""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, SandboxStatus
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode
from services.sandboxes import executions, lifecycle, output, rows, wishes
from services.text import clean

log = logging.getLogger("noosphere.sandboxes")
CODE_BYTES = executions.STDIN_BYTES
PURPOSE = "tools"
Locks = weakref.WeakValueDictionary[str, asyncio.Lock]
_COMMANDS = {"python": "python3 -", "bash": "bash -s", "sh": "/bin/sh -s"}
_NAMES = {
    "python": "python",
    "python3": "python",
    "py": "python",
    "bash": "bash",
    "sh": "sh",
    "shell": "sh",
}
_TRIES = 3
_CANCEL_S = 10.0
_MARGIN = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How code ended and what it wrote; `stdout` and `stderr` as kept in the execution's row."""

    stdout: str
    stderr: str
    exit_code: int | None
    reason: ExecutionReason
    duration_ms: int
    sandbox_id: str
    execution_id: str


async def run(
    deps: Deps,
    locks: Locks,
    viewer: Viewer,
    *,
    code: str,
    language: str,
    conversation_id: str | None,
    timeout_s: int | None,
    on_output: Callable[[str], Awaitable[None]] | None,
) -> RunResult:
    """Run code in the live sandbox of the conversation, or make it one; wait for its end.

    Without a conversation the viewer has one sandbox for all such code. A sandbox that turns out to
    be gone is replaced. `on_output(text)` gets what both streams write, as it is written. Code that
    fails, runs too long or loses its sandbox is a result. Cancelled, it cancels the execution.

    Raises UserError for the arguments (INVALID, REQUIRED, LIMIT), QUOTA, FORBIDDEN, UNAVAILABLE.
    """
    clean(code, "code", max_chars=CODE_BYTES)
    command = _COMMANDS.get(_NAMES.get(language.strip().lower(), ""))
    if command is None:
        raise UserError(
            UserErrorCode.INVALID,
            f"Code in {language[:50]!r} cannot be run; use {' or '.join(_COMMANDS)}.",
            ("language",),
        )
    options = deps.options
    limit_s = wishes.seconds(
        timeout_s,
        "timeout_seconds",
        default=options.execution_timeout_s,
        most=options.execution_max_timeout_s,
    )
    execution = await _begin(
        deps, locks, viewer, conversation_id, command=command, code=code, timeout_s=limit_s
    )
    try:
        ended = await _follow(deps, viewer, execution.id, on_output)
    except BaseException:
        await _cancel(deps, viewer, execution.id)
        raise
    started_at = ended.started_at or ended.created_at
    ended_at = ended.completed_at or now()
    return RunResult(
        stdout=ended.stdout or "",
        stderr=ended.stderr or "",
        exit_code=ended.exit_code,
        reason=ended.reason or ExecutionReason.SANDBOX_LOST,
        duration_ms=round((ended_at - started_at).total_seconds() * 1000),
        sandbox_id=ended.sandbox_id,
        execution_id=ended.id,
    )


async def _begin(
    deps: Deps,
    locks: Locks,
    viewer: Viewer,
    conversation_id: str | None,
    *,
    command: str,
    code: str,
    timeout_s: int,
) -> SandboxExecution:
    """Start the code in a sandbox that is there, as often as one turns out to be gone."""
    key = conversation_id or viewer.id
    for attempt in range(_TRIES):
        # Code that comes at once for one conversation shares one sandbox.
        async with locks.setdefault(key, asyncio.Lock()):
            sandbox = await _sandbox(deps, viewer, conversation_id, timeout_s)
        try:
            return await executions.execute(
                deps,
                viewer,
                sandbox_id=sandbox.id,
                command=command,
                stdin=code,
                timeout_s=timeout_s,
            )
        except UserError as error:
            is_gone = error.code in (UserErrorCode.CONFLICT, UserErrorCode.UNAVAILABLE)
            if not is_gone or attempt == _TRIES - 1:
                raise
            log.info("sandbox %s is gone, another one is made", sandbox.id)
    raise AssertionError("unreachable")


async def _sandbox(
    deps: Deps, viewer: Viewer, conversation_id: str | None, timeout_s: int
) -> Sandbox:
    """Give a sandbox that lives long enough for the code, a new one if there is none."""
    options = deps.options
    needed = timedelta(seconds=timeout_s) + _MARGIN
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(Sandbox))
            .where(
                Sandbox.user_id == viewer.id,
                Sandbox.status == SandboxStatus.RUNNING,
                Sandbox.conversation_id == conversation_id
                if conversation_id is not None
                else Sandbox.conversation_id.is_(None),
            )
            .order_by(Sandbox.id.desc())
        )
        live = [
            row
            for row in rows_of(Sandbox, found)
            if conversation_id is not None or (row.config or {}).get("purpose") == PURPOSE
        ]
    for row in live:
        if row.expires_at is None or row.expires_at > now() + needed:
            return row
    return await lifecycle.create(
        deps,
        viewer,
        conversation_id=conversation_id,
        purpose=PURPOSE,
        timeout_s=_life(options.sandbox_ttl_s, needed, options.sandbox_max_ttl_s),
    )


def _life(default_s: int, needed: timedelta, most_s: int) -> int:
    return min(most_s, max(default_s, int(needed.total_seconds()) + 1))


async def _follow(
    deps: Deps,
    viewer: Viewer,
    execution_id: str,
    on_output: Callable[[str], Awaitable[None]] | None,
) -> SandboxExecution:
    async with aclosing(output.follow(deps, viewer, execution_id)) as items:
        async for item in items:
            if isinstance(item, output.Chunk) and on_output is not None:
                await on_output(item.text)
            elif isinstance(item, output.Exited):
                return item.execution
    row = await rows.execution(deps, execution_id)
    if row is None:
        raise UserError(UserErrorCode.CONFLICT, "The execution was deleted while it ran.")
    return row


async def _cancel(deps: Deps, viewer: Viewer, execution_id: str) -> None:
    """Cancel an execution nobody waits for any more; what fails here is only logged."""
    try:
        async with asyncio.timeout(_CANCEL_S):
            await asyncio.shield(executions.cancel(deps, viewer, execution_id=execution_id))
    except Exception:
        log.warning("execution was not canceled", extra={"id": execution_id}, exc_info=True)
