"""Changes of files, gathered for a moment and then brought into the index and the scan."""

import asyncio
import logging
import stat
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import Sandbox, SandboxFile, SandboxWorkspace
from sandbox.client import SandboxClient
from sandbox.errors import SandboxError, SandboxLostError
from sandbox.files import Usage
from sandbox.watching import Change, ChangeKind
from services.base import Deps, Work, work
from services.errors import UserError
from services.events.calls import TaskSet
from services.sandboxes import entries
from services.sandboxes.drafts import DRAFT
from services.sandboxes.entries import Found
from services.sandboxes.findings import shown
from services.sandboxes.scans import MOST_SCANS, Scanning

T = TypeVar("T")
log = logging.getLogger("noosphere.sandboxes")
GATHER_S = 0.5
_RETRY_S = 2.0
_FINISH_S = 10.0
# Beyond, the workspace is walked: one look at everything costs less then.
MOST_CHANGES = 2000
MOST_MOVES = 100
MOST_INDEXED = 10_000
# Programs make files with holes as large as they like; the sum of all must be a number still.
SIZE_MAX = 1 << 48


@dataclass(slots=True)
class Net:
    """What many changes come to: moves and removals in their order, then what is written."""

    # Pairs of paths; the second is None for a removal.
    moves: list[tuple[str, str | None]] = field(default_factory=list)
    written: dict[str, Change] = field(default_factory=dict)
    # Written by way of a draft alone: by the API, which knows the content.
    drafted: set[str] = field(default_factory=set)

    def add(self, change: Change) -> None:
        """Let one more change follow."""
        path, old = change.path, change.old_path
        if change.kind is ChangeKind.REMOVED:
            self._forget(path, is_tree=change.is_directory)
            self.moves.append((path, None))
        elif change.kind is ChangeKind.RENAMED and old is not None and not DRAFT.search(old):
            self._forget(path, is_tree=change.is_directory)
            self._move(old, path, is_tree=change.is_directory)
            self.moves.append((old, path))
            self.written[path] = change
        else:
            if change.kind is ChangeKind.RENAMED and old is not None:
                self.drafted.add(path)
                self.written.pop(old, None)
            self.written[path] = change

    def _forget(self, path: str, *, is_tree: bool) -> None:
        for known in self._at(path, is_tree=is_tree):
            del self.written[known]
            self.drafted.discard(known)

    def _move(self, old: str, path: str, *, is_tree: bool) -> None:
        for known in self._at(old, is_tree=is_tree):
            moved = path + known[len(old) :]
            self.drafted.discard(known)
            self.written[moved] = replace(self.written.pop(known), path=moved)

    def _at(self, path: str, *, is_tree: bool) -> list[str]:
        if not is_tree:
            return [path] if path in self.written else []
        return [known for known in self.written if known == path or known.startswith(f"{path}/")]


class Writing:
    """What is written to the database whole, though whoever asked for it is cancelled."""

    def __init__(self) -> None:
        self._tasks = TaskSet()

    async def whole(self, action: Coroutine[Any, Any, T]) -> T:
        """Do something to its end; the caller may be cancelled meanwhile."""
        task = self._tasks.start(action, name="write files")
        task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Wait for what is under way, for a moment."""
        try:
            async with asyncio.timeout(_FINISH_S):
                await self._tasks.ended()
        except TimeoutError:
            log.warning("files were still being indexed")
        await self._tasks.aclose()


def _retrieve(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()


class Indexer:
    """Keeps the index of one sandbox in step with its workspace."""

    def __init__(
        self, deps: Deps, sandbox_id: str, client: SandboxClient, writing: Writing
    ) -> None:
        self._deps = deps
        self._id = sandbox_id
        self._client = client
        self._writing = writing
        self._changes: list[Change] = []
        self._is_walk_due = False
        self._news = asyncio.Event()
        self.scanning = Scanning(deps, sandbox_id, client, writing)

    def add(self, changes: list[Change]) -> None:
        """Bring changes in soon."""
        if not self._is_walk_due:
            self._changes += changes
            if len(self._changes) > MOST_CHANGES:
                self.overflow()
        self._news.set()

    def overflow(self) -> None:
        """Look at everything soon."""
        self._changes.clear()
        self._is_walk_due = True
        self._news.set()

    async def run(self) -> None:
        """Bring in what is added, until cancelled. Raises SandboxLostError when it is gone."""
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            self._news.clear()
            changes, self._changes = self._changes, []
            is_walk_due, self._is_walk_due = self._is_walk_due, False
            try:
                if is_walk_due or not await self._apply(changes):
                    await self._walk()
            except SandboxLostError:
                raise
            except (SandboxError, SQLAlchemyError, UserError, TimeoutError) as error:
                # Paused, most of the time: it is looked at once it answers again.
                log.info("files are not indexed: %r", error, extra={"sandbox_id": self._id})
                await asyncio.sleep(_RETRY_S)
                self.overflow()

    async def _apply(self, changes: list[Change]) -> bool:
        """Bring in single changes; False when a walk is the better way."""
        net = Net()
        for change in changes:
            net.add(change)
        if len(net.moves) > MOST_MOVES:
            return False
        usage = await self._client.files.measure()
        await self._writing.whole(self._bring_in(net, usage))
        written = net.written.values()
        self.scanning.add({c.path: c.size_bytes for c in written if not c.is_directory})
        return True

    async def _bring_in(self, net: Net, usage: Usage) -> None:
        async with work(self._deps) as unit:
            row = await unit.lock(Sandbox, self._id)
            if row is None:
                return
            used_at = row.last_active_at
            for old, new in net.moves:
                if new is None:
                    await entries.drop(unit, self._id, shown(old))
                else:
                    await entries.move(unit, self._id, shown(old), shown(new))
            found = await self._news_of(unit, net)
            if found:
                await entries.put(unit, self._id, found)
            await self._settle(unit, used_at, usage)

    async def _news_of(self, unit: Work, net: Net) -> list[Found]:
        """Give what is to be noted: not what the API wrote and noted itself, not too much."""
        drafted = [shown(path) for path in net.drafted]
        noted = await unit.session.execute(
            select(SandboxFile.path, SandboxFile.size_bytes).where(
                SandboxFile.sandbox_id == self._id,
                SandboxFile.path.in_(drafted[:MOST_MOVES]),
                SandboxFile.content_hash.is_not(None),
            )
        )
        sizes: dict[str, int] = {row.path: row.size_bytes for row in noted}
        count = await self._count(unit)
        found: list[Found] = []
        for path, change in net.written.items():
            is_noted = path in net.drafted and sizes.get(shown(path)) == change.size_bytes
            if DRAFT.search(path) or is_noted:
                continue
            if count + len(found) >= MOST_INDEXED:
                break
            size = min(change.size_bytes, SIZE_MAX)
            found.append(Found(shown(path), change.is_directory, size))
        return found

    async def _count(self, unit: Work) -> int:
        count = await unit.session.scalar(
            select(func.count()).where(SandboxFile.sandbox_id == self._id)
        )
        return int(count or 0)

    async def _walk(self) -> None:
        """Look at everything there is."""
        found: list[Found] = []
        sizes: dict[str, int] = {}
        began = now()
        usage = await self._client.files.measure()
        async with aclosing(self._client.files.walk()) as batches:
            async for batch in batches:
                for entry in batch:
                    if len(found) < MOST_INDEXED and not DRAFT.search(entry.path):
                        moment = _moment(entry.modified_s)
                        is_regular = stat.S_ISREG(entry.mode)
                        size = min(entry.size_bytes, SIZE_MAX) if is_regular else 0
                        path = shown(entry.path)
                        found.append(Found(path, entry.is_directory, size, None, moment))
                    if stat.S_ISREG(entry.mode) and len(sizes) < MOST_SCANS:
                        sizes[entry.path] = entry.size_bytes
        unscanned = await self._writing.whole(self._replace(found, usage, began))
        # Programs may call their files like drafts, which are in no index.
        fresh = {
            path: size
            for path, size in sizes.items()
            if shown(path) in unscanned or DRAFT.search(path)
        }
        self.scanning.add(fresh)

    async def _replace(self, found: list[Found], usage: Usage, began: datetime) -> set[str]:
        """Let the index be what was found; gives the files that were not scanned yet."""
        async with work(self._deps) as unit:
            row = await unit.lock(Sandbox, self._id)
            if row is None:
                return set()
            used_at = row.last_active_at
            await entries.replace(unit, self._id, ".", found, since=began)
            await self._settle(unit, used_at, usage)
            return await self._unscanned(unit)

    async def _unscanned(self, unit: Work) -> set[str]:
        found = await unit.session.scalars(
            select(SandboxFile.path).where(
                SandboxFile.sandbox_id == self._id,
                SandboxFile.scanned_at.is_(None),
                SandboxFile.is_directory.is_(False),
            )
        )
        return set(found)

    async def _settle(self, unit: Work, used_at: datetime | None, usage: Usage) -> None:
        """Note how full the workspace is; what programs write is no use of the sandbox."""
        values = {"inodes": usage.inodes}
        if await self._count(unit) >= MOST_INDEXED:
            # What is not indexed counts as well.
            values["size_bytes"] = usage.bytes
        await unit.session.execute(
            update(SandboxWorkspace).where(SandboxWorkspace.sandbox_id == self._id).values(**values)
        )
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == self._id).values(last_active_at=used_at)
        )


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return now()
