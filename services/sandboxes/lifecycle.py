"""Sandboxes as a whole: create, pause, resume, extend, stop, delete."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from models.base import now
from models.conversations import Conversation
from models.sandboxes import (
    Sandbox,
    SandboxResources,
    SandboxSecurityPolicy,
    SandboxTemplate,
    SandboxWorkspace,
)
from models.states import ConversationStatus, SandboxExpiry, SandboxStatus
from sandbox.base import SandboxDriver
from sandbox.limits import Limits
from sandbox.policy import Policy
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import goals, keeping, quotas, rows, snapshots, templates, wishes
from services.sandboxes.operations import operation
from services.sandboxes.quotas import Quota
from services.sandboxes.wishes import Resources, Security

if TYPE_CHECKING:
    from services.sandboxes.node import Node


async def create(
    deps: Deps,
    viewer: Viewer,
    *,
    template_id: str | None = None,
    resources: Resources | None = None,
    security: Security | None = None,
    timeout_s: int | None = None,
    idle_timeout_s: int | None = None,
    on_expiry: SandboxExpiry = SandboxExpiry.STOP,
    is_persistent: bool = False,
    snapshot_id: str | None = None,
    conversation_id: str | None = None,
    purpose: str | None = None,
    is_hasty: bool = False,
) -> Sandbox:
    """Make a sandbox of the viewer and give it when it is RUNNING.

    Who `is_hasty` is given it CREATING after `Options.change_wait_s`; it is made all the same.

    `timeout_s` is its life, which ends it or pauses it (`on_expiry`), as `idle_timeout_s` seconds
    without use do. One that `is_persistent` keeps its workspace when it is stopped, and can be
    started again; the workspace begins as the snapshot, if one is named. Raises UserError(s)
    UNAVAILABLE without a driver, NOT_FOUND for template, snapshot or conversation, INVALID and
    LIMIT for limits and policy, QUOTA when it is more than the viewer's roles allow, and what the
    driver refuses: the row is then FAILED. Cancelled, it is made all the same.
    """
    user_id = viewer.require("sandboxes:write")
    driver = (await deps.sandboxes.node()).driver
    life_s = wishes.lifetime(deps.options, timeout_s)
    idle_s = wishes.idle_timeout(deps.options, idle_timeout_s)
    template = await templates.find(deps, template_id)
    _require_image(deps, template, driver)
    rules = security or Security()
    limits = wishes.limits(
        deps.options,
        template,
        resources or Resources(),
        is_networked=rules.network.lower() != wishes.NO_NETWORK,
    )
    policy = wishes.policy(deps.options, rules, driver=driver.name)
    source = None if snapshot_id is None else await snapshots.own(deps, viewer, snapshot_id)
    node_id = await keeping.host_of(deps, source) if source is not None else deps.bus.node_id
    async with work(deps) as unit:
        await quotas.require(unit, user_id, _wanted(limits))
        await _require_conversation(unit, user_id, conversation_id)
        at = now()
        sandbox = Sandbox(
            user_id=user_id,
            template_id=template.id,
            conversation_id=conversation_id,
            driver=driver.name,
            node_id=node_id,
            is_persistent=is_persistent,
            restored_from=source.id if source is not None else None,
            image_name=template.image_name,
            image_tag=template.image_tag,
            config={"purpose": purpose} if purpose else None,
            image_digest=template.image_digest if driver.has_images else None,
            template_version=template.version,
            idle_timeout_s=idle_s or deps.options.sandbox_idle_timeout_s or None,
            on_expiry=on_expiry,
            created_at=at,
            expires_at=at + timedelta(seconds=life_s),
        )
        unit.session.add(sandbox)
        await unit.session.flush()
        unit.session.add_all(_parts(sandbox.id, limits, policy, template, life_s))
        row = sandbox.frozen()
    demanded = sorted(wishes.demanded(resources or Resources()))
    if is_hasty:
        return await goals.reach(deps, row, "create", None, demanded=demanded)
    await deps.sandboxes.ask(row, "create", demanded=demanded)
    return await _present(deps, row)


def _require_image(deps: Deps, template: SandboxTemplate, driver: SandboxDriver) -> None:
    """Refuse an image the driver cannot give: some have the host's own Python only."""
    image = f"{template.image_name}:{template.image_tag}"
    default = ":".join(templates.split_image(deps.options.sandbox_template_image))
    if not driver.has_images and image != default:
        raise UserError(
            UserErrorCode.UNAVAILABLE,
            f"The template {template.name} needs the image {image}, which driver {driver.name} "
            "cannot run; use the default template, or a server with Docker.",
            ("template_id",),
        )


def _wanted(limits: Limits) -> Quota:
    return Quota(1, limits.cpu_millis, limits.memory_bytes, limits.disk_bytes)


async def _require_conversation(unit: Work, user_id: str, conversation_id: str | None) -> None:
    if conversation_id is None:
        return
    found = await unit.session.scalar(
        select(Conversation.id).where(
            Conversation.id == conversation_id,
            Conversation.user_id == user_id,
            Conversation.status != ConversationStatus.DELETED,
        )
    )
    if found is None:
        raise UserError(
            UserErrorCode.NOT_FOUND, "There is no such conversation.", ("conversation_id",)
        )


def _parts(
    sandbox_id: str, limits: Limits, policy: Policy, template: SandboxTemplate, life_s: int
) -> list[Any]:
    defaults = (template.security_config or {}).get("env_variables", {})
    return [
        SandboxWorkspace(sandbox_id=sandbox_id),
        SandboxResources(
            sandbox_id=sandbox_id,
            cpu_limit=limits.cpu_millis,
            memory_limit=limits.memory_bytes,
            disk_limit=limits.disk_bytes,
            network_limit=limits.network_bytes_per_s,
            pids_limit=limits.pids,
            timeout_s=life_s,
        ),
        SandboxSecurityPolicy(
            sandbox_id=sandbox_id,
            network_policy=policy.to_json(with_env=False)["network"],
            syscall_policy={"profile": "default"},
            mount_policy={"mounts": []},
            env_variables={**defaults, **policy.env},
            capabilities=[],
        ),
    ]


@operation("create")
async def _create(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.create(sandbox_id, demanded=request["demanded"])


@operation("pause")
async def _pause(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.pause(sandbox_id)


@operation("resume")
async def _resume(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.resume(sandbox_id)


@operation("stop")
async def _stop(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.stop(sandbox_id)


@operation("delete")
async def _delete(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.delete(sandbox_id)


async def _present(deps: Deps, row: Sandbox) -> Sandbox:
    return await rows.sandbox(deps, row.id) or row


async def _change(
    deps: Deps, viewer: Viewer, sandbox_id: str, operation: str, goal: SandboxStatus
) -> Sandbox:
    viewer.require("sandboxes:write")
    row = await rows.managed(deps, viewer, sandbox_id, path="id")
    if goal is not SandboxStatus.STOPPED:
        rows.require_staying(row, path="id")
    return await goals.reach(deps, row, operation, goal)


async def pause(deps: Deps, viewer: Viewer, *, sandbox_id: str) -> Sandbox:
    """Freeze a running sandbox; its time stands still. A paused one stays as it is.

    Raises UserError NOT_FOUND, CONFLICT in any other state or when another request changes it at
    the same time, INVALID where the driver cannot pause, UNAVAILABLE when its host does not answer;
    so do the other verbs here.
    """
    return await _change(deps, viewer, sandbox_id, "pause", SandboxStatus.PAUSED)


async def resume(deps: Deps, viewer: Viewer, *, sandbox_id: str) -> Sandbox:
    """Let a paused sandbox go on, with the time it had left. A running one stays as it is."""
    return await _change(deps, viewer, sandbox_id, "resume", SandboxStatus.RUNNING)


async def stop(deps: Deps, viewer: Viewer, *, sandbox_id: str) -> Sandbox:
    """End a sandbox and all that runs in it. A stopped one stays as it is.

    Its files are gone, unless it is persistent: then they are kept for `snapshots.start`. It ends
    even if they cannot be; its `failure` says so, and what was kept before stays. What takes longer
    than `Options.change_wait_s` goes on: it is given as it stands, with its `stop_requested_at`.
    """
    return await _change(deps, viewer, sandbox_id, "stop", SandboxStatus.STOPPED)


async def delete(deps: Deps, viewer: Viewer, *, sandbox_id: str) -> Sandbox:
    """End a sandbox, if it lives, and take it out of lists. A deleted one stays as it is."""
    viewer.require("sandboxes:write")
    row = await rows.managed(deps, viewer, sandbox_id, path="id")
    if row.status.is_live:
        try:
            await deps.sandboxes.ask(row, "delete")
        except UserError:
            # With a host that is gone the sandbox has ended as well.
            if (await _present(deps, row)).status.is_live:
                raise
    async with work(deps) as unit:
        found = await unit.lock(Sandbox, row.id)
        if found is not None and not found.status.is_live:
            found.status = SandboxStatus.DELETED
            await keeping.forget(unit, found.id)
    return await _present(deps, row)


async def extend(deps: Deps, viewer: Viewer, *, sandbox_id: str, seconds: int) -> Sandbox:
    """Let a live sandbox live `seconds` longer.

    Raises UserError INVALID below one second, LIMIT when more than the longest life would be left,
    CONFLICT when it is not live, NOT_FOUND.
    """
    viewer.require("sandboxes:write")
    most = deps.options.sandbox_max_ttl_s
    wishes.seconds(seconds, "seconds", default=seconds, most=most)
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="id")
        if sandbox.status not in (SandboxStatus.RUNNING, SandboxStatus.PAUSED):
            raise UserError(
                UserErrorCode.CONFLICT,
                f"Only a live sandbox can be extended; this one is {sandbox.status}.",
                ("id",),
            )
        rows.require_staying(sandbox, path="id")
        since = sandbox.paused_at or now()
        left_s = (sandbox.expires_at - since).total_seconds() if sandbox.expires_at else 0
        # One that was paused because its time was over has less than none left.
        left_s = max(0.0, left_s)
        if left_s + seconds > most:
            raise UserError(
                UserErrorCode.LIMIT,
                f"A sandbox may have at most {most:,} seconds before it; with {seconds:,} more it "
                f"would have {left_s + seconds:,.0f}.",
                ("seconds",),
            )
        sandbox.expires_at = since + timedelta(seconds=left_s + seconds)
        await unit.session.flush()
        return sandbox.frozen()
