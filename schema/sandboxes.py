"""Sandboxes, what runs in them, and what it writes."""

import base64
from collections.abc import AsyncGenerator
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import strawberry

from models import sandboxes as tables
from models.states import ExecutionReason, PortProtocol, RunState, SandboxStatus
from resolvers import sandboxes
from resolvers.base import Info, PageArgs
from schema.base import (
    After,
    Before,
    BigInt,
    Connection,
    First,
    Last,
    Node,
    Payload,
    arg,
    attr,
    connection,
    described_enum,
    field,
    mutation,
)
from schema.live import live, shared
from services.sandboxes import executions, files, lifecycle, output
from services.sandboxes.files import FileEncoding
from services.sandboxes.recording import OutputStream
from services.sandboxes.wishes import Resources, Security

if TYPE_CHECKING:
    from schema.accounts import User
    from schema.conversations import Conversation

described_enum(
    SandboxStatus,
    "Where a sandbox stands in its life.",
    {
        SandboxStatus.CREATING: "It is being made.",
        SandboxStatus.RUNNING: "Commands can run in it.",
        SandboxStatus.PAUSED: "Frozen; its time stands still.",
        SandboxStatus.STOPPED: "Ended on request, or because its time was over.",
        SandboxStatus.FAILED: "It could not be made, or ended by itself; `failure` says why.",
        SandboxStatus.DELETED: "Deleted; seen by its id only.",
    },
)
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
    PortProtocol,
    "The transport of a port.",
    {PortProtocol.TCP: "TCP.", PortProtocol.UDP: "UDP."},
    name="SandboxPortProtocol",
)
described_enum(
    OutputStream,
    "Where a program writes.",
    {OutputStream.STDOUT: "Standard output.", OutputStream.STDERR: "Standard error."},
    name="SandboxOutputStream",
)
described_enum(
    FileEncoding,
    "How the bytes of a file stand in text.",
    {
        FileEncoding.UTF8: "As they are; for text.",
        FileEncoding.BASE64: "In base64; for anything.",
    },
    name="SandboxFileEncoding",
)


class SandboxNetwork(StrEnum):
    """What a sandbox may reach."""

    NONE = "NONE"
    ALLOW_LIST = "ALLOW_LIST"


described_enum(
    SandboxNetwork,
    "What code in a sandbox may reach over the network.",
    {
        SandboxNetwork.NONE: "Nothing.",
        SandboxNetwork.ALLOW_LIST: "Named hosts only. Refused where the driver cannot enforce it.",
    },
)


@strawberry.type(description="What sandboxes are made from: an image with Python 3.")
class SandboxTemplate(Node, row=tables.SandboxTemplate):
    name: str = attr("Unique name; the default one is `python`.")
    description: str | None = attr("What is in it.")
    language: str = attr("The language it is for.")
    image_name: str = attr("Name of the image.")
    image_tag: str = attr("Tag of the image.")
    created_at: datetime = attr("When it was added.")
    updated_at: datetime = attr("When it was last changed.")


@strawberry.type(description="The writable directory of a sandbox.")
class SandboxWorkspace(Node, row=tables.SandboxWorkspace):
    root_path: str = attr("Its path inside the sandbox.")
    size_bytes: BigInt = attr("Bytes of the files written through the API.")
    created_at: datetime = attr("When it was made.")
    modified_at: datetime = attr("When a file was last written or removed through the API.")


@strawberry.type(description="The limits of a sandbox.")
class SandboxResources(Node, row=tables.SandboxResources):
    cpu_limit: int = attr("CPU time, in thousandths of a core.", name="cpuMillis")
    memory_limit: BigInt = attr("Memory of all processes, files included.", name="memoryBytes")
    disk_limit: BigInt = attr("Size of the workspace.", name="diskBytes")
    network_limit: BigInt | None = attr(
        "Bytes a second over the network; null: not limited.", name="networkBytesPerSecond"
    )
    pids_limit: int = attr("Processes and threads at once.", name="pids")
    timeout_s: int = attr("Life of the sandbox when it was made.", name="timeoutSeconds")


@strawberry.type(description="An environment variable.")
class SandboxEnvVariable:
    name: str = attr("Its name.")
    value: str = attr("Its value.")


@strawberry.type(description="What code in a sandbox may reach.")
class SandboxSecurity(Node, row=tables.SandboxSecurityPolicy):
    capabilities: list[str] = attr("Capabilities of the kernel beyond none.")

    @strawberry.field(description="What it may reach over the network.")
    def network(self) -> SandboxNetwork:
        policy: dict[str, str] = self.network_policy  # type: ignore[attr-defined]
        return SandboxNetwork(policy["mode"].upper())

    @strawberry.field(description="System calls allowed beyond the profile every sandbox has.")
    def syscalls(self) -> list[str]:
        policy: dict[str, Any] = self.syscall_policy  # type: ignore[attr-defined]
        return list(policy.get("allowed", ()))

    @strawberry.field(description="Directories of the host it sees.")
    def mounts(self) -> list[str]:
        policy: dict[str, Any] = self.mount_policy  # type: ignore[attr-defined]
        return list(policy.get("mounts", ()))

    @strawberry.field(description="Environment variables of every execution.")
    def env_variables(self) -> list[SandboxEnvVariable]:
        variables: dict[str, str] = self.env_variables  # type: ignore[assignment]
        return [SandboxEnvVariable(name=n, value=v) for n, v in sorted(variables.items())]


@strawberry.type(description="A port of a server inside a sandbox that is reachable from outside.")
class SandboxPort(Node, row=tables.SandboxPort):
    container_port: int = attr("The port inside.")
    host_port: int = attr("The port outside.")
    protocol: PortProtocol = attr("Its transport.")
    description: str | None = attr("What it is for.")
    created_at: datetime = attr("When it was opened.")


@strawberry.type(description="A file or directory of a sandbox's workspace.")
class SandboxFile:
    path: str = attr("Its path, relative to the workspace.")
    name: str = attr("Its name: the last part of the path.")
    is_directory: bool = attr("Whether it is a directory.")
    size_bytes: BigInt = attr("Its size.")
    modified_at: datetime = attr("When it was last written.")
    mime_type: str | None = attr("What its name says of its content.")
    content_hash: str | None = attr(
        "SHA-256 of what was written through the API, in hexadecimal; null when it is not known."
    )
    content: str | None = field(
        sandboxes.content,
        "Its content. Null for a directory, in a sandbox that does not run, for a file too large, "
        "and with UTF8 for what is no text: ask for BASE64.",
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


@strawberry.type(description="An isolated place where code runs.")
class Sandbox(Node, row=tables.Sandbox):
    status: SandboxStatus = attr("Where it stands in its life.")
    driver: str = attr("What runs it: `bubblewrap` or `docker`.")
    failure: str | None = attr("Why it failed, or ended without being asked to.")
    created_at: datetime = attr("When it was asked for.")
    started_at: datetime | None = attr("When it was ready.")
    last_active_at: datetime | None = attr("When it was last used.")
    paused_at: datetime | None = attr("Since when it is paused.")
    stopped_at: datetime | None = attr("When it ended.")
    expires_at: datetime | None = attr("When its time is over; while paused, as if it ran on.")
    user: Annotated["User", strawberry.lazy("schema.accounts")] | None = field(
        sandboxes.user, "Whose it is."
    )
    conversation: Annotated["Conversation", strawberry.lazy("schema.conversations")] | None = field(
        sandboxes.conversation, "The conversation whose code runs in it."
    )
    template: SandboxTemplate | None = field(sandboxes.template, "What it was made from.")
    workspace: SandboxWorkspace | None = field(sandboxes.workspace, "Its writable directory.")
    resources: SandboxResources | None = field(sandboxes.resources, "Its limits.")
    security: SandboxSecurity | None = field(sandboxes.security, "What its code may reach.")
    ports: list[SandboxPort] = field(sandboxes.ports, "Its ports that are reachable.")
    files: list[SandboxFile] | None = field(
        sandboxes.files,
        "Files of a directory, by name: as they are while it runs, else those written through the "
        "API. Null when there is no such directory, or the sandbox does not answer.",
    )
    executions: Connection[SandboxExecution] = connection(
        sandboxes.executions, "What ran in it, newest first."
    )


@strawberry.type
class SandboxesQuery:
    @strawberry.field(description="A sandbox of yours; null when there is no such.")
    async def sandbox(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the sandbox.")]
    ) -> Sandbox | None:
        return await sandboxes.one(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your sandboxes, newest first, without deleted ones.")
    async def sandboxes(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        status: Annotated[SandboxStatus | None, arg("Only those with this status.")] = None,
    ) -> Connection[Sandbox]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.listed(info, page, status)  # type: ignore[return-value]

    @strawberry.field(description="An execution of yours; null when there is no such.")
    async def sandbox_execution(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the execution.")]
    ) -> SandboxExecution | None:
        return await sandboxes.one_execution(info, id)  # type: ignore[return-value]

    @strawberry.field(description="What sandboxes can be made from, by name; none when anonymous.")
    async def sandbox_templates(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[SandboxTemplate]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.templates(info, page)  # type: ignore[return-value]

    @strawberry.field(description="A file of a running sandbox of yours; null when there is none.")
    async def sandbox_file(
        self,
        info: Info,
        sandbox_id: Annotated[strawberry.ID, arg("Which sandbox.")],
        path: Annotated[str, arg("Its path, relative to the workspace.")],
    ) -> SandboxFile | None:
        return await sandboxes.file(info, sandbox_id, path)  # type: ignore[return-value]


@strawberry.input(description="Limits of a sandbox; what is left out is as the template says.")
class SandboxResourcesInput:
    cpu_millis: int | None = strawberry.field(
        default=None, description="CPU time in thousandths of a core, 50 to 4,000."
    )
    memory_bytes: BigInt | None = strawberry.field(
        default=None, description="Memory of all processes and files, 96 MiB to 4 GiB."
    )
    disk_bytes: BigInt | None = strawberry.field(
        default=None,
        description="Size of the workspace, from 1 MiB; it lies in memory, so less than that.",
    )
    pids: int | None = strawberry.field(
        default=None, description="Processes and threads at once, 8 to 4,096."
    )
    network_bytes_per_second: BigInt | None = strawberry.field(
        default=None,
        description="Bytes a second over the network. Refused where it cannot be enforced.",
    )


@strawberry.input(description="An environment variable.")
class SandboxEnvVariableInput:
    name: str = attr("Letters, digits and underscores, not beginning with a digit.")
    value: str = attr("Its value, without NUL.")


@strawberry.input(
    description="What code may reach. What the server's driver cannot enforce is refused."
)
class SandboxSecurityInput:
    network: SandboxNetwork = strawberry.field(
        default=SandboxNetwork.NONE, description="What it may reach over the network."
    )
    syscalls: list[str] = strawberry.field(
        default_factory=list, description="System calls to allow beyond the profile."
    )
    mounts: list[str] = strawberry.field(
        default_factory=list, description="Directories of the host to see."
    )
    capabilities: list[str] = strawberry.field(
        default_factory=list, description="Capabilities of the kernel to give."
    )
    env_variables: list[SandboxEnvVariableInput] = strawberry.field(
        default_factory=list, description="Environment of every execution, at most 64 KiB."
    )


@strawberry.input(description="A new sandbox; everything can be left out.")
class SandboxCreateInput:
    template_id: strawberry.ID | None = strawberry.field(
        default=None, description="What it is made from; the template `python` by default."
    )
    resources: SandboxResourcesInput | None = strawberry.field(
        default=None, description="Its limits."
    )
    security: SandboxSecurityInput | None = strawberry.field(
        default=None, description="What its code may reach."
    )
    timeout_seconds: int | None = strawberry.field(
        default=None,
        description="Its life, 1 second to a day; an hour by default. See `sandboxExtend`.",
    )
    conversation_id: strawberry.ID | None = strawberry.field(
        default=None, description="The conversation whose code shall run in it."
    )


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


@strawberry.input(description="A file to write.")
class SandboxFileWriteInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace, at most 255 characters.")
    content: str = attr("Its content, at most 10 MiB.")
    encoding: FileEncoding = strawberry.field(
        default=FileEncoding.UTF8, description="How the content stands in the text."
    )


@strawberry.input(description="A file to remove.")
class SandboxFileRemoveInput:
    sandbox_id: strawberry.ID = attr("Where.")
    path: str = attr("Its path, relative to the workspace.")
    is_recursive: bool = strawberry.field(
        default=False, description="Whether a directory goes with all that is in it."
    )


def _answer(name: str) -> Any:
    return strawberry.field(default=None, description=name)


@strawberry.type(description="Answer to `sandboxCreate`.")
class SandboxCreatePayload(Payload):
    sandbox: Sandbox | None = _answer("The new sandbox, RUNNING.")


@strawberry.type(description="Answer to `sandboxExecute`.")
class SandboxExecutePayload(Payload):
    execution: SandboxExecution | None = _answer("The execution; follow it to see its output.")


@strawberry.type(description="Answer to `sandboxExecutionCancel`.")
class SandboxExecutionCancelPayload(Payload):
    execution: SandboxExecution | None = _answer("The execution.")


@strawberry.type(description="Answer to `sandboxPause`.")
class SandboxPausePayload(Payload):
    sandbox: Sandbox | None = _answer("The sandbox, PAUSED.")


@strawberry.type(description="Answer to `sandboxResume`.")
class SandboxResumePayload(Payload):
    sandbox: Sandbox | None = _answer("The sandbox, RUNNING.")


@strawberry.type(description="Answer to `sandboxStop`.")
class SandboxStopPayload(Payload):
    sandbox: Sandbox | None = _answer("The sandbox, STOPPED.")


@strawberry.type(description="Answer to `sandboxDelete`.")
class SandboxDeletePayload(Payload):
    sandbox: Sandbox | None = _answer("The sandbox, DELETED.")


@strawberry.type(description="Answer to `sandboxExtend`.")
class SandboxExtendPayload(Payload):
    sandbox: Sandbox | None = _answer("The sandbox with its new end.")


@strawberry.type(description="Answer to `sandboxFileWrite`.")
class SandboxFileWritePayload(Payload):
    file: SandboxFile | None = _answer("The file.")


@strawberry.type(description="Answer to `sandboxFileRemove`.")
class SandboxFileRemovePayload(Payload):
    file: SandboxFile | None = _answer("The file as it was.")


Id = Annotated[strawberry.ID, arg("Which one.")]


async def _create(info: Info, input: SandboxCreateInput | None = None) -> dict[str, object]:
    wish = input or SandboxCreateInput()
    sandbox = await lifecycle.create(
        info.context.deps,
        info.context.viewer,
        template_id=wish.template_id,
        resources=_resources(wish.resources),
        security=_security(wish.security),
        timeout_s=wish.timeout_seconds,
        conversation_id=wish.conversation_id,
    )
    return {"sandbox": sandbox}


def _resources(wish: SandboxResourcesInput | None) -> Resources:
    return Resources() if wish is None else Resources(**vars(wish))


def _security(wish: SandboxSecurityInput | None) -> Security:
    if wish is None:
        return Security()
    return Security(
        network=wish.network,
        syscalls=wish.syscalls,
        mounts=wish.mounts,
        capabilities=wish.capabilities,
        env_variables={variable.name: variable.value for variable in wish.env_variables},
    )


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


async def _pause(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.pause(context.deps, context.viewer, sandbox_id=id)}


async def _resume(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.resume(context.deps, context.viewer, sandbox_id=id)}


async def _stop(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.stop(context.deps, context.viewer, sandbox_id=id)}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.delete(context.deps, context.viewer, sandbox_id=id)}


async def _extend(
    info: Info,
    id: Id,
    seconds: Annotated[int, arg("How much longer it shall live.")],
) -> dict[str, object]:
    context = info.context
    extended = await lifecycle.extend(context.deps, context.viewer, sandbox_id=id, seconds=seconds)
    return {"sandbox": extended}


async def _write(info: Info, input: SandboxFileWriteInput) -> dict[str, object]:
    file = await files.write(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        path=input.path,
        content=input.content,
        encoding=input.encoding,
    )
    return {"file": file}


async def _remove(info: Info, input: SandboxFileRemoveInput) -> dict[str, object]:
    file = await files.remove(
        info.context.deps,
        info.context.viewer,
        sandbox_id=input.sandbox_id,
        path=input.path,
        is_recursive=input.is_recursive,
    )
    return {"file": file}


@strawberry.type
class SandboxesMutation:
    sandbox_create = mutation(SandboxCreatePayload, "Make a sandbox.")(_create)
    sandbox_execute = mutation(
        SandboxExecutePayload,
        "Run a command in a running sandbox. It goes on when nobody listens; several run at once.",
    )(_execute)
    sandbox_execution_cancel = mutation(
        SandboxExecutionCancelPayload,
        "End an execution with all it started; harmless when it has ended.",
    )(_cancel)
    sandbox_pause = mutation(SandboxPausePayload, "Freeze a sandbox; its time stands still.")(
        _pause
    )
    sandbox_resume = mutation(SandboxResumePayload, "Let a paused sandbox go on.")(_resume)
    sandbox_stop = mutation(
        SandboxStopPayload, "End a sandbox and all that runs in it; its files are gone."
    )(_stop)
    sandbox_delete = mutation(
        SandboxDeletePayload, "Take a sandbox out of your lists, ending it if it lives."
    )(_delete)
    sandbox_extend = mutation(SandboxExtendPayload, "Let a live sandbox live longer.")(_extend)
    sandbox_file_write = mutation(
        SandboxFileWritePayload, "Write a file as a whole, with the directories above it."
    )(_write)
    sandbox_file_remove = mutation(SandboxFileRemovePayload, "Remove a file or directory.")(_remove)


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
class SandboxesSubscription:
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
