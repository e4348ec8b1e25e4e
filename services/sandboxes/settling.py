"""How executions end: the last state of their rows, which is written once."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import SandboxExecution
from models.states import ExecutionReason, RunState
from services.base import Deps, work
from services.events.base import BusUnavailableError
from services.sandboxes import rows
from services.sandboxes.counts import TOTALS
from services.sandboxes.recording import Kept, snapshot

log = logging.getLogger("noosphere.sandboxes")
# The log of an execution outlives it by so long; afterwards readers get the row.
LOG_TTL_S = 3600.0
_TRIES = 12
_STATES = {
    ExecutionReason.TIMED_OUT: RunState.TIMED_OUT,
    ExecutionReason.KILLED: RunState.CANCELED,
}


@dataclass(frozen=True, slots=True)
class End:
    """How an execution ended."""

    reason: ExecutionReason
    exit_code: int | None = None
    signal: int | None = None
    is_truncated: bool = False
    usage: Mapping[str, Any] | None = None

    @property
    def status(self) -> RunState:
        """The state that goes with the reason."""
        if self.reason is ExecutionReason.EXITED:
            return RunState.COMPLETED if self.exit_code == 0 else RunState.FAILED
        return _STATES.get(self.reason, RunState.FAILED)


LOST = End(ExecutionReason.SANDBOX_LOST)
CANCELED = End(ExecutionReason.KILLED)


async def settle(
    deps: Deps,
    execution_id: str,
    end: End,
    *,
    kept: Kept | None = None,
    head: int = 0,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Write the end of an execution and announce it; nothing happens if it has ended already.

    Without `kept` the output is what row and log have of it; `values` are more of its columns. A
    database that is away is tried again for a minute.
    """
    for attempt in range(_TRIES):
        try:
            await _settle(deps, execution_id, end, kept, head, values or {})
            break
        except SQLAlchemyError:
            if attempt == _TRIES - 1:
                raise
            log.warning("execution was not settled yet", extra={"id": execution_id}, exc_info=True)
            await asyncio.sleep(min(0.1 * 2**attempt, 10.0))
    try:
        await deps.bus.expire(rows.topic(execution_id), LOG_TTL_S)
    except BusUnavailableError:
        # The log then goes with all others that nobody writes to.
        log.warning("log was not given an end", extra={"id": execution_id})


async def _settle(
    deps: Deps,
    execution_id: str,
    end: End,
    kept: Kept | None,
    head: int,
    values: Mapping[str, Any],
) -> None:
    if kept is None:
        stored = await rows.execution(deps, execution_id)
        if stored is None or stored.status.is_final:
            return
        known = await snapshot(deps, stored)
        kept, head = Kept.of(known.row, deps.options.execution_output_bytes), known.seq
    async with work(deps) as unit:
        row = await unit.lock(SandboxExecution, execution_id)
        if row is None or row.status.is_final:
            return
        for name, value in {**kept.values(), **values}.items():
            setattr(row, name, value)
        row.status, row.reason = end.status, end.reason
        row.exit_code, row.signal = end.exit_code, end.signal
        row.is_truncated = end.is_truncated or bool(kept.cut)
        row.resource_usage = dict(end.usage) if end.usage else None
        row.completed_at = now()
        took = row.completed_at - (row.started_at or row.completed_at)
        unit.record(
            rows.topic(execution_id),
            "exited",
            {
                "execution_id": execution_id,
                "status": row.status,
                "reason": end.reason,
                "exit_code": end.exit_code,
                "head": head,
            },
        )
    TOTALS.executed(end.reason, took.total_seconds())


async def settle_lost(deps: Deps, row: rows.Standing) -> None:
    """End an execution that nothing runs any more, with the output it had."""
    is_canceled = row.cancel_requested_at is not None
    await settle(deps, row.id, CANCELED if is_canceled else LOST)


async def settle_or_leave(deps: Deps, row: rows.Standing) -> bool:
    """End an execution that nothing runs any more; False: bus or database are away.

    It is left to housekeeping then.
    """
    try:
        await settle_lost(deps, row)
    except (BusUnavailableError, SQLAlchemyError):
        log.warning("execution was not settled yet", extra={"id": row.id}, exc_info=True)
        return False
    return True
