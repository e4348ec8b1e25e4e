"""The processes inside a sandbox: list and kill."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from models.sandboxes import Sandbox
from sandbox.errors import NotFoundError
from services.base import Deps, Viewer, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import rows
from services.sandboxes.interaction import Signal
from services.sandboxes.operations import operation

if TYPE_CHECKING:
    from services.sandboxes.node import Node

_ANSWER_S = 20.0


class ProcessState(StrEnum):
    """What a process does."""

    RUNNING = "RUNNING"
    SLEEPING = "SLEEPING"
    WAITING = "WAITING"
    STOPPED = "STOPPED"
    ENDED = "ENDED"
    OTHER = "OTHER"


_STATES = {
    "R": ProcessState.RUNNING,
    "S": ProcessState.SLEEPING,
    "I": ProcessState.SLEEPING,
    "D": ProcessState.WAITING,
    "T": ProcessState.STOPPED,
    "t": ProcessState.STOPPED,
    "Z": ProcessState.ENDED,
}


@dataclass(frozen=True, slots=True)
class Process:
    """One process inside; `execution_id` names what it belongs to, if that still runs."""

    pid: int
    parent_pid: int
    execution_id: str | None
    state: ProcessState
    started_at: datetime
    cpu_milliseconds: float
    memory_bytes: int
    command: list[str]


async def listing(deps: Deps, sandbox: Sandbox) -> list[Process]:
    """Give the processes in a sandbox the viewer was shown, by PID; those of the agent not.

    Raises UserError CONFLICT when it does not run, UNAVAILABLE when its host does not answer.
    """
    rows.require_running(sandbox, path="sandbox_id")
    answer = await deps.sandboxes.ask(sandbox, "process_list", wait_s=_ANSWER_S)
    return [
        Process(
            pid=pid,
            parent_pid=parent,
            execution_id=execution_id,
            state=_STATES.get(state, ProcessState.OTHER),
            started_at=datetime.fromtimestamp(started_at, UTC),
            cpu_milliseconds=cpu_ms,
            memory_bytes=memory_bytes,
            command=command,
        )
        for pid, parent, execution_id, state, started_at, cpu_ms, memory_bytes, command in answer[
            "processes"
        ]
    ]


@operation("process_list")
async def _listing(node: "Node", sandbox_id: str, request: Json) -> Json:
    async with asyncio.timeout(_ANSWER_S):
        found = await node.client(sandbox_id).processes()
    live = node.live.get(sandbox_id)
    names = {
        current.execution.operation: current.execution_id
        for current in (live.runs.values() if live is not None else ())
        if current.execution is not None
    }
    return {
        "processes": [
            [
                process.pid,
                process.parent,
                names.get(process.execution or 0),
                process.state,
                process.started_at.timestamp(),
                process.cpu_ms,
                process.memory_bytes,
                list(process.command),
            ]
            for process in found
        ]
    }


async def kill(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, pid: int, signal: Signal = Signal.KILL
) -> Sandbox:
    """Send a signal to one process in a sandbox of the viewer, and give the sandbox.

    Raises UserError NOT_FOUND for a sandbox or process that is not there, CONFLICT unless the
    sandbox runs, UNAVAILABLE when its host does not answer.
    """
    viewer.require("sandboxes:execute")
    async with work(deps) as unit:
        sandbox = (await rows.own(unit, viewer, sandbox_id, path="sandbox_id")).frozen()
    rows.require_running(sandbox, path="sandbox_id")
    await deps.sandboxes.ask(
        sandbox, "process_kill", wait_s=_ANSWER_S, pid=pid, signal=signal.number
    )
    return sandbox


@operation("process_kill")
async def _kill(node: "Node", sandbox_id: str, request: Json) -> None:
    pid = request["pid"]
    try:
        async with asyncio.timeout(_ANSWER_S):
            await node.client(sandbox_id).kill(pid, request["signal"])
    except NotFoundError as error:
        raise UserError(UserErrorCode.NOT_FOUND, f"There is no process {pid}.", ("pid",)) from error
