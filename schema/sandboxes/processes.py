"""Processes in sandboxes."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from resolvers import sandbox_executions
from resolvers.base import Info
from schema.base import BigInt, Payload, answer, attr, described_enum, field, mutation
from schema.sandboxes.executions import SandboxExecution
from services.sandboxes import processes
from services.sandboxes.interaction import Signal
from services.sandboxes.processes import ProcessState

if TYPE_CHECKING:
    from schema.sandboxes.core import Sandbox

described_enum(
    ProcessState,
    "What a process does.",
    {
        ProcessState.RUNNING: "It runs, or could.",
        ProcessState.SLEEPING: "It waits for something to happen.",
        ProcessState.WAITING: "It waits for the kernel, and cannot be interrupted.",
        ProcessState.STOPPED: "A signal has stopped it.",
        ProcessState.ENDED: "It has ended, and its parent has not looked yet.",
        ProcessState.OTHER: "Something else.",
    },
    name="SandboxProcessState",
)


@strawberry.type(description="A process in a sandbox, as it was when it was looked at.")
class SandboxProcess:
    pid: int = attr("Its number inside the sandbox.")
    parent_pid: int = attr("The number of the process that started it.")
    state: ProcessState = attr("What it does.")
    started_at: datetime = attr("When it began.")
    cpu_milliseconds: float = attr("CPU time it used.")
    memory_bytes: BigInt = attr("Memory it has.")
    command: list[str] = attr("Its program and arguments, the first 4 KiB of them.")
    execution: SandboxExecution | None = field(
        sandbox_executions.process_execution, "The execution it belongs to."
    )


@strawberry.input(description="A process to end, or to send another signal.")
class SandboxProcessKillInput:
    sandbox_id: strawberry.ID = attr("Where it runs.")
    pid: int = attr("Its number inside the sandbox.")
    signal: Signal = attr("What to send.", default=Signal.KILL)


@strawberry.type(description="Answer to `sandboxProcessKill`.")
class SandboxProcessKillPayload(Payload):
    sandbox: Annotated["Sandbox", strawberry.lazy("schema.sandboxes")] | None = answer(
        "The sandbox it runs in."
    )


async def _kill(info: Info, input: SandboxProcessKillInput) -> dict[str, object]:
    sandbox = await processes.kill(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        pid=input.pid,
        signal=input.signal,
    )
    return {"sandbox": sandbox}


@strawberry.type
class SandboxProcessesMutation:
    sandbox_process_kill = mutation(
        SandboxProcessKillPayload, "Send a signal to one process in a sandbox of yours."
    )(_kill)
