"""What runs in sandboxes, and what it writes."""

import base64
import binascii
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import strawberry

from models import sandboxes as tables
from models.states import ExecutionReason, RunState
from resolvers import sandboxes
from resolvers.base import Info, reads
from schema.base import (
    BigInt,
    Id,
    Node,
    Payload,
    answer,
    arg,
    attr,
    described_enum,
    field,
    mutation,
)
from schema.live import live, shared
from schema.sandboxes.network import SandboxEnvVariable, SandboxEnvVariableInput
from services.errors import UserError, UserErrorCode
from services.sandboxes import executions, output
from services.sandboxes.interaction import Signal
from services.sandboxes.recording import OutputStream

if TYPE_CHECKING:
    from schema.accounts import User
    from schema.sandboxes.core import Sandbox

described_enum(
    ExecutionReason,
    "Why an execution ended.",
    {
        ExecutionReason.EXITED: "The command ended by itself, or by a signal of its own.",
        ExecutionReason.TIMED_OUT: "It ran longer than it may.",
        ExecutionReason.OOM_KILLED: "It used more memory than the sandbox has.",
        ExecutionReason.OUTPUT_LIMIT: "It wrote more than an execution may.",
        ExecutionReason.KILLED: "It was canceled, or its sandbox was stopped.",
        ExecutionReason.SANDBOX_LOST: "Its end was not seen: the sandbox ended first, with its "
        "server perhaps. On Docker and Kubernetes what runs goes on over restarts of the server.",
    },
    name="SandboxExecutionReason",
)
described_enum(
    OutputStream,
    "Where a program writes.",
    {OutputStream.STDOUT: "Standard output.", OutputStream.STDERR: "Standard error."},
    name="SandboxOutputStream",
)
described_enum(
    Signal,
    "What can be sent to programs.",
    {
        Signal.HUP: "The terminal is gone; many services read their configuration again.",
        Signal.INT: "Interrupted, as by Ctrl+C.",
        Signal.QUIT: "Quit, as by Ctrl+\\.",
        Signal.ABRT: "Aborted.",
        Signal.KILL: "Ends it at once; no program can refuse.",
        Signal.USR1: "Whatever the program makes of it.",
        Signal.USR2: "Whatever the program makes of it.",
        Signal.ALRM: "A timer ran out.",
        Signal.TERM: "Please end.",
        Signal.CONT: "Go on after STOP or TSTP.",
        Signal.STOP: "Stand still; no program can refuse.",
        Signal.TSTP: "Stand still, as by Ctrl+Z.",
        Signal.WINCH: "The terminal has another size.",
    },
    name="SandboxSignal",
)


@strawberry.type(description="What an execution used.")
class SandboxResourceUsage:
    cpu_milliseconds: float | None = attr("CPU time of all its processes.")
    wall_milliseconds: float | None = attr("Time from its start to its end.")
    memory_peak_bytes: BigInt | None = attr("Most memory of its largest process.")


@strawberry.type(description="The size of a terminal.")
class SandboxTerminal:
    rows: int = attr("Lines.")
    cols: int = attr("Characters in a line.")


@strawberry.type(description="One command run in a sandbox.")
class SandboxExecution(Node, row=tables.SandboxExecution):
    command: str = attr("The command, as for `/bin/sh -c`.")
    working_dir: str | None = attr("Where it ran; null: in the workspace.")
    timeout_s: int = attr("How long it may run; 0: as long as its sandbox.", name="timeoutSeconds")
    is_interactive: bool = attr("Whether `sandboxExecutionWrite` can send it input.")
    is_background: bool = attr("Whether it lasts until the last process it started has ended.")
    output_limit: BigInt | None = attr(
        "Bytes it may write to each stream, or it is ended; null: as the server is configured.",
        name="outputLimitBytes",
    )
    pid: int | None = attr("The number of its first process inside; null before it began.")
    stdin_bytes: BigInt = attr("Bytes of input it was sent; while it runs a recent state.")
    status: RunState = attr("Where it stands; COMPLETED is exit code 0.")
    reason: ExecutionReason | None = attr("Why it ended; null until then.")
    exit_code: int | None = attr("Its exit code; null until it ended, and after a signal.")
    signal: int | None = attr("Number of the signal that ended it.")
    stdout: str | None = attr(
        "Beginning of its standard output as text; while it runs a recent state: subscribe to "
        "`sandboxExecutionOutput` to follow it to the byte."
    )
    stderr: str | None = attr("Beginning of its standard error as text, in the same way.")
    stdout_bytes: BigInt = attr("Bytes it wrote to standard output, kept or not.")
    stderr_bytes: BigInt = attr("Bytes it wrote to standard error, kept or not.")
    is_truncated: bool = attr("Whether it wrote more than is kept.")
    created_at: datetime = attr("When it was asked for.")
    started_at: datetime | None = attr("When it began.")
    completed_at: datetime | None = attr("When it ended.")
    sandbox: Annotated["Sandbox", strawberry.lazy("schema.sandboxes")] | None = field(
        sandboxes.execution_sandbox, "Where it runs."
    )
    user: Annotated["User", strawberry.lazy("schema.accounts")] | None = field(
        sandboxes.execution_user, "Who asked for it."
    )

    @strawberry.field(description="The program and its arguments; empty for a shell's command.")
    def argv(self) -> list[str]:
        argv: list[str] | None = self.argv  # type: ignore[assignment]
        return list(argv or ())

    @strawberry.field(description="Environment variables of this execution, beyond the sandbox's.")
    def environment(self) -> list[SandboxEnvVariable]:
        variables: dict[str, str] | None = self.environment  # type: ignore[assignment]
        return [SandboxEnvVariable(name=n, value=v) for n, v in sorted((variables or {}).items())]

    @strawberry.field(description="The terminal it runs on; null: none.")
    def terminal(self) -> SandboxTerminal | None:
        rows: int | None = self.terminal_rows  # type: ignore[attr-defined]
        cols: int | None = self.terminal_cols  # type: ignore[attr-defined]
        return SandboxTerminal(rows=rows, cols=cols) if rows and cols else None

    @strawberry.field(description="What it used; null until it ended.")
    def resource_usage(self) -> SandboxResourceUsage | None:
        usage: dict[str, Any] | None = self.resource_usage  # type: ignore[assignment]
        if usage is None:
            return None
        return SandboxResourceUsage(
            cpu_milliseconds=usage.get("cpu_ms"),
            wall_milliseconds=usage.get("wall_ms"),
            memory_peak_bytes=usage.get("memory_peak_bytes"),
        )


@strawberry.type
class SandboxExecutionsQuery:
    @strawberry.field(description="An execution of yours; null when there is no such.")
    @reads()
    async def sandbox_execution(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the execution.")]
    ) -> SandboxExecution | None:
        return await sandboxes.one_execution(info, id)  # type: ignore[return-value]


@strawberry.input(description="The size of a terminal, each side 1 to 4096.")
class SandboxTerminalInput:
    rows: int = attr("Lines.", default=24)
    cols: int = attr("Characters in a line.", default=80)


@strawberry.input(description="A command to run: `command` or `argv`, and how.")
class SandboxExecuteInput:
    sandbox_id: strawberry.ID = attr("Where.")
    command: str | None = attr("What `/bin/sh -c` shall run, 1 byte to 64 KiB.", default=None)
    argv: list[str] | None = attr(
        "A program and its arguments, run without a shell; at most 64 KiB.", default=None
    )
    working_dir: str | None = attr(
        "A directory within the workspace, or any of the sandbox by its absolute path.",
        default=None,
    )
    stdin: str | None = attr("Its standard input, at most 1 MiB; empty by default.", default=None)
    stdin_base64: str | None = attr(
        "Its standard input as base64 instead, for what is no text.",
        default=None,
        name="stdinBase64",
    )
    keep_stdin_open: bool = attr(
        "Whether more input follows, by `sandboxExecutionWrite`.", default=False
    )
    environment: list[SandboxEnvVariableInput] = attr(
        "Environment variables for it, over those of the sandbox; at most 64 KiB.",
        default_factory=list,
    )
    terminal: SandboxTerminalInput | None = attr(
        "Run it on a terminal, whose input stays open; all it writes is STDOUT then.", default=None
    )
    is_background: bool = attr(
        "Whether it shall go on while any process it started does, without a time of "
        "its own, until its sandbox stops.",
        default=False,
    )
    timeout_seconds: int | None = attr(
        "How long it may run, 1 second to an hour; by default 30 seconds, on a "
        "terminal an hour. In the background up to a day; by default as long as its sandbox.",
        default=None,
    )
    output_limit_bytes: BigInt | None = attr(
        "Bytes it may write to each stream, at most 1 GiB; beyond them it is ended. "
        "16 MiB by default, on a terminal and in the background 1 GiB.",
        default=None,
    )


@strawberry.type(description="Answer to `sandboxExecute`.")
class SandboxExecutePayload(Payload):
    execution: SandboxExecution | None = answer("The execution; follow it to see its output.")


@strawberry.type(description="Answer to `sandboxExecutionCancel`.")
class SandboxExecutionCancelPayload(Payload):
    execution: SandboxExecution | None = answer("The execution.")


def either(text: str | None, encoded: str | None, name: str) -> str | bytes | None:
    """Give what was given, as text or as base64. Raises UserError INVALID for both."""
    if encoded is None:
        return text
    if text is not None:
        raise UserError(UserErrorCode.INVALID, "Give either text or base64.", (name,))
    try:
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError(UserErrorCode.INVALID, "This is not base64.", (name,)) from error


async def _execute(info: Info, input: SandboxExecuteInput) -> dict[str, object]:
    size = input.terminal
    execution = await executions.execute(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        command=input.command,
        argv=input.argv,
        working_dir=input.working_dir,
        environment={variable.name: variable.value for variable in input.environment},
        stdin=either(input.stdin, input.stdin_base64, "stdin_base64"),
        keep_stdin_open=input.keep_stdin_open,
        terminal=(size.rows, size.cols) if size is not None else None,
        is_background=input.is_background,
        timeout_s=input.timeout_seconds,
        output_limit_bytes=input.output_limit_bytes,
    )
    return {"execution": execution}


async def _cancel(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"execution": await executions.cancel(context.deps, context.viewer, execution_id=id)}


@strawberry.type
class SandboxExecutionsMutation:
    sandbox_execute = mutation(
        SandboxExecutePayload,
        "Run a command in a running sandbox. It goes on when nobody listens; several run at once.",
    )(_execute)
    sandbox_execution_cancel = mutation(
        SandboxExecutionCancelPayload,
        "End an execution with all it started; harmless when it has ended.",
    )(_cancel)


@strawberry.interface(description="Something an execution wrote, or its end.")
class SandboxOutputEvent:
    cursor: str = attr("Give it as `after` to go on from here.")


@strawberry.type(description="Output as it was written. Chunks that piled up may come as one.")
class SandboxOutputChunk(SandboxOutputEvent):
    stream: OutputStream = attr("Where it was written.")
    text: str = attr("The bytes as UTF-8; what is not UTF-8 is replaced. No character is cut.")
    data: strawberry.Private[bytes]

    @strawberry.field(description="The exact bytes, in base64.")
    def bytes(self) -> str:
        return base64.b64encode(self.data).decode("ascii")


@strawberry.type(description="The execution has ended; nothing follows.")
class SandboxExecutionExited(SandboxOutputEvent):
    execution: SandboxExecution = attr("The execution with its result.")


@strawberry.type(
    description="Begin anew: the cursor is unknown, or what follows it is not kept any more. "
    "The output in this execution is what goes before the next chunk."
)
class SandboxOutputReset(SandboxOutputEvent):
    execution: SandboxExecution = attr("The execution with its output at this very cursor.")


def _event(item: output.Item) -> SandboxOutputEvent:
    if isinstance(item, output.Chunk):
        return SandboxOutputChunk(
            cursor=item.cursor, stream=item.stream, text=item.text, data=item.data
        )
    kind = SandboxExecutionExited if isinstance(item, output.Exited) else SandboxOutputReset
    return kind(cursor=item.cursor, execution=item.execution)  # type: ignore[arg-type]


@strawberry.type
class SandboxExecutionsSubscription:
    @strawberry.subscription(
        description="What an execution writes, from the beginning or from `after`, as it is "
        "written; then SandboxExecutionExited. A SandboxOutputReset comes first when that cannot "
        "be given."
    )
    async def sandbox_execution_output(
        self,
        info: Info,
        execution_id: Annotated[strawberry.ID, arg("Id of the execution.")],
        after: Annotated[str | None, arg("The cursor of the last event you have.")] = None,
    ) -> AsyncGenerator[SandboxOutputEvent, None]:
        context = info.context
        follower = await shared(
            context,
            ("sandbox execution", execution_id),
            lambda: output.follower(context.deps, context.viewer, execution_id),
        )
        return live(context, follower, after, _event)
