"""Clients of conversations: what they show, checked at every step against what was written."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select

from models.conversations import Message
from models.states import MessageRole, MessageStatus
from resolvers.base import Context
from schema.execution import Engine, ErrorDict, Event, Prepared, Result, Stream
from services.base import Viewer, work
from services.conversations import messages
from services.streams import Position
from tests.services.streams.authors import Author, Written

OPEN = ("PENDING", "STREAMING")
_EVERY = """
subscription Every($id: ID!, $after: String) {
  conversationEvents(conversationId: $id, after: $after) {
    __typename cursor
    ... on MessageAdded { message { %s } }
    ... on MessageDelta { message { %s } offset text }
    ... on MessageCompleted { message { %s } }
    ... on MessageFailed { message { %s } }
    ... on ConversationReset {
      conversation { messages(first: 100) { nodes { id status content } } } } } }
"""
DOCUMENTS = (
    _EVERY % ("id role content", "id", "id status content", "id status content"),
    # Every event has to be read, so that none is merged.
    _EVERY % ("id role content", "id role", "content id", "content id"),
    # No event has to be read.
    _EVERY % ("id", "id", "id", "id __typename"),
)


class Writer(Author):
    """Writes a conversation in every way the product does, and knows what became of it."""

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

    async def fail(self, answer: Written) -> None:
        """Let an answer fail with what was written."""
        await answer.writer.settle()
        async with work(self.deps) as unit:
            row = await unit.lock(Message, answer.id)
            assert row is not None
            row.content = answer.writer.text
            await messages.end(unit, row, MessageStatus.FAILED, error_code="UNAVAILABLE")
        answer.is_final = True

    async def rows(self) -> dict[str, tuple[str, bool]]:
        """Give what there is: the text of each message, and whether it is whole."""
        async with self.deps.db.reading() as connection:
            found = await connection.execute(
                select(Message.id, Message.content, Message.status).where(
                    Message.conversation_id == self.conversation_id
                )
            )
            return {id_: (content, status.is_final) for id_, content, status in found}


@dataclass
class Shown:
    """What a client shows, and where it stands."""

    texts: dict[str, str] = field(default_factory=dict)
    # The keys of the texts that grow, by message.
    keys: dict[str, str] = field(default_factory=dict)
    # Messages that were whole when they were added, and whose text was not asked for.
    unread: set[str] = field(default_factory=set)
    epoch: str = ""
    seq: int = -1
    cursor: str | None = None

    def copy(self) -> "Shown":
        """Give a copy."""
        return replace(self, texts=dict(self.texts), keys=dict(self.keys), unread=set(self.unread))

    def take(self, event: dict[str, Any], writer: Writer) -> None:
        """Take one event: in order, no gap, no duplicate."""
        kind, position = event["__typename"], Position.decode(event["cursor"])
        if kind == "ConversationReset":
            self._begin(event["conversation"]["messages"]["nodes"], position)
        else:
            assert position.epoch == (self.epoch or position.epoch), "another log without a reset"
            id_ = event["message"]["id"]
            if kind == "MessageDelta":
                assert position.seq == self.seq, "an event was passed over"
                self._grow(id_, event)
            else:
                assert position.seq == self.seq + 1, "an event is missing, or was told twice"
                self._happen(kind, id_, event["message"], position, writer)
        self.epoch, self.seq, self.cursor = position.epoch, position.seq, event["cursor"]
        offsets = {key: len(self.texts[id_]) for id_, key in self.keys.items()}
        assert position.offsets == offsets, "the cursor claims what was not told"
        written = {answer.id: answer for answer in writer.answers}
        for id_, key in self.keys.items():
            # An answer may be read before its writer has heard that it was stored.
            if id_ in written and key in written[id_].texts:
                assert written[id_].begins_with(key, self.texts[id_]), "nobody wrote that"

    def shows(self, rows: Mapping[str, tuple[str, bool]]) -> bool:
        """Tell whether it shows what there is: texts by message, and whether they are whole."""
        return self.texts.keys() == rows.keys() and all(
            (id_ in self.unread or self.texts[id_] == text) and (id_ not in self.keys) == is_whole
            for id_, (text, is_whole) in rows.items()
        )

    def _begin(self, nodes: list[dict[str, Any]], position: Position) -> None:
        self.texts = {node["id"]: node["content"] for node in nodes}
        self.unread = set()
        self.keys = {key.partition(":")[0]: key for key in position.offsets}
        assert set(self.keys) == {node["id"] for node in nodes if node["status"] in OPEN}

    def _grow(self, id_: str, event: dict[str, Any]) -> None:
        assert id_ in self.keys, "text after the end"
        assert event["offset"] == len(self.texts[id_]), "text is missing, or was told twice"
        assert event["text"]
        self.texts[id_] += event["text"]

    def _happen(
        self, kind: str, id_: str, message: dict[str, Any], position: Position, writer: Writer
    ) -> None:
        if kind == "MessageAdded":
            assert id_ not in self.texts
            self.texts[id_] = ""
            key = f"{id_}:0"
            if key in position.offsets:
                self.keys[id_] = key
                return
            self.texts[id_] = message.get("content", "")
            if "content" not in message:
                self.unread.add(id_)
            return
        assert kind in ("MessageCompleted", "MessageFailed"), kind
        key = self.keys.pop(id_)
        answer = next(answer for answer in writer.answers if answer.id == id_)
        if key == answer.key and answer.is_final:
            assert self.texts[id_] == answer.texts[key], "the end came before the text was whole"
            # Shown as it is now, which is as it was then.
            assert message.get("content", self.texts[id_]) == self.texts[id_]


class BrokenError(Exception):
    """The server could not go on, and said so."""


class Watcher:
    """A client's connection; it takes what comes only when it may.

    One that is `pushed` is called when there is something, and takes some bytes at a time, as a
    socket does; any other asks for one event after the other, as a response does.
    """

    def __init__(
        self,
        engine: Engine,
        writer: Writer,
        viewer: Viewer,
        document: str,
        *,
        is_pushed: bool = False,
        shown: Shown | None = None,
    ) -> None:
        self.engine, self.writer, self.viewer = engine, writer, viewer
        self.document, self.is_pushed = document, is_pushed
        self.shown = shown or Shown()
        self.stream: Stream | None = None
        self._may_read = asyncio.Semaphore(0)
        self._is_free = False
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def again(self, shown: Shown) -> "Watcher":
        """Give the same client, connected anew."""
        return Watcher(
            self.engine,
            self.writer,
            self.viewer,
            self.document,
            is_pushed=self.is_pushed,
            shown=shown,
        )

    async def _run(self) -> None:
        while True:
            try:
                await self._connect()
                return
            except BrokenError:
                # As a client does, after a while, with the cursor of what it has.
                await asyncio.sleep(0.005)

    async def _connect(self) -> None:
        variables = {"id": self.writer.conversation_id, "after": self.shown.cursor}
        prepared = self.engine.prepare(self.document, None, variables)
        assert isinstance(prepared, Prepared), prepared
        context = Context(self.writer.deps, self.viewer, "test")
        stream = await self.engine.subscribe(prepared, context)
        if isinstance(stream, Result):
            raise self._broken(stream.errors)
        assert isinstance(stream, Stream)
        self.stream = stream
        try:
            if self.is_pushed:
                await self._take_what_comes(stream)
            else:
                async for event in stream:
                    self._take(event)
                    await self._allowed()
        finally:
            stream.close()

    async def _take_what_comes(self, stream: Stream) -> None:
        is_ready = asyncio.Event()
        stream.on_ready = is_ready.set
        while not stream.is_done:
            events = stream.take(700)
            for event in events:
                self._take(event)
            if events:
                await self._allowed()
            else:
                await is_ready.wait()
                is_ready.clear()
        if stream.end is not None:
            self._take(stream.end)

    def _take(self, event: Event | Result) -> None:
        payload = event.payload()
        if payload.get("errors"):
            raise self._broken(payload["errors"])
        told = payload["data"]["conversationEvents"]
        assert event.cursor == told["cursor"]
        self.shown.take(told, self.writer)
        self._changed.set()

    def _broken(self, errors: list[ErrorDict]) -> Exception:
        database: Any = self.writer.deps.db
        codes = {error["extensions"]["code"] for error in errors}
        assert codes <= {"INTERNAL", "UNAVAILABLE"}, errors
        assert database.refused, f"nothing is wrong, and yet: {errors}"
        return BrokenError()

    async def _allowed(self) -> None:
        if not self._is_free:
            await self._may_read.acquire()

    def allow(self, count: int) -> None:
        """Let it take so much more."""
        for _ in range(count):
            self._may_read.release()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Take all there is until something has come about."""
        self._is_free = True
        self.allow(1)
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                waiting = asyncio.create_task(self._changed.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self.task.done():
                    self.task.result()
                    raise AssertionError("the stream ended")

    async def close(self) -> None:
        """Leave. Raises what went wrong before."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        if not self.task.cancelled() and (error := self.task.exception()):
            raise error
