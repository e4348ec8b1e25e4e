"""Following a conversation, whatever becomes of signals, logs, connections and writers."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import aclosing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError

from app.runtime import running
from models.conversations import Message
from models.states import MessageRole, MessageStatus
from models.system import Event, Topic
from services import streams
from services.base import Deps, Viewer, work
from services.conversations import events, messages, threads
from services.errors import RequestError
from services.streams import Appended, Happened, Item, Position, Restarted, TextWriter, following
from tests.api import operations as op
from tests.fixtures import Api, settings_for
from tests.services.faulty_bus import FaultyBus

_names = (f"reader{n}" for n in itertools.count())


@dataclass
class Written:
    """An answer as its writer knows it; `texts` by key, those given up included."""

    id: str
    writer: TextWriter
    key: str
    texts: dict[str, str]
    is_final: bool = False

    def begins_with(self, key: str, text: str) -> bool:
        """Tell whether a reader may have been told so much, before the test takes note or after."""
        known = [self.texts[key]] + ([self.writer.text] if key == self.key else [])
        return any(whole.startswith(text) for whole in known)


class Author:
    """Writes a conversation, in every way the product does."""

    def __init__(self, deps: Deps, viewer: Viewer, conversation_id: str) -> None:
        self.deps, self.viewer, self.conversation_id = deps, viewer, conversation_id
        self.topic = threads.topic(conversation_id)
        self.answers: list[Written] = []
        self._letters = itertools.count()

    def piece(self, length: int) -> str:
        """Give text that occurs nowhere else."""
        return "".join(f"{next(self._letters)}é " for _ in range(length))

    async def add(self) -> Written:
        """Begin an answer."""
        async with work(self.deps) as unit:
            row = Message(
                conversation_id=self.conversation_id,
                role=MessageRole.ASSISTANT,
                status=MessageStatus.STREAMING,
                content="",
            )
            unit.session.add(row)
            await unit.session.flush()
            messages._announce(unit, row)
            id_ = row.id
        key = messages.text_key(id_, 0)
        answer = Written(id_, self._writer(id_, key, ""), key, {key: ""})
        self.answers.append(answer)
        return answer

    def _writer(self, id_: str, key: str, text: str) -> TextWriter:
        async def checkpoint(text: str) -> None:
            async with work(self.deps) as unit:
                await unit.session.execute(
                    update(Message)
                    .where(Message.id == id_, Message.status == MessageStatus.STREAMING)
                    .values(content=text)
                )

        async def rewind(text: str) -> str:
            answer = next(a for a in self.answers if a.id == id_)
            async with work(self.deps) as unit:
                row = await unit.lock(Message, id_)
                assert row is not None
                answer.key = messages.take_back(row, text)
                answer.texts[answer.key] = text
                unit.record(self.topic, "MessageRewound", {"message_id": id_})
            return answer.key

        return TextWriter(
            self.deps, self.topic, key, checkpoint=checkpoint, rewind=rewind, text=text
        )

    async def write(self, answer: Written, length: int, *, store: bool = False) -> None:
        """Add to an answer, and send it."""
        piece = self.piece(length)
        await answer.writer.write(piece)
        answer.texts[answer.key] += piece
        await answer.writer.flush()
        if store:
            await answer.writer.store()

    async def take_back(self, answer: Written, length: int) -> None:
        """Have another writer go on after `length` characters, with another text."""
        sent = answer.texts[answer.key]
        writer = self._writer(answer.id, answer.key, sent)
        writer.text, answer.writer = sent[:length], writer
        if length == len(sent):
            return
        piece = self.piece(3)
        await writer.write(piece)
        await writer.flush()
        answer.texts[answer.key] = writer.text
        await writer.flush()

    async def end(self, answer: Written) -> None:
        """Complete an answer."""
        await answer.writer.settle()
        async with work(self.deps) as unit:
            row = await unit.lock(Message, answer.id)
            assert row is not None
            row.content = answer.writer.text
            await messages.end(unit, row, MessageStatus.COMPLETED)
        answer.is_final = True

    async def again(self, answer: Written) -> None:
        """Begin a finished answer anew, as a retry does."""
        async with work(self.deps) as unit:
            row = await unit.lock(Message, answer.id)
            assert row is not None
            await messages.restart(unit, row)
            row.status = MessageStatus.STREAMING
            answer.key = messages.text_key(row.id, messages.attempt(row.meta))
        answer.texts[answer.key], answer.is_final = "", False
        answer.writer = self._writer(answer.id, answer.key, "")

    async def forget_events(self, count: int) -> None:
        """Drop the oldest events, as housekeeping does."""
        async with work(self.deps) as unit:
            topic = await unit.session.get(Topic, self.topic)
            assert topic is not None
            floor = min(topic.first_seq + count, topic.seq + 1)
            topic.first_seq = floor
            await unit.session.flush()
            await unit.session.execute(
                delete(Event).where(Event.topic == self.topic, Event.seq < floor)
            )

    async def begin_anew(self) -> None:
        """Begin the topic anew, as a restored database does."""
        async with work(self.deps) as unit:
            await unit.session.execute(delete(Event).where(Event.topic == self.topic))
            await unit.session.execute(delete(Topic).where(Topic.id == self.topic))
            await unit.session.flush()
            unit.open_topic(self.topic)


@dataclass
class Reader:
    """A client: what it shows, checked at every step against what was written."""

    author: Author
    texts: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    final: set[str] = field(default_factory=set)
    seq: int | None = None
    cursor: str | None = None
    restarts: int = 0

    async def take(self, item: Item) -> None:
        """Show one item."""
        if isinstance(item, Restarted):
            await self._restart(item)
        elif isinstance(item, Appended):
            id_ = item.key.split(":")[0]
            written = next(a for a in self.author.answers if a.id == id_)
            assert id_ not in self.final
            assert item.offset == len(self.texts[id_])
            self.texts[id_] += item.text
            assert written.begins_with(item.key, self.texts[id_])
        else:
            self._happen(item)
        self.cursor = item.cursor

    async def _restart(self, item: Restarted) -> None:
        self.restarts += 1
        rows = (
            await item.snapshot.connection.execute(
                select(Message.id, Message.content, Message.status).where(
                    Message.conversation_id == self.author.conversation_id
                )
            )
        ).all()
        await item.snapshot.release()
        self.texts = {row.id: row.content for row in rows}
        self.final = {row.id for row in rows if row.status.is_final}
        position = Position.decode(item.cursor)
        self.seq = position.seq
        assert {key.split(":")[0]: n for key, n in position.offsets.items()} == {
            id_: len(text) for id_, text in self.texts.items() if id_ not in self.final
        }

    def _happen(self, item: Happened) -> None:
        assert self.seq is not None
        assert item.seq == self.seq + 1, "an event is missing, or was told twice"
        self.seq = item.seq
        id_ = item.payload["message_id"]
        if item.type == "MessageAdded":
            assert id_ not in self.texts
            self.texts[id_] = ""
        elif item.type == "MessageCompleted":
            assert id_ not in self.final
            self.final.add(id_)
        else:
            raise AssertionError(f"told of {item.type}, which calls for a restart")

    def is_up_to_date(self) -> bool:
        """Whether it shows what there is."""
        return self.texts == {a.id: a.texts[a.key] for a in self.author.answers} and self.final == {
            a.id for a in self.author.answers if a.is_final
        }


class Session:
    """A reader's connection, which takes an item only when it may."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._may_read = asyncio.Semaphore(0)
        self._is_free = False
        self.has_read = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        author = self.reader.author
        items = events.follow(
            author.deps, author.viewer, author.conversation_id, self.reader.cursor
        )
        async with aclosing(items):
            async for item in items:
                await self.reader.take(item)
                self.has_read.set()
                if not self._is_free:
                    await self._may_read.acquire()

    def allow(self, count: int) -> None:
        """Let the reader take so many items more."""
        for _ in range(count):
            self._may_read.release()

    async def catch_up(self) -> None:
        """Read until the reader shows what there is."""
        self._is_free = True
        self.allow(1)
        async with asyncio.timeout(20):
            while not self.reader.is_up_to_date():
                self.has_read.clear()
                waiting = asyncio.create_task(self.has_read.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the stream ended")

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if not self.task.cancelled() and (error := self.task.exception()):
            raise error


Step = tuple[str, int, int]
_NAMES = [
    "add", "write", "write", "write", "write+store", "end", "again", "take_back", "read", "read",
    "reconnect", "return", "deaf", "hear", "away", "back", "log_gone", "forget", "anew",
]  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(_NAMES), st.integers(0, 9), st.integers(1, 9)),
    min_size=10,
    max_size=50,
)


async def _play(deps: Deps, viewer: Viewer, steps: list[Step]) -> None:
    conversation = await threads.create(deps, viewer)
    author = Author(deps, viewer, conversation.id)
    bus = deps.bus
    assert isinstance(bus, FaultyBus)
    bus.is_away = bus.is_deaf = False
    reader = Reader(author)
    session = Session(reader)
    # Where the client was at some time: it may come back there.
    past: list[Reader] = []
    try:
        for name, which, count in steps:
            growing = [a for a in author.answers if not a.is_final]
            finished = [a for a in author.answers if a.is_final]
            if name == "add":
                await author.add()
            elif name in ("write", "write+store") and growing:
                answer = growing[which % len(growing)]
                await author.write(answer, count, store=name != "write")
            elif name == "end" and growing:
                await author.end(growing[which % len(growing)])
            elif name == "again" and finished:
                await author.again(finished[which % len(finished)])
            elif name == "take_back" and growing and not bus.is_away:
                answer = growing[which % len(growing)]
                length = len(answer.texts[answer.key]) * which // 9
                await author.take_back(answer, length)
            elif name == "read":
                session.allow(count)
                for _ in range(count * 4):
                    await asyncio.sleep(0)
            elif name in ("reconnect", "return"):
                await session.close()
                past.append(_copy(reader))
                reader = _copy(past[which % len(past)] if name == "return" else reader)
                session = Session(reader)
            elif name in ("deaf", "hear"):
                bus.is_deaf = name == "deaf"
            elif name in ("away", "back"):
                bus.is_away = name == "away"
            elif name == "log_gone" and not bus.is_away:
                await deps.bus.expire(author.topic, 0)
            elif name == "forget":
                await author.forget_events(count)
            elif name == "anew":
                await author.begin_anew()
        bus.is_away = False
        for answer in author.answers:
            if not answer.is_final:
                # As its writer does every few milliseconds, and every second.
                await answer.writer.flush()
                await answer.writer.store()
        await session.catch_up()
    finally:
        bus.is_away = bus.is_deaf = False
        await session.close()


def _copy(reader: Reader) -> Reader:
    return Reader(
        reader.author,
        dict(reader.texts),
        dict(reader.keys),
        set(reader.final),
        reader.seq,
        reader.cursor,
        reader.restarts,
    )


@dataclass(repr=False)
class Stage:
    """A process of the application that examples are played on, one after the other."""

    runner: asyncio.Runner
    deps: Deps
    viewer: Viewer

    def play(self, steps: list[Step]) -> None:
        self.runner.run(_play(self.deps, self.viewer, deepcopy(steps)))


def _stage(tmp_path: Path, **values: Any) -> Iterator[Stage]:
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        # What was lost in silence is looked for after this time.
        patch.setattr(following, "_IDLE_S", 0.02)
        opened = running(settings_for(tmp_path, **values))
        deps = runner.run(opened.__aenter__())
        try:
            person = runner.run(Api(deps).person(next(_names)))
            deps.bus = FaultyBus(deps.bus)
            yield Stage(runner, deps, person.viewer)
        finally:
            runner.run(opened.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from _stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def mysql_stage(tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str) -> Iterator[Stage]:
    yield from _stage(tmp_path_factory.mktemp("stage"), database_url=mysql_module_url)


@given(steps=STEPS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reader_sees_everything_once_and_in_order(stage: Stage, steps: list[Step]) -> None:
    stage.play(steps)


@pytest.mark.mysql
@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_reader_sees_everything_once_and_in_order_on_mysql(
    mysql_stage: Stage, steps: list[Step]
) -> None:
    mysql_stage.play(steps)


@pytest.fixture
async def faulty(deps: Deps) -> FaultyBus:
    """The bus of `deps`, with faults."""
    bus = FaultyBus(deps.bus)
    deps.bus = bus
    return bus


async def author_of(deps: Deps) -> Author:
    person = await Api(deps).person(next(_names))
    conversation = await threads.create(deps, person.viewer)
    return Author(deps, person.viewer, conversation.id)


async def test_a_snapshot_is_the_state_at_its_cursor_while_many_write(deps: Deps) -> None:
    author = await author_of(deps)
    seen: list[tuple[int, set[str], set[str]]] = []

    async def write() -> None:
        for _ in range(8):
            answer = await author.add()
            await author.write(answer, 2, store=True)
            await author.end(answer)

    async def look() -> None:
        items = events.follow(deps, author.viewer, author.conversation_id, None)
        async with aclosing(items):
            reader = Reader(author)
            await reader.take(await anext(items))
        assert reader.seq is not None
        seen.append((reader.seq, set(reader.texts), reader.final))
        for id_ in reader.final:
            answer = next(a for a in author.answers if a.id == id_)
            assert reader.texts[id_] == answer.texts[answer.key]

    async def look_often(writing: "asyncio.Future[Any]") -> None:
        while not writing.done():
            await look()

    async with asyncio.TaskGroup() as group:
        writing = asyncio.gather(*(group.create_task(write()) for _ in range(4)))
        for _ in range(4):
            group.create_task(look_often(writing))

    async with deps.db.reading() as connection:
        log = (
            await connection.execute(
                select(Event.seq, Event.type, Event.payload)
                .where(Event.topic == author.topic)
                .order_by(Event.seq)
            )
        ).all()
    assert [row.seq for row in log] == list(range(1, 65))
    assert len({seq for seq, _, _ in seen}) > 5
    for seq, known, final in seen:
        before = [row for row in log if row.seq <= seq]
        assert known == {r.payload["message_id"] for r in before if r.type == "MessageAdded"}
        assert final == {r.payload["message_id"] for r in before if r.type == "MessageCompleted"}


async def test_a_reader_that_stalls_holds_no_connection(deps: Deps) -> None:
    api = Api(deps)
    person = await api.person(next(_names))
    conversation = await threads.create(deps, person.viewer)
    author = Author(deps, person.viewer, conversation.id)
    pool: Any = deps.db.engine.pool

    idle = pool.checkedout()
    async with api.subscribe(op.CONVERSATION_EVENTS, person, id=conversation.id) as stream:
        for kind in ("ConversationReset", "MessageAdded", "MessageDelta", "MessageCompleted"):
            if kind == "MessageAdded":
                answer = await author.add()
            elif kind == "MessageDelta":
                await author.write(answer, 3)
            elif kind == "MessageCompleted":
                await author.end(answer)
            event = await stream.next()
            assert event is not None
            assert event["__typename"] == kind
            # Here the reader stalls for as long as it likes.
            assert pool.checkedout() == idle


async def test_leaving_at_a_snapshot_gives_its_connection_back(deps: Deps) -> None:
    author = await author_of(deps)
    pool: Any = deps.db.engine.pool

    idle = pool.checkedout()
    items = events.follow(deps, author.viewer, author.conversation_id, None)
    assert isinstance(await anext(items), Restarted)
    assert pool.checkedout() == idle + 1
    await items.aclose()

    assert pool.checkedout() == idle


async def test_while_the_bus_is_away_text_is_stored_and_sent_later(
    deps: Deps, faulty: FaultyBus
) -> None:
    author = await author_of(deps)
    answer = await author.add()
    await author.write(answer, 2)
    faulty.is_away = True
    await author.write(answer, 2, store=True)

    async with deps.db.reading() as connection:
        stored = await connection.scalar(select(Message.content).where(Message.id == answer.id))
    assert stored == answer.texts[answer.key]
    faulty.is_away = False
    assert await answer.writer.flush()

    log = await faulty.read(author.topic)
    assert "".join(news.data["text"] for news in log.entries) == answer.texts[answer.key]
    assert await streams.resume_text(deps, author.topic, answer.key, stored) == (stored, True)


async def test_the_end_of_a_text_does_not_wait_for_the_bus(deps: Deps, faulty: FaultyBus) -> None:
    author = await author_of(deps)
    answer = await author.add()
    reader = Reader(author)
    session = Session(reader)
    session.allow(1)
    faulty.is_away = True
    await author.write(answer, 4)
    await author.end(answer)
    faulty.is_away = False
    await session.catch_up()
    await session.close()
    assert reader.texts[answer.id] == answer.writer.text


async def test_a_log_that_began_anew_is_made_whole_again(deps: Deps, faulty: FaultyBus) -> None:
    author = await author_of(deps)
    answer = await author.add()
    await author.write(answer, 3)
    await faulty.expire(author.topic, 0)
    await author.write(answer, 3)

    text, is_whole = await streams.resume_text(deps, author.topic, answer.key, "")

    assert (text, is_whole) == (answer.texts[answer.key], True)


async def test_a_lost_log_is_known_when_another_writer_goes_on(
    deps: Deps, faulty: FaultyBus
) -> None:
    author = await author_of(deps)
    answer = await author.add()
    await author.write(answer, 3, store=True)
    stored = answer.writer.text
    await faulty.expire(author.topic, 0)

    assert await streams.resume_text(deps, author.topic, answer.key, stored) == (stored, False)


async def test_a_writer_that_goes_on_sends_only_what_is_new(deps: Deps) -> None:
    author = await author_of(deps)
    answer = await author.add()
    await author.write(answer, 3)
    sent = answer.writer.text
    head = (await deps.bus.read(author.topic)).head
    again = author._writer(answer.id, answer.key, sent)
    again.text = ""

    for character in sent:
        await again.write(character)
        await again.flush()
    assert (await deps.bus.read(author.topic)).head == head
    await again.write("and more")
    await again.flush()

    entries = (await deps.bus.read(author.topic)).entries
    (sent_now,) = (dict(news.data) for news in entries[head:])
    assert sent_now.pop("at") > 0
    assert sent_now == {"key": answer.key, "offset": len(sent), "text": "and more"}


async def test_a_text_that_ends_sooner_than_before_is_taken_back(deps: Deps) -> None:
    author = await author_of(deps)
    answer = await author.add()
    await author.write(answer, 3)
    sent = answer.writer.text
    again = author._writer(answer.id, answer.key, sent)
    again.text = sent[:5]
    await again.settle()

    assert answer.key == messages.text_key(answer.id, 1)
    answer.writer = again
    await author.end(answer)
    reader = Reader(author)
    session = Session(reader)
    await session.catch_up()
    await session.close()
    assert reader.texts == {answer.id: sent[:5]}


async def test_what_other_texts_have_beyond_what_is_stored_follows_a_text_taken_back(
    deps: Deps,
) -> None:
    author = await author_of(deps)
    answer, other = await author.add(), await author.add()
    reader = Reader(author)
    session = Session(reader)
    await session.catch_up()
    for written in (answer, other):
        await author.write(written, 3)
    await session.catch_up()

    await author.take_back(answer, 2)

    # Nothing more is written, and nothing was stored.
    await session.catch_up()
    await session.close()
    assert reader.restarts == 2


async def test_a_database_that_is_away_delays_the_storing_only(deps: Deps) -> None:
    author = await author_of(deps)
    answer = await author.add()
    stored: list[str] = []
    is_away = True

    async def checkpoint(text: str) -> None:
        if is_away:
            raise OperationalError("UPDATE", {}, Exception("gone away"))
        stored.append(text)

    writer = TextWriter(deps, author.topic, answer.key, checkpoint=checkpoint)
    await writer.write("some text")
    assert await writer.flush()
    assert not await writer.store()
    is_away = False
    assert await writer.store()
    assert await writer.store()
    assert stored == ["some text"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "bnVsbA", Position("e", -1, {}).encode(), "W10", "WyJlIiwwLFtdXQ", "A" * 4000],
)
async def test_what_is_not_a_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(RequestError) as refused:
        Position.decode(cursor)
    assert refused.value.code == "BAD_USER_INPUT"


async def test_a_cursor_of_the_future_begins_anew(deps: Deps) -> None:
    author = await author_of(deps)
    await author.add()
    async with deps.db.reading() as connection:
        epoch = await connection.scalar(select(Topic.epoch).where(Topic.id == author.topic))
    assert epoch is not None
    after = Position(epoch, 2, {}).encode()

    items = events.follow(deps, author.viewer, author.conversation_id, after)
    async with aclosing(items):
        assert isinstance(await anext(items), Restarted)
