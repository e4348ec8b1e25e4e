"""Sandboxes as a whole: what they are, and how they come and go."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from models import sandboxes as tables
from models.states import SandboxExpiry, SandboxStatus
from resolvers import sandbox_executions, sandbox_files, sandbox_ports, sandboxes
from resolvers.base import Info, PageArgs, reads
from resolvers.sandbox_usage import history
from schema.base import (
    After,
    Before,
    BigInt,
    Connection,
    First,
    Id,
    Last,
    Node,
    Payload,
    answer,
    arg,
    attr,
    connection,
    described_enum,
    field,
    mutation,
)
from schema.sandboxes import network
from schema.sandboxes.changes import SandboxFinding
from schema.sandboxes.executions import SandboxExecution
from schema.sandboxes.files import SandboxFile
from schema.sandboxes.limits import SandboxResourcesInput, resources
from schema.sandboxes.network import (
    SandboxNetwork,
    SandboxNetworkAccess,
    SandboxNetworkRuleInput,
    SandboxSecurity,
    SandboxSecurityInput,
)
from schema.sandboxes.ports import SandboxPort
from schema.sandboxes.processes import SandboxProcess
from schema.sandboxes.snapshots import SandboxSnapshot
from schema.sandboxes.templates import SandboxTemplate
from schema.sandboxes.usage import SandboxUsage
from services.sandboxes import changing, lifecycle, snapshots

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
    SandboxExpiry,
    "What becomes of a sandbox whose time is over.",
    {
        SandboxExpiry.STOP: "It ends.",
        SandboxExpiry.PAUSE: "It is frozen, for a day at most by default; `sandboxExtend` and "
        "`sandboxResume` let it go on. Where it cannot be frozen, it ends.",
    },
)


@strawberry.type(description="The writable directory of a sandbox.")
class SandboxWorkspace(Node, row=tables.SandboxWorkspace):
    root_path: str = attr("Its path inside the sandbox.")
    size_bytes: BigInt = attr("Bytes of its files, a moment ago.")
    created_at: datetime = attr("When it was made.")
    modified_at: datetime = attr("When a file was last written or removed.")


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


@strawberry.type(description="An isolated place where code runs.")
class Sandbox(Node, row=tables.Sandbox):
    status: SandboxStatus = attr("Where it stands in its life.")
    driver: str = attr("What runs it: `bubblewrap` or `docker`.")
    failure: str | None = attr(
        "Why it failed, or ended without being asked to, and why its workspace was not kept."
    )
    created_at: datetime = attr("When it was asked for.")
    started_at: datetime | None = attr("When it was ready.")
    last_active_at: datetime | None = attr("When it was last used.")
    paused_at: datetime | None = attr("Since when it is paused.")
    stopped_at: datetime | None = attr("When it ended.")
    stop_requested_at: datetime | None = attr(
        "Since when it is being stopped: its workspace is kept first, and until that is done its "
        "status is what it was, and it takes nothing new. Null: it is not being stopped."
    )
    expires_at: datetime | None = attr("When its time is over; while paused, as if it ran on.")
    idle_timeout_s: int | None = attr(
        "Seconds without use after which its time is over as well; null: none.",
        name="idleTimeoutSeconds",
    )
    on_expiry: SandboxExpiry = attr("What becomes of it when its time is over.")
    is_persistent: bool = attr(
        "Whether its workspace is kept when it is stopped, so that `sandboxStart` lets it go on. "
        "What was last kept stays until something newer is."
    )
    user: Annotated["User", strawberry.lazy("schema.accounts")] | None = field(
        sandboxes.user, "Whose it is."
    )
    conversation: Annotated["Conversation", strawberry.lazy("schema.conversations")] | None = field(
        sandboxes.conversation, "The conversation whose code runs in it."
    )
    template: SandboxTemplate | None = field(sandboxes.template, "What it was made from.")
    template_version: int | None = attr("The version of the template it was made from.")
    image_digest: str | None = attr(
        "The image it was made from, exactly; null: the host's own system, or not known."
    )
    workspace: SandboxWorkspace | None = field(sandboxes.workspace, "Its writable directory.")
    resources: SandboxResources | None = field(sandboxes.resources, "Its limits.")
    security: SandboxSecurity | None = field(sandboxes.security, "What its code may reach.")
    snapshots: Connection[SandboxSnapshot] = connection(
        sandboxes.snapshots, "Snapshots of its workspace, newest first."
    )
    ports: list[SandboxPort] = field(sandboxes.ports, "Its ports that are reachable.")
    files: list[SandboxFile] | None = field(
        sandboxes.files,
        "Files of a directory, by name: as they are while it runs, else as they were last, 10,000 "
        "at most; of more, ask for pages. Null when there is no such directory, or the sandbox "
        "does not answer.",
    )
    connections: Connection[SandboxNetworkAccess] = connection(
        sandbox_ports.connections,
        "What it connected to or tried to, newest first; the newest thousand.",
    )
    findings: Connection[SandboxFinding] = connection(
        sandbox_files.findings, "Its files that were taken for harmful, newest first."
    )
    executions: Connection[SandboxExecution] = connection(
        sandbox_executions.executions, "What ran in it, newest first."
    )
    processes: list[SandboxProcess] | None = field(
        sandbox_executions.processes,
        "What runs in it at this moment, by number; null unless it runs and answers.",
    )
    usage: Connection[SandboxUsage] = connection(
        history, "What it had used at times, newest first; kept for a week by default."
    )


@strawberry.type
class SandboxesQuery:
    @strawberry.field(description="A sandbox of yours; null when there is no such.")
    @reads()
    async def sandbox(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the sandbox.")]
    ) -> Sandbox | None:
        return await sandboxes.one(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your sandboxes, newest first, without deleted ones.")
    @reads()
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


@strawberry.input(description="A new sandbox; everything can be left out.")
class SandboxCreateInput:
    template_id: strawberry.ID | None = attr(
        "What it is made from; the template `python` by default.", default=None
    )
    resources: SandboxResourcesInput | None = attr("Its limits.", default=None)
    security: SandboxSecurityInput | None = attr("What its code may reach.", default=None)
    timeout_seconds: int | None = attr(
        "Its life, 1 second to a day; an hour by default. See `sandboxExtend`.", default=None
    )
    idle_timeout_seconds: int | None = attr(
        "Seconds without use after which its time is over as well, 1 to a day; "
        "as the server is configured by default.",
        default=None,
    )
    on_expiry: SandboxExpiry = attr(
        "What becomes of it when its time is over.", default=SandboxExpiry.STOP
    )
    is_persistent: bool = attr(
        "Whether its workspace shall be kept when it is stopped; it then counts as a "
        "snapshot, for 30 days by default.",
        default=False,
    )
    snapshot_id: strawberry.ID | None = attr(
        "The snapshot of yours that its workspace shall begin as.", default=None
    )
    conversation_id: strawberry.ID | None = attr(
        "The conversation whose code shall run in it.", default=None
    )


@strawberry.input(description="Changes to a live sandbox; what is left out stays.")
class SandboxUpdateInput:
    resources: strawberry.Maybe[SandboxResourcesInput] = attr(
        "New limits; they hold at once, for what runs already too. Refused where they cannot."
    )
    idle_timeout_seconds: strawberry.Maybe[int | None] = attr(
        "Seconds without use after which its time is over; null: never."
    )
    network: strawberry.Maybe[SandboxNetwork] = attr(
        "What it may reach; it holds at once, and ends connections that are not allowed any more."
    )
    network_rules: strawberry.Maybe[list[SandboxNetworkRuleInput]] = attr(
        "The hosts it may reach, in place of those before."
    )
    on_expiry: strawberry.Maybe[SandboxExpiry] = attr("What becomes of it when its time is over.")
    is_persistent: strawberry.Maybe[bool] = attr(
        "Whether its workspace shall be kept when it is stopped."
    )


@strawberry.type(description="Answer to `sandboxCreate`.")
class SandboxCreatePayload(Payload):
    sandbox: Sandbox | None = answer(
        "The new sandbox, RUNNING; CREATING when that takes longer than 20 seconds: "
        "`viewerEvents` tell when it is."
    )


@strawberry.type(description="Answer to `sandboxStart`.")
class SandboxStartPayload(Payload):
    sandbox: Sandbox | None = answer(
        "The sandbox, RUNNING; CREATING when that takes longer than 20 seconds: `viewerEvents` "
        "tell when it is."
    )


@strawberry.type(description="Answer to `sandboxUpdate`.")
class SandboxUpdatePayload(Payload):
    sandbox: Sandbox | None = answer("The changed sandbox.")


@strawberry.type(description="Answer to `sandboxPause`.")
class SandboxPausePayload(Payload):
    sandbox: Sandbox | None = answer("The sandbox, PAUSED.")


@strawberry.type(description="Answer to `sandboxResume`.")
class SandboxResumePayload(Payload):
    sandbox: Sandbox | None = answer("The sandbox, RUNNING.")


@strawberry.type(description="Answer to `sandboxStop`.")
class SandboxStopPayload(Payload):
    sandbox: Sandbox | None = answer(
        "The sandbox, STOPPED; with `stopRequestedAt` and its status before when it takes longer "
        "than 20 seconds to keep its workspace: `viewerEvents` tell when it is."
    )


@strawberry.type(description="Answer to `sandboxDelete`.")
class SandboxDeletePayload(Payload):
    sandbox: Sandbox | None = answer("The sandbox, DELETED.")


@strawberry.type(description="Answer to `sandboxExtend`.")
class SandboxExtendPayload(Payload):
    sandbox: Sandbox | None = answer("The sandbox with its new end.")


async def _create(info: Info, input: SandboxCreateInput | None = None) -> dict[str, object]:
    wish = input or SandboxCreateInput()
    sandbox = await lifecycle.create(
        info.context.deps,
        info.context.viewer,
        template_id=wish.template_id,
        resources=resources(wish.resources),
        security=network.security(wish.security),
        timeout_s=wish.timeout_seconds,
        idle_timeout_s=wish.idle_timeout_seconds,
        on_expiry=wish.on_expiry,
        is_persistent=wish.is_persistent,
        snapshot_id=wish.snapshot_id,
        conversation_id=wish.conversation_id,
        is_hasty=True,
    )
    return {"sandbox": sandbox}


async def _update(info: Info, id: Id, input: SandboxUpdateInput) -> dict[str, object]:
    changes: dict[str, object] = {}
    if input.resources is not None:
        changes["resources"] = resources(input.resources.value)
    if input.idle_timeout_seconds is not None:
        changes["idle_timeout_s"] = input.idle_timeout_seconds.value
    if input.on_expiry is not None:
        changes["on_expiry"] = input.on_expiry.value
    if input.is_persistent is not None:
        changes["is_persistent"] = input.is_persistent.value
    if input.network is not None:
        changes["network"] = input.network.value
    if input.network_rules is not None:
        changes["network_rules"] = network.rules(input.network_rules.value)
    context = info.context
    changed = await changing.change(context.deps, context.viewer, sandbox_id=id, changes=changes)
    return {"sandbox": changed}


async def _pause(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.pause(context.deps, context.viewer, sandbox_id=id)}


async def _resume(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.resume(context.deps, context.viewer, sandbox_id=id)}


async def _stop(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await lifecycle.stop(context.deps, context.viewer, sandbox_id=id)}


async def _start(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"sandbox": await snapshots.start(context.deps, context.viewer, sandbox_id=id)}


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


@strawberry.type
class SandboxesMutation:
    sandbox_create = mutation(SandboxCreatePayload, "Make a sandbox.")(_create)
    sandbox_update = mutation(
        SandboxUpdatePayload, "Change the limits of a live sandbox, or when it ends by itself."
    )(_update)
    sandbox_pause = mutation(SandboxPausePayload, "Freeze a sandbox; its time stands still.")(
        _pause
    )
    sandbox_resume = mutation(SandboxResumePayload, "Let a paused sandbox go on.")(_resume)
    sandbox_stop = mutation(
        SandboxStopPayload,
        "End a sandbox and all that runs in it; its files are gone, unless it is persistent. It "
        "ends even if they cannot be kept; `failure` says so then.",
    )(_stop)
    sandbox_start = mutation(
        SandboxStartPayload,
        "Let a persistent sandbox that has ended go on with its files as they were last kept.",
    )(_start)
    sandbox_delete = mutation(
        SandboxDeletePayload, "Take a sandbox out of your lists, ending it if it lives."
    )(_delete)
    sandbox_extend = mutation(SandboxExtendPayload, "Let a live sandbox live longer.")(_extend)
