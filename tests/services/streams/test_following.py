"""Following a conversation, whatever becomes of signals, logs, connections and writers."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from models.conversations import Message
from models.system import Event, Topic
from services import streams
from services.base import Deps
from services.conversations import events, messages, threads
from services.errors import RequestError
from services.streams import Position, Restarted, TextWriter
from tests.api import operations as op
from tests.fixtures import Api
from tests.services.faulty_bus import FaultyBus
from tests.services.streams.authors import NAMES, Author, author_of
from tests.services.streams.followers import Reader, Shown, event_of


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
            shown = Shown()
            shown.take(await event_of(await anext(items), author.conversation_id), author)
        seen.append((shown.seq, set(shown.texts), shown.whole))
        for id_ in shown.whole:
            answer = next(a for a in author.answers if a.id == id_)
            assert shown.texts[id_] == answer.texts[answer.key]

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
    person = await api.person(next(NAMES))
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
    reader.allow(1)
    faulty.is_away = True
    await author.write(answer, 4)
    await author.end(answer)
    faulty.is_away = False
    await reader.catch_up()
    await reader.close()
    assert reader.shown.texts[answer.id] == answer.writer.text


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
    await reader.catch_up()
    await reader.close()
    assert reader.shown.texts == {answer.id: sent[:5]}


async def test_what_other_texts_have_beyond_what_is_stored_follows_a_text_taken_back(
    deps: Deps,
) -> None:
    author = await author_of(deps)
    answer, other = await author.add(), await author.add()
    reader = Reader(author)
    await reader.catch_up()
    for written in (answer, other):
        await author.write(written, 3)
    await reader.catch_up()

    await author.take_back(answer, 2)

    # Nothing more is written, and nothing was stored.
    await reader.catch_up()
    await reader.close()
    assert reader.shown.resets == 2


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
