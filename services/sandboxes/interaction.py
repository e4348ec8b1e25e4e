"""What is done to executions while they run: input, signals, the size of the terminal."""

import base64
import signal as signals
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select, update

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution
from models.states import RunState
from services.base import Deps, Viewer, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import executions, rows
from services.sandboxes.operations import operation
from services.sandboxes.running import Run

if TYPE_CHECKING:
    from services.sandboxes.node import Node

WRITE_BYTES = 262_144
_PATH = ("execution_id",)


class Signal(StrEnum):
    """What can be sent to programs."""

    HUP = "HUP"
    INT = "INT"
    QUIT = "QUIT"
    ABRT = "ABRT"
    KILL = "KILL"
    USR1 = "USR1"
    USR2 = "USR2"
    ALRM = "ALRM"
    TERM = "TERM"
    CONT = "CONT"
    STOP = "STOP"
    TSTP = "TSTP"
    WINCH = "WINCH"

    @property
    def number(self) -> int:
        """Its number on Linux."""
        return signals.Signals[f"SIG{self}"].value


class _Target(NamedTuple):
    id: str
    sandbox_id: str
    status: RunState
    is_interactive: bool
    terminal_rows: int | None


_COLUMNS = [getattr(SandboxExecution, name) for name in _Target._fields]


async def _find(deps: Deps, viewer: Viewer, execution_id: str) -> tuple[_Target, Sandbox]:
    """Give an execution of the viewer that has not ended, and where it runs.

    Raises UserError NOT_FOUND, CONFLICT when it has ended or its sandbox does not run.
    """
    viewer.require("sandboxes:execute")
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*_COLUMNS).where(SandboxExecution.id == execution_id)
        )
        target = next((_Target._make(values) for values in found), None)
    sandbox = await rows.sandbox(deps, target.sandbox_id) if target is not None else None
    if target is None or sandbox is None or sandbox.user_id != viewer.id:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such execution.", _PATH)
    if target.status.is_final:
        raise UserError(
            UserErrorCode.CONFLICT, f"The execution has ended; it is {target.status.name}.", _PATH
        )
    rows.require_running(sandbox, path="execution_id")
    return target, sandbox


async def _shown(deps: Deps, execution_id: str, **values: Any) -> SandboxExecution:
    row = await rows.execution(deps, execution_id)
    if row is None:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such execution.", _PATH)
    return row._replace(**values)  # type: ignore[attr-defined, no-any-return]


async def write(
    deps: Deps,
    viewer: Viewer,
    *,
    execution_id: str,
    data: str | bytes = b"",
    is_last: bool = False,
) -> SandboxExecution:
    """Pass input on to an execution that takes it, and give it with the bytes it had in all.

    Returns when the program, or the little that is kept for it, has taken it. Input arrives in the
    order of the calls, one whole after the other. `is_last` closes the input; on a terminal it
    types the end-of-file character.

    Raises UserError NOT_FOUND, REQUIRED and LIMIT for the data, CONFLICT when the execution has
    ended, takes no input, or does not read it: its message says how much was taken.
    """
    target, sandbox = await _find(deps, viewer, execution_id)
    if not target.is_interactive:
        raise UserError(
            UserErrorCode.CONFLICT,
            "The execution takes no input: it was begun without a terminal, and without its input "
            "being kept open.",
            _PATH,
        )
    sent = _bytes(data)
    if not sent and not is_last:
        raise UserError(UserErrorCode.REQUIRED, "There is nothing to write.", ("text",))
    if len(sent) > WRITE_BYTES:
        raise UserError(
            UserErrorCode.LIMIT,
            f"There are {len(sent):,} bytes; write at most {WRITE_BYTES:,} at once.",
            ("text" if isinstance(data, str) else "base64",),
        )
    answer = await deps.sandboxes.ask(
        sandbox,
        "execution_write",
        execution_id=target.id,
        data=base64.b64encode(sent).decode("ascii"),
        is_last=is_last,
    )
    return await _shown(deps, target.id, stdin_bytes=answer["stdin_bytes"])


def _bytes(data: str | bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            UserErrorCode.INVALID, "The text contains an invalid character.", ("text",)
        ) from error


async def signal(
    deps: Deps, viewer: Viewer, *, execution_id: str, signal: Signal
) -> SandboxExecution:
    """Send a signal to the process group of an execution's command, and give the execution.

    Raises UserError NOT_FOUND, CONFLICT when it has ended or its sandbox does not run.
    """
    target, sandbox = await _find(deps, viewer, execution_id)
    await deps.sandboxes.ask(
        sandbox, "execution_signal", execution_id=target.id, signal=signal.number
    )
    return await _shown(deps, target.id)


async def resize(
    deps: Deps, viewer: Viewer, *, execution_id: str, rows: int, cols: int
) -> SandboxExecution:
    """Change the size of an execution's terminal, and give the execution.

    Raises UserError NOT_FOUND, INVALID for a size no terminal has, CONFLICT when it has ended or
    has no terminal.
    """
    target, sandbox = await _find(deps, viewer, execution_id)
    if target.terminal_rows is None:
        raise UserError(UserErrorCode.CONFLICT, "The execution has no terminal.", _PATH)
    executions.check_terminal((rows, cols))
    await deps.sandboxes.ask(
        sandbox, "execution_resize", execution_id=target.id, rows=rows, cols=cols
    )
    async with work(deps) as unit:
        await unit.session.execute(
            update(SandboxExecution)
            .where(SandboxExecution.id == target.id)
            .values(terminal_rows=rows, terminal_cols=cols)
        )
    return await _shown(deps, target.id)


# On the node that hosts the sandbox.


def _run(node: "Node", sandbox_id: str, execution_id: str) -> Run:
    """Give what runs. Raises UserError CONFLICT when it does not, or is frozen."""
    live = node.live.get(sandbox_id)
    current = live.runs.get(execution_id) if live is not None else None
    if live is None or current is None:
        raise UserError(
            UserErrorCode.CONFLICT, "The execution has ended, or has not begun yet.", _PATH
        )
    if live.is_paused:
        raise UserError(UserErrorCode.CONFLICT, "The sandbox is paused; resume it first.", _PATH)
    live.used_at = now()
    return current


@operation("execution_write")
async def _write(node: "Node", sandbox_id: str, request: Json) -> Json:
    current = _run(node, sandbox_id, request["execution_id"])
    data = base64.b64decode(request["data"])
    return {"stdin_bytes": await current.write(data, is_last=request["is_last"])}


@operation("execution_signal")
async def _signal(node: "Node", sandbox_id: str, request: Json) -> None:
    execution = await _run(node, sandbox_id, request["execution_id"]).started()
    await execution.signal(request["signal"])


@operation("execution_resize")
async def _resize(node: "Node", sandbox_id: str, request: Json) -> None:
    execution = await _run(node, sandbox_id, request["execution_id"]).started()
    await execution.resize(request["rows"], request["cols"])
