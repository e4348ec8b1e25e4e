"""The sandboxes that live on this node, and how their state changes.

Only the node that hosts a sandbox changes its state, one change at a time.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping

from sqlalchemy import ColumnElement, select

from models.base import now
from models.sandboxes import Sandbox
from models.states import SandboxStatus
from sandbox.base import SandboxDriver
from sandbox.client import SandboxClient
from sandbox.errors import SandboxError
from sandbox.limits import Limits
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import keeping, mending, rows
from services.sandboxes.creation import Creation
from services.sandboxes.hosting import DRIVER_S, SETTLE_S, driver_id, gone
from services.sandboxes.live import Live
from services.sandboxes.probing import Probes
from services.sandboxes.relay import Relays

log = logging.getLogger("noosphere.sandboxes")
EXPIRED = "It reached the end of its time."
IDLE = "It was not used for {:,} seconds."
PAUSED_TOO_LONG = "It was paused for longer than sandboxes may be."
SERVER_STOPPED = "The server was stopped."
HOST_GONE = "Its host is gone, and the sandbox with it."

_RUNNING = (SandboxStatus.RUNNING,)
_PAUSED = (SandboxStatus.PAUSED,)


class Node(Creation):
    """What one process does with the sandboxes it hosts. `driver` is started already."""

    def __init__(self, deps: Deps, driver: SandboxDriver) -> None:
        super().__init__(deps, driver)
        self.relays = Relays()
        self.probes = Probes(self)

    # Life.

    async def disown(self, sandbox_id: str) -> None:
        """Let go of a sandbox whose row has ended, or was taken over by another node."""
        async with self.lock(sandbox_id):
            row = await rows.sandbox(self.deps, sandbox_id)
            is_live = row is not None and row.status.is_live
            if row is not None and is_live and row.node_id == self.deps.bus.node_id:
                return
            log.warning("a sandbox is not ours any more", extra={"sandbox_id": sandbox_id})
            # What survives processes serves the other node now.
            await self._end(sandbox_id, is_lost=True, is_kept=is_live and self.survives)

    async def change(self, sandbox_id: str, changes: Mapping[str, int]) -> Limits:
        """Change limits of a live sandbox; gives those that hold then.

        Raises UserError CONFLICT when it has ended, and what the driver refuses.
        """
        async with self.lock(sandbox_id):
            live = self.live.get(sandbox_id)
            if live is None or live.is_ending:
                raise gone()
            limits, _ = await self._terms(sandbox_id)
            async with asyncio.timeout(DRIVER_S):
                wanted = dataclasses.replace(limits, **changes)
                return await self.driver.update(live.driver_id, limits=wanted)

    async def pause(self, sandbox_id: str, *, still: ColumnElement[bool] | None = None) -> None:
        """Freeze a RUNNING sandbox; a PAUSED one stays as it is. Raises UserError CONFLICT.

        One whose time has run out can only be paused when just that is the reason: `still` is the
        condition on its row under which it is; where that does not hold any more, nothing happens.
        """
        async with self.lock(sandbox_id):
            row, live = await self._row(sandbox_id), self.live.get(sandbox_id)
            rows.require_staying(row, path="id")
            if row.status is SandboxStatus.PAUSED:
                return
            if still is None or row.status is not SandboxStatus.RUNNING:
                rows.require_running(row, path="id")
            elif not await self._holds(sandbox_id, still):
                return
            if live is None:
                raise gone()
            async with asyncio.timeout(DRIVER_S):
                await self.driver.pause(live.driver_id)
            live.is_paused = True
            if not await self._set(sandbox_id, SandboxStatus.PAUSED, _RUNNING, paused_at=now()):
                raise gone()

    async def _holds(self, sandbox_id: str, condition: ColumnElement[bool]) -> bool:
        async with self.deps.db.reading() as connection:
            found = await connection.scalar(
                select(Sandbox.id).where(Sandbox.id == sandbox_id, condition)
            )
        return found is not None

    async def resume(self, sandbox_id: str) -> None:
        """Let a PAUSED sandbox go on, with the time it had left. Raises UserError CONFLICT."""
        async with self.lock(sandbox_id):
            row, live = await self._row(sandbox_id), self.live.get(sandbox_id)
            rows.require_staying(row, path="id")
            if row.status is SandboxStatus.RUNNING:
                return
            if row.status is not SandboxStatus.PAUSED:
                raise UserError(
                    UserErrorCode.CONFLICT,
                    f"Only a paused sandbox can be resumed; this one is {row.status}.",
                    ("id",),
                )
            if live is None:
                raise gone()
            if row.expires_at and row.paused_at and row.expires_at <= row.paused_at:
                raise UserError(
                    UserErrorCode.CONFLICT,
                    "The sandbox has no time left; extend it first.",
                    ("id",),
                )
            async with asyncio.timeout(DRIVER_S):
                await self.driver.resume(live.driver_id)
                client = live.client or await self.connect(live.driver_id, live.env)
            if live.client is None:
                await self.go_on(live, client)
            live.is_paused = False
            await self.prepare(live)
            at = now()
            stood = at - row.paused_at if row.paused_at else at - at
            expires_at = row.expires_at + stood if row.expires_at else None
            live.used_at = at
            if not await self._set(
                sandbox_id,
                SandboxStatus.RUNNING,
                _PAUSED,
                paused_at=None,
                expires_at=expires_at,
                last_active_at=at,
            ):
                raise gone()
        await self.begin_pending(live)

    async def stop(self, sandbox_id: str, *, failure: str | None = None) -> None:
        """End a live sandbox; a STOPPED one stays as it is. Raises UserError CONFLICT.

        `failure` says why, if nobody asked for it.
        """
        async with self.lock(sandbox_id):
            row = await self._row(sandbox_id)
            if row.status is SandboxStatus.STOPPED:
                return
            if not row.status.is_live:
                raise UserError(
                    UserErrorCode.CONFLICT,
                    f"Only a live sandbox can be stopped; this one is {row.status}.",
                    ("id",),
                )
            cleared, live = failure, self.live.get(sandbox_id)
            if row.is_persistent and live is not None:
                await self._note_stop(row)
                lost = await self._keep(row, live)
                failure = " ".join(filter(None, (failure, lost))) or None
            await self._end(sandbox_id)
            await self._set(
                sandbox_id,
                SandboxStatus.STOPPED,
                rows.LIVE,
                cleared=cleared,
                stopped_at=now(),
                failure=failure,
            )
        if not row.is_persistent:
            async with work(self.deps) as unit:
                await keeping.forget(unit, sandbox_id)

    async def _note_stop(self, row: Sandbox) -> None:
        """Tell that a sandbox is about to end, which takes a while; it takes nothing new."""
        if row.stop_requested_at is None:
            await self._set(row.id, row.status, rows.LIVE, stop_requested_at=now())

    async def delete(self, sandbox_id: str) -> None:
        """End a sandbox, if it lives, and mark it DELETED. Idempotent.

        Nothing of it is kept; what is about to be is given up.
        """
        self._doomed.add(sandbox_id)
        self.forgo(sandbox_id)
        try:
            async with self.lock(sandbox_id):
                await self._delete(sandbox_id)
        finally:
            self._doomed.discard(sandbox_id)

    async def _delete(self, sandbox_id: str) -> None:
        row = await self._row(sandbox_id)
        if row.status is SandboxStatus.DELETED:
            return
        if row.status.is_live:
            await self._end(sandbox_id)
        await self._set(
            sandbox_id,
            SandboxStatus.DELETED,
            (*rows.LIVE, SandboxStatus.STOPPED, SandboxStatus.FAILED),
            stopped_at=row.stopped_at or now(),
        )

    async def adopt(self, row: Sandbox) -> None:
        """Take up a live row that no client of this process serves: after a restart, or from a node
        that is gone. What runs in it goes on. What cannot be reached any more is FAILED, with its
        executions.
        """
        async with self.lock(row.id):
            if row.id in self.live:
                return
            reached = await self._reach(row)
            if reached is None:
                await self._discard(driver_id(row))
                await self._set(
                    row.id,
                    SandboxStatus.FAILED,
                    rows.LIVE,
                    cleared=HOST_GONE,
                    failure=HOST_GONE,
                    stopped_at=now(),
                )
                await self._settle_lost(row.id, keep_pending=False)
                return
            live, client = reached
            if client is None:
                self._add(live)
            else:
                await self.go_on(live, client)
        if row.stop_requested_at is None:
            await mending.begin(self, live)

    async def _reach(self, row: Sandbox) -> tuple[Live, SandboxClient | None] | None:
        """Give a sandbox and who can serve it, which is nobody while it is frozen."""
        if row.driver != self.driver.name or row.status is SandboxStatus.CREATING:
            return None
        # The driver keeps no environment: secrets are in it.
        _, policy = await self._terms(row.id)
        name, is_paused = driver_id(row), row.status is SandboxStatus.PAUSED
        try:
            async with asyncio.timeout(DRIVER_S):
                await self.driver.connect(name)
                client = None if is_paused else await self.connect(name, policy.env)
        except (SandboxError, TimeoutError) as error:
            log.info("sandbox cannot be reached: %s", error, extra={"sandbox_id": row.id})
            return None
        live = Live(
            row.id, name, None, policy.env, is_paused=is_paused, is_persistent=row.is_persistent
        )
        return live, client

    async def lose(self, sandbox_id: str, why: str) -> None:
        """Note that a sandbox ended by itself; its executions end with it."""
        async with self.lock(sandbox_id):
            live = self.live.get(sandbox_id)
            if live is None or live.is_ending:
                return
            await self._end(sandbox_id, is_lost=True)
            await self._set(
                sandbox_id,
                SandboxStatus.FAILED,
                rows.LIVE,
                cleared=why,
                failure=why,
                stopped_at=now(),
            )
            await self._settle_lost(sandbox_id, keep_pending=False)

    async def aclose(self) -> None:
        """Let go of all sandboxes; those that end with the process are removed, and what ran in
        them is settled.
        """
        lives = list(self.live.values())
        lost: dict[str, str] = {}
        if not self.survives:
            lost = await self._keep_all([live for live in lives if live.is_persistent])
        for live in lives:
            self._tell_ending(live)
            if live.client is not None:
                await live.client.aclose()
        async with asyncio.TaskGroup() as group:
            for live in lives:
                group.create_task(self._wait(live, SETTLE_S))
        await self._tasks.aclose()
        for live in lives:
            if not self.survives:
                await self._settle_lost(live.sandbox_id, keep_pending=False)
                await self._set(
                    live.sandbox_id,
                    SandboxStatus.STOPPED,
                    rows.LIVE,
                    stopped_at=now(),
                    failure=" ".join(filter(None, (SERVER_STOPPED, lost.get(live.sandbox_id)))),
                )
        self.live.clear()
