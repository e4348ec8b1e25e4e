"""The record of cleaning up: what was cleared away, where, and why."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import delete
from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import SandboxRemoval
from services.base import Deps, Work, work

log = logging.getLogger("noosphere.sandboxes")
_NAME_CHARS = _REASON_CHARS = 255


class Kind(StrEnum):
    """What can be cleared away."""

    CONTAINER = "container"
    SANDBOX = "sandbox"
    EXECUTION = "execution"
    SNAPSHOT = "snapshot"
    QUARANTINE = "quarantine"


def record(
    unit: Work, kind: Kind, name: str, reason: str, *, sandbox_id: str | None = None
) -> None:
    """Write down a removal in the transaction that makes it."""
    unit.session.add(
        SandboxRemoval(
            node_id=unit.deps.bus.node_id,
            kind=kind,
            name=name[:_NAME_CHARS],
            sandbox_id=sandbox_id,
            reason=reason[:_REASON_CHARS],
        )
    )


async def note(
    deps: Deps, kind: Kind, names: Sequence[str], reason: str, *, sandbox_id: str | None = None
) -> None:
    """Write down what was removed already. A record that cannot be written is logged instead."""
    try:
        async with work(deps) as unit:
            for name in names:
                record(unit, kind, name, reason, sandbox_id=sandbox_id)
    except SQLAlchemyError:
        log.warning("removed, and not recorded: %s %s", kind, ", ".join(names), exc_info=True)


async def clean(deps: Deps) -> int:
    """Drop what the record has kept long enough; gives how many entries."""
    cutoff = now() - timedelta(seconds=deps.options.sandbox_removal_retention_s)
    async with work(deps) as unit:
        gone = await unit.session.execute(
            delete(SandboxRemoval).where(SandboxRemoval.removed_at < cutoff)
        )
        return int(gone.rowcount)  # type: ignore[attr-defined]
