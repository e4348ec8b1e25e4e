"""Those who write answers and those who follow them, and what they are known by."""

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import dataclass, field

from sqlalchemy import delete, select, update

from models.conversations import Message
from models.states import MessageRole, MessageStatus
from models.system import Event, Topic
from services.base import Deps, Viewer, work
from services.conversations import events, messages, threads
from services.streams import Appended, Happened, Item, Position, Restarted, TextWriter
from tests.fixtures import Api

NAMES = (f"reader{n}" for n in itertools.count())


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


async def author_of(deps: Deps) -> Author:
    person = await Api(deps).person(next(NAMES))
    conversation = await threads.create(deps, person.viewer)
    return Author(deps, person.viewer, conversation.id)
