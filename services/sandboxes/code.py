"""Running code on behalf of a conversation or a plan."""

import asyncio
import functools
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy import select

from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, SandboxStatus
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import executions, lifecycle, output, rows, wishes
from services.text import clean

log = logging.getLogger("noosphere.sandboxes")
CODE_BYTES = executions.STDIN_BYTES
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
_MARGIN_S = 30


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
    be gone is replaced; where the quota leaves no room, the longest unused one made here gives way.
    `on_output(text)` gets what both streams write, as it is written. Code that fails, runs too long
    or loses its sandbox is a result. Cancelled, it cancels the execution.

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
                # Whoever waits for it begins it anew after a restart.
                is_bound=True,
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
    needed_s = timeout_s + _MARGIN_S
    life_s = min(deps.options.sandbox_max_ttl_s, max(deps.options.sandbox_ttl_s, needed_s))
    for row in await _running(deps, viewer):
        if not _serves(row, conversation_id):
            continue
        left_s = (row.expires_at - now()).total_seconds() if row.expires_at else life_s
        if left_s >= max(needed_s, life_s / 2):
            return row
        if left_s > 0:
            # In use: its files shall not go in the middle of a conversation.
            return await lifecycle.extend(
                deps, viewer, sandbox_id=row.id, seconds=max(1, int(life_s - left_s))
            )
    make = functools.partial(
        lifecycle.create,
        deps,
        viewer,
        conversation_id=conversation_id,
        purpose=rows.FOR_TOOLS,
        timeout_s=life_s,
    )
    while True:
        try:
            return await make()
        except (UserError, UserErrors) as error:
            # Too many sandboxes, and too much of what they have: each of them alone, or together.
            errors = error.errors if isinstance(error, UserErrors) else (error,)
            if any(one.code is not UserErrorCode.QUOTA for one in errors):
                raise
            if not await _make_room(deps, viewer):
                raise


def _serves(row: Sandbox, conversation_id: str | None) -> bool:
    if conversation_id is None:
        return row.conversation_id is None and rows.is_for_tools(row.config)
    return row.conversation_id == conversation_id


async def _running(deps: Deps, viewer: Viewer) -> list[Sandbox]:
    """Give the running sandboxes of the viewer, the last used first."""
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(Sandbox))
            .where(
                Sandbox.user_id == viewer.id,
                Sandbox.status == SandboxStatus.RUNNING,
                Sandbox.stop_requested_at.is_(None),
            )
            .order_by(Sandbox.last_active_at.desc())
        )
        return rows_of(Sandbox, found)


async def _make_room(deps: Deps, viewer: Viewer) -> bool:
    """Stop the sandbox made for tools that was longest unused, and say whether there was one.

    What people made for themselves is left to them.
    """
    for row in reversed(await _running(deps, viewer)):
        if rows.is_for_tools(row.config) and not await rows.unfinished(deps, sandbox_id=row.id):
            log.info("a sandbox for tools makes room", extra={"sandbox_id": row.id})
            await lifecycle.stop(deps, viewer, sandbox_id=row.id)
            return True
    return False


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
