"""What is done to executions while they run."""

import strawberry

from resolvers.base import Info
from schema.base import Payload, answer, attr, mutation
from schema.sandboxes.executions import SandboxExecution, SandboxTerminalInput, either
from services.sandboxes import interaction
from services.sandboxes.interaction import Signal


@strawberry.input(description="Input for an execution: `text` or `base64`, 256 KiB at once.")
class SandboxExecutionWriteInput:
    execution_id: strawberry.ID = attr("Which one; it must have a terminal, or open input.")
    text: str | None = attr("The input, sent as UTF-8.", default=None)
    base64: str | None = attr("The input as base64, for what is no text.", default=None)
    is_last: bool = attr(
        "Whether the input ends here; a terminal is typed its end-of-file character.", default=False
    )


@strawberry.type(description="Answer to `sandboxExecutionWrite`.")
class SandboxExecutionWritePayload(Payload):
    execution: SandboxExecution | None = answer("The execution; `stdinBytes` is what it had.")


@strawberry.input(description="A signal for an execution.")
class SandboxExecutionSignalInput:
    execution_id: strawberry.ID = attr("Which one.")
    signal: Signal = attr("What to send.")


@strawberry.type(description="Answer to `sandboxExecutionSignal`.")
class SandboxExecutionSignalPayload(Payload):
    execution: SandboxExecution | None = answer("The execution.")


@strawberry.input(description="A new size for an execution's terminal.")
class SandboxExecutionResizeInput:
    execution_id: strawberry.ID = attr("Which one; it must have a terminal.")
    terminal: SandboxTerminalInput = attr("The new size.")


@strawberry.type(description="Answer to `sandboxExecutionResize`.")
class SandboxExecutionResizePayload(Payload):
    execution: SandboxExecution | None = answer("The execution.")


async def _write(info: Info, input: SandboxExecutionWriteInput) -> dict[str, object]:
    execution = await interaction.write(
        info.context.deps,
        info.context.viewer,
        execution_id=input.execution_id,
        data=either(input.text, input.base64, "base64") or "",
        is_last=input.is_last,
    )
    return {"execution": execution}


async def _signal(info: Info, input: SandboxExecutionSignalInput) -> dict[str, object]:
    context = info.context
    execution = await interaction.signal(
        context.deps, context.viewer, execution_id=input.execution_id, signal=input.signal
    )
    return {"execution": execution}


async def _resize(info: Info, input: SandboxExecutionResizeInput) -> dict[str, object]:
    execution = await interaction.resize(
        info.context.deps,
        info.context.viewer,
        execution_id=input.execution_id,
        rows=input.terminal.rows,
        cols=input.terminal.cols,
    )
    return {"execution": execution}


@strawberry.type
class SandboxInteractionMutation:
    sandbox_execution_write = mutation(
        SandboxExecutionWritePayload,
        "Send input to an execution; answered when it was taken. What a program does not read for "
        "ten seconds is refused, and said how much of it.",
    )(_write)
    sandbox_execution_signal = mutation(
        SandboxExecutionSignalPayload, "Send a signal to the process group of a command."
    )(_signal)
    sandbox_execution_resize = mutation(
        SandboxExecutionResizePayload, "Give the terminal of an execution another size."
    )(_resize)
