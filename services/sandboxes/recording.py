"""What an execution writes: to the bus for those who follow it, and kept for its row."""

import asyncio
import base64
import codecs
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from models.sandboxes import SandboxExecution
from services.base import Deps
from services.events.base import BusUnavailableError
from services.sandboxes.rows import topic

log = logging.getLogger("noosphere.sandboxes")


class OutputStream(StrEnum):
    """Where a program writes."""

    STDOUT = "STDOUT"
    STDERR = "STDERR"


STREAMS = tuple(OutputStream)
# Chunks of one execution follow each other at this distance at least; the first goes at once.
FLUSH_S = 0.025
ENTRY_BYTES = 65_536
_QUEUE_BYTES = 262_144
_PAGE = 64
_GIVE_UP_S = 60.0
MARK = "\n[… further output was not kept]\n"
# What is written beyond the limit of an execution ends it: nobody has it.
LIMIT_MARK = "\n[… the execution was ended: it wrote more than it may]\n"
# So long the beginning of a character waits for its end, where somebody may have to answer.
HOLD_S = 0.25


def encode(stream: OutputStream, at: int, own: int, data: bytes) -> dict[str, Any]:
    """Give the log entry of `data`; `at` counts the bytes of both streams before it, `own` its."""
    text = data.decode("utf-8", "replace")
    entry = {"stream": stream, "at": at, "own": own}
    if "\ufffd" in text:
        return {**entry, "base64": base64.b64encode(data).decode("ascii")}
    return {**entry, "text": text}


def decode(entry: Mapping[str, Any]) -> bytes:
    """Give the exact bytes of a log entry."""
    if "base64" in entry:
        return base64.b64decode(entry["base64"])
    return str(entry["text"]).encode()


@dataclass(slots=True)
class Kept:
    """The beginning of each stream, up to `limit` bytes of it, and how much there was in all."""

    limit: int
    texts: dict[OutputStream, bytearray] = field(
        default_factory=lambda: {stream: bytearray() for stream in STREAMS}
    )
    sizes: dict[OutputStream, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    cut: set[OutputStream] = field(default_factory=set)
    over: set[OutputStream] = field(default_factory=set)

    @staticmethod
    def of(row: SandboxExecution, limit: int) -> "Kept":
        """Take up what was stored of an execution."""
        kept = Kept(limit)
        stored = (row.stdout or "", row.stdout_bytes), (row.stderr or "", row.stderr_bytes)
        for stream, (text, size) in zip(STREAMS, stored, strict=True):
            kept.sizes[stream] = size
            whole = text.removesuffix(LIMIT_MARK)
            if whole != text:
                kept.over.add(stream)
            if whole.endswith(MARK):
                kept.cut.add(stream)
            kept.texts[stream] += whole.removesuffix(MARK).encode()
        return kept

    def go_on_before(self, entry: Mapping[str, Any]) -> None:
        """Go on where an entry of the log begins; what lies between is missing."""
        stream, at = entry["stream"], int(entry["at"])
        own = int(entry.get("own", self.sizes[stream] + at - self.total))
        self.go_on_at(tuple(own if one == stream else at - own for one in STREAMS))

    def go_on_at(self, sizes: tuple[int, ...]) -> None:
        """Go on there, whatever was written before; something is missing unless it was there."""
        if sizes != tuple(self.sizes.values()):
            self.cut.update(STREAMS)
            self.sizes = dict(zip(STREAMS, sizes, strict=True))

    def end_at(self, limit: int) -> None:
        """Note that the execution was ended for writing more than `limit` bytes to a stream."""
        self.over |= {stream for stream in STREAMS if self.sizes[stream] >= limit}

    @property
    def total(self) -> int:
        """Bytes of both streams so far: where the next chunk begins."""
        return sum(self.sizes.values())

    def add(self, stream: OutputStream, data: bytes) -> None:
        """Count a chunk, and keep it while there is room."""
        self.sizes[stream] += len(data)
        if stream in self.cut:
            return
        text = self.texts[stream]
        room = self.limit - len(text)
        if len(data) > room:
            _, whole = codecs.utf_8_decode(data[:room], "replace", False)
            text += data[:whole]
            self.cut.add(stream)
        else:
            text += data

    def text(self, stream: OutputStream) -> str:
        """Give the text kept; a mark at its end says that there was more, or might have been."""
        text = self.texts[stream].decode("utf-8", "replace")
        if stream in self.cut:
            text += MARK
        return text + LIMIT_MARK if stream in self.over else text

    def values(self) -> dict[str, Any]:
        """Give the columns of the row."""
        return {
            "stdout": self.text(OutputStream.STDOUT),
            "stderr": self.text(OutputStream.STDERR),
            "stdout_bytes": self.sizes[OutputStream.STDOUT],
            "stderr_bytes": self.sizes[OutputStream.STDERR],
        }


class OutputLog:
    """Gathers the chunks of one execution, writes them to the log of the bus, and counts them.

    A chunk ends where a character ends, so that each entry can be read by itself; what is prompt
    waits only a moment for that, for its reader may have to answer. `run` must be running; `write`
    waits while much is queued, which makes the program wait in turn. It goes on after what is
    `kept`, up to the entry `head`. `on_safe` is told, for each stream, how much the log has; it
    neither waits nor raises.
    """

    def __init__(
        self,
        deps: Deps,
        execution_id: str,
        *,
        is_prompt: bool = False,
        kept: Kept | None = None,
        head: int = 0,
    ) -> None:
        self._deps = deps
        self._is_prompt = is_prompt
        self._topic = topic(execution_id)
        self._queue: deque[tuple[OutputStream, bytes]] = deque()
        self._queued_bytes = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._rest: dict[OutputStream, bytes] = dict.fromkeys(STREAMS, b"")
        self._flushing = asyncio.Lock()
        self._is_broken = False
        self.kept = kept or Kept(deps.options.execution_output_bytes)
        self.head = head
        self.on_safe: Callable[[int, int], None] | None = None

    async def write(self, stream: OutputStream, data: bytes) -> None:
        """Queue a chunk."""
        self._queue.append((stream, data))
        self._queued_bytes += len(data)
        self._news.set()
        if self._queued_bytes >= _QUEUE_BYTES:
            self._room.clear()
        await self._room.wait()

    async def run(self) -> None:
        """Write what gathers, until cancelled."""
        while True:
            await self._wait()
            await self.flush()
            await asyncio.sleep(FLUSH_S)

    async def _wait(self) -> None:
        if not (self._is_prompt and any(self._rest.values())):
            await self._news.wait()
            return
        try:
            async with asyncio.timeout(HOLD_S):
                await self._news.wait()
        except TimeoutError:
            await self._release()

    async def finish(self) -> None:
        """Write everything, characters left incomplete included."""
        await self.flush()
        await self._release()

    async def _release(self) -> None:
        async with self._flushing:
            for stream, rest in self._rest.items():
                if rest:
                    await self._append(stream, rest)
                    self._rest[stream] = b""

    async def flush(self) -> None:
        """Write what is queued, each stream's chunks joined where nothing lies between."""
        async with self._flushing:
            self._news.clear()
            while self._queue:
                stream, data = self._take()
                data = self._rest[stream] + data
                while data:
                    _, whole = codecs.utf_8_decode(data[:ENTRY_BYTES], "replace", False)
                    if not whole:
                        break
                    await self._append(stream, data[:whole])
                    data = data[whole:]
                self._rest[stream] = data

    def _take(self) -> tuple[OutputStream, bytes]:
        stream, first = self._queue.popleft()
        chunks = [first]
        while self._queue and self._queue[0][0] == stream:
            chunks.append(self._queue.popleft()[1])
        data = b"".join(chunks)
        self._queued_bytes -= len(data)
        if self._queued_bytes < _QUEUE_BYTES:
            self._room.set()
        return stream, data

    async def _append(self, stream: OutputStream, data: bytes) -> None:
        if not self._is_broken:
            own = self.kept.sizes[stream]
            await self._log(encode(stream, self.kept.total, own, data))
        self.kept.add(stream, data)
        if self.on_safe is not None:
            self.on_safe(*self.kept.sizes.values())

    async def _log(self, entry: dict[str, Any]) -> None:
        """Append to the log; a bus that is away is waited for, then done without.

        An append that failed may have been written all the same: readers see by `at` that they
        have it already, and by the counts in the row that something is missing.
        """
        delay_s = 0.1
        waited_s = 0.0
        while True:
            try:
                self.head = await self._deps.bus.append(self._topic, entry)
            except BusUnavailableError:
                if waited_s >= _GIVE_UP_S:
                    log.exception("output cannot be followed", extra={"topic": self._topic})
                    self._is_broken = True
                    return
            else:
                return
            await asyncio.sleep(delay_s)
            waited_s += delay_s
            delay_s = min(2 * delay_s, 2.0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An execution as far as its output is known, and the place in the log that belongs to it."""

    row: SandboxExecution
    epoch: str
    seq: int
    at: int


async def snapshot(deps: Deps, row: SandboxExecution) -> Snapshot:
    """Join what the row has stored with what the log has beyond it."""
    kept = Kept.of(row, deps.options.execution_output_bytes)
    epoch, seq = "", 0
    while True:
        page = await deps.bus.read(topic(row.id), seq, _PAGE)
        if page.epoch != epoch:
            epoch = page.epoch
        for news in page.entries:
            seq = news.seq
            at, data = int(news.data["at"]), decode(news.data)
            if at == kept.total:
                kept.add(news.data["stream"], data)
            elif at > kept.total:
                # Neither stored nor in the log any more; said so, rather than joined over.
                kept.go_on_before(news.data)
                kept.add(news.data["stream"], data)
        if len(page.entries) < _PAGE:
            values = {
                **kept.values(),
                "is_truncated": row.is_truncated or bool(kept.cut),
            }
            return Snapshot(row._replace(**values), epoch, seq, kept.total)  # type: ignore[attr-defined]
