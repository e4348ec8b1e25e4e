"""Changing a sandbox that lives: its limits, and what becomes of it when nobody needs it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from models.sandboxes import Sandbox, SandboxResources
from models.states import SandboxStatus
from services import changes as news
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import network, quotas, rows, wishes
from services.sandboxes.operations import operation
from services.sandboxes.quotas import Quota
from services.sandboxes.wishes import Resources

if TYPE_CHECKING:
    from services.sandboxes.node import Node

# Columns of limits, by what drivers and wishes call them.
COLUMNS = {
    "cpu_millis": "cpu_limit",
    "memory_bytes": "memory_limit",
    "disk_bytes": "disk_limit",
    "pids": "pids_limit",
}


async def change(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, changes: Mapping[str, Any]
) -> Sandbox:
    """Change `resources` (Resources), `idle_timeout_s` (None: never), `on_expiry`, `is_persistent`.

    `network` (`none` or `allow_list`) and `network_rules` say what it may reach, from now on.
    Limits hold from now on for what runs already; either all of them change or none. Raises
    UserError NOT_FOUND, CONFLICT unless it is RUNNING or PAUSED, INVALID and LIMIT for limits that
    cannot be or cannot change, QUOTA, UNAVAILABLE when its host does not answer.
    """
    viewer.require("sandboxes:write")
    values: dict[str, Any] = {}
    if "idle_timeout_s" in changes:
        values["idle_timeout_s"] = wishes.idle_timeout(deps.options, changes["idle_timeout_s"])
    values |= {name: changes[name] for name in ("on_expiry", "is_persistent") if name in changes}
    wish: Resources = changes.get("resources") or Resources()
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="id")
        _require_live(sandbox)
        before = await _limits(unit, sandbox.id)
        is_reaching = await network.store(
            unit,
            sandbox,
            mode=changes.get("network"),
            rules=changes.get("network_rules"),
            bytes_per_s=wish.network_bytes_per_second,
        )
        wanted = wishes.changed(
            deps.options,
            before,
            wish,
            is_networked=await network.is_networked(unit, sandbox.id),
        )
        if wanted != before:
            # What it grows to is taken from the quota now, so that others cannot take it as well.
            held = {name: max(wanted[name], before[name]) for name in COLUMNS}
            await quotas.require(unit, viewer.id, _added(held), besides=sandbox.id)
            await _store(unit, sandbox.id, held)
        if is_reaching:
            news.note(unit.session, "SandboxChanged", sandbox.user_id, sandbox.id)
        for name, value in values.items():
            setattr(sandbox, name, value)
        await unit.session.flush()
        row = sandbox.frozen()
    if "is_persistent" in values:
        await deps.sandboxes.ask(row, "persist", is_persistent=values["is_persistent"])
    if is_reaching:
        await network.enforce(deps, row)
    if wanted != before:
        await _enforce(deps, row, before, wanted)
    return row


@operation("persist")
async def _persist(node: "Node", sandbox_id: str, request: Json) -> None:
    live = node.live.get(sandbox_id)
    if live is not None:
        live.is_persistent = request["is_persistent"]


def _require_live(sandbox: Sandbox) -> None:
    if sandbox.status not in (SandboxStatus.RUNNING, SandboxStatus.PAUSED):
        raise UserError(
            UserErrorCode.CONFLICT,
            f"Only a live sandbox can be changed; this one is {sandbox.status}.",
            ("id",),
        )
    rows.require_staying(sandbox, path="id")


def _added(limits: Mapping[str, int]) -> Quota:
    return Quota(1, limits["cpu_millis"], limits["memory_bytes"], limits["disk_bytes"])


async def _limits(unit: Work, sandbox_id: str) -> dict[str, int]:
    columns = [getattr(SandboxResources, column) for column in COLUMNS.values()]
    found = await unit.session.execute(
        select(*columns).where(SandboxResources.sandbox_id == sandbox_id)
    )
    return dict(zip(COLUMNS, found.one(), strict=True))


async def _store(unit: Work, sandbox_id: str, limits: Mapping[str, int]) -> None:
    await unit.session.execute(
        update(SandboxResources)
        .where(SandboxResources.sandbox_id == sandbox_id)
        .values({COLUMNS[name]: value for name, value in limits.items()})
    )


async def _enforce(
    deps: Deps, row: Sandbox, before: Mapping[str, int], wanted: Mapping[str, int]
) -> None:
    """Let the host change the limits; the row then says what holds, whatever that is."""
    holds = before
    try:
        holds = await deps.sandboxes.ask(row, "update", limits=dict(wanted))
    finally:
        async with work(deps) as unit:
            await _store(unit, row.id, {name: int(holds[name]) for name in COLUMNS})
            if holds != before:
                news.note(unit.session, "SandboxChanged", row.user_id, row.id)


@operation("update")
async def _update(node: "Node", sandbox_id: str, request: Json) -> Mapping[str, Any]:
    found = await node.change(sandbox_id, request["limits"])
    return {name: getattr(found, name) for name in COLUMNS}
