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
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from models.system import Event, Topic
from services.base import Deps
from services.errors import RequestError
from services.events.base import BusUnavailableError, News, Tap

log = logging.getLogger("noosphere.streams")
# A follower that heard nothing for so long looks again, in case a signal was lost.
_IDLE_S = 15.0
# What a cursor may hold: a client must not make every event carry what it likes.
_MAX_TEXTS, _MAX_KEY_CHARS, _MAX_CURSOR_CHARS = 200, 60, 20_000
_BATCH = 500
# How long a writer waits before it tries a bus again that did not answer.
_AWAY_S = 0.5


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
            if len(cursor) > _MAX_CURSOR_CHARS:
                raise ValueError("too long")
            padded = cursor + "=" * (-len(cursor) % 4)
            epoch, seq, offsets = orjson.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
            is_sound = (
                isinstance(epoch, str)
                and isinstance(seq, int)
                and seq >= 0
                and isinstance(offsets, dict)
                and len(offsets) <= _MAX_TEXTS
                and all(len(key) <= _MAX_KEY_CHARS for key in offsets)
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


async def append_text(deps: Deps, topic: str, key: str, offset: int, text: str) -> int:
    """Add to a growing text: kept by the bus, then sent to followers. Gives its number in the log.

    Raises BusUnavailableError.
    """
    return await deps.bus.append(topic, {"key": key, "offset": offset, "text": text})


async def read_text(deps: Deps, topic: str, key: str, stored: str) -> str:
    """Give a growing text: what is stored of it, and what the bus, if it answers, has beyond."""
    return _extend(stored, await _entries(deps, topic), key)


async def resume_text(deps: Deps, topic: str, key: str, stored: str) -> tuple[str, bool]:
    """Give a growing text as it was sent, for another writer to go on with.

    The second value is False when more may have been sent than is known: the log was lost. Raises
    BusUnavailableError.
    """
    entries = (await deps.bus.read(topic)).entries
    ends = [_end(news) for news in entries if news.data.get("key") == key]
    text = _extend(stored, entries, key)
    return text, not stored or len(text) <= max(ends, default=0)


async def _entries(deps: Deps, topic: str) -> Sequence[News]:
    try:
        return (await deps.bus.read(topic)).entries
    except BusUnavailableError:
        # The writer stores what it cannot send.
        return ()


def _end(news: News) -> int:
    return int(news.data["offset"]) + len(news.data["text"])


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
        while not self.is_over:
            facts, is_kept, is_complete = await self._page()
            if not is_kept or any(map(self.source.restarts, facts)):
                # What lies before a new beginning need not be told.
                items = self._restart()
            else:
                items = self._events(facts)
            async with aclosing(items):
                async for item in items:
                    yield item
            if is_kept and len(facts) < _BATCH:
                self.is_over = self.is_over or is_complete
                break
        if not self.is_over:
            async for item in self._gained():
                yield item

    async def _page(self) -> tuple[list[Fact], bool, bool]:
        """Give the next events, whether none before them is missing, and whether more can come."""
        is_complete = False
        async with self.deps.db.reading() as connection:
            if self.source.is_complete is not None:
                # Asked before the events are read: what ends a topic is its last event.
                is_complete = await self.source.is_complete(connection)
            rows = await connection.execute(
                select(Event.seq, Event.type, Event.payload)
                .where(Event.topic == self.source.topic, Event.seq > self.seq)
                .order_by(Event.seq)
                .limit(_BATCH)
            )
            facts = [Fact(*row) for row in rows]
            # Asked after them: what was dropped before they were read has raised the floor.
            topic = (
                await connection.execute(select(Topic).where(Topic.id == self.source.topic))
            ).first()
        if topic is None:
            return facts, self.epoch == "", is_complete
        self.epoch = self.epoch or topic.epoch
        is_kept = topic.epoch == self.epoch and topic.first_seq - 1 <= self.seq <= topic.seq
        return facts, is_kept, is_complete

    async def _events(self, facts: Sequence[Fact]) -> AsyncGenerator[Item, None]:
        for fact in facts:
            async with aclosing(self._event(fact)) as items:
                async for item in items:
                    yield item
            if self.is_over:
                return

    async def _gained(self) -> AsyncGenerator[Item, None]:
        """Give, as one append each, what texts have beyond what the follower has."""
        if not self.offsets:
            return
        entries = await _entries(self.deps, self.source.topic)
        async with self.deps.db.reading() as connection:
            stored = await self.source.growing(connection)
        for key in list(self.offsets):
            if key in stored:
                item = self._append(key, 0, _extend(stored[key], entries, key))
                if item is not None:
                    yield item

    async def _live(self) -> AsyncGenerator[Item, None]:
        news = await self.tap.get(_IDLE_S * random.uniform(0.8, 1.2))  # noqa: S311
        if self.tap.lost() or news is None:
            items = self._catch_up()
        elif news.seq:
            items = self._text(news)
        elif news.data.get("epoch") != self.epoch:
            items = self._catch_up()
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
            async with aclosing(self._restart()) as items:
                async for item in items:
                    yield item
            return
        self.is_over = self.source.is_last(event)
        yield Happened(self._cursor(), event.seq, event.type, event.payload)


class TextWriter:
    """Gathers the small pieces of one growing text and sends them every few milliseconds.

    `run()` must be running beside the writer. The coalescing window is `options.text_flush_ms`;
    every `options.text_checkpoint_s` seconds `checkpoint(text)` stores what there is. A bus that is
    away only delays the sending, and followers get the text from where it is stored; a database
    that is away only delays the storing.

    A writer that goes on after a crash begins with the `text` sent so far. What it is given from
    `replay_from` on is compared with that text and not sent again, as long as it is the same; where
    it differs, `rewind(text)` is called with the part that holds; it stores that and gives the key
    under which writing goes on from there.
    """

    def __init__(
        self,
        deps: Deps,
        topic: str,
        key: str,
        *,
        checkpoint: Callable[[str], Awaitable[None]],
        rewind: Callable[[str], Awaitable[str]] | None = None,
        text: str = "",
        replay_from: int | None = None,
    ) -> None:
        self._deps, self._topic, self._key = deps, topic, key
        self._checkpoint, self._rewind = checkpoint, rewind
        self._sent = self._stored = text
        self.text = text if replay_from is None else text[:replay_from]
        self._head = 0
        self._is_away = False
        self._pending = asyncio.Event()
        self._sending = asyncio.Lock()
        self._storing = asyncio.Lock()

    async def write(self, piece: str) -> None:
        """Add a piece to the text. Raises what `rewind` raises."""
        self.text += piece
        if len(self.text) > len(self._sent):
            self._pending.set()
        elif not self._sent.startswith(self.text):
            async with self._sending:
                await self._diverge()

    async def run(self) -> None:
        """Send and store what gathers until cancelled. Raises what `rewind` raises."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_sending())
            group.create_task(self._keep_storing())

    async def _keep_sending(self) -> None:
        window_s = self._deps.options.text_flush_ms / 1000
        while True:
            await self._pending.wait()
            is_sent = await self.flush()
            await asyncio.sleep(window_s if is_sent else max(window_s, _AWAY_S))

    async def _keep_storing(self) -> None:
        while True:
            await asyncio.sleep(self._deps.options.text_checkpoint_s)
            await self.store()

    async def flush(self) -> bool:
        """Send what has gathered; False when the bus does not answer. Nothing is lost then."""
        async with self._sending:
            self._pending.clear()
            if len(self.text) > len(self._sent) and not self.text.startswith(self._sent):
                await self._diverge()
            text, start = self.text, len(self._sent)
            if len(text) <= start:
                return True
            try:
                head = await append_text(self._deps, self._topic, self._key, start, text[start:])
                if head <= self._head:
                    # The log began anew (Redis lost it): it is made whole again.
                    head = await append_text(self._deps, self._topic, self._key, 0, text)
            except BusUnavailableError as error:
                self._pending.set()
                if not self._is_away:
                    log.warning("text is sent later: %s", error, extra={"topic": self._topic})
                self._is_away = True
                return False
            self._head, self._sent, self._is_away = head, text, False
            return True

    async def store(self) -> bool:
        """Store what there is, unless it is stored; False when the database does not answer."""
        async with self._storing:
            # While a crash is made good for, the text sent before is longer than the one at hand.
            text = self.text if self.text.startswith(self._sent) else self._sent
            if text == self._stored:
                return True
            try:
                await self._checkpoint(text)
            except SQLAlchemyError as error:
                log.warning("text is stored later: %s", error, extra={"topic": self._topic})
                return False
            self._stored = text
            return True

    async def settle(self) -> None:
        """Send the rest; the text is complete as it is, whatever was sent before a crash.

        What a bus that is away did not take, followers get from where the caller stores it.
        """
        await self.flush()
        async with self._sending:
            if len(self._sent) > len(self.text):
                await self._diverge()

    async def _diverge(self) -> None:
        pairs = zip(self.text, self._sent, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        kept = self._sent[:same]
        async with self._storing:
            if self._rewind is not None:
                self._key = await self._rewind(kept)
            self._sent = self._stored = kept
        if len(self.text) > len(kept):
            self._pending.set()
