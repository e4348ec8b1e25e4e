"""Commands in sandboxes: execute and cancel."""

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution
from models.states import RunState
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import rows, wishes
from services.sandboxes.operations import operation
from services.text import clean

if TYPE_CHECKING:
    from services.sandboxes.node import Node

COMMAND_BYTES = 65_536
STDIN_BYTES = 1_048_576
WORKING_DIR_CHARS = 255
# Far below what an agent can run at once (about 250), so that cancelling and files always work.
UNFINISHED_PER_SANDBOX = 32


async def execute(
    deps: Deps,
    viewer: Viewer,
    *,
    sandbox_id: str,
    command: str,
    working_dir: str | None = None,
    stdin: str | None = None,
    timeout_s: int | None = None,
) -> SandboxExecution:
    """Run a command under `/bin/sh -c` in a sandbox of the viewer; gives at once, PENDING.

    `working_dir` is relative to the workspace, or absolute. What was accepted is run, or settled as
    SANDBOX_LOST: the row is the order, and its host looks for rows it was not told of.

    Raises UserError NOT_FOUND, CONFLICT unless the sandbox is RUNNING, REQUIRED, INVALID and LIMIT
    for the arguments, LIMIT while 32 executions have not ended, UNAVAILABLE when the sandbox's host
    is gone.
    """
    user_id = viewer.require("sandboxes:execute")
    _check(command, working_dir, stdin)
    options = deps.options
    limit_s = wishes.seconds(
        timeout_s,
        "timeout_seconds",
        default=options.execution_timeout_s,
        most=options.execution_max_timeout_s,
    )
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="sandbox_id")
        rows.require_running(sandbox, path="sandbox_id")
        await _require_room(unit, sandbox.id)
        execution = SandboxExecution(
            sandbox_id=sandbox.id,
            user_id=user_id,
            command=command,
            working_dir=working_dir,
            stdin=stdin,
            timeout_s=limit_s,
        )
        unit.session.add(execution)
        sandbox.last_active_at = now()
        await unit.session.flush()
        row, host = execution.frozen(), sandbox.frozen()
    try:
        await deps.sandboxes.ask(host, "run", execution_id=row.id)
    except UserError:
        # A host that is only slow to answer finds the order by itself; one that is gone never will.
        present = await rows.execution(deps, row.id)
        if present is None or present.status.is_final:
            raise
    return row


async def _require_room(unit: Work, sandbox_id: str) -> None:
    """Raise UserError LIMIT when too much runs; the sandbox's row is locked, so counts hold."""
    count = await unit.session.scalar(
        select(func.count())
        .select_from(SandboxExecution)
        .where(
            SandboxExecution.sandbox_id == sandbox_id,
            SandboxExecution.status.in_((RunState.PENDING, RunState.RUNNING)),
        )
    )
    if (count or 0) >= UNFINISHED_PER_SANDBOX:
        raise UserError(
            UserErrorCode.LIMIT,
            f"{count} executions of the sandbox have not ended, and at most "
            f"{UNFINISHED_PER_SANDBOX} may run at once; wait for one or cancel it.",
            ("sandbox_id",),
        )


def _check(command: str, working_dir: str | None, stdin: str | None) -> None:
    clean(command, "command", max_chars=COMMAND_BYTES)
    _require_size(command, "command", COMMAND_BYTES)
    if working_dir is not None:
        clean(working_dir, "working_dir", max_chars=WORKING_DIR_CHARS, multiline=False)
    if stdin:
        if any("\ud800" <= char <= "\udfff" for char in stdin):
            raise UserError(
                UserErrorCode.INVALID, "Stdin contains an invalid character.", ("stdin",)
            )
        _require_size(stdin, "stdin", STDIN_BYTES)


def _require_size(text: str, name: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise UserError(
            UserErrorCode.LIMIT,
            f"{name.capitalize()} has {size:,} bytes; at most {most:,} are allowed.",
            (name,),
        )


@operation("run")
async def _run(node: "Node", sandbox_id: str, request: Json) -> None:
    live = node.live.get(sandbox_id)
    if live is not None:
        node.begin(live, request["execution_id"])
        return
    # It ended between the acceptance and now; while it is being taken up, housekeeping begins it.
    row = await rows.sandbox(node.deps, sandbox_id)
    if row is None or not row.status.is_live:
        await node.settle(request["execution_id"])


@operation("cancel")
async def _cancel(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.cancel(sandbox_id, request["execution_id"])


async def cancel(deps: Deps, viewer: Viewer, *, execution_id: str) -> SandboxExecution:
    """End an execution with everything it started, and give it; harmless when it has ended.

    An execution in a paused sandbox ends when the sandbox goes on. Raises UserError NOT_FOUND,
    UNAVAILABLE when the sandbox's host does not answer.
    """
    viewer.require("sandboxes:execute")
    async with work(deps) as unit:
        execution = await unit.lock(SandboxExecution, execution_id)
        sandbox = (
            await unit.session.get(Sandbox, execution.sandbox_id) if execution is not None else None
        )
        if execution is None or sandbox is None or not rows.may_manage(viewer, sandbox.user_id):
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such execution.", ("id",))
        if execution.status.is_final:
            return execution.frozen()
        execution.cancel_requested_at = execution.cancel_requested_at or now()
        await unit.session.flush()
        row, host = execution.frozen(), sandbox.frozen()
    try:
        await deps.sandboxes.ask(host, "cancel", execution_id=row.id)
    except UserError:
        # With a host that is gone the execution has ended as well.
        present = await rows.execution(deps, execution_id)
        if present is None or not present.status.is_final:
            raise
        return present
    return await rows.execution(deps, execution_id) or row
