"""Snapshots of workspaces, and sandboxes that keep theirs while they are stopped."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from models.base import new_id, now
from models.sandboxes import (
    Sandbox,
    SandboxResources,
    SandboxSnapshot,
)
from models.states import SandboxStatus
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.events.calls import TaskSet
from services.sandboxes import goals, keeping, operations, quotas, rows
from services.sandboxes.operations import operation
from services.sandboxes.quotas import Quota
from services.text import clean

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
NAME_CHARS = 100
_TIDY_S = 600.0
_ENDED = (SandboxStatus.STOPPED, SandboxStatus.FAILED)


async def take(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, name: str | None = None
) -> SandboxSnapshot:
    """Keep the workspace of a running sandbox of the viewer as it is now.

    Files that are being written are kept as far as they are. When the caller is cancelled it is
    given up. Raises UserError NOT_FOUND, CONFLICT unless it is RUNNING, QUOTA for too many
    snapshots, LIMIT for too little disk left or files that come to more than the workspace holds,
    holes in them counted, UNAVAILABLE when its host does not answer.
    """
    viewer.require("sandboxes:write")
    if name is not None:
        clean(name, "name", max_chars=NAME_CHARS, multiline=False)
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="sandbox_id")
        rows.require_running(sandbox, path="sandbox_id")
        await keeping.require_count(unit, viewer.id)
        row = sandbox.frozen()
    snapshot_id = new_id(SandboxSnapshot.prefix)
    try:
        await deps.sandboxes.ask(row, "snapshot", name=name, snapshot_id=snapshot_id)
    except (asyncio.CancelledError, UserError):
        # Its host may be at it still.
        deps.sandboxes.tell(row, "forgo", snapshot_id=snapshot_id)
        raise
    found = await keeping.find(deps, snapshot_id)
    if found is None:
        raise _absent("id")
    return found


@operation("snapshot")
async def _snapshot(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.take(sandbox_id, request["snapshot_id"], request["name"])


@operation("forgo")
async def _forgo(node: "Node", _: str, request: Json) -> None:
    node.forgo(request["snapshot_id"])


async def delete(deps: Deps, viewer: Viewer, *, snapshot_id: str) -> SandboxSnapshot:
    """Take a snapshot away. Raises UserError NOT_FOUND."""
    viewer.require("sandboxes:write")
    async with work(deps) as unit:
        snapshot = await unit.lock(SandboxSnapshot, snapshot_id)
        if snapshot is None or not rows.may_manage(viewer, snapshot.user_id):
            raise _absent("id")
        gone = snapshot.frozen()
        await keeping.drop(unit, gone)
    return gone


def _absent(path: str) -> UserError:
    return UserError(UserErrorCode.NOT_FOUND, "There is no such snapshot.", (path,))


async def own(deps: Deps, viewer: Viewer, snapshot_id: str) -> SandboxSnapshot:
    """Give a snapshot of the viewer. Raises UserError NOT_FOUND."""
    found = await keeping.find(deps, snapshot_id)
    if found is None or found.user_id != viewer.id:
        raise _absent("snapshot_id")
    return found


async def start(deps: Deps, viewer: Viewer, *, sandbox_id: str) -> Sandbox:
    """Let a sandbox that has ended go on as it was last kept, with a whole life before it.

    What was kept stays until there is something newer. A running one stays as it is, one that is
    being made or started is waited for; after `Options.change_wait_s` it is given CREATING, and is
    started all the same. Raises UserError NOT_FOUND, CONFLICT for one that has nothing to go on
    with or is being stopped, QUOTA, UNAVAILABLE when the server that has its workspace is not
    running, and what the driver refuses: it is then FAILED, and can be started again.
    """
    viewer.require("sandboxes:write")
    known = await rows.sandbox(deps, sandbox_id)
    if known is None or known.user_id != viewer.id:
        raise rows.absent("id")
    driver = (await deps.sandboxes.node()).driver
    snapshot = await keeping.kept(deps, sandbox_id)
    node_id = await keeping.host_of(deps, snapshot) if snapshot is not None else None
    async with work(deps) as unit:
        sandbox = await rows.own(unit, viewer, sandbox_id, path="id")
        rows.require_staying(sandbox, path="id")
        is_under_way = sandbox.status is SandboxStatus.CREATING
        if sandbox.status is SandboxStatus.RUNNING:
            return sandbox.frozen()
        if not is_under_way:
            await _begin(unit, viewer, sandbox, node_id=node_id, driver=driver.name)
        row = sandbox.frozen()
    goal = SandboxStatus.RUNNING
    if is_under_way:
        return await goals.reach(deps, row, "await", goal)
    return await goals.reach(deps, row, "create", goal, demanded=[])


async def _begin(
    unit: Work, viewer: Viewer, sandbox: Sandbox, *, node_id: str | None, driver: str
) -> None:
    """Make the row of a sandbox that has ended one that is about to live on a node."""
    if sandbox.status not in _ENDED or node_id is None:
        raise _cannot_start(sandbox)
    limits = await unit.session.scalar(
        select(SandboxResources).where(SandboxResources.sandbox_id == sandbox.id)
    )
    if limits is None:
        raise rows.absent("id")
    adding = Quota(1, limits.cpu_limit, limits.memory_limit, limits.disk_limit)
    await quotas.require(unit, viewer.id, adding)
    at = now()
    sandbox.status, sandbox.driver = SandboxStatus.CREATING, driver
    sandbox.node_id, sandbox.container_id = node_id, None
    sandbox.failure = sandbox.stopped_at = sandbox.paused_at = None
    sandbox.stop_requested_at = None
    sandbox.last_active_at = at
    sandbox.expires_at = at + timedelta(seconds=limits.timeout_s)
    await unit.session.flush()


def _cannot_start(sandbox: Sandbox) -> UserError:
    return UserError(
        UserErrorCode.CONFLICT,
        "Only a sandbox that has ended and whose workspace was kept can be started; this one is "
        f"{sandbox.status}{', and nothing of it was kept' if sandbox.status in _ENDED else ''}.",
        ("id",),
    )


@operations.attachment
@asynccontextmanager
async def _tidying(node: "Node") -> AsyncIterator[None]:
    async def tidy() -> None:
        while True:
            try:
                await keeping.tidy(node.deps)
            except Exception:
                log.exception("archives were not cleared away; trying again")
            await asyncio.sleep(_TIDY_S)

    tasks = TaskSet()
    tasks.start(tidy(), name="tidy snapshots")
    try:
        yield
    finally:
        await tasks.aclose()
