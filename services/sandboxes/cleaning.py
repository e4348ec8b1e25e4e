"""Dropping rows of sandboxes whose time is over, with a record of what went."""

from collections import Counter
from datetime import timedelta

from sqlalchemy import delete, func, select

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution, SandboxWorkspace
from models.states import RunState, SandboxStatus
from services.base import Deps, work
from services.sandboxes import removals
from services.sandboxes.removals import Kind

_BATCH = 500
_BOXES = 100
_KEEP_EXECUTIONS = timedelta(days=30)
_KEEP_SANDBOXES = timedelta(days=30)
_UNFINISHED = (RunState.PENDING, RunState.RUNNING)
_ENDED = (SandboxStatus.STOPPED, SandboxStatus.FAILED, SandboxStatus.DELETED)
OLD = "It ended more than 30 days ago."


async def clean(deps: Deps) -> dict[str, int]:
    """Drop old executions, ended sandboxes and records of removals; give how many of each."""
    return {
        "executions": await _executions(deps),
        "sandboxes": await _sandboxes(deps),
        "removals": await removals.clean(deps),
    }


async def _executions(deps: Deps) -> int:
    """Drop finished executions of sandboxes that have ended."""
    dropped = 0
    while True:
        async with deps.db.reading() as connection:
            found = await connection.execute(
                select(SandboxExecution.id, SandboxExecution.sandbox_id)
                .join(Sandbox, Sandbox.id == SandboxExecution.sandbox_id)
                .where(
                    Sandbox.status.in_(_ENDED),
                    SandboxExecution.status.not_in(_UNFINISHED),
                    SandboxExecution.completed_at < now() - _KEEP_EXECUTIONS,
                )
                .limit(_BATCH)
            )
            old = {row.id: row.sandbox_id for row in found}
        if old:
            async with work(deps) as unit:
                await unit.session.execute(
                    delete(SandboxExecution).where(SandboxExecution.id.in_(old))
                )
                for sandbox_id, count in Counter(old.values()).items():
                    name = f"{count} executions"
                    removals.record(unit, Kind.EXECUTION, name, OLD, sandbox_id=sandbox_id)
            dropped += len(old)
        if len(old) < _BATCH:
            return dropped


async def _sandboxes(deps: Deps) -> int:
    """Drop sandboxes that ended long ago, with all that is known of them.

    One whose workspace is kept stays: it can be started again.
    """
    dropped = 0
    while True:
        async with deps.db.reading() as connection:
            kept = select(SandboxWorkspace.sandbox_id).where(
                SandboxWorkspace.snapshot_id.is_not(None)
            )
            old = (
                await connection.scalars(
                    select(Sandbox.id)
                    .where(
                        Sandbox.status.in_(_ENDED),
                        func.coalesce(Sandbox.stopped_at, Sandbox.created_at)
                        < now() - _KEEP_SANDBOXES,
                        Sandbox.id.not_in(kept),
                    )
                    .limit(_BOXES)
                )
            ).all()
        if old:
            async with work(deps) as unit:
                await unit.session.execute(delete(Sandbox).where(Sandbox.id.in_(old)))
                for sandbox_id in old:
                    removals.record(unit, Kind.SANDBOX, sandbox_id, OLD, sandbox_id=sandbox_id)
            dropped += len(old)
        if len(old) < _BOXES:
            return dropped
