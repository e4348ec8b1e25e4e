"""Who sees which rows of sandboxes, and how verbs find the rows they work on."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import false, select, update
from sqlalchemy.sql.elements import ColumnElement

from models.base import now, row_columns, rows_of
from models.sandboxes import (
    Sandbox,
    SandboxConnection,
    SandboxExecution,
    SandboxFile,
    SandboxFinding,
    SandboxPort,
    SandboxRemoval,
    SandboxResources,
    SandboxSecurityPolicy,
    SandboxSnapshot,
    SandboxTemplate,
    SandboxTemplateVersion,
    SandboxUsage,
    SandboxWorkspace,
)
from models.states import RunState, SandboxStatus
from services import access
from services.base import Deps, Viewer, Work
from services.errors import UserError, UserErrorCode

MANAGE_EVERYTHING = "everything:manage"
# `config.purpose` of what was made to run code of the assistant's and of plans.
FOR_TOOLS = "tools"
LIVE = (SandboxStatus.CREATING, SandboxStatus.RUNNING, SandboxStatus.PAUSED)


@access.rule(SandboxTemplate)
def _templates(viewer: Viewer) -> ColumnElement[bool]:
    return SandboxTemplate.is_active.is_(True)


@access.rule(Sandbox)
def _sandboxes(viewer: Viewer) -> ColumnElement[bool]:
    return Sandbox.user_id == viewer.user_id


@access.rule(SandboxSnapshot)
def _snapshots(viewer: Viewer) -> ColumnElement[bool]:
    return SandboxSnapshot.user_id == viewer.user_id


@access.rule(SandboxRemoval)
def _removals(viewer: Viewer) -> ColumnElement[bool]:
    # Administrators, who may read everything, are asked before.
    return false()


for _column in (
    SandboxExecution.sandbox_id,
    SandboxWorkspace.sandbox_id,
    SandboxResources.sandbox_id,
    SandboxSecurityPolicy.sandbox_id,
    SandboxFile.sandbox_id,
    SandboxPort.sandbox_id,
    SandboxConnection.sandbox_id,
    SandboxUsage.sandbox_id,
    SandboxFinding.sandbox_id,
):
    access.follows(_column, Sandbox)
access.follows(SandboxTemplateVersion.template_id, SandboxTemplate)


def topic(execution_id: str) -> str:
    """Name the topic of an execution: its output and its end."""
    return f"execution:{execution_id}"


async def sandbox(deps: Deps, sandbox_id: str) -> Sandbox | None:
    """Give a sandbox's row as it stands, whoever may see it."""
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(Sandbox)).where(Sandbox.id == sandbox_id)
        )
        return next(iter(rows_of(Sandbox, found)), None)


async def living(deps: Deps, *, node_id: str | None = None) -> list[Sandbox]:
    """Give all live sandboxes, or those of one node."""
    where: list[ColumnElement[bool]] = [Sandbox.status.in_(LIVE)]
    if node_id is not None:
        where.append(Sandbox.node_id == node_id)
    async with deps.db.reading() as connection:
        found = await connection.execute(select(*row_columns(Sandbox)).where(*where))
        return rows_of(Sandbox, found)


async def execution(deps: Deps, execution_id: str) -> SandboxExecution | None:
    """Give an execution's row as it stands, whoever may see it."""
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxExecution)).where(SandboxExecution.id == execution_id)
        )
        return next(iter(rows_of(SandboxExecution, found)), None)


class Standing(NamedTuple):
    """How far an execution is, without its texts, which may have megabytes."""

    id: str
    sandbox_id: str
    status: RunState
    cancel_requested_at: datetime | None
    stdout_bytes: int
    stderr_bytes: int


_STANDING = [getattr(SandboxExecution, name) for name in Standing._fields]


async def standing(deps: Deps, execution_id: str) -> Standing | None:
    """Tell how far an execution is, whoever may see it."""
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*_STANDING).where(SandboxExecution.id == execution_id)
        )
        return next((Standing._make(values) for values in found), None)


async def unfinished(
    deps: Deps, *, sandbox_id: str | None = None, node_id: str | None = None
) -> list[Standing]:
    """Give the executions of a sandbox, or of all sandboxes of a node, that have not ended."""
    where: list[ColumnElement[bool]] = [
        SandboxExecution.status.in_((RunState.PENDING, RunState.RUNNING))
    ]
    if sandbox_id is not None:
        where.append(SandboxExecution.sandbox_id == sandbox_id)
    if node_id is not None:
        where += [Sandbox.id == SandboxExecution.sandbox_id, Sandbox.node_id == node_id]
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*_STANDING).where(*where).order_by(SandboxExecution.id)
        )
        return [Standing._make(values) for values in found]


def may_manage(viewer: Viewer, owner_id: str | None) -> bool:
    """Tell whether the viewer may end what belongs to `owner_id`."""
    return owner_id == viewer.id or viewer.may(MANAGE_EVERYTHING)


def absent(path: str) -> UserError:
    """Give the answer for a sandbox that is not there or not the viewer's to change."""
    return UserError(UserErrorCode.NOT_FOUND, "There is no such sandbox.", (path,))


async def managed(deps: Deps, viewer: Viewer, sandbox_id: str, *, path: str) -> Sandbox:
    """Give a sandbox the viewer may pause, resume, stop or delete. Raises UserError NOT_FOUND."""
    found = await sandbox(deps, sandbox_id)
    if found is None or not may_manage(viewer, found.user_id):
        raise absent(path)
    return found


async def own(unit: Work, viewer: Viewer, sandbox_id: str, *, path: str) -> Sandbox:
    """Lock a sandbox of the viewer. Raises UserError NOT_FOUND."""
    found = await unit.lock(Sandbox, sandbox_id)
    if found is None or found.user_id != viewer.id:
        raise absent(path)
    return found


def require_staying(found: Sandbox, *, path: str) -> None:
    """Raise UserError CONFLICT for a sandbox that is about to end."""
    if found.stop_requested_at is not None and found.status.is_live:
        raise UserError(
            UserErrorCode.CONFLICT,
            "The sandbox is being stopped; wait until it is STOPPED.",
            (path,),
        )


def require_running(found: Sandbox, *, path: str) -> None:
    """Raise UserError CONFLICT, saying what to do, unless commands can run in the sandbox now."""
    require_staying(found, path=path)
    if found.status is SandboxStatus.RUNNING:
        if found.expires_at is not None and found.expires_at <= now():
            raise UserError(
                UserErrorCode.CONFLICT, "The sandbox has expired; create another one.", (path,)
            )
        return
    advice = {
        SandboxStatus.CREATING: "is still being created; wait until it is RUNNING.",
        SandboxStatus.PAUSED: "is paused; resume it first.",
        SandboxStatus.STOPPED: "is stopped; create another one, or start it if it is persistent.",
        SandboxStatus.FAILED: "has failed; create another one.",
        SandboxStatus.DELETED: "is deleted; create another one.",
    }
    raise UserError(UserErrorCode.CONFLICT, f"The sandbox {advice[found.status]}", (path,))


def is_for_tools(config: Mapping[str, Any] | None) -> bool:
    """Tell by its `config` whether nobody made a sandbox but code that had to run."""
    return (config or {}).get("purpose") == FOR_TOOLS


async def release(unit: Work, conversation_id: str) -> None:
    """Let the sandboxes made for the code of a conversation end, which is over.

    What people made for themselves is left to them.
    """
    found = await unit.session.execute(
        select(Sandbox.id, Sandbox.config).where(
            Sandbox.conversation_id == conversation_id, Sandbox.status.in_(LIVE)
        )
    )
    ids = [row.id for row in found if is_for_tools(row.config)]
    if ids:
        # Whoever hosts them brings it about.
        await unit.session.execute(
            update(Sandbox)
            .where(Sandbox.id.in_(ids), Sandbox.stop_requested_at.is_(None))
            .values(stop_requested_at=now())
        )
