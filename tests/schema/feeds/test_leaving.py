"""Whoever leaves a feed at whatever moment leaves nothing behind."""

import asyncio
import gc

import pytest

from schema.execution import Engine
from schema.execution import stream as bounds
from tests.schema.feeds.conftest import Reader, nothing_left, stands_still
from tests.schema.journal import Context, Journal, until

# ---- leaving


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("after", [None, "0"])
async def test_who_leaves_at_any_moment_leaves_nothing_behind(
    engine: Engine, journal: Journal, turns: int, after: str | None
) -> None:
    journal.write(*["a ", None] * 10)
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open(after)
        for _ in range(turns):
            await asyncio.sleep(0)
        reader.close()


async def test_who_leaves_while_an_event_is_answered_leaves_nothing_behind(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    ann.context.gate.clear()
    journal.tell(None, "a ", None)
    await until(lambda: next(iter(engine.feeds._shared.values()))._is_executing)
    ann.close()
    assert engine.feeds.queues() == (0, 0, 0, 0)
    ann.context.gate.set()
    await until(lambda: engine.feeds.open_feeds == 0)
    # What was under way was finished; nothing else was begun.
    assert ann.context.remarks == [2]


@pytest.mark.parametrize("room", [0, 1])
async def test_a_feed_whose_last_reader_lags_begins_nothing_it_would_not_finish(
    ann: Reader, journal: Journal, engine: Engine, room: int
) -> None:
    stream = ann.stream
    assert stream is not None
    journal.tell(*[None] * (bounds.MAX_EVENTS - room))
    await until(lambda: len(stream) == bounds.MAX_EVENTS - room and stands_still(engine))
    answered = len(ann.context.remarks)

    # Some to fill the queue, one to lag by, and one that nobody is there to be told.
    journal.tell(*[None] * (room + 2))

    await until(lambda: engine.feeds.open_feeds == 0)
    assert stream.is_lagging
    assert len(ann.context.remarks) == answered + room + 1
    # What was begun and given up would be found here, and fail the test.
    gc.collect()
    await ann.catch_up()


async def test_who_waits_for_the_next_event_is_let_go_when_the_stream_is_closed(
    ann: Reader, journal: Journal
) -> None:
    assert ann.stream is not None
    waiting = asyncio.create_task(anext(ann.stream, None))
    await asyncio.sleep(0)
    ann.close()
    assert await waiting is None
    journal.tell("a ")
    assert len(ann.stream) == 0


async def test_a_cancelled_wait_loses_nothing(ann: Reader, journal: Journal) -> None:
    assert ann.stream is not None
    for _ in range(3):
        waiting = asyncio.create_task(anext(ann.stream))
        await asyncio.sleep(0)
        journal.tell("a ", "b ")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await ann.catch_up()


async def test_closing_the_engine_ends_all_readers(engine: Engine, journal: Journal) -> None:
    journal.write("a ")
    async with nothing_left(engine, journal):
        readers = [await Reader(engine, Context(journal, viewer=name)).open() for name in "abc"]
        for reader in readers:
            await reader.take()
        await engine.feeds.aclose()
        for reader in readers:
            assert reader.stream is not None
            assert await anext(reader.stream, None) is None
