"""The record of what code in sandboxes connected to, or tried to."""

import asyncio
import logging

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from models.base import now
from models.sandboxes import SandboxConnection
from models.states import ConnectionVerdict
from sandbox.proxy import Connection
from services.base import Deps, work

log = logging.getLogger("noosphere.sandboxes")
KEPT_PER_SANDBOX = 1000
_EVERY_S = 0.5
_RETRY_S = 5.0


class Recorder:
    """Writes connections down, many at once, soon after they open and close.

    The newest thousand of each sandbox are kept; when the database is away, the newest thousand of
    each wait in memory.
    """

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._pending: dict[str, dict[Connection, None]] = {}
        self._stored: dict[Connection, str] = {}
        self._unpruned: dict[str, int] = {}
        self._noted = asyncio.Event()
        self._writing = asyncio.Lock()

    def note(self, sandbox_id: str, connection: Connection) -> None:
        """Write a connection down as it stands, soon. Neither waits nor raises."""
        pending = self._pending.setdefault(sandbox_id, {})
        pending[connection] = None
        if len(pending) > KEPT_PER_SANDBOX:
            oldest = next(iter(pending))
            del pending[oldest]
            self._stored.pop(oldest, None)
        self._noted.set()

    async def run(self) -> None:
        """Write until cancelled; call `flush` afterwards."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(_EVERY_S)
            try:
                await self.flush()
            except SQLAlchemyError:
                log.warning("connections were not written down yet", exc_info=True)
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> None:
        """Write what is noted. Raises SQLAlchemyError; nothing is lost then."""
        async with self._writing:
            self._noted.clear()
            for sandbox_id in list(self._pending):
                noted = self._pending.pop(sandbox_id)
                try:
                    await self._write(sandbox_id, list(noted))
                except IntegrityError:
                    log.info("a sandbox is gone, and its connections", exc_info=True)
                except BaseException:
                    self._pending[sandbox_id] = {**noted, **self._pending.get(sandbox_id, {})}
                    self._noted.set()
                    raise

    async def _write(self, sandbox_id: str, connections: list[Connection]) -> None:
        known = [connection for connection in connections if connection in self._stored]
        new = [connection for connection in connections if connection not in self._stored]
        rows = [_row(sandbox_id, connection) for connection in new]
        async with work(self._deps) as unit:
            unit.session.add_all(rows)
            for connection in known:
                await unit.session.execute(
                    update(SandboxConnection)
                    .where(SandboxConnection.id == self._stored[connection])
                    .values(_values(connection))
                )
            await unit.session.flush()
            ids = [row.id for row in rows]
        self._stored.update(zip(new, ids, strict=True))
        for connection in connections:
            if connection.closed_at is not None:
                del self._stored[connection]
        unpruned = self._unpruned.get(sandbox_id, KEPT_PER_SANDBOX) + len(new)
        if unpruned > KEPT_PER_SANDBOX // 10:
            await self._prune(sandbox_id)
            unpruned = 0
        self._unpruned[sandbox_id] = unpruned

    async def _prune(self, sandbox_id: str) -> None:
        """Remove all but the newest."""
        async with work(self._deps) as unit:
            last = await unit.session.scalar(
                select(SandboxConnection.id)
                .where(SandboxConnection.sandbox_id == sandbox_id)
                .order_by(SandboxConnection.id.desc())
                .offset(KEPT_PER_SANDBOX)
                .limit(1)
            )
            if last is not None:
                await unit.session.execute(
                    delete(SandboxConnection).where(
                        SandboxConnection.sandbox_id == sandbox_id, SandboxConnection.id <= last
                    )
                )

    def forget(self, sandbox_id: str) -> None:
        """Keep nothing in mind of a sandbox that has ended, but what is still to be written."""
        self._unpruned.pop(sandbox_id, None)


def _row(sandbox_id: str, connection: Connection) -> SandboxConnection:
    return SandboxConnection(sandbox_id=sandbox_id, **_values(connection))


def _values(connection: Connection) -> dict[str, object]:
    return {
        "host": connection.host,
        "address": connection.address,
        "port": connection.port,
        "verdict": ConnectionVerdict(connection.verdict.value),
        "rule": connection.rule,
        "bytes_in": connection.bytes_in,
        "bytes_out": connection.bytes_out,
        "opened_at": connection.opened_at,
        "closed_at": connection.closed_at,
    }


async def settle(deps: Deps, sandbox_id: str) -> None:
    """Note that connections which an earlier process had open are closed."""
    async with deps.db.reading() as connection:
        open_ = await connection.scalar(
            select(func.count()).where(
                SandboxConnection.sandbox_id == sandbox_id, SandboxConnection.closed_at.is_(None)
            )
        )
    if not open_:
        return
    async with work(deps) as unit:
        await unit.session.execute(
            update(SandboxConnection)
            .where(
                SandboxConnection.sandbox_id == sandbox_id, SandboxConnection.closed_at.is_(None)
            )
            .values(closed_at=now())
        )
