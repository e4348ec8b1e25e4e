"""What runs in sandboxes, and what it writes."""

import base64
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import strawberry

from models import sandboxes as tables
from models.states import ExecutionReason, RunState
from resolvers import sandboxes
from resolvers.base import Info
from schema.base import BigInt, Node, Payload, arg, attr, described_enum, field, mutation
from schema.live import live, shared
from schema.sandboxes.shared import Id, answer
from services.sandboxes import executions, output
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
        ExecutionReason.SANDBOX_LOST: "The sandbox ended while it ran, or before it began.",
    },
    name="SandboxExecutionReason",
)
described_enum(
    OutputStream,
    "Where a program writes.",
    {OutputStream.STDOUT: "Standard output.", OutputStream.STDERR: "Standard error."},
    name="SandboxOutputStream",
)


@strawberry.type(description="What an execution used.")
class SandboxResourceUsage:
    cpu_milliseconds: float | None = attr("CPU time of all its processes.")
    wall_milliseconds: float | None = attr("Time from its start to its end.")
    memory_peak_bytes: BigInt | None = attr("Most memory of its largest process.")


@strawberry.type(description="One command run in a sandbox.")
class SandboxExecution(Node, row=tables.SandboxExecution):
    command: str = attr("The command, run by `/bin/sh -c`.")
    working_dir: str | None = attr("Where it ran; null: in the workspace.")
    timeout_s: int = attr("How long it may run.", name="timeoutSeconds")
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
    async def sandbox_execution(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the execution.")]
    ) -> SandboxExecution | None:
        return await sandboxes.one_execution(info, id)  # type: ignore[return-value]


@strawberry.input(description="A command to run.")
class SandboxExecuteInput:
    sandbox_id: strawberry.ID = attr("Where.")
    command: str = attr("What `/bin/sh -c` shall run, 1 byte to 64 KiB.")
    working_dir: str | None = strawberry.field(
        default=None, description="A directory, relative to the workspace or absolute."
    )
    stdin: str | None = strawberry.field(
        default=None, description="Its standard input, at most 1 MiB; empty by default."
    )
    timeout_seconds: int | None = strawberry.field(
        default=None,
        description="How long it may run, 1 second to an hour; 30 seconds by default.",
    )


@strawberry.type(description="Answer to `sandboxExecute`.")
class SandboxExecutePayload(Payload):
    execution: SandboxExecution | None = answer("The execution; follow it to see its output.")


@strawberry.type(description="Answer to `sandboxExecutionCancel`.")
class SandboxExecutionCancelPayload(Payload):
    execution: SandboxExecution | None = answer("The execution.")


async def _execute(info: Info, input: SandboxExecuteInput) -> dict[str, object]:
    execution = await executions.execute(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        command=input.command,
        working_dir=input.working_dir,
        stdin=input.stdin,
        timeout_s=input.timeout_seconds,
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
