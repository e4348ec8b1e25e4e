"""Following a topic: its durable events, and the texts growing under it.

A topic has two sources. *Events* are rows of `event_store`, numbered densely in commit order and
announced by a signal on the bus. *Texts* (an answer, a step's output) grow in the bus's log of the
same topic as appends with an offset in characters, and end in a row of their table.

The number of an event and the offset of an append say exactly what a follower has: what it has is
dropped, what it misses is read again. So a lost signal costs time, never data.
"""

from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from sqlalchemy import bindparam, select

from models.system import Event, Topic
from services.base import Deps
from services.events.base import BusUnavailableError, News
from services.streams.base import Appended, Fact, Happened, Item, Restarted, Snapshot
from services.streams.heads import heads
from services.streams.position import Position, cursor_of
from services.streams.snapshots import Glimpse, glimpses, snapshots
from services.streams.source import Source
from services.streams.texts import end, extend, kept

_BATCH = 500
# Put together once: every reader that begins asks them.
_TOPIC = select(Topic.epoch, Topic.seq, Topic.first_seq).where(Topic.id == bindparam("topic"))
_EVENTS = (
    select(Event.seq, Event.type, Event.payload)
    .where(Event.topic == bindparam("topic"), Event.seq > bindparam("seq"))
    .order_by(Event.seq)
    .limit(_BATCH)
)


@dataclass(slots=True)
class TopicFollower:
    """Follows a topic from a cursor, or from a snapshot when there is none.

    Gives a Restarted first when there is no cursor, or when the cursor is of another epoch, in the
    future, or older than what is kept. Is over after an event for which `is_last` holds.
    """

    deps: Deps
    source: Source
    after: Position | None = None
    epoch: str = ""
    seq: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    is_over: bool = False
    # The log of appends, and the last one heard of: what is known of them all by then.
    _append_epoch: str = ""
    _append_seq: int = 0
    # Growing texts that do not end, as far as they are known, where the log's last append to them
    # does: there may be more in the row, now or once it is stored, and no append tells of it.
    _unsure: set[str] = field(default_factory=set)
    # What the last snapshot knew of the texts still growing.
    _growing: dict[str, str] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        """The topic to attach to."""
        return self.source.topic

    def place(self) -> Hashable:
        """Tell how far it has come."""
        return (self.epoch, self.seq, frozenset(self.offsets.items()), self.is_over)

    async def begin(self) -> AsyncGenerator[Item, None]:
        """Give what the cursor misses, or a Restarted, and all events since."""
        seen = await self._resume(self.after) if self.after is not None else None
        if seen is None:
            items = self._begin_anew()
        elif seen.seq > self.seq:
            items = self.catch_up()
        else:
            # All that happened is known, and what grows was looked at with it.
            self.is_over = seen.is_complete
            items = self._gained(seen.growing)
        async with aclosing(items):
            async for item in items:
                yield item

    def accept(self, news: News) -> Sequence[Item] | None:
        """Give what the news bring; None if that takes reading."""
        data = news.data
        if news.seq:
            key, offset = data["key"], data["offset"]
            known = self.offsets.get(key)
            if known is not None and offset > known:
                return None
            if news.seq == self._append_seq + 1 and self._append_epoch in ("", news.epoch):
                self._append_epoch, self._append_seq = news.epoch, news.seq
            # None: a text that ended before the snapshot; its appends were still under way.
            fresh = (
                None
                if known is None
                else self._append(key, offset, data["text"], data.get("at", 0.0))
            )
            if fresh is None:
                return ()
            self._unsure.discard(key)
            return (fresh,)
        seq = data.get("seq", 0)
        if data.get("epoch") != self.epoch or seq > self.seq + 1:
            return None
        if seq <= self.seq:
            return ()
        fact = Fact(seq, data["type"], data["payload"])
        if self.source.kind.ends(fact) is not None or self.source.kind.restarts(fact):
            return None
        return (self._happened(fact, data.get("at", 0.0)),)

    async def take(self, news: News) -> AsyncGenerator[Item, None]:
        """Give what the news bring, reading what is missing before them."""
        known = self.accept(news)
        if known is not None:
            for item in known:
                yield item
            return
        data = news.data
        if news.seq:
            items = self._gained()
        elif data.get("epoch") == self.epoch and data.get("seq") == self.seq + 1:
            items = self._event(Fact(data["seq"], data["type"], data["payload"]))
        else:
            items = self.catch_up()
        async with aclosing(items):
            async for item in items:
                yield item

    async def catch_up(self) -> AsyncGenerator[Item, None]:
        """Give all events after the last one, then what growing texts have gained."""
        while not self.is_over:
            facts, is_kept, is_complete = await self._page()
            if not is_kept or any(map(self.source.kind.restarts, facts)):
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
            async with aclosing(self._gained()) as gains:
                async for item in gains:
                    yield item

    async def is_current(self) -> bool:
        """Tell whether neither an event was missed nor, while texts grow, an append."""
        if self.offsets:
            if not self._unsure.isdisjoint(self.offsets):
                return False
            try:
                log = await self.deps.bus.read(self.topic, self._append_seq, 1)
            except BusUnavailableError:
                return False
            if log.entries or not log.is_complete or log.epoch != self._append_epoch:
                return False
        head = await heads(self.deps).of(self.topic)
        return head == ((self.epoch, self.seq) if self.epoch else None)

    def _cursor(self) -> str:
        return cursor_of(self.epoch, self.seq, self.offsets)

    async def _resume(self, position: Position) -> Glimpse | None:
        """Take up a cursor; None if it cannot have been given, or what follows is not kept."""
        seen = await self._look()
        if position.epoch == "" and position.seq > 0:
            return None
        if seen.epoch == "":
            # Nothing had happened when the cursor was given, and nothing has since.
            return seen if position.epoch == "" else None
        if (
            seen.epoch != (position.epoch or seen.epoch)
            or not seen.first_seq - 1 <= position.seq <= seen.seq
            or not await self._is_known(position.offsets, seen.growing)
        ):
            return None
        self.epoch, self.seq = seen.epoch, position.seq
        self.offsets = dict(position.offsets)
        return seen

    async def _look(self) -> Glimpse:
        seen = await glimpses(self.deps).of(self.source)
        assert seen is not None  # noqa: S101 - whatever is asked for is answered.
        return seen

    async def _is_known(self, offsets: Mapping[str, int], stored: Mapping[str, str]) -> bool:
        """Tell whether the texts that grow are as long as a cursor says, as far as can be known."""
        growing = {key: text for key, text in stored.items() if key in offsets}
        if all(offsets[key] <= len(text) for key, text in growing.items()):
            return True
        try:
            entries = (await self.deps.bus.read(self.topic)).entries
        except BusUnavailableError:
            return True
        return all(offsets[key] <= len(extend(text, entries, key)) for key, text in growing.items())

    async def _begin_anew(self) -> AsyncGenerator[Item, None]:
        for part in (self._restart, self._since_restart):
            async with aclosing(part()) as items:
                async for item in items:
                    yield item
            if self.is_over:
                return

    async def _restart(self) -> AsyncGenerator[Item, None]:
        async with AsyncExitStack() as stack:
            seen, connection, lock = await stack.enter_async_context(
                snapshots(self.deps).of(self.source)
            )
            seq, growing, is_over = seen.seq, dict(seen.growing), self.is_over
            if self.source.kind.replays and seen.first_seq == 1:
                seq, growing = 0, {}
            else:
                # The last event may be one that the snapshot stands for.
                is_over = seen.is_complete
            # All at once: after a reading that failed half-way it is begun anew again.
            self.epoch, self.seq, self.is_over, self._growing = seen.epoch, seq, is_over, growing
            self.offsets = {key: len(text) for key, text in growing.items()}
            yield Restarted(self._cursor(), Snapshot(connection, lock, stack.aclose))

    def _since_restart(self) -> AsyncGenerator[Item, None]:
        """Give what the snapshot lacks: all events, if it is followed by them, or texts alone.

        What happens after a snapshot is news: the driver attached before it was read.
        """
        if self.source.kind.replays:
            return self.catch_up()
        growing, self._growing = self._growing, {}
        return self._gained(growing)

    async def _page(self) -> tuple[list[Fact], bool, bool]:
        """Give the next events, whether none before them is missing, and whether more can come."""
        kind, id_ = self.source.kind, self.source.id
        async with self.deps.db.reading() as connection:
            # Asked before the events are read: what ends a topic is its last event.
            is_complete = id_ in await kind.complete(connection, [id_])
            rows = await connection.execute(_EVENTS, {"topic": self.topic, "seq": self.seq})
            facts = [Fact(*row) for row in rows]
            # Asked after them: what was dropped before they were read has raised the floor.
            topic = (await connection.execute(_TOPIC, {"topic": self.topic})).first()
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
            if self.is_over or self.seq != fact.seq:
                # It began anew from a snapshot that knows of the rest.
                return

    async def _gained(self, stored: Mapping[str, str] | None = None) -> AsyncGenerator[Item, None]:
        """Give, as one append each, what texts have beyond what the follower has."""
        if not self.offsets:
            return
        entries = await kept(self.deps, self.topic)
        last = entries[-1] if entries else News(self.topic, 0, {})
        self._append_epoch, self._append_seq = last.epoch, last.seq
        if stored is None:
            stored = (await self._look()).growing
        for key in list(self.offsets):
            if key in stored:
                item = self._append(key, 0, extend(stored[key], entries, key))
                if item is not None:
                    yield item
        ends = {news.data["key"]: end(news) for news in entries}
        self._unsure = {key for key, known in self.offsets.items() if ends.get(key) != known}

    def _append(self, key: str, offset: int, text: str, at: float = 0.0) -> Item | None:
        known = self.offsets.get(key, 0)
        fresh = text[known - offset :]
        if not fresh:
            return None
        self.offsets[key] = known + len(fresh)
        return Appended(self._cursor(), key, known, fresh, at)

    async def _event(self, event: Fact) -> AsyncGenerator[Item, None]:
        ended = self.source.kind.ends(event)
        is_sound = not self.source.kind.restarts(event)
        if ended is not None:
            async with self.deps.db.reading() as connection:
                text = await self.source.kind.stored(connection, ended)
            # What claims more than there ever was comes from a cursor that was made up.
            is_sound = text is None or self.offsets.get(ended, 0) <= len(text)
            rest = self._append(ended, 0, text or "") if is_sound else None
            if rest is not None:
                yield rest
        if is_sound:
            if ended is not None:
                self.offsets.pop(ended, None)
            yield self._happened(event)
            return
        # With what other texts have beyond what is stored: it is not in the snapshot.
        async with aclosing(self._begin_anew()) as items:
            async for item in items:
                yield item

    def _happened(self, event: Fact, at: float = 0.0) -> Happened:
        begun = self.source.kind.begins(event)
        if begun is not None:
            self.offsets[begun] = 0
            self._unsure.add(begun)
        self.seq = event.seq
        self.is_over = self.source.kind.is_last(event)
        return Happened(self._cursor(), event.seq, event.type, event.payload, at)
