"""Following what happens to the files of a sandbox, as its host tells it."""

from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select

from models.sandboxes import Sandbox, SandboxFinding
from services import access, streams
from services.base import Deps, Viewer
from services.errors import RequestError
from services.events.base import News
from services.sandboxes import cursors, rows
from services.sandboxes.files import inside
from services.sandboxes.findings import topic

_PAGE = 64


class FileChange(StrEnum):
    """What became of a file or directory."""

    CREATED = "CREATED"
    MODIFIED = "MODIFIED"
    REMOVED = "REMOVED"
    RENAMED = "RENAMED"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: an entry of the log, and how many events of it."""

    epoch: str = ""
    seq: int = 0
    count: int = 0

    def encode(self) -> str:
        """Give the opaque cursor."""
        return cursors.encode([self.epoch, self.seq, self.count])

    @staticmethod
    def decode(cursor: str) -> "Position":
        """Read a cursor. Raises RequestError BAD_USER_INPUT when it is not one."""
        return Position(*cursors.decode(cursor, str, int, int))


@dataclass(frozen=True, slots=True)
class Changed:
    """A file or directory changed."""

    cursor: str
    kind: FileChange
    path: str
    old_path: str | None
    is_directory: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file was taken for harmful."""

    cursor: str
    finding: SandboxFinding


@dataclass(frozen=True, slots=True)
class Reset:
    """List the files now: whatever changed before is not told, whatever changes after is."""

    cursor: str
    sandbox: Sandbox


Item = Changed | Quarantined | Reset


async def follower(
    deps: Deps, viewer: Viewer, sandbox_id: str, path: str
) -> Callable[[str | None], "FileFollower"]:
    """Give what makes followers of the files at or below a path, each from its cursor.

    Raises RequestError NOT_FOUND when the viewer cannot see the sandbox, BAD_USER_INPUT for a path
    that cannot be; the function given raises BAD_USER_INPUT for what is not a cursor.
    """
    wanted = inside(path)
    async with deps.db.reading() as connection:
        found = await connection.scalar(
            select(Sandbox.id).where(Sandbox.id == sandbox_id, access.visible(Sandbox, viewer))
        )
    if found is None:
        raise RequestError("NOT_FOUND", "There is no such sandbox.")

    def make(after: str | None) -> FileFollower:
        position = None if after is None else Position.decode(after)
        return FileFollower(deps, sandbox_id, wanted, position)

    return make


async def follow(
    deps: Deps, viewer: Viewer, sandbox_id: str, path: str = ".", after: str | None = None
) -> AsyncGenerator[Item, None]:
    """Give what happens to files at or below a path, until the sandbox has ended.

    Without a cursor it begins with a Reset; one comes also whenever changes were lost. Consume it
    through `contextlib.aclosing`. Raises as `follower` does.
    """
    make = await follower(deps, viewer, sandbox_id, path)
    async with aclosing(streams.follow(deps, make(after))) as items:
        async for item in items:
            yield item


class FileFollower:
    """How far a reader has come in the changes of a sandbox; see `streams.Follower`."""

    def __init__(self, deps: Deps, sandbox_id: str, path: str, position: Position | None) -> None:
        self.topic = topic(sandbox_id)
        self.is_over = False
        self._deps = deps
        self._id = sandbox_id
        self._path = path
        self._at = position or Position()
        self._is_new = position is None

    def place(self) -> Hashable:
        """Tell how far it has come."""
        return (self._at, self._is_new, self.is_over)

    def begin(self) -> AsyncGenerator[Item, None]:
        """Give a Reset, or what the cursor misses."""
        return self.catch_up()

    def accept(self, news: News) -> Sequence[Item] | None:
        """Give the events of an entry; None for what takes reading."""
        at = self._at
        if news.seq == 0 or self._is_new:
            return None
        if news.epoch == at.epoch and self._knows(news):
            return ()
        # Of a log that had no entry when it was looked at, the first one is next.
        is_first = at.seq == 0 and news.seq == 1
        is_next = news.epoch == at.epoch and news.seq in (at.seq, at.seq + 1)
        if "reset" in news.data or not (is_first or is_next):
            return None
        return list(self._events(news))

    async def take(self, news: News) -> AsyncGenerator[Item, None]:
        """Give what the news bring, or look at row and log again."""
        known = self.accept(news)
        if known is not None:
            for item in known:
                yield item
            return
        async with aclosing(self.catch_up()) as items:
            async for item in items:
                yield item

    async def is_current(self) -> bool:
        """Never sure: the row must be looked at."""
        return False

    async def catch_up(self) -> AsyncGenerator[Item, None]:
        """Give what the log has beyond the position, or a Reset; over when the sandbox ended."""
        # Changes are logged before the row says that it has ended.
        row = await rows.sandbox(self._deps, self._id)
        if row is None:
            self.is_over = True
            return
        if self._is_new:
            yield await self._reset(row)
        while True:
            log = await self._deps.bus.read(self.topic, max(0, self._at.seq - 1), _PAGE)
            if self._has_gap(log.epoch, log.head, [news.seq for news in log.entries]):
                yield await self._reset(row)
                continue
            entries = [news for news in log.entries if not self._knows(news)]
            for news in entries:
                if "reset" in news.data:
                    yield await self._reset(row, news)
                else:
                    for item in self._events(news):
                        yield item
            if len(log.entries) < _PAGE:
                break
        self.is_over = not row.status.is_live

    def _has_gap(self, epoch: str, head: int, seqs: list[int]) -> bool:
        """Tell whether events after the position are lost, or it is of no log there ever was."""
        at = self._at
        if at.seq == 0:
            return bool(seqs) and seqs[0] != 1
        if epoch != at.epoch or head < at.seq:
            return True
        # The entry itself, or the one after it if nothing of it is missing, must be there.
        return head > at.seq and (not seqs or seqs[0] > at.seq + 1)

    def _knows(self, news: News) -> bool:
        at = self._at
        return news.seq < at.seq or (news.seq == at.seq and at.count >= _size(news))

    def _events(self, news: News) -> Iterator[Item]:
        """Give the events of an entry that are new and of the path."""
        seen = self._at.count if news.seq == self._at.seq else 0
        for count, item in enumerate(_contents(news), 1):
            if count <= seen:
                continue
            self._at = Position(news.epoch, news.seq, count)
            if isinstance(item, SandboxFinding):
                if self._touches(item.path):
                    item.sandbox_id = self._id
                    yield Quarantined(self._at.encode(), item)
                continue
            kind, path, is_directory, size, old = item
            if self._touches(path) or (old is not None and self._touches(old)):
                yield Changed(self._at.encode(), FileChange(kind), path, old, is_directory, size)

    def _touches(self, path: str) -> bool:
        """Tell whether what happens to a path may concern those who follow ours."""
        ours = self._path
        return ours in (".", path) or path.startswith(f"{ours}/") or ours.startswith(f"{path}/")

    async def _reset(self, row: Sandbox, news: News | None = None) -> Reset:
        """Begin anew behind an entry, or else behind all there are."""
        self._is_new = False
        if news is not None:
            self._at = Position(news.epoch, news.seq, 1)
        else:
            log = await self._deps.bus.read(self.topic, cursors.MOST, 1)
            # As many events as it may have: of the newest entry nothing is wanted.
            self._at = Position(log.epoch, log.head, cursors.MOST) if log.head else Position()
        return Reset(self._at.encode(), row)


def _size(news: News) -> int:
    return len(news.data.get("changes", (None,)))


def _contents(news: News) -> Iterator[Any]:
    if "found" in news.data:
        told = dict(news.data["found"])
        told["created_at"] = datetime.fromisoformat(told["created_at"])
        yield SandboxFinding(**told)
    else:
        yield from news.data.get("changes", ())
