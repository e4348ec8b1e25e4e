"""Queues of feeds are bounded: readers lag and read on, and nothing is missing after."""

import asyncio

from schema.execution import Engine
from schema.execution import stream as bounds
from tests.schema.feeds.conftest import Reader, nothing_left
from tests.schema.journal import Context, Journal, until

# ---- bounds


async def test_above_the_low_mark_texts_are_merged_to_the_same_text(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    for number in range(1000):
        journal.tell(f"{number} ")
    assert ann.stream is not None
    assert len(ann.stream) == bounds.LOW_EVENTS + 1
    assert engine.feeds.stats.lagged == 0
    assert engine.feeds.stats.merged == 1000 - len(ann.stream)
    reads = journal.reads
    await ann.catch_up()
    assert ann.book.kinds.count("Text") == bounds.LOW_EVENTS + 1
    assert journal.reads == reads, "everything was told without reading anything again"


async def test_a_remark_between_texts_is_never_merged_over(ann: Reader, journal: Journal) -> None:
    for number in range(100):
        journal.tell(f"{number} ", f"{number} ", None)
    await ann.catch_up()
    assert ann.book.kinds.count("Note") == 100


async def test_a_queue_is_bounded_whatever_is_told_and_nothing_is_missing_after(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    stream = ann.stream
    assert stream is not None
    most = 0
    for number in range(300):
        journal.tell(*([f"{number} " + "x" * 200] * 10), None if number % 50 == 0 else "y")
        await asyncio.sleep(0)
        assert len(stream) <= bounds.MAX_EVENTS
        assert stream._bytes <= bounds.MAX_BYTES
        assert stream._bytes == sum(len(e.json()) + bounds._EVENT_BYTES for e in stream._events)
        most = max(most, stream._bytes)
    assert most > bounds.LOW_BYTES
    await ann.catch_up()
    assert engine.feeds.queues() == (1, 0, 0, 0)


async def test_beyond_the_high_mark_a_reader_lags_and_reads_on_from_what_it_took_last(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    stream = ann.stream
    assert stream is not None
    journal.tell("there ", "was ")
    await ann.take(2)
    journal.tell("a ", *["x" * 50_000] * 40)
    assert stream.is_lagging
    assert len(stream) == 0
    assert engine.feeds.queues() == (1, 0, 0, 1)
    assert engine.feeds.stats.lagged == 1
    # As long as it takes nothing it costs nothing.
    await until(lambda: engine.feeds.open_feeds == 0)
    assert journal.bus.stats.taps == 0
    reads = journal.reads
    journal.tell(None, "long ")
    assert journal.reads == reads

    await ann.catch_up()

    assert journal.begun == [None, "3"]
    assert ann.book.kinds[:3] == ["Anew", "Text", "Text"]
    assert "Anew" not in ann.book.kinds[1:]
    assert not stream.is_lagging


async def test_a_lagging_reader_whose_cursor_is_not_kept_begins_anew(
    ann: Reader, journal: Journal
) -> None:
    journal.tell("a ", *["x" * 50_000] * 40)
    journal.floor = len(journal.entries) - 1
    await ann.catch_up()
    assert ann.book.kinds == ["Anew", "Anew"]


async def test_a_reader_that_catches_up_is_given_no_more_than_it_takes(
    engine: Engine, journal: Journal
) -> None:
    journal.write(*["x" * 1000, None] * 2000)
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open("0")
        stream = reader.stream
        assert stream is not None
        await until(lambda: stream.is_behind)
        for _ in range(50):
            await asyncio.sleep(0)
            assert len(stream) <= bounds.LOW_EVENTS + 1
            assert stream._bytes <= bounds.LOW_BYTES + 2000
        await reader.catch_up()
        reader.close()
    assert len(reader.book.kinds) == 4000


async def test_those_in_step_never_wait_for_one_who_is_not(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    bob = await Reader(engine, Context(journal)).open("1")
    await until(lambda: engine.feeds.open_feeds == 1)
    assert engine.feeds.stats.joined == 1
    for _ in range(2000):
        journal.tell("x" * 1000)
        # In this very moment, and not a turn of the loop later.
        assert bob.stream is not None
        assert len(bob.stream) == 1
        await bob.take()
    assert bob.book.kinds == ["Text"] * 2000
    assert engine.feeds.stats.lagged == 1
    await ann.catch_up()
    bob.close()


async def test_those_who_fall_behind_together_share_the_merged_texts_and_still_differ(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    others = [await Reader(engine, Context(journal)).open("1") for _ in range(4)]
    await until(lambda: engine.feeds.open_feeds == 1)
    for number in range(200):
        journal.tell(f"{number} ")
        if number % 7 == 0:
            await others[0].take()
        if number % 3 == 0:
            await others[1].take(min(2, len(others[1].stream or ())))
    first, second = others[2].stream, others[3].stream
    assert first is not None
    assert second is not None
    pairs = zip(first._events, second._events, strict=True)
    assert all(one is other for one, other in pairs)
    for reader in (ann, *others):
        await reader.catch_up()
        assert reader.book.text == journal.text
    for reader in others:
        reader.close()
