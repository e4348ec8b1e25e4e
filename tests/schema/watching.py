"""Clients of conversations over the engine."""

import asyncio
from typing import Any

from resolvers.base import Context
from schema.execution import Engine, ErrorDict, Event, Prepared, Result, Stream
from services.base import Viewer
from tests.services.streams.authors import Author
from tests.services.streams.followers import Follower, Shown

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


class BrokenError(Exception):
    """The server could not go on, and said so."""


class Watcher(Follower):
    """Follows by an operation of the graph.

    One that is `pushed` is called when there is something, and takes some bytes at a time, as a
    socket does; any other asks for one event after the other, as a response does.
    """

    def __init__(
        self,
        engine: Engine,
        author: Author,
        viewer: Viewer,
        document: str,
        *,
        is_pushed: bool = False,
        shown: Shown | None = None,
    ) -> None:
        self.engine, self.viewer = engine, viewer
        self.document, self.is_pushed = document, is_pushed
        super().__init__(author, shown)

    def again(self, shown: Shown) -> "Watcher":
        """Give the same client, connected anew."""
        return Watcher(
            self.engine,
            self.author,
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
        variables = {"id": self.author.conversation_id, "after": self.shown.cursor}
        prepared = self.engine.prepare(self.document, None, variables)
        assert isinstance(prepared, Prepared), prepared
        context = Context(self.author.deps, self.viewer, "test")
        stream = await self.engine.subscribe(prepared, context)
        if isinstance(stream, Result):
            raise self._broken(stream.errors)
        assert isinstance(stream, Stream)
        try:
            if self.is_pushed:
                await self._take_what_comes(stream)
            else:
                async for event in stream:
                    self._told(event)
                    await self.allowed()
        finally:
            stream.close()

    async def _take_what_comes(self, stream: Stream) -> None:
        is_ready = asyncio.Event()
        stream.on_ready = is_ready.set
        while not stream.is_done:
            events = stream.take(700)
            for event in events:
                self._told(event)
            if events:
                await self.allowed()
            else:
                await is_ready.wait()
                is_ready.clear()
        if stream.end is not None:
            self._told(stream.end)

    def _told(self, event: Event | Result) -> None:
        payload = event.payload()
        if payload.get("errors"):
            raise self._broken(payload["errors"])
        told = payload["data"]["conversationEvents"]
        assert event.cursor == told["cursor"]
        self.take(told)

    def _broken(self, errors: list[ErrorDict]) -> Exception:
        database: Any = self.author.deps.db
        codes = {error["extensions"]["code"] for error in errors}
        assert codes <= {"INTERNAL", "UNAVAILABLE"}, errors
        assert database.refused, f"nothing is wrong, and yet: {errors}"
        return BrokenError()
