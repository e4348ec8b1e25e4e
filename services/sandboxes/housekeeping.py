"""What keeps rows and sandboxes in step: restarts, dead nodes, expiry, what was overlooked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update

from models.base import now
from models.sandboxes import Sandbox
from models.states import RunState, SandboxExpiry, SandboxStatus
from sandbox.errors import SandboxError
from services.base import Deps, work
from services.errors import UserError
from services.events.base import BusUnavailableError
from services.sandboxes import removals, rows, sweeping
from services.sandboxes.creation import FORGOTTEN_S
from services.sandboxes.hosting import DRIVER_S
from services.sandboxes.node import (
    EXPIRED,
    HOST_GONE,
    IDLE,
    PAUSED_TOO_LONG,
    Node,
)
from services.sandboxes.removals import Kind
from services.sandboxes.settling import settle_lost
from services.sandboxes.sweeping import Sweep

log = logging.getLogger("noosphere.sandboxes")
_TICK_S = 1.0
_REPAIR_TICKS = 5
_SWEEP_TICKS = 60
_USE_GRAIN = timedelta(seconds=10)
_NODES_TICKS = 15
_AT_ONCE = 8
_EACH_S = 10.0
_UNANSWERED = "The sandbox stopped answering."


async def take_up(deps: Deps, node: Node | None) -> None:
    """Settle what an earlier process of this node left, and clear what it left with the driver."""
    for row in await rows.living(deps, node_id=deps.bus.node_id):
        await _take(deps, node, row)
    await _settle_unfinished(deps)
    if node is not None:
        await sweeping.at_start(node)


async def _take(deps: Deps, node: Node | None, row: Sandbox) -> None:
    if node is not None:
        await node.adopt(row)
        return
    async with work(deps) as unit:
        await unit.session.execute(
            update(Sandbox)
            .where(Sandbox.id == row.id, Sandbox.status.in_(rows.LIVE))
            .values(status=SandboxStatus.FAILED, failure=HOST_GONE, stopped_at=now())
        )
        removals.record(unit, Kind.SANDBOX, row.id, HOST_GONE, sandbox_id=row.id)
    for execution in await rows.unfinished(deps, sandbox_id=row.id):
        await settle_lost(deps, execution)


async def _settle_unfinished(deps: Deps) -> None:
    """Settle executions of sandboxes that ended without them: a crash between the two."""
    for execution in await rows.unfinished(deps, node_id=deps.bus.node_id):
        row = await rows.sandbox(deps, execution.sandbox_id)
        if row is None or not row.status.is_live:
            await settle_lost(deps, execution)


async def take_over(deps: Deps, node: Node | None, row: Sandbox) -> None:
    """Take a sandbox from a node that is gone: reach it from here, or mark it FAILED.

    One claimer wins; the others do nothing.
    """
    async with work(deps) as unit:
        claimed = await unit.session.execute(
            update(Sandbox)
            .where(
                Sandbox.id == row.id,
                Sandbox.node_id == row.node_id,
                Sandbox.status.in_(rows.LIVE),
            )
            .values(node_id=deps.bus.node_id)
        )
    if claimed.rowcount:  # type: ignore[attr-defined]
        log.warning("sandbox of a dead node taken over", extra={"sandbox_id": row.id})
        await _take(deps, node, row)


async def run(node: Node) -> None:
    """Keep house until cancelled: every second what has expired, more rarely the rest."""
    suspects: set[str] = set()
    sweep = Sweep(node)
    tick = 0
    while True:
        await asyncio.sleep(_TICK_S)
        tick += 1
        try:
            await _overdue(node)
            # Rows whose sandbox is gone already expire as well, without a look every second.
            if node.live or tick % _REPAIR_TICKS == 0:
                await _expire(node)
            if tick % _REPAIR_TICKS == 0:
                await _note_use(node)
                if node.live:
                    await _rest(node)
                # First, as it needs no bus.
                await _reconcile(node)
                await _repair(node)
                if node.is_untidy or tick % _SWEEP_TICKS == 0:
                    await sweep.look()
            if tick % _NODES_TICKS == 0:
                suspects = await _dead_nodes(node, suspects)
        except BusUnavailableError:
            log.warning("bus unavailable; housekeeping goes on")
        except Exception:
            log.exception("housekeeping failed; trying again")


async def _expire(node: Node) -> None:
    """Stop or pause what has reached the end of its time, and stop what was paused too long."""
    at = now()
    longest = timedelta(seconds=node.deps.options.sandbox_pause_max_s)
    is_over = and_(Sandbox.status == SandboxStatus.RUNNING, Sandbox.expires_at <= at)
    is_left = and_(Sandbox.status == SandboxStatus.PAUSED, Sandbox.paused_at <= at - longest)
    is_asked = and_(
        Sandbox.status.in_((SandboxStatus.RUNNING, SandboxStatus.PAUSED)),
        Sandbox.stop_requested_at.is_not(None),
    )
    async with node.deps.db.reading() as connection:
        found = await connection.execute(
            select(
                Sandbox.id,
                Sandbox.status,
                Sandbox.on_expiry,
                Sandbox.expires_at,
                Sandbox.stop_requested_at,
            ).where(
                Sandbox.node_id == node.deps.bus.node_id,
                or_(is_over, is_left, is_asked),
            )
        )
        due = {row.id: row for row in found}

    async def end(sandbox_id: str) -> None:
        row = due[sandbox_id]
        if row.stop_requested_at is not None:
            was_over = row.expires_at is not None and row.expires_at <= row.stop_requested_at
            await node.stop(sandbox_id, failure=EXPIRED if was_over else None)
        elif row.status is SandboxStatus.PAUSED:
            await _stop(node, sandbox_id, is_left, PAUSED_TOO_LONG)
        else:
            await _over(node, sandbox_id, row.on_expiry, is_over, EXPIRED)

    await _each(node, due, end)


async def _over(
    node: Node, sandbox_id: str, what: SandboxExpiry, still: ColumnElement[bool], why: str
) -> None:
    """Pause or stop a sandbox, as long as a condition holds; what cannot be paused is stopped."""
    if what is SandboxExpiry.PAUSE:
        try:
            await node.pause(sandbox_id, still=still)
        except (SandboxError, TimeoutError):
            log.info("it cannot be paused", extra={"sandbox_id": sandbox_id}, exc_info=True)
        else:
            return
    await _stop(node, sandbox_id, still, why)


async def _stop(node: Node, sandbox_id: str, still: ColumnElement[bool], why: str) -> None:
    """Stop a sandbox as long as a condition holds; it may have been extended or used meanwhile.

    From then on the row says that it ends, so that nothing new is accepted for it.
    """
    async with work(node.deps) as unit:
        claimed = await unit.session.execute(
            update(Sandbox)
            .where(Sandbox.id == sandbox_id, Sandbox.stop_requested_at.is_(None), still)
            .values(stop_requested_at=now())
        )
        is_claimed = bool(claimed.rowcount)  # type: ignore[attr-defined]
    if is_claimed:
        await node.stop(sandbox_id, failure=why)


async def _note_use(node: Node) -> None:
    """Tell the rows of sandboxes that they were used, and count what runs as use."""
    at = now()
    for live in list(node.live.values()):
        if live.runs and not live.is_paused:
            live.used_at = at
        if live.used_at - live.told_use_at < _USE_GRAIN:
            continue
        live.told_use_at = live.used_at
        async with work(node.deps) as unit:
            await unit.session.execute(
                update(Sandbox)
                .where(Sandbox.id == live.sandbox_id, Sandbox.last_active_at < live.used_at)
                .values(last_active_at=live.used_at)
            )


async def _rest(node: Node) -> None:
    """Stop or pause what nobody has used for as long as it allows."""
    async with node.deps.db.reading() as connection:
        found = await connection.execute(
            select(
                Sandbox.id, Sandbox.on_expiry, Sandbox.idle_timeout_s, Sandbox.last_active_at
            ).where(
                Sandbox.node_id == node.deps.bus.node_id,
                Sandbox.status == SandboxStatus.RUNNING,
                Sandbox.idle_timeout_s.is_not(None),
            )
        )
        idle = {row.id: row for row in found if _is_idle(node, row)}

    async def end(sandbox_id: str) -> None:
        row = idle[sandbox_id]
        # Looked at again: it may have been used while others were stopped.
        if _is_idle(node, row):
            still = and_(
                Sandbox.status == SandboxStatus.RUNNING,
                Sandbox.last_active_at == row.last_active_at,
            )
            why = IDLE.format(row.idle_timeout_s)
            await _over(node, sandbox_id, row.on_expiry, still, why)

    await _each(node, idle, end)


def _is_idle(node: Node, row: Any) -> bool:
    live = node.live.get(row.id)
    if live is None or live.runs or live.is_ending:
        return False
    used_at = max(live.used_at, row.last_active_at or live.used_at)
    return bool(used_at + timedelta(seconds=row.idle_timeout_s) <= now())


async def _each(node: Node, ids: Iterable[str], action: Callable[[str], Awaitable[None]]) -> None:
    """Do something with sandboxes, a few at once, but for those that are being changed already.

    Each may take minutes: what does not end within seconds goes on by itself.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(sandbox_id: str) -> None:
        async with room:
            try:
                await action(sandbox_id)
            except UserError as error:
                log.info("%s", error, extra={"sandbox_id": sandbox_id})

    idle = [sandbox_id for sandbox_id in ids if not node.lock(sandbox_id).locked()]
    await node.meanwhile({sandbox_id: one(sandbox_id) for sandbox_id in idle}, _EACH_S)


async def _reconcile(node: Node) -> None:
    """End rows whose creation was forgotten, and sandboxes whose row is not ours or has ended.

    Rows that live though nothing serves their sandbox are taken up, or FAILED where there is none.
    """
    held = set(node.live)
    forgotten_at = now() - timedelta(seconds=FORGOTTEN_S)
    ours = await rows.living(node.deps, node_id=node.deps.bus.node_id)
    forgotten = [
        row.id
        for row in ours
        if row.status is SandboxStatus.CREATING
        and max(row.created_at, row.last_active_at or row.created_at) < forgotten_at
    ]
    await _each(node, forgotten, node.abandon)
    await _each(node, held - {row.id for row in ours}, node.disown)
    unserved = [row.id for row in ours if _is_unserved(node, row)]

    async def adopt(sandbox_id: str) -> None:
        row = await rows.sandbox(node.deps, sandbox_id)
        if row is None or not _is_unserved(node, row):
            return
        try:
            async with asyncio.timeout(DRIVER_S):
                await node.driver.check()
        except (SandboxError, TimeoutError) as error:
            # Of the sandbox that says nothing.
            log.info("the driver is away: %s", error, extra={"sandbox_id": sandbox_id})
            return
        await node.adopt(row)

    await _each(node, unserved, adopt)


def _is_unserved(node: Node, row: Sandbox) -> bool:
    """Tell of a row that lives, and is not about to end, whether nothing serves its sandbox."""
    return (
        row.status in (SandboxStatus.RUNNING, SandboxStatus.PAUSED)
        and row.node_id == node.deps.bus.node_id
        and row.stop_requested_at is None
        and row.id not in node.live
    )


async def _overdue(node: Node) -> None:
    """Give up sandboxes whose agent did not end an execution at its time."""
    for live in list(node.live.values()):
        if live.is_paused or live.is_ending:
            continue
        for current in live.runs.values():
            # One that has ended, and waits for the bus to take what it wrote, says nothing of it.
            if current.execution is None or not current.execution.is_over:
                current.left_s -= _TICK_S
        if any(current.left_s < 0 for current in live.runs.values()):
            await node.lose(live.sandbox_id, _UNANSWERED)


async def _repair(node: Node) -> None:
    """Begin executions whose beginning was lost, and settle those that nothing runs."""
    for execution in await rows.unfinished(node.deps, node_id=node.deps.bus.node_id):
        if node.lock(execution.sandbox_id).locked():
            # It is being changed, which may take minutes; looked at again soon.
            continue
        async with node.lock(execution.sandbox_id):
            # Looked at again under the lock: it may have ended, or be about to.
            live = node.live.get(execution.sandbox_id)
            if live is not None and (execution.id in live.runs or live.is_paused):
                continue
            if live is not None and node.survives and (live.client is None or live.client.is_lost):
                # It goes on when there is a way to the sandbox again.
                continue
            if live is not None and live.client and node.kept_name(live.client, execution.id):
                # It runs inside: whoever settled it would leave it there for good.
                continue
            row = await rows.standing(node.deps, execution.id)
            if row is None or row.status.is_final:
                continue
            if live is not None and execution.id in live.runs:
                continue
            if live is not None and row.status is RunState.PENDING:
                node.begin(live, row.id)
            else:
                await settle_lost(node.deps, row)


async def _dead_nodes(node: Node, suspects: set[str]) -> set[str]:
    """Take over the sandboxes of nodes found dead twice in a row; give those found dead now."""
    alive = await node.deps.bus.nodes()
    if node.deps.bus.node_id not in alive:
        return set()
    found = [row for row in await rows.living(node.deps) if row.node_id not in alive]
    for row in found:
        if row.node_id in suspects:
            await take_over(node.deps, node, row)
    return {row.node_id for row in found}
