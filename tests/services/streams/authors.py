"""Those who write conversations, and what they wrote."""

import itertools
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from models.conversations import Message
from models.states import MessageRole, MessageStatus
from models.system import Event, Topic
from services.base import Deps, Viewer, work
from services.conversations import messages, threads
from services.streams import TextWriter
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
    """Writes a conversation in every way the product does, and knows what became of it."""

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

    async def say(self) -> str:
        """Add a message that is whole from the beginning, as a person's is; gives its id."""
        async with work(self.deps) as unit:
            row = Message(
                conversation_id=self.conversation_id,
                role=MessageRole.USER,
                status=MessageStatus.COMPLETED,
                content=self.piece(2),
            )
            unit.session.add(row)
            await unit.session.flush()
            messages._announce(unit, row)
            return row.id

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

    async def fail(self, answer: Written) -> None:
        """Let an answer fail with what was written."""
        await answer.writer.settle()
        async with work(self.deps) as unit:
            row = await unit.lock(Message, answer.id)
            assert row is not None
            row.content = answer.writer.text
            await messages.end(unit, row, MessageStatus.FAILED, error_code="UNAVAILABLE")
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

    def answered(self) -> dict[str, tuple[str, bool]]:
        """Give the text of each answer as it was written, and whether it is whole."""
        return {a.id: (a.texts[a.key], a.is_final) for a in self.answers}

    async def rows(self) -> dict[str, tuple[str, bool]]:
        """Give what is stored: the text of each message, and whether it is whole."""
        async with self.deps.db.reading() as connection:
            found = await connection.execute(
                select(Message.id, Message.content, Message.status).where(
                    Message.conversation_id == self.conversation_id
                )
            )
            return {id_: (content, status.is_final) for id_, content, status in found}

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


async def author_of(deps: Deps) -> Author:
    person = await Api(deps).person(next(NAMES))
    conversation = await threads.create(deps, person.viewer)
    return Author(deps, person.viewer, conversation.id)
