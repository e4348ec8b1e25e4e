"""Those who follow conversations: what they show, checked at every step against what was told."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select

from models.conversations import Message
from services.conversations import events
from services.streams import Appended, Item, Position, Restarted
from tests.services.streams.authors import Author

OPEN = ("PENDING", "STREAMING")


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
    resets: int = 0

    def copy(self) -> "Shown":
        """Give a copy."""
        return replace(self, texts=dict(self.texts), keys=dict(self.keys), unread=set(self.unread))

    def take(self, event: dict[str, Any], author: Author) -> None:
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
                self._happen(kind, id_, event["message"], position, author)
        self.epoch, self.seq, self.cursor = position.epoch, position.seq, event["cursor"]
        offsets = {key: len(self.texts[id_]) for id_, key in self.keys.items()}
        assert position.offsets == offsets, "the cursor claims what was not told"
        written = {answer.id: answer for answer in author.answers}
        for id_, key in self.keys.items():
            # An answer may be read before its writer has heard that it was stored.
            if id_ in written and key in written[id_].texts:
                assert written[id_].begins_with(key, self.texts[id_]), "nobody wrote that"

    @property
    def whole(self) -> set[str]:
        """The messages that grow no more."""
        return self.texts.keys() - self.keys.keys()

    def shows(self, rows: Mapping[str, tuple[str, bool]]) -> bool:
        """Tell whether it shows what there is: texts by message, and whether they are whole."""
        return self.texts.keys() == rows.keys() and all(
            (id_ in self.unread or self.texts[id_] == text) and (id_ not in self.keys) == is_whole
            for id_, (text, is_whole) in rows.items()
        )

    def _begin(self, nodes: list[dict[str, Any]], position: Position) -> None:
        self.resets += 1
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
        self, kind: str, id_: str, message: dict[str, Any], position: Position, author: Author
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
        answer = next(answer for answer in author.answers if answer.id == id_)
        if key == answer.key and answer.is_final:
            assert self.texts[id_] == answer.texts[key], "the end came before the text was whole"
            # Shown as it is now, which is as it was then.
            assert message.get("content", self.texts[id_]) == self.texts[id_]


class Follower:
    """A client's connection to the conversation of an author; it takes what comes when it may."""

    def __init__(self, author: Author, shown: Shown | None = None) -> None:
        self.author = author
        self.shown = shown or Shown()
        self._may_read = asyncio.Semaphore(0)
        self._is_free = False
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Follow. Whatever comes is taken, and the next awaited when that is allowed."""
        raise NotImplementedError

    def take(self, event: dict[str, Any]) -> None:
        """Show an event."""
        self.shown.take(event, self.author)
        self._changed.set()

    async def allowed(self) -> None:
        """Wait until it may take more."""
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


class Reader(Follower):
    """Follows as the graph does, item by item, without the graph."""

    def again(self, shown: Shown) -> "Reader":
        """Give the same reader, connected anew."""
        return Reader(self.author, shown)

    async def catch_up(self) -> None:
        """Read until all answers are shown as they were written."""
        await self.until(lambda: self.shown.shows(self.author.answered()))

    async def _run(self) -> None:
        author = self.author
        items = events.follow(author.deps, author.viewer, author.conversation_id, self.shown.cursor)
        async with aclosing(items):
            async for item in items:
                self.take(await event_of(item, author.conversation_id))
                await self.allowed()


async def event_of(item: Item, conversation_id: str) -> dict[str, Any]:
    """Give an item as the graph would tell it; a snapshot is read, and given back."""
    if isinstance(item, Restarted):
        found = await item.snapshot.connection.execute(
            select(Message.id, Message.content, Message.status).where(
                Message.conversation_id == conversation_id
            )
        )
        nodes = [{"id": id_, "content": text, "status": status} for id_, text, status in found]
        await item.snapshot.release()
        told: dict[str, Any] = {"conversation": {"messages": {"nodes": nodes}}}
        return {"__typename": "ConversationReset", "cursor": item.cursor, **told}
    position = Position.decode(item.cursor)
    if isinstance(item, Appended):
        assert item.key in position.offsets
        told = {"message": {"id": item.key.split(":")[0]}}
        told |= {"offset": item.offset, "text": item.text}
        return {"__typename": "MessageDelta", "cursor": item.cursor, **told}
    assert item.seq == position.seq
    told = {"message": {"id": item.payload["message_id"]}}
    return {"__typename": item.type, "cursor": item.cursor, **told}
