"""Workspaces that are kept when sandboxes end, and that sandboxes begin with."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from models.sandboxes import Sandbox
from models.states import SandboxStatus
from sandbox.base import SandboxDriver
from sandbox.errors import FileError, FileErrorCode, SandboxError
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import keeping, refusals, rows
from services.sandboxes.hosting import DRIVER_S, KILL_S, Hosting
from services.sandboxes.live import Live, Ready

log = logging.getLogger("noosphere.sandboxes")
# A workspace whose packing gets no further for so long is given up: its sandbox ends all the same.
KEEP_S = 60.0
_KEEP_ALL_S = 8.0
_HELD = (SandboxStatus.RUNNING, SandboxStatus.PAUSED)
_LOST = "Its workspace could not be kept: {}"
_LATE = "it took longer than {:,.0f} seconds."
_STALLED = "it took longer than {:,.0f} seconds to get any further."
_GIVEN_UP = "it was given up, or the sandbox did not answer."
_NO_DISK = "the server's own disk did not take it."
_OLDER = " What was kept before is there still."


class _Bound:
    """How long something may take: so long without getting on, and no longer once given up."""

    def __init__(self, limit: asyncio.Timeout, stall_s: float | None) -> None:
        self._limit = limit
        self._stall_s = stall_s
        self.is_given_up = False

    @property
    def is_stalled(self) -> bool:
        """Whether it got no further for too long."""
        return self._limit.expired() and not self.is_given_up

    def get_on(self) -> None:
        """Note that it gets on."""
        if self._stall_s is not None and not self.is_given_up and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self._stall_s)

    def give_up(self) -> None:
        """End it by TimeoutError."""
        self.is_given_up = True
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())


class Workspaces(Hosting):
    """What a node does with the workspaces of its sandboxes."""

    def __init__(self, deps: Deps, driver: SandboxDriver) -> None:
        super().__init__(deps, driver)
        self._packing: dict[str, _Bound] = {}
        # Sandboxes about to be deleted, of which nothing need be kept.
        self._doomed: set[str] = set()

    @asynccontextmanager
    async def _bounded(self, name: str, stall_s: float | None) -> AsyncIterator[_Bound]:
        """Let something end by TimeoutError when it stalls, or is given up by its name."""
        async with asyncio.timeout(stall_s) as limit:
            bound = self._packing[name] = _Bound(limit, stall_s)
            if name in self._doomed:
                bound.give_up()
            try:
                yield bound
            finally:
                self._packing.pop(name, None)

    def forgo(self, name: str) -> None:
        """Give up a snapshot being taken, by its id, or what is being kept of a sandbox, by its."""
        bound = self._packing.get(name)
        if bound is not None:
            bound.give_up()

    async def take(self, sandbox_id: str, snapshot_id: str, name: str | None) -> None:
        """Write the workspace of a running sandbox into a snapshot of that id.

        Raises UserError CONFLICT when it has ended, LIMIT for what is too large, QUOTA,
        SandboxError, TimeoutError when it is given up.
        """
        try:
            async with self._bounded(snapshot_id, None):
                row = await rows.sandbox(self.deps, sandbox_id)
                if row is None:
                    raise rows.absent("sandbox_id")
                written = await keeping.pack(
                    self.deps,
                    self.client(sandbox_id),
                    most=await keeping.room(self.deps, row.user_id),
                    content=await self._disk(sandbox_id),
                    snapshot_id=snapshot_id,
                )
        except FileError as error:
            raise _named(error, "sandbox_id") from error
        try:
            async with work(self.deps) as unit:
                await keeping.add(unit, row, written, name=name)
        except (UserError, SQLAlchemyError):
            await keeping.discard(self.deps, written)
            raise

    async def _furnish(self, row: Sandbox, ready: Ready) -> None:
        """Make the workspace what was kept, or what a snapshot had.

        Raises UserError LIMIT for what does not fit, CONFLICT for a snapshot that is gone.
        """
        source, name = await keeping.kept(self.deps, row.id), "id"
        if source is None and row.started_at is None and row.restored_from:
            source, name = await keeping.find(self.deps, row.restored_from), "snapshot_id"
            if source is None:
                raise UserError(UserErrorCode.CONFLICT, "The snapshot is gone.", (name,))
        if source is None:
            return
        try:
            await keeping.unpack(self.deps, ready.client, source)
        except FileError as error:
            if error.code is not FileErrorCode.NO_SPACE:
                raise _named(error, name) from error
            raise UserError(
                UserErrorCode.LIMIT,
                f"The {'snapshot' if name == 'snapshot_id' else 'workspace that was kept'} does "
                f"not fit into a workspace of {await self._disk(row.id):,} bytes.",
                (name,),
            ) from error

    async def _keep(self, row: Sandbox, live: Live) -> str | None:
        """Keep the workspace of a sandbox that is about to end; says why it could not be.

        What was kept before goes when there is something newer.
        """
        older = await keeping.kept(self.deps, row.id)
        bound: _Bound | None = None
        try:
            async with self._bounded(row.id, KEEP_S) as bound:
                written = await self._pack(row, live, older.size_bytes if older else 0, bound)
        except keeping.TooSlowError:
            why = _LATE.format(keeping.PACK_S)
        except TimeoutError:
            is_stalled = bound is not None and bound.is_stalled
            why = _STALLED.format(KEEP_S) if is_stalled else _GIVEN_UP
        except SandboxError as error:
            why = refusals.explain(error).message
        except OSError:
            log.warning("the server's disk failed", extra={"sandbox_id": row.id}, exc_info=True)
            why = _NO_DISK
        else:
            try:
                async with work(self.deps) as unit:
                    await keeping.keep(unit, row, written)
            except SQLAlchemyError:
                await keeping.discard(self.deps, written)
                raise
            return None
        log.warning("a workspace was not kept: %s", why, extra={"sandbox_id": row.id})
        return _LOST.format(why) + (_OLDER if older else "")

    async def _pack(
        self, row: Sandbox, live: Live, older_bytes: int, bound: _Bound
    ) -> keeping.Written:
        """Write an archive of a sandbox in which nothing runs any more."""
        if live.is_paused:
            async with asyncio.timeout(DRIVER_S):
                await self.driver.resume(live.driver_id)
            live.is_paused = False
        for current in list(live.runs.values()):
            await current.cancel()
        await self._wait(live, KILL_S)
        client = live.client or await self.connect(live.driver_id, live.env)
        live.client = client
        disk = await self._disk(row.id)
        # Both the workspace and what was kept of it before give way to the archive.
        most = await keeping.room(self.deps, row.user_id) + disk + older_bytes
        return await keeping.pack(
            self.deps, client, most=most, content=disk, on_progress=bound.get_on
        )

    async def _disk(self, sandbox_id: str) -> int:
        """Give what the workspace of a sandbox may hold, and takes of its owner's quota."""
        limits, _ = await self._terms(sandbox_id)
        return limits.disk_bytes

    async def _keep_all(self, lives: Sequence[Live]) -> dict[str, str]:
        """Keep workspaces before the process, and their sandboxes, end; not for long.

        Gives of those that could not be kept why, by their sandboxes.
        """
        late = _LOST.format(_LATE.format(_KEEP_ALL_S))
        lost = {live.sandbox_id: late for live in lives}

        async def keep(live: Live) -> None:
            async with self.lock(live.sandbox_id):
                row = await rows.sandbox(self.deps, live.sandbox_id)
                why = await self._keep(row, live) if row and row.status in _HELD else None
                if why is None:
                    del lost[live.sandbox_id]
                else:
                    lost[live.sandbox_id] = why

        try:
            async with asyncio.timeout(_KEEP_ALL_S), asyncio.TaskGroup() as group:
                for live in lives:
                    group.create_task(keep(live))
        except (TimeoutError, ExceptionGroup):
            log.exception("not every workspace was kept")
        return lost


def _named(error: FileError, name: str) -> UserError:
    """Give the user error for a driver's error, about an argument rather than about a file."""
    found = refusals.explain(error)
    return UserError(found.code, found.message, (name,))
