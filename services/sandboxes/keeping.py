"""Workspaces in archives on the server's disk: written, read and cleared away by the node."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from sqlalchemy import delete, func, select, update

from models.base import new_id, now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxSnapshot, SandboxWorkspace
from sandbox.archives import MOST_BYTES, ArchiveFormat, ArchiveLimits
from sandbox.client import SandboxClient
from services.base import Deps, Work, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import quotas, removals, rows
from services.sandboxes.quotas import Quota
from services.sandboxes.removals import Kind

log = logging.getLogger("noosphere.sandboxes")
_BUFFER_BYTES = 1_048_576
PACK_S = 600.0
# An archive no row speaks of may be one that is being written.
_STRAY_S = 3600.0
_ANY = ArchiveLimits(MOST_BYTES, 0xFFFF_FFFF, 0xFFFF_FFFF)
EXPIRED = "It was kept as long as workspaces are kept."
STRAY = "Nothing knows it any more."


@dataclass(frozen=True, slots=True)
class Written:
    """An archive that has been written whole."""

    snapshot_id: str
    path: str
    size_bytes: int
    sha256: str
    content_bytes: int
    entries: int


class TooSlowError(TimeoutError):
    """A workspace took longer to pack than any may."""


def folder(deps: Deps) -> Path:
    """Give the directory of archives."""
    return deps.options.data_dir / "snapshots"


async def pack(
    deps: Deps,
    client: SandboxClient,
    *,
    most: int,
    content: int | None = None,
    snapshot_id: str | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Written:
    """Write the workspace of a running sandbox into an archive of at most `most` bytes.

    Its files may be `content` bytes, holes in them counted: that much is unpacked again. Raises
    SandboxError (FileError TOO_LARGE beyond either), OSError for the server's own disk,
    TooSlowError. Nothing is left of one that is broken off.
    """
    style = ArchiveFormat.TAR_GZ if client.has_zlib else ArchiveFormat.TAR
    snapshot_id = snapshot_id or new_id(SandboxSnapshot.prefix)
    place = folder(deps) / f"{snapshot_id}.{style.value}"
    await asyncio.to_thread(place.parent.mkdir, 0o700, True, True)
    digest, size, is_whole = hashlib.sha256(), 0, False
    file = await asyncio.to_thread(place.open, "xb")
    try:
        async with _in_time():
            usage = await client.files.measure()
            chunks = client.files.pack(".", style, most=most, content=content)
            async with aclosing(_gathered(chunks, on_progress)) as blocks:
                async for block in blocks:
                    await asyncio.to_thread(_store, file, digest, block)
                    size += len(block)
        is_whole = True
    finally:
        await asyncio.shield(asyncio.to_thread(_close, file, place, is_whole=is_whole))
    return Written(snapshot_id, place.name, size, digest.hexdigest(), usage.bytes, usage.inodes)


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    limit = asyncio.timeout(PACK_S)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise TooSlowError from error
        raise


async def _gathered(
    chunks: AsyncIterator[bytes], on_progress: Callable[[], None] | None
) -> AsyncGenerator[bytes, None]:
    """Give bytes in blocks worth a thread."""
    async with aclosing(chunks) as parts:  # type: ignore[type-var]
        held = bytearray()
        async for part in parts:
            if on_progress is not None:
                on_progress()
            held += part
            if len(held) >= _BUFFER_BYTES:
                yield bytes(held)
                held.clear()
        if held:
            yield bytes(held)


def _store(file: IO[bytes], digest: "hashlib._Hash", block: bytes) -> None:
    file.write(block)
    digest.update(block)


def _close(file: IO[bytes], place: Path, *, is_whole: bool) -> None:
    file.close()
    if not is_whole:
        place.unlink(missing_ok=True)


async def unpack(deps: Deps, client: SandboxClient, snapshot: SandboxSnapshot) -> None:
    """Make the workspace of a running sandbox what it was.

    Raises SandboxError, UserError UNAVAILABLE when its archive is not on this server's disk.
    """
    place = folder(deps) / snapshot.path
    if not await asyncio.to_thread(place.exists):
        raise UserError(
            UserErrorCode.UNAVAILABLE,
            "The snapshot lies on a server that is not running; try again when it is.",
            ("snapshot_id",),
        )
    style = ArchiveFormat.TAR_GZ if place.name.endswith(".gz") else ArchiveFormat.TAR
    async with asyncio.timeout(PACK_S), aclosing(_blocks(place)) as blocks:
        await client.files.unpack(".", blocks, style, _ANY, keep_links=True)


async def _blocks(place: Path) -> AsyncGenerator[bytes, None]:
    file = await asyncio.to_thread(place.open, "rb")
    try:
        while block := await asyncio.to_thread(file.read, 65_536):
            yield block
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


async def room(deps: Deps, user_id: str) -> int:
    """Give how many bytes of archives a person may add now."""
    standing = (await quotas.of_users(deps, [user_id]))[user_id]
    return max(0, standing.limit.disk_bytes - standing.used.disk_bytes)


async def add(
    unit: Work,
    row: Sandbox,
    written: Written,
    *,
    name: str | None = None,
    is_automatic: bool = False,
    expires_at: datetime | None = None,
) -> SandboxSnapshot:
    """Write down an archive. Raises UserError QUOTA when there is no room for it any more.

    That of a sandbox that ends (`is_automatic`) is not refused: its workspace gives way to it.
    """
    if not is_automatic:
        await quotas.require(unit, row.user_id, Quota(disk_bytes=written.size_bytes))
        await require_count(unit, row.user_id)
    snapshot = SandboxSnapshot(
        id=written.snapshot_id,
        user_id=row.user_id,
        sandbox_id=row.id,
        node_id=unit.deps.bus.node_id,
        name=name,
        path=written.path,
        size_bytes=written.size_bytes,
        content_bytes=written.content_bytes,
        sha256=written.sha256,
        entries=written.entries,
        is_automatic=is_automatic,
        expires_at=expires_at,
    )
    unit.session.add(snapshot)
    await unit.session.flush()
    return snapshot


async def keep(unit: Work, row: Sandbox, written: Written) -> None:
    """Write down the workspace of a sandbox that ends, in place of what was kept of it before."""
    await forget(unit, row.id)
    kept_for = timedelta(seconds=unit.deps.options.snapshot_retention_s)
    await add(unit, row, written, is_automatic=True, expires_at=now() + kept_for)
    await unit.session.execute(
        update(SandboxWorkspace)
        .where(SandboxWorkspace.sandbox_id == row.id)
        .values(snapshot_id=written.snapshot_id)
    )


async def kept(deps: Deps, sandbox_id: str) -> SandboxSnapshot | None:
    """Give the workspace a sandbox had when it was last kept."""
    async with deps.db.reading() as connection:
        snapshot_id = await connection.scalar(
            select(SandboxWorkspace.snapshot_id).where(SandboxWorkspace.sandbox_id == sandbox_id)
        )
    return await find(deps, snapshot_id) if snapshot_id else None


async def forget(unit: Work, sandbox_id: str) -> None:
    """Let go of the workspace that was kept for a sandbox."""
    snapshot = await unit.session.scalar(
        select(SandboxSnapshot)
        .join(SandboxWorkspace, SandboxWorkspace.snapshot_id == SandboxSnapshot.id)
        .where(SandboxWorkspace.sandbox_id == sandbox_id, SandboxSnapshot.is_automatic)
    )
    if snapshot is not None:
        await drop(unit, snapshot.frozen())


async def discard(deps: Deps, written: Written) -> None:
    """Remove an archive that could not be written down."""
    await asyncio.to_thread((folder(deps) / written.path).unlink, missing_ok=True)


async def require_count(unit: Work, user_id: str) -> None:
    """Raise UserError QUOTA when a person has as many snapshots as they may."""
    most = unit.deps.options.snapshots_per_user
    count = await unit.session.scalar(
        select(func.count())
        .select_from(SandboxSnapshot)
        .where(SandboxSnapshot.user_id == user_id, SandboxSnapshot.is_automatic.is_(False))
    )
    if (count or 0) >= most:
        raise UserError(
            UserErrorCode.QUOTA,
            f"You have {count} snapshots and may have {most}; delete one first.",
        )


async def find(deps: Deps, snapshot_id: str) -> SandboxSnapshot | None:
    """Give a snapshot's row, whoever may see it."""
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxSnapshot)).where(SandboxSnapshot.id == snapshot_id)
        )
        return next(iter(rows_of(SandboxSnapshot, found)), None)


async def host_of(deps: Deps, snapshot: SandboxSnapshot) -> str:
    """Name the node that has a snapshot's archive. Raises UserError UNAVAILABLE."""
    if await asyncio.to_thread((folder(deps) / snapshot.path).exists):
        return deps.bus.node_id
    if snapshot.node_id in await deps.bus.nodes():
        return snapshot.node_id
    raise UserError(
        UserErrorCode.UNAVAILABLE,
        "The snapshot lies on a server that is not running; try again when it is.",
        ("snapshot_id",),
    )


async def drop(unit: Work, snapshot: SandboxSnapshot) -> None:
    """Forget a snapshot, and remove its archive where it is on this server's disk.

    Another server's archive goes with that server's next look for strays.
    """
    await unit.session.execute(
        update(SandboxWorkspace)
        .where(SandboxWorkspace.snapshot_id == snapshot.id)
        .values(snapshot_id=None)
    )
    await unit.session.execute(delete(SandboxSnapshot).where(SandboxSnapshot.id == snapshot.id))
    place = folder(unit.deps) / snapshot.path

    async def unlink() -> None:
        try:
            await asyncio.to_thread(place.unlink, missing_ok=True)
        except OSError:
            log.warning("an archive was not removed", extra={"path": snapshot.path}, exc_info=True)

    unit.after_commit(unlink)


async def tidy(deps: Deps) -> int:
    """Drop snapshots whose time is over, and archives no row speaks of; gives how many."""
    await _renew(deps)
    async with deps.db.reading() as connection:
        found = await connection.execute(
            select(*row_columns(SandboxSnapshot)).where(SandboxSnapshot.expires_at <= now())
        )
        over = rows_of(SandboxSnapshot, found)
    for snapshot in over:
        async with work(deps) as unit:
            await drop(unit, snapshot)
            removals.record(
                unit, Kind.SNAPSHOT, snapshot.id, EXPIRED, sandbox_id=snapshot.sandbox_id
            )
    strays = await _strays(deps)
    for place in strays:
        await asyncio.to_thread(place.unlink, missing_ok=True)
    if strays:
        await removals.note(deps, Kind.SNAPSHOT, [place.name for place in strays], STRAY)
    return len(over) + len(strays)


async def _renew(deps: Deps) -> None:
    """Let what was kept of sandboxes that live again last: there is nothing newer of them yet."""
    at, kept_for = now(), timedelta(seconds=deps.options.snapshot_retention_s)
    living = select(Sandbox.id).where(Sandbox.status.in_(rows.LIVE))
    async with work(deps) as unit:
        await unit.session.execute(
            update(SandboxSnapshot)
            .where(
                SandboxSnapshot.is_automatic,
                SandboxSnapshot.expires_at < at + kept_for / 2,
                SandboxSnapshot.sandbox_id.in_(living),
            )
            .values(expires_at=at + kept_for)
            .execution_options(synchronize_session=False)
        )


async def _strays(deps: Deps) -> list[Path]:
    old = await asyncio.to_thread(_old, folder(deps))
    async with deps.db.reading() as connection:
        known = set(
            await connection.scalars(
                select(SandboxSnapshot.path).where(
                    SandboxSnapshot.path.in_([place.name for place in old])
                )
            )
        )
    return [place for place in old if place.name not in known]


def _old(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    before = time.time() - _STRAY_S
    return [place for place in directory.iterdir() if place.stat().st_mtime < before]
