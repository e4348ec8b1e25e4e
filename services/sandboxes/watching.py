"""What programs do to the files of a sandbox: watched once, for the index, the scan and followers.

Each live sandbox has one watch, on the node that hosts it. What it tells goes to the log of the
topic of its files at once, and into the index and the scan a moment later, together. Where the
kernel cannot watch, the workspace is walked from time to time instead.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from sandbox.client import SandboxClient
from sandbox.errors import SandboxError, SandboxLostError
from sandbox.watching import Change, ChangeKind
from services.base import Deps
from services.errors import UserError
from services.events.base import BusUnavailableError
from services.events.calls import TaskSet
from services.sandboxes import findings, operations
from services.sandboxes.changed import SIZE_MAX, Indexer, Writing
from services.sandboxes.drafts import DRAFT
from services.sandboxes.findings import shown, topic
from services.sandboxes.live import Live

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
# Changes are told together when they come within so long.
GATHER_S = 0.05
# How often a workspace is walked that cannot be watched, or only in part.
WALK_S = 30.0
_AWAY_S = 0.5
_RETRY_S = 2.0
_CLEAR_S = 3600.0
# Of one entry of the log; what is more takes several.
ENTRY_CHANGES = 100
# Waiting to be told; beyond, followers list anew.
MOST_CHANGES = 2000


class Teller:
    """Tells followers what changes, through the log of the topic."""

    def __init__(self, deps: Deps, sandbox_id: str) -> None:
        self._deps = deps
        self._topic = topic(sandbox_id)
        self._changes: list[Change] = []
        self._is_reset = False
        self._news = asyncio.Event()

    def add(self, changes: list[Change]) -> None:
        """Tell changes soon."""
        self._changes += changes
        if len(self._changes) > MOST_CHANGES:
            self.reset()
        self._news.set()

    def reset(self) -> None:
        """Tell that nobody knows what changed."""
        self._changes.clear()
        self._is_reset = True
        self._news.set()

    async def run(self) -> None:
        """Tell what is added, until cancelled. While the bus is away it waits."""
        while True:
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
            self._news.clear()
            try:
                await self._tell()
            except BusUnavailableError:
                # What of it was told is not known.
                self.reset()
                await asyncio.sleep(_AWAY_S)

    async def _tell(self) -> None:
        if self._is_reset:
            self._is_reset = False
            # A log without entries has no followers that have seen anything.
            if (await self._deps.bus.read(self._topic, 0, 1)).head > 0:
                await self._deps.bus.append(self._topic, {"reset": True})
        changes, self._changes = self._changes, []
        told = [entry for change in changes if (entry := _told(change)) is not None]
        for start in range(0, len(told), ENTRY_CHANGES):
            part = told[start : start + ENTRY_CHANGES]
            await self._deps.bus.append(self._topic, {"changes": part})


def _told(change: Change) -> list[object] | None:
    """Give a change as the log has it; drafts of files that are being written are nobody's."""
    kind, path = change.kind, shown(change.path)
    old = shown(change.old_path) if change.old_path is not None else None
    if old is not None and DRAFT.search(old):
        kind, old = ChangeKind.MODIFIED, None
    if DRAFT.search(path):
        if old is None:
            return None
        kind, path, old = ChangeKind.REMOVED, old, None
    return [kind.value, path, change.is_directory, min(change.size_bytes, SIZE_MAX), old]


class Watcher:
    """The watch over one live sandbox."""

    def __init__(
        self,
        node: "Node",
        live: Live,
        client: SandboxClient,
        writing: Writing,
        *,
        was_watched: bool = False,
    ) -> None:
        """`was_watched` says that there was a watch before: what happened since is not known."""
        self._was_watched = was_watched
        self._client = client
        self._id = live.sandbox_id
        self._teller = Teller(node.deps, self._id)
        self._indexer = Indexer(node.deps, self._id, client, writing)
        self._walking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Watch until cancelled, or the sandbox is gone."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._teller.run()),
                    group.create_task(self._indexer.run()),
                    group.create_task(self._indexer.scanning.run()),
                ]
                if self._was_watched:
                    self._overflow()
                await self._watch(group)
                for task in tasks:
                    task.cancel()
        except* SandboxLostError:
            log.debug("a watch ends with its sandbox", extra={"sandbox_id": self._id})

    async def _watch(self, group: asyncio.TaskGroup) -> None:
        while not self._client.is_lost:
            try:
                async with aclosing(self._client.files.watch()) as batches:
                    async for batch in batches:
                        self._take(group, batch)
            except SandboxLostError:
                return
            except (SandboxError, TimeoutError) as error:
                log.info("a workspace is not watched: %s", error, extra={"sandbox_id": self._id})
                self._overflow()
                await asyncio.sleep(WALK_S)
            finally:
                self._walk_no_more()

    def _take(self, group: asyncio.TaskGroup, batch: list[Change]) -> None:
        fresh: list[Change] = []
        for change in batch:
            if change.kind is not ChangeKind.OVERFLOW:
                if change.is_directory and DRAFT.search(change.old_path or ""):
                    # From an archive: what is in it was told by other names.
                    fresh.clear()
                    self._overflow()
                    continue
                fresh.append(change)
                continue
            fresh.clear()
            self._overflow()
            self._walk_no_more()
            if change.is_partial:
                self._walking = group.create_task(self._keep_walking())
        if fresh:
            self._teller.add(fresh)
            self._indexer.add(fresh)

    def _overflow(self) -> None:
        self._teller.reset()
        self._indexer.overflow()

    async def _keep_walking(self) -> None:
        while True:
            await asyncio.sleep(WALK_S)
            self._overflow()

    def _walk_no_more(self) -> None:
        if self._walking is not None:
            self._walking.cancel()
            self._walking = None


class Watchers:
    """The watches of a node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._tasks = TaskSet()
        self._writing = Writing()
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    def added(self, live: Live) -> None:
        """Begin to watch a sandbox."""
        if live.client is not None and not self._is_closed:
            watcher = Watcher(
                self._node,
                live,
                live.client,
                self._writing,
                was_watched=live.sandbox_id in self._watching,
            )
            self._leave(live.sandbox_id)
            work = self._run(watcher, live.sandbox_id)
            self._watching[live.sandbox_id] = self._tasks.start(work, name="watch files")

    async def _run(self, watcher: Watcher, sandbox_id: str) -> None:
        while True:
            try:
                await watcher.run()
            except* Exception:
                log.exception("a watch failed", extra={"sandbox_id": sandbox_id})
            else:
                return
            await asyncio.sleep(_RETRY_S)

    def ending(self, live: Live) -> None:
        """Watch a sandbox no more, and let its followers look at its row."""
        self._leave(live.sandbox_id)
        if not self._is_closed:
            self._tasks.start(self._tell_end(live.sandbox_id), name="end of files")

    def _leave(self, sandbox_id: str) -> None:
        task = self._watching.pop(sandbox_id, None)
        if task is not None:
            task.cancel()

    async def _tell_end(self, sandbox_id: str) -> None:
        # It ends under its lock: afterwards the row says what became of it.
        async with self._node.lock(sandbox_id):
            pass
        try:
            await self._node.deps.bus.publish(topic(sandbox_id), {"is_over": True})
        except BusUnavailableError:
            log.info("bus unavailable, followers find out by themselves")

    async def clear(self) -> None:
        """Clear the quarantine again and again, until cancelled."""
        while True:
            try:
                await findings.clear(self._node.deps)
            except (OSError, UserError):
                log.exception("the quarantine was not cleared")
            await asyncio.sleep(_CLEAR_S)

    async def run(self) -> None:
        """Begin what goes on by itself."""
        self._tasks.start(self.clear(), name="clear quarantine")

    async def aclose(self) -> None:
        """Watch nothing more."""
        self._is_closed = True
        await self._tasks.aclose()
        await self._writing.aclose()


@operations.attachment
@asynccontextmanager
async def _watching(node: "Node") -> AsyncIterator[None]:
    watchers = Watchers(node)
    node.on_added.append(watchers.added)
    node.on_ending.append(watchers.ending)
    await watchers.run()
    try:
        yield
    finally:
        await watchers.aclose()
