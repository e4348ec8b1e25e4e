"""Following a topic: its durable events, and the texts growing under it.

A topic has two sources. *Events* are rows of `event_store`, numbered densely in commit order and
announced by a signal on the bus. *Texts* (an answer, a step's output) grow in the bus's log of the
same topic as appends with an offset in characters, and end in a row of their table.

A follower attaches to the bus first, then reads what is there, then goes live. The number of an
event and the offset of an append say exactly what a follower has: what it has is dropped, what it
misses is read again. So a lost signal costs time, never data.
"""

import asyncio
import base64
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.system import Event, Topic
from services.base import Deps
from services.errors import RequestError
from services.events.base import News, Tap

# A follower that heard nothing for so long looks again, in case a signal was lost.
_IDLE_S = 5.0
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower has come: the last event, and the length of each text still growing."""

    epoch: str
    seq: int
    offsets: Mapping[str, int]

    def encode(self) -> str:
        """Give the opaque cursor."""
        raw = orjson.dumps([self.epoch, self.seq, dict(self.offsets)])
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @staticmethod
    def decode(cursor: str) -> "Position":
        """Read a cursor. Raises RequestError BAD_USER_INPUT when it is not one."""
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            epoch, seq, offsets = orjson.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
            is_sound = (
                isinstance(epoch, str)
                and isinstance(seq, int)
                and seq >= 0
                and isinstance(offsets, dict)
                and len(offsets) <= 1000
                and all(isinstance(n, int) and n >= 0 for n in offsets.values())
            )
            if not is_sound:
                raise ValueError("not a cursor")
        except (ValueError, TypeError) as error:
            raise RequestError(
                "BAD_USER_INPUT",
                "`after` is not a cursor of this subscription; "
                "take one from an event, or leave it out.",
            ) from error
        return Position(epoch, seq, offsets)


@dataclass(frozen=True, slots=True)
class Fact:
    """A durable event as it stands in the log."""

    seq: int
    type: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Happened:
    """A durable event."""

    cursor: str
    seq: int
    type: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Appended:
    """More of the text `key`, beginning at `offset` characters."""

    cursor: str
    key: str
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """The follower must begin anew from a snapshot.

    `connection` reads the state that belongs to `cursor`, until `release` is called or the next
    item is asked for.
    """

    cursor: str
    connection: AsyncConnection
    release: Callable[[], Awaitable[None]]


Item = Happened | Appended | Restarted


@dataclass(frozen=True, slots=True)
class Source:
    """What is followed.

    `growing(connection)` gives the texts still growing with their stored content.
    `stored(connection, key)` gives the stored content of one text.
    `begins(event)` names the text an event starts, if any: it grows from offset 0.
    `ends(event)` names the text an event completes, if any: its rest is sent before the event.
    `restarts(event)` tells whether an event calls for a new snapshot.
    `is_last(event)` tells whether nothing can follow, `is_complete(connection)` whether it came.
    `replays` makes a beginning without a usable cursor start with the whole log, if it is kept.
    """

    topic: str
    growing: Callable[[AsyncConnection], Awaitable[dict[str, str]]]
    stored: Callable[[AsyncConnection, str], Awaitable[str | None]]
    begins: Callable[[Fact], str | None]
    ends: Callable[[Fact], str | None]
    restarts: Callable[[Fact], bool] = lambda _: False
    is_last: Callable[[Fact], bool] = lambda _: False
    is_complete: Callable[[AsyncConnection], Awaitable[bool]] | None = None
    replays: bool = False


async def append_text(deps: Deps, topic: str, key: str, offset: int, text: str) -> None:
    """Add to a growing text: kept by the bus, then sent to followers."""
    await deps.bus.append(topic, {"key": key, "offset": offset, "text": text})


async def read_text(deps: Deps, topic: str, key: str, stored: str) -> str:
    """Give a growing text: what is stored of it, and what the bus has beyond that."""
    log = await deps.bus.read(topic)
    return _extend(stored, log.entries, key)


def _extend(text: str, entries: Sequence[News], key: str) -> str:
    for news in entries:
        if news.data.get("key") == key and news.data["offset"] <= len(text):
            text += news.data["text"][len(text) - news.data["offset"] :]
    return text


async def follow(deps: Deps, source: Source, after: str | None) -> AsyncGenerator[Item, None]:
    """Follow a topic from a cursor, or from a snapshot when `after` is None.

    Gives a Restarted first when there is no cursor, or when the cursor is of another epoch, in the
    future, or older than what is kept. Ends after an event for which `is_last` holds. Consume it
    through `contextlib.aclosing`.
    """
    position = None if after is None else Position.decode(after)
    async with deps.bus.attach(source.topic) as tap:
        follower = _Follower(deps, source, tap)
        async with aclosing(follower.items(position)) as items:
            async for item in items:
                yield item


@dataclass(slots=True)
class _Follower:
    deps: Deps
    source: Source
    tap: Tap
    epoch: str = ""
    seq: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    is_over: bool = False

    def _cursor(self) -> str:
        return Position(self.epoch, self.seq, self.offsets).encode()

    async def items(self, position: Position | None) -> AsyncGenerator[Item, None]:
        resumes = position is not None and await self._resume(position)
        if not resumes:
            async with aclosing(self._restart()) as items:
                async for item in items:
                    yield item
        items = self._catch_up()
        while True:
            async with aclosing(items):
                async for item in items:
                    yield item
            if self.is_over:
                return
            items = self._live()

    async def _resume(self, position: Position) -> bool:
        async with self.deps.db.reading() as connection:
            topic = (
                await connection.execute(select(Topic).where(Topic.id == self.source.topic))
            ).first()
        if topic is None and position.epoch == "" and position.seq == 0:
            # Nothing had happened when the cursor was given, and nothing has since.
            return True
        if (
            topic is None
            or topic.epoch != (position.epoch or topic.epoch)
            or not topic.first_seq - 1 <= position.seq <= topic.seq
        ):
            return False
        self.epoch, self.seq = topic.epoch, position.seq
        self.offsets = dict(position.offsets)
        return True

    async def _restart(self) -> AsyncGenerator[Item, None]:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(self.deps.db.snapshot())
            topic = (
                await connection.execute(select(Topic).where(Topic.id == self.source.topic))
            ).first()
            self.epoch, self.seq = (topic.epoch, topic.seq) if topic else ("", 0)
            if self.source.replays and (topic is None or topic.first_seq == 1):
                self.seq, self.offsets = 0, {}
            else:
                growing = await self.source.growing(connection)
                self.offsets = {key: len(text) for key, text in growing.items()}
            yield Restarted(self._cursor(), connection, stack.aclose)

    async def _catch_up(self) -> AsyncGenerator[Item, None]:
        """Give all events after the last one, then what growing texts have gained."""
        is_complete = False
        while not self.is_over:
            async with self.deps.db.reading() as connection:
                if self.source.is_complete is not None:
                    # Asked before the events are read: what ends a topic is its last event.
                    is_complete = await self.source.is_complete(connection)
                rows = (
                    await connection.execute(
                        select(Event.seq, Event.type, Event.payload)
                        .where(Event.topic == self.source.topic, Event.seq > self.seq)
                        .order_by(Event.seq)
                        .limit(_BATCH)
                    )
                ).all()
            for row in rows:
                async with aclosing(self._event(Fact(*row))) as items:
                    async for item in items:
                        yield item
                if self.is_over:
                    return
            if len(rows) < _BATCH:
                self.is_over = is_complete
                break
        async for item in self._gained():
            yield item

    async def _gained(self) -> AsyncGenerator[Item, None]:
        """Give, as one append each, what texts have beyond what the follower has."""
        if not self.offsets:
            return
        log = await self.deps.bus.read(self.source.topic)
        async with self.deps.db.reading() as connection:
            stored = await self.source.growing(connection)
        for key in list(self.offsets):
            if key in stored:
                item = self._append(key, 0, _extend(stored[key], log.entries, key))
                if item is not None:
                    yield item

    async def _live(self) -> AsyncGenerator[Item, None]:
        news = await self.tap.get(_IDLE_S)
        if self.tap.lost() or news is None:
            items = self._catch_up()
        elif news.seq:
            items = self._text(news)
        elif news.data.get("seq", 0) == self.seq + 1:
            data = news.data
            items = self._event(Fact(data["seq"], data["type"], data["payload"]))
        elif news.data.get("seq", 0) > self.seq + 1:
            items = self._catch_up()
        else:
            return
        async with aclosing(items) as inner:
            async for item in inner:
                yield item

    async def _text(self, news: News) -> AsyncGenerator[Item, None]:
        key, offset = news.data["key"], news.data["offset"]
        if key not in self.offsets:
            # A text that ended before the snapshot: its appends were still under way.
            return
        if offset > self.offsets[key]:
            async for item in self._gained():
                yield item
            return
        fresh = self._append(key, offset, news.data["text"])
        if fresh is not None:
            yield fresh

    def _append(self, key: str, offset: int, text: str) -> Item | None:
        known = self.offsets.get(key, 0)
        fresh = text[known - offset :]
        if not fresh:
            return None
        self.offsets[key] = known + len(fresh)
        return Appended(self._cursor(), key, known, fresh)

    async def _event(self, event: Fact) -> AsyncGenerator[Item, None]:
        ended = self.source.ends(event)
        if ended is not None:
            async with self.deps.db.reading() as connection:
                text = await self.source.stored(connection, ended)
            rest = self._append(ended, 0, text or "")
            if rest is not None:
                yield rest
            self.offsets.pop(ended, None)
        begun = self.source.begins(event)
        if begun is not None:
            self.offsets[begun] = 0
        self.seq = event.seq
        if self.source.restarts(event):
            async for item in self._restart():
                yield item
            return
        self.is_over = self.source.is_last(event)
        yield Happened(self._cursor(), event.seq, event.type, event.payload)


class TextWriter:
    """Gathers the small pieces of one growing text and sends them every few milliseconds.

    `run()` must be running beside the writer. The coalescing window is `options.text_flush_ms`;
    every
    `options.text_checkpoint_s` seconds `checkpoint(text)` stores what was sent.

    A writer that goes on after a crash begins with the `text` sent so far. What it is given from
    `replay_from` on is compared with that text and not sent again, as long as it is the same; where
    it differs, `rewind(text)` is called with the part that holds, and writing goes on from there.
    """

    def __init__(
        self,
        deps: Deps,
        topic: str,
        key: str,
        *,
        checkpoint: Callable[[str], Awaitable[None]],
        rewind: Callable[[str], Awaitable[None]] | None = None,
        text: str = "",
        replay_from: int | None = None,
    ) -> None:
        self._deps, self._topic, self._key = deps, topic, key
        self._checkpoint, self._rewind = checkpoint, rewind
        self._sent = text
        self.text = text if replay_from is None else text[:replay_from]
        self._window_s = deps.options.text_flush_ms / 1000
        self._pending = asyncio.Event()
        self._sending = asyncio.Lock()
        self._checkpointed_at = time.monotonic()

    async def write(self, piece: str) -> None:
        """Add a piece to the text."""
        self.text += piece
        if len(self.text) > len(self._sent):
            self._pending.set()
        elif not self._sent.startswith(self.text):
            await self._diverge()

    async def run(self) -> None:
        """Send what gathers until cancelled."""
        while True:
            await self._pending.wait()
            await self.flush()
            await asyncio.sleep(self._window_s)

    async def flush(self) -> None:
        """Send what has gathered, and store it when the last checkpoint is old."""
        async with self._sending:
            self._pending.clear()
            text = self.text
            if len(text) > len(self._sent):
                if not text.startswith(self._sent):
                    await self._diverge()
                start = len(self._sent)
                await append_text(self._deps, self._topic, self._key, start, text[start:])
                self._sent = text
            if time.monotonic() - self._checkpointed_at > self._deps.options.text_checkpoint_s:
                self._checkpointed_at = time.monotonic()
                await self._checkpoint(self._sent)

    async def settle(self) -> None:
        """Send the rest; the text is complete as it is, whatever was sent before a crash."""
        await self.flush()
        if len(self._sent) > len(self.text):
            await self._diverge()

    async def _diverge(self) -> None:
        pairs = zip(self.text, self._sent, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        kept = self._sent[:same]
        self._sent = kept
        if self._rewind is not None:
            await self._rewind(kept)
        if len(self.text) > len(kept):
            self._pending.set()
