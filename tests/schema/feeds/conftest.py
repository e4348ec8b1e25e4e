"""Readers of feeds with a copy of a journal each, over a source in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schema.execution import Engine, Event, Stream
from tests.schema.journal import Book, Context, Journal, opened, until


async def taken(stream: Stream) -> Event:
    """Give the next event."""
    async with asyncio.timeout(20):
        event = await anext(stream)
    assert isinstance(event, Event), event
    return event


class Reader:
    """Somebody with a copy of a journal."""

    def __init__(self, engine: Engine, context: Context) -> None:
        self.engine, self.context, self.journal = engine, context, context.journal
        self.book = Book()
        self.stream: Stream | None = None

    async def open(self, after: str | None = None) -> "Reader":
        self.stream = await opened(self.engine, self.context, after)
        if after is not None:
            self.book.at = int(after)
            known = self.journal.entries[: self.book.at]
            self.book.text = "".join(entry or "" for entry in known)
        return self

    async def take(self, count: int = 1) -> None:
        """Take so many events."""
        assert self.stream is not None
        for _ in range(count):
            self.book.take(self.journal, (await taken(self.stream)).payload())

    async def catch_up(self) -> None:
        """Take events until nothing is missing."""
        while self.book.at < len(self.journal.entries):
            await self.take()

    def close(self) -> None:
        assert self.stream is not None
        self.stream.close()


def others() -> "set[asyncio.Task[Any]]":
    """Give the tasks beside this one."""
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


@asynccontextmanager
async def nothing_left(engine: Engine, journal: Journal) -> AsyncIterator[None]:
    """See that no feed, task, tap or queued event outlives the block."""
    before = others()
    yield
    await until(lambda: engine.feeds.open_feeds == 0)
    await until(lambda: others() <= before)
    assert engine.feeds.queues() == (0, 0, 0, 0)
    assert not engine.feeds._shared
    assert not engine.feeds._waiting
    assert journal.bus.stats.taps == 0


def stands_still(engine: Engine) -> bool:
    """Tell whether the one shared feed waits for news."""
    return [feed._is_idle for feed in engine.feeds._shared.values()] == [True]


@pytest.fixture
async def ann(engine: Engine, journal: Journal) -> AsyncIterator[Reader]:
    """A reader who has the snapshot and stands still."""
    journal.write("once upon ")
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open()
        await reader.take()
        await until(lambda: stands_still(engine))
        yield reader
        reader.close()
