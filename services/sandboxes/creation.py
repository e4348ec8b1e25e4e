"""How sandboxes of a node come to be, and how what there is of them is taken away."""

import asyncio
import logging
from collections.abc import Collection

from models.base import now
from models.sandboxes import Sandbox
from models.states import SandboxStatus
from sandbox.base import SandboxDriver, SandboxSpec
from sandbox.errors import SandboxError
from services.base import Deps
from services.errors import UserError, UserErrorCode
from services.sandboxes import refusals, rows
from services.sandboxes.hosting import DRIVER_S, KILL_S, SETTLE_S, driver_id, gone
from services.sandboxes.live import INSTALLATION_LABEL, Live, Pool, Ready, installation
from services.sandboxes.workspaces import Workspaces

log = logging.getLogger("noosphere.sandboxes")
_CREATE_S = 120.0
_LOOK_S = 0.2
# A row CREATING for longer was forgotten: the call that creates ends before.
FORGOTTEN_S = _CREATE_S + 120.0
NEVER_CREATED = "It was not created in time."
_CREATING = (SandboxStatus.CREATING,)


class Creation(Workspaces):
    """What a node does to have a sandbox, and to have it no more."""

    def __init__(self, deps: Deps, driver: SandboxDriver) -> None:
        super().__init__(deps, driver)
        self.pool: Pool | None = None

    async def create(self, sandbox_id: str, *, demanded: Collection[str] = ()) -> None:
        """Make a sandbox whose row is CREATING; it is RUNNING afterwards, or FAILED.

        `demanded` are the limits somebody asked for, as against defaults. Raises UserError saying
        why it failed.
        """
        async with self.lock(sandbox_id):
            row = await self._row(sandbox_id)
            if row.status is not SandboxStatus.CREATING:
                raise gone()
            spec = await self._spec(row, demanded)
            ready: Ready | None = None
            try:
                async with asyncio.timeout(_CREATE_S):
                    ready = await self._make(spec)
                await self._furnish(row, ready)
            except (SandboxError, TimeoutError, UserError) as error:
                await self._undo(sandbox_id, ready)
                refusal = _refusal(error)
                await self._set(
                    sandbox_id,
                    SandboxStatus.FAILED,
                    _CREATING,
                    failure=refusal.message,
                    stopped_at=now(),
                )
                raise refusal from error
            except BaseException:
                # Nothing without a row that expires may live; the repair ends the row.
                await self._undo(sandbox_id, ready)
                raise
            live = Live(sandbox_id, ready.driver_id, ready.client, spec.policy.env)
            live.is_persistent = row.is_persistent
            self._add(live)
            is_ours = False
            try:
                await self.prepare(live)
                is_ours = await self._begin(row, ready)
            finally:
                if not is_ours:
                    await self._end(sandbox_id, is_lost=True)
            if not is_ours:
                raise gone()

    async def created(self, sandbox_id: str) -> None:
        """Wait until a sandbox that another request makes or starts is RUNNING.

        Raises UserError CONFLICT when it could not be made.
        """
        async with asyncio.timeout(_CREATE_S):
            while True:
                # Held by who makes it, unless it was not told yet to do so.
                async with self.lock(sandbox_id):
                    row = await self._row(sandbox_id)
                if row.status is not SandboxStatus.CREATING:
                    break
                await asyncio.sleep(_LOOK_S)
        if row.status is SandboxStatus.FAILED:
            raise UserError(
                UserErrorCode.CONFLICT,
                f"The sandbox could not be made. {row.failure or ''}".rstrip(),
                ("id",),
            )

    async def _undo(self, sandbox_id: str, ready: Ready | None) -> None:
        if ready is not None:
            await ready.client.aclose()
        await self._discard(ready.driver_id if ready is not None else sandbox_id)

    async def _spec(self, row: Sandbox, demanded: Collection[str]) -> SandboxSpec:
        limits, policy = await self._terms(row.id)
        image = f"{row.image_name}:{row.image_tag}" if self.driver.has_images else "host"
        return SandboxSpec(
            row.id,
            image,
            limits,
            policy,
            {INSTALLATION_LABEL: installation(self.deps)},
            demanded=frozenset(demanded),
            disk=self.deps.options.sandbox_disk,  # type: ignore[arg-type]  # checked before.
            image_digest=row.image_digest if self.driver.has_images else None,
        )

    async def _make(self, spec: SandboxSpec) -> Ready:
        """Give a sandbox out of the pool, or else a new one."""
        ready = await self.pool.claim(spec) if self.pool is not None else None
        if ready is not None:
            return ready
        await self.driver.create(spec)
        client = await self.connect(spec.sandbox_id, spec.policy.env)
        return Ready(spec.sandbox_id, client)

    async def _begin(self, row: Sandbox, ready: Ready) -> bool:
        at = now()
        # It has all its time from now on, however long it took to make it.
        since = max(row.created_at, row.last_active_at or row.created_at)
        life = row.expires_at - since if row.expires_at else at - at
        return await self._set(
            row.id,
            SandboxStatus.RUNNING,
            _CREATING,
            container_id=ready.driver_id,
            pool_key=ready.key,
            started_at=at,
            last_active_at=at,
            expires_at=at + life,
        )

    async def abandon(self, sandbox_id: str) -> None:
        """Fail a sandbox that is still CREATING though nothing creates it any more."""
        async with self.lock(sandbox_id):
            row = await rows.sandbox(self.deps, sandbox_id)
            if row is None or row.status is not SandboxStatus.CREATING:
                return
            await self._end(sandbox_id, is_lost=True)
            await self._set(
                sandbox_id,
                SandboxStatus.FAILED,
                _CREATING,
                cleared=NEVER_CREATED,
                failure=NEVER_CREATED,
                stopped_at=now(),
            )

    async def _end(self, sandbox_id: str, *, is_lost: bool = False, is_kept: bool = False) -> None:
        """End what this node has of a sandbox; what the driver has of it stays if `is_kept`."""
        live = self.live.get(sandbox_id)
        name = live.driver_id if live is not None else await self._named(sandbox_id)
        if live is not None:
            self._tell_ending(live)
            if not is_lost:
                for current in list(live.runs.values()):
                    await current.cancel()
                if not live.is_paused:
                    await self._wait(live, KILL_S)
        if not is_kept:
            await self._discard(name)
        if live is not None:
            if live.client is not None:
                await live.client.aclose()
            await self._wait(live, SETTLE_S)
            self.live.pop(sandbox_id, None)
        if not is_kept:
            await self._settle_lost(sandbox_id, keep_pending=True)

    async def _named(self, sandbox_id: str) -> str:
        row = await rows.sandbox(self.deps, sandbox_id)
        return driver_id(row) if row is not None else sandbox_id

    async def _discard(self, name: str) -> None:
        """Remove what the driver has by a name; what resists is left to housekeeping."""
        try:
            async with asyncio.timeout(DRIVER_S):
                await self.driver.remove(name)
        except (SandboxError, TimeoutError):
            log.warning("sandbox was not removed", extra={"driver_id": name}, exc_info=True)
            self.is_untidy = True


def _refusal(error: SandboxError | TimeoutError | UserError) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, SandboxError):
        return refusals.explain(error)
    return UserError(
        UserErrorCode.UNAVAILABLE, f"The sandbox was not ready within {_CREATE_S:.0f} seconds."
    )
