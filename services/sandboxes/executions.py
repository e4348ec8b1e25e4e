"""Commands in sandboxes: execute and cancel."""

import base64
import dataclasses
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution
from models.states import RunState
from sandbox.execution import MAX_SIDE
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.options import Options
from services.sandboxes import rows, wishes
from services.sandboxes.operations import operation
from services.sandboxes.running import output_bytes
from services.text import clean

if TYPE_CHECKING:
    from services.sandboxes.node import Node

COMMAND_BYTES = 65_536
ARGUMENTS = 4_096
STDIN_BYTES = 1_048_576
WORKING_DIR_CHARS = 255
MOST_OUTPUT_BYTES = 1_073_741_824
# Far below what an agent can run at once (about 250), so that cancelling and files always work.
UNFINISHED_PER_SANDBOX = 32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What shall run: a `command` for the shell, or `argv` as it is, and how.

    `working_dir` is relative to the workspace, and within it, or absolute. `stdin` comes before
    whatever is written later, which takes `keep_stdin_open` or a `terminal` of so many rows and
    columns.
    `is_background` lets it run until its last process ends, as long as the sandbox if it has no
    `timeout_s`. `output_limit_bytes` counts for each stream.
    """

    command: str | None = None
    argv: Sequence[str] | None = None
    working_dir: str | None = None
    environment: Mapping[str, str] | None = None
    stdin: str | bytes | None = None
    keep_stdin_open: bool = False
    terminal: tuple[int, int] | None = None
    is_background: bool = False
    timeout_s: int | None = None
    output_limit_bytes: int | None = None

    def columns(self, options: Options) -> dict[str, Any]:
        """Give the row it makes. Raises UserError and UserErrors for what cannot be run."""
        command = _command(self.command, self.argv)
        if self.working_dir is not None:
            _check_working_dir(self.working_dir)
        check_terminal(self.terminal)
        rows_, cols = self.terminal or (None, None)
        return {
            "command": command,
            "argv": list(self.argv) if self.argv is not None else None,
            "working_dir": self.working_dir,
            "environment": wishes.execution_env(self.environment),
            **_stdin(self.stdin),
            "is_interactive": self.keep_stdin_open or self.terminal is not None,
            "is_background": self.is_background,
            "terminal_rows": rows_,
            "terminal_cols": cols,
            "timeout_s": self._timeout(options),
            "output_limit": self._limit(options),
        }

    def _timeout(self, options: Options) -> int:
        if self.is_background:
            if self.timeout_s is None:
                return 0
            default = most = options.sandbox_max_ttl_s
        else:
            most = options.execution_max_timeout_s
            # Somebody sits before a terminal.
            default = most if self.terminal else options.execution_timeout_s
        return wishes.seconds(self.timeout_s, "timeout_seconds", default=default, most=most)

    def _limit(self, options: Options) -> int:
        limit = self.output_limit_bytes
        if limit is None:
            is_long = self.is_background or self.terminal is not None
            return MOST_OUTPUT_BYTES if is_long else output_bytes(options)
        if 1 <= limit <= MOST_OUTPUT_BYTES:
            return limit
        raise UserError(
            UserErrorCode.INVALID if limit < 1 else UserErrorCode.LIMIT,
            f"The limit of output must be between 1 and {MOST_OUTPUT_BYTES:,} bytes; {limit:,} is "
            "not.",
            ("output_limit_bytes",),
        )


async def execute(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, is_bound: bool = False, **wish: Any
) -> SandboxExecution:
    """Run a command in a sandbox of the viewer; gives it at once, PENDING.

    `wish` are the fields of `Order`. What was accepted is run, or settled as SANDBOX_LOST: the row
    is the order, and its host looks for rows it was not told of. It goes on over a restart of the
    process that hosts it, where the sandbox does, unless it `is_bound` to that process.

    Raises UserError NOT_FOUND, CONFLICT unless the sandbox is RUNNING, REQUIRED, INVALID and LIMIT
    for the arguments, LIMIT while 32 executions have not ended, UNAVAILABLE when the sandbox's host
    is gone.
    """
    user_id = viewer.require("sandboxes:execute")
    columns = Order(**wish).columns(deps.options)
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="sandbox_id")
        rows.require_running(sandbox, path="sandbox_id")
        await _require_room(unit, sandbox.id)
        execution = SandboxExecution(sandbox_id=sandbox.id, user_id=user_id, **columns)
        unit.session.add(execution)
        sandbox.last_active_at = now()
        await unit.session.flush()
        row, host = execution.frozen(), sandbox.frozen()
    try:
        await deps.sandboxes.ask(host, "run", execution_id=row.id, is_bound=is_bound)
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


def _check_working_dir(path: str) -> None:
    clean(path, "working_dir", max_chars=WORKING_DIR_CHARS, multiline=False)
    if posixpath.normpath(path).split("/")[0] == "..":
        raise UserError(
            UserErrorCode.INVALID,
            "The working directory leads out of the workspace; elsewhere in the sandbox it must be "
            "absolute, as /tmp.",
            ("working_dir",),
        )


def _command(command: str | None, argv: Sequence[str] | None) -> str:
    """Give the command as a shell would be told it. Raises UserError for none and for both."""
    if argv is None:
        clean(command, "command", max_chars=COMMAND_BYTES)
        _require_size(command or "", "command", COMMAND_BYTES)
        return command or ""
    if command is not None:
        raise UserError(UserErrorCode.INVALID, "Give either a command or its arguments.", ("argv",))
    if not argv or not argv[0].strip():
        raise UserError(UserErrorCode.REQUIRED, "The program is missing.", ("argv",))
    if len(argv) > ARGUMENTS:
        raise UserError(
            UserErrorCode.LIMIT,
            f"There are {len(argv):,} arguments; at most {ARGUMENTS:,} are allowed.",
            ("argv",),
        )
    for argument in argv:
        if argument:
            clean(argument, "argv", max_chars=COMMAND_BYTES, min_chars=0)
    _require_size("".join(argv), "argv", COMMAND_BYTES)
    return shlex.join(argv)


def _stdin(given: str | bytes | None) -> dict[str, Any]:
    """Give the columns of what is sent to the command at its start."""
    if not given:
        return {"stdin": None}
    if isinstance(given, str):
        if any("\ud800" <= char <= "\udfff" for char in given):
            raise UserError(
                UserErrorCode.INVALID, "Stdin contains an invalid character.", ("stdin",)
            )
        _require_size(given, "stdin", STDIN_BYTES)
        return {"stdin": given}
    if len(given) > STDIN_BYTES:
        raise _too_large(len(given), "stdin", STDIN_BYTES)
    return {"stdin": base64.b64encode(given).decode("ascii"), "is_stdin_base64": True}


def check_terminal(size: tuple[int, int] | None) -> None:
    """Raise UserError INVALID for a size that no terminal has."""
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise UserError(
            UserErrorCode.INVALID,
            f"A terminal has 1 to {MAX_SIDE:,} rows and columns.",
            ("terminal",),
        )


def _require_size(text: str, name: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise _too_large(size, name, most)


def _too_large(size: int, name: str, most: int) -> UserError:
    return UserError(
        UserErrorCode.LIMIT,
        f"{name.capitalize()} has {size:,} bytes; at most {most:,} are allowed.",
        (name,),
    )


@operation("run")
async def _run(node: "Node", sandbox_id: str, request: Json) -> None:
    live = node.live.get(sandbox_id)
    if live is not None and not await node.answers(live):
        await node.settle(request["execution_id"])
        raise UserError(
            UserErrorCode.UNAVAILABLE,
            "The sandbox does not answer at the moment; try again.",
            ("sandbox_id",),
        )
    if live is not None:
        node.begin(live, request["execution_id"], is_bound=bool(request.get("is_bound")))
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
