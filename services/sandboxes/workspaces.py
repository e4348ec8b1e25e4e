"""Workspaces that are kept when sandboxes end, and that sandboxes begin with."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select, update

from models.base import now
from models.sandboxes import Sandbox, SandboxSnapshot, SandboxWorkspace
from models.states import SandboxStatus
from sandbox.errors import SandboxError
from services.base import work
from services.errors import UserError, UserErrorCode
from services.sandboxes import keeping, refusals, rows
from services.sandboxes.hosting import DRIVER_S, KILL_S, Hosting
from services.sandboxes.live import Live, Ready

log = logging.getLogger("noosphere.sandboxes")
_KEEP_ALL_S = 8.0
_HELD = (SandboxStatus.RUNNING, SandboxStatus.PAUSED)


class Workspaces(Hosting):
    """What a node does with the workspaces of its sandboxes."""

    async def _furnish(self, row: Sandbox, ready: Ready) -> SandboxSnapshot | None:
        """Make the workspace what was kept, or what a snapshot had; gives the snapshot."""
        async with self.deps.db.reading() as connection:
            kept = await connection.scalar(
                select(SandboxWorkspace.snapshot_id).where(SandboxWorkspace.sandbox_id == row.id)
            )
        source_id = kept or (row.restored_from if row.started_at is None else None)
        source = await keeping.find(self.deps, source_id) if source_id else None
        if source_id and source is None:
            raise UserError(UserErrorCode.CONFLICT, "The snapshot is gone.", ("snapshot_id",))
        if source is not None:
            await keeping.unpack(self.deps, ready.client, source)
        return source

    async def _keep(self, row: Sandbox, live: Live) -> UserError | None:
        """Keep the workspace of a sandbox that is about to end; gives why it could not be."""
        try:
            if live.is_paused:
                async with asyncio.timeout(DRIVER_S):
                    await self.driver.resume(live.driver_id)
                live.is_paused = False
            for current in list(live.runs.values()):
                await current.cancel()
            await self._wait(live, KILL_S)
            client = live.client or await self._connect(live.driver_id, live.env)
            live.client = client
            most = await keeping.room(self.deps, row.user_id) + await self._disk(row.id)
            written = await keeping.pack(self.deps, client, most=most)
            kept_for = timedelta(seconds=self.deps.options.snapshot_retention_s)
            async with work(self.deps) as unit:
                expires_at = now() + kept_for
                await keeping.add(unit, row, written, is_automatic=True, expires_at=expires_at)
                await unit.session.execute(
                    update(SandboxWorkspace)
                    .where(SandboxWorkspace.sandbox_id == row.id)
                    .values(snapshot_id=written.snapshot_id)
                )
        except (SandboxError, TimeoutError, OSError) as error:
            log.warning("a workspace was not kept", extra={"sandbox_id": row.id}, exc_info=True)
            why = refusals.explain(error) if isinstance(error, SandboxError) else None
            code = why.code if why is not None else UserErrorCode.UNAVAILABLE
            return UserError(
                code,
                "Its workspace could not be kept. Make room, or stop it as one that is not "
                "persistent.",
                ("id",),
            )
        return None

    async def _disk(self, sandbox_id: str) -> int:
        """Give what the workspace of a sandbox takes of its owner's quota until it ends."""
        limits, _ = await self._terms(sandbox_id)
        return limits.disk_bytes

    async def _keep_all(self, lives: Sequence[Live]) -> None:
        """Keep workspaces before the process, and their sandboxes, end; not for long."""

        async def keep(live: Live) -> None:
            async with self.lock(live.sandbox_id):
                row = await rows.sandbox(self.deps, live.sandbox_id)
                if row is not None and row.status in _HELD:
                    await self._keep(row, live)

        try:
            async with asyncio.timeout(_KEEP_ALL_S), asyncio.TaskGroup() as group:
                for live in lives:
                    group.create_task(keep(live))
        except (TimeoutError, ExceptionGroup):
            log.exception("not every workspace was kept")
