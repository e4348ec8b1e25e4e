"""Following an execution: its output as it is written, then its end."""

from collections.abc import AsyncGenerator, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy import select

from models.sandboxes import SandboxExecution
from services import access, streams
from services.base import Deps, Viewer
from services.errors import RequestError
from services.events.base import News
from services.sandboxes import cursors, rows
from services.sandboxes.recording import ENTRY_BYTES, OutputStream, decode, snapshot

_PAGE = 64


@dataclass(frozen=True, slots=True)
class Position:
    """How far a reader has come: an entry of the log, and the bytes of both streams up to it."""

    epoch: str = ""
    seq: int = 0
    at: int = 0
    is_over: bool = False

    def encode(self) -> str:
        """Give the opaque cursor."""
        return cursors.encode([self.epoch, self.seq, self.at, self.is_over])

    @staticmethod
    def decode(cursor: str) -> "Position":
        """Read a cursor. Raises RequestError BAD_USER_INPUT when it is not one."""
        return Position(*cursors.decode(cursor, str, int, int, bool))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of one stream, exactly as written; a character is never cut in two."""

    cursor: str
    stream: OutputStream
    data: bytes

    def joined(self, later: "Item") -> "Chunk | None":
        """Give this chunk and the `later` one of the same stream as one; None if it is not."""
        if not isinstance(later, Chunk) or later.stream != self.stream:
            return None
        return Chunk(later.cursor, self.stream, self.data + later.data)

    @property
    def text(self) -> str:
        """The bytes as UTF-8; what is not UTF-8 is replaced."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Exited:
    """The execution has ended; nothing follows."""

    cursor: str
    execution: SandboxExecution


@dataclass(frozen=True, slots=True)
class Reset:
    """Begin anew from this execution: its output is what goes before the next chunk."""

    cursor: str
    execution: SandboxExecution


Item = Chunk | Exited | Reset


async def follower(
    deps: Deps, viewer: Viewer, execution_id: str
) -> Callable[[str | None], "OutputFollower"]:
    """Give what makes followers of an execution's output, each from its cursor.

    Raises RequestError NOT_FOUND when the viewer cannot see the execution; the function given
    raises BAD_USER_INPUT for what is not a cursor.
    """
    async with deps.db.reading() as connection:
        found = await connection.scalar(
            select(SandboxExecution.id).where(
                SandboxExecution.id == execution_id, access.visible(SandboxExecution, viewer)
            )
        )
    if found is None:
        raise RequestError("NOT_FOUND", "There is no such execution.")

    def make(after: str | None) -> OutputFollower:
        position = Position() if after is None else Position.decode(after)
        return OutputFollower(deps, execution_id, position)

    return make


async def follow(
    deps: Deps, viewer: Viewer, execution_id: str, after: str | None = None
) -> AsyncGenerator[Item, None]:
    """Give the output of an execution from its beginning, or from a cursor, up to its end.

    Chunks come in order, without gap or duplicate; those that piled up come merged. A Reset comes
    first where that cannot be kept: when the log does not reach back so far, and for a cursor of
    another log or of the future. Ends after Exited. Consume it through `contextlib.aclosing`.

    Raises RequestError NOT_FOUND when the viewer cannot see the execution, BAD_USER_INPUT for what
    is not a cursor.
    """
    make = await follower(deps, viewer, execution_id)
    async with aclosing(streams.follow(deps, make(after))) as items:
        async for item in items:
            yield item


class OutputFollower:
    """How far a reader has come in the output of an execution; see `streams.Follower`."""

    def __init__(self, deps: Deps, execution_id: str, position: Position) -> None:
        self.topic = rows.topic(execution_id)
        self.is_over = False
        self._deps = deps
        self._id = execution_id
        self._start = position
        self._epoch, self._seq, self._at = position.epoch, position.seq, position.at
        # A cursor holds for its own log only. Who is reading already may go on in a new one, as
        # long as that continues at the very byte.
        self._is_strict = position.epoch != ""
        self._has_gap = False

    def place(self) -> Hashable:
        """Tell how far it has come."""
        return (self._epoch, self._seq, self._at, self._is_strict, self.is_over)

    def begin(self) -> AsyncGenerator[Item, None]:
        """Give the output so far."""
        return self.catch_up()

    def accept(self, news: News) -> Sequence[Item] | None:
        """Give the chunk an entry brings; None for what takes reading."""
        if news.seq == 0:
            return None
        if news.epoch == self._epoch and news.seq <= self._seq:
            return ()
        follows = news.epoch == self._epoch or (not self._epoch and not self._seq)
        if not follows or news.seq != self._seq + 1:
            return None
        chunks = list(self._merged([news]))
        return None if self._has_gap else chunks

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
        """Give what row and log have beyond the position, and the end if it came."""
        row = await rows.standing(self._deps, self._id)
        if row is None or (self._start.is_over and row.status.is_final):
            self.is_over = True
            return
        # Output is logged before the row says that it has ended: a final row, then the log.
        async with aclosing(self._drain()) as chunks:
            async for chunk in chunks:
                yield chunk
        written = row.stdout_bytes + row.stderr_bytes
        # One who claims more than there ever was has made the cursor up.
        if self._has_gap or self._at < written or (row.status.is_final and self._at > written):
            reset = await self._reset()
            if reset is None:
                self.is_over = True
                return
            yield reset
        if row.status.is_final:
            ended = await rows.execution(self._deps, self._id)
            self.is_over = True
            if ended is not None:
                yield Exited(self._cursor(is_over=True), ended)

    def _cursor(self, *, is_over: bool = False) -> str:
        return Position(self._epoch, self._seq, self._at, is_over).encode()

    async def _drain(self) -> AsyncGenerator[Chunk, None]:
        """Give what the log has after the position; notes a gap and stops at it."""
        while True:
            log = await self._deps.bus.read(rows.topic(self._id), self._seq, _PAGE)
            if log.epoch != self._epoch:
                if self._is_strict:
                    self._has_gap = True
                    return
                is_moved, self._epoch = self._seq > 0, log.epoch
                if is_moved:
                    self._seq = 0
                    continue
            if not log.is_complete:
                self._has_gap = True
                return
            self._is_strict = False
            for chunk in self._merged(log.entries):
                yield chunk
            if self._has_gap or len(log.entries) < _PAGE:
                return

    def _merged(self, entries: Sequence[News]) -> Iterator[Chunk]:
        """Join what one stream wrote in one go, up to 64 KiB a chunk."""
        stream = OutputStream.STDOUT
        parts: list[bytes] = []
        size = 0
        for news in entries:
            data = self._next(news)
            if data is None:
                break
            if parts and (news.data["stream"] != stream or size + len(data) > ENTRY_BYTES):
                yield Chunk(self._cursor(), stream, b"".join(parts))
                parts, size = [], 0
            self._epoch, self._seq, self._at = news.epoch, news.seq, self._at + len(data)
            if data:
                stream, size = OutputStream(news.data["stream"]), size + len(data)
                parts.append(data)
        if parts:
            yield Chunk(self._cursor(), stream, b"".join(parts))

    def _next(self, news: News) -> bytes | None:
        """Give the bytes of an entry that are new: none if it was written twice.

        None, and a gap is noted, when it does not continue at the reader's byte.
        """
        at, data = int(news.data["at"]), decode(news.data)
        if at == self._at:
            return data
        if at + len(data) <= self._at:
            return b""
        self._has_gap = True
        return None

    async def _reset(self) -> Reset | None:
        """Read the row with its texts and begin anew from it; None when it was deleted."""
        row = await rows.execution(self._deps, self._id)
        if row is None:
            return None
        known = await snapshot(self._deps, row)
        self._epoch, self._seq, self._at = known.epoch, known.seq, known.at
        self._has_gap = self._is_strict = False
        return Reset(self._cursor(), known.row)
