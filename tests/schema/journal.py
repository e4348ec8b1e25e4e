"""A source in memory that does what it is told, and the schema that shows it.

For tests of delivery itself: when something is told, read, lost or refused is up to the test.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import strawberry
from sqlalchemy.ext.asyncio import AsyncConnection

from schema.execution import Engine, Live, Prepared, Stream
from services.events.base import News
from services.events.hub import Hub
from services.events.local import LocalBus
from services.streams import Restarted, Snapshot
from services.streams.position import position


@dataclass(frozen=True, slots=True)
class Word:
    """More text: everything up to the entry `cursor`."""

    cursor: str
    offset: int
    text: str

    def joined(self, later: Any) -> "Word | None":
        """Give both as one if they are adjacent."""
        if not isinstance(later, Word) or later.offset != self.offset + len(self.text):
            return None
        return Word(later.cursor, self.offset, self.text + later.text)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something whose answer has to be read."""

    cursor: str
    number: int


@dataclass(eq=False)
class Journal:
    """Entries in order: texts, and None for a remark. Cursors count them."""

    bus: LocalBus
    entries: list[str | None] = field(default_factory=list)
    # Where in the text each of them begins, and the next one will.
    offsets: list[int] = field(default_factory=lambda: [0])
    # Entries before this one are not kept any more.
    floor: int = 0
    is_closed: bool = False
    # Reading waits for the gate, and fails while there is a failure.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    reads: int = 0
    snapshots: int = 0
    # Where followers began, in order.
    begun: list[str | None] = field(default_factory=list)
    topic: str = "journal"

    def __post_init__(self) -> None:
        """Let everybody read."""
        self.gate.set()

    @property
    def hub(self) -> Hub:
        """What delivers, at once and without waiting."""
        return self.bus._hub

    @property
    def text(self) -> str:
        """Everything written."""
        return "".join(entry or "" for entry in self.entries)

    def write(self, *entries: str | None) -> None:
        """Write in silence: no signal is sent."""
        for entry in entries:
            self.offsets.append(self.offsets[-1] + len(entry or ""))
            self.entries.append(entry)

    def tell(self, *entries: str | None) -> None:
        """Write, and send one signal after the other in the very same moment."""
        for entry in entries:
            self.write(entry)
            self.hub.deliver(News(self.topic, 0, {"number": len(self.entries)}), 20)

    def close(self) -> None:
        """Let nothing follow."""
        self.is_closed = True
        self.hub.deliver(News(self.topic, 0, {"number": len(self.entries)}), 20)

    async def read(self) -> None:
        """Take the time, and the chances, that reading takes."""
        self.reads += 1
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure

    def item(self, number: int) -> Word | Remark:
        """Give the entry `number`, counted from 1."""
        entry = self.entries[number - 1]
        if entry is None:
            return Remark(str(number), number)
        return Word(str(number), self.offsets[number - 1], entry)


class JournalFollower:
    """How far readers have come in a journal."""

    def __init__(self, journal: Journal, after: str | None) -> None:
        if after is not None and not after.isdigit():
            position(after)
        self.topic = journal.topic
        self._journal = journal
        self._at = None if after is None else int(after)

    @property
    def is_over(self) -> bool:
        return self._journal.is_closed and self._at == len(self._journal.entries)

    def place(self) -> int | None:
        return self._at

    async def begin(self) -> AsyncGenerator[Any, None]:
        journal = self._journal
        journal.begun.append(None if self._at is None else str(self._at))
        await journal.read()
        if self._at is None or not journal.floor <= self._at <= len(journal.entries):
            self._at = len(journal.entries)
            journal.snapshots += 1
            snapshot = cast("AsyncConnection", journal.text)
            yield Restarted(str(self._at), Snapshot(snapshot, asyncio.Lock(), _release))
        async with aclosing(self.catch_up()) as items:
            async for item in items:
                yield item

    def accept(self, news: News) -> Sequence[Any] | None:
        number = news.data["number"]
        assert self._at is not None
        if number > self._at + 1:
            return None
        if number <= self._at:
            return ()
        self._at = number
        return (self._journal.item(number),)

    async def take(self, news: News) -> AsyncGenerator[Any, None]:
        async with aclosing(self.catch_up()) as items:
            async for item in items:
                yield item

    async def catch_up(self) -> AsyncGenerator[Any, None]:
        await self._journal.read()
        assert self._at is not None
        while self._at < len(self._journal.entries):
            self._at += 1
            yield self._journal.item(self._at)

    async def is_current(self) -> bool:
        await self._journal.read()
        return self._at == len(self._journal.entries)


async def _release() -> None:
    return None


# ---- the schema


@dataclass(eq=False)
class Context:
    """One operation; `viewer` stands for everything it may depend on."""

    journal: Journal
    viewer: str = "ann"
    request_id: str = "request"
    pinned: int = 0
    remarks: list[int] = field(default_factory=list)
    # Answering a remark waits for this, and fails while there is a failure.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def begin_event(self) -> None:
        """Each event is answered anew."""

    async def pin(self, snapshot: Any) -> None:
        self.pinned += 1

    async def end_event(self) -> None:
        self.pinned = 0


@strawberry.interface
class JournalEvent:
    cursor: str


@strawberry.type
class Text(JournalEvent):
    offset: int
    text: str


@strawberry.type
class Note(JournalEvent):
    number: int

    @strawberry.field
    async def detail(self, info: strawberry.Info[Context, None]) -> str:
        context = info.context
        await context.gate.wait()
        await asyncio.sleep(0)
        if context.failure is not None:
            raise context.failure
        context.remarks.append(self.number)
        return f"remark {self.number}"


@strawberry.type
class Anew(JournalEvent):
    text: str


def _event(item: Any) -> JournalEvent:
    if isinstance(item, Restarted):
        return Anew(cursor=item.cursor, text=str(item.snapshot.connection))
    if isinstance(item, Word):
        return Text(cursor=item.cursor, offset=item.offset, text=item.text)
    return Note(cursor=item.cursor, number=item.number)


@strawberry.type
class Query:
    @strawberry.field
    def nothing(self) -> str | None:
        return None


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def journal(
        self, info: strawberry.Info[Context, None], after: str | None = None, name: str = ""
    ) -> AsyncGenerator[JournalEvent, None]:
        context = info.context
        journal = context.journal
        live = Live(
            journal.bus,
            lambda cursor: JournalFollower(journal, cursor),
            _event,
            (context.viewer, name),
            after,
        )
        return cast("AsyncGenerator[JournalEvent, None]", live)


schema = strawberry.Schema(Query, subscription=Subscription, types=[Text, Note, Anew])
QUERY = """
subscription($after: String) { journal(after: $after) { __typename cursor
  ... on Text { offset text } ... on Note { number detail } ... on Anew { text } } }
"""


def make_engine() -> Engine:
    """Give an engine of the journal's schema."""
    return Engine(schema._schema)


@dataclass
class Book:
    """A reader's copy, checked event by event; `kinds` tells how it came about."""

    text: str = ""
    at: int = -1
    kinds: list[str] = field(default_factory=list)

    def take(self, journal: Journal, payload: dict[str, Any]) -> None:
        """Take one event."""
        assert not payload.get("errors"), payload
        event = payload["data"]["journal"]
        kind, at = event["__typename"], int(event["cursor"])
        self.kinds.append(kind)
        if kind == "Anew":
            self.text = event["text"]
            assert self.text == "".join(entry or "" for entry in journal.entries[:at])
        elif kind == "Note":
            assert at == event["number"] == self.at + 1, "a remark is missing, or told twice"
            assert event["detail"] == f"remark {at}"
        else:
            assert event["offset"] == len(self.text), "text is missing, or told twice"
            self.text += event["text"]
            told = journal.entries[self.at : at]
            assert event["text"] == "".join("<remark>" if e is None else e for e in told)
        self.at = at
        assert len(self.text) == journal.offsets[at]


async def opened(
    engine: Engine, context: Context, after: str | None = None, query: str = QUERY
) -> Stream:
    """Subscribe."""
    prepared = engine.prepare(query, None, {"after": after})
    assert isinstance(prepared, Prepared), prepared
    stream = await engine.subscribe(prepared, context)
    assert isinstance(stream, Stream), stream
    return stream


async def until(condition: Callable[[], object]) -> None:
    """Let others run until something has come about."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what it asks about tells nobody when it changes.
            await asyncio.sleep(0)
