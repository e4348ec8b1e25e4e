"""Feeds and streams: order, bounds, lagging, leaving, failing, ending - over a source in memory."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schema.execution import Engine, Event, Result, Stream
from schema.execution import stream as bounds
from services.events.base import BusUnavailableError, News
from services.streams import following
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


# ---- order


async def test_what_must_be_read_comes_before_what_followed_it_in_the_same_moment(
    ann: Reader, journal: Journal
) -> None:
    for _ in range(3):
        journal.tell(None, "a ", "time ", None, "there ", None, None, "was ")
        await ann.catch_up()
    assert ann.book.kinds.count("Note") == 12


async def test_what_was_under_way_when_news_were_lost_comes_before_what_is_read_again(
    ann: Reader, journal: Journal
) -> None:
    for loses_late in (False, True):
        ann.context.gate.clear()
        journal.tell(None)
        if loses_late:
            await asyncio.sleep(0)
        journal.tell("a ")
        journal.hub.lose()
        journal.tell("time ", None)
        ann.context.gate.set()
        await ann.catch_up()


async def test_signals_that_are_lost_late_or_doubled_change_nothing(
    ann: Reader, journal: Journal, short_times: None
) -> None:
    journal.tell("a ")
    journal.write("time ", None)
    journal.tell(None, "there ")
    for number in (1, 3, 6, 2, 6):
        journal.hub.deliver(_signal(journal, number), 20)
    await ann.catch_up()
    journal.tell("was ")
    await ann.catch_up()
    assert ann.book.at == 7


async def test_what_no_signal_told_of_is_found_in_the_silence(
    engine: Engine, journal: Journal, short_times: None
) -> None:
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open()
        await reader.take()
        for _ in range(3):
            journal.write("a ", None)
            await reader.catch_up()
        reader.close()


def _signal(journal: Journal, number: int) -> News:
    return News(journal.topic, 0, {"number": number})


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


# ---- sharing


async def test_readers_from_any_cursor_share_one_execution_once_they_have_caught_up(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    journal.tell(*["a ", None] * 20)
    await ann.catch_up()
    readers = [await Reader(engine, Context(journal)).open(str(at)) for at in range(0, 40, 4)]
    readers += [await Reader(engine, Context(journal)).open()]
    for reader in readers:
        await reader.catch_up()
        if not reader.book.kinds:
            await reader.take()
    await until(lambda: engine.feeds.open_feeds == 1)
    executed, remarks = engine.feeds.stats.executed, len(ann.context.remarks)
    answered = engine.feeds.stats.answered

    journal.tell(*["a ", None] * 5)
    for reader in (ann, *readers):
        await reader.catch_up()

    assert engine.feeds.stats.executed == executed + 5
    assert engine.feeds.stats.answered == answered + 5
    assert len(ann.context.remarks) == remarks + 5
    assert all(len(reader.context.remarks) <= 20 for reader in readers)
    for reader in readers:
        reader.close()


async def test_who_finds_the_others_busy_joins_them_at_the_next_event(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    ann.context.gate.clear()
    journal.tell(None)
    late = [await Reader(engine, Context(journal)).open("1") for _ in range(20)]
    for reader in late:
        await reader.catch_up()
    ann.context.gate.set()
    await ann.catch_up()
    await until(lambda: all(len(tap) == 0 for tap in journal.hub._taps[journal.topic]))
    assert engine.feeds.open_feeds == 21

    journal.tell("a ", "time ")
    for reader in (ann, *late):
        await reader.catch_up()
    for _ in range(20):
        # Long before anybody would look again in a silence.
        await asyncio.sleep(0)

    assert engine.feeds.open_feeds == 1
    for reader in late:
        reader.close()


async def test_a_feed_outlives_the_reader_that_made_it(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    bob = await Reader(engine, Context(journal)).open("1")
    await until(lambda: engine.feeds.open_feeds == 1)
    feed = next(iter(engine.feeds._shared.values()))
    ann.close()
    journal.tell("a ", None, "time ")
    await bob.catch_up()
    assert next(iter(engine.feeds._shared.values())) is feed
    assert feed.subscription.context is ann.context
    carol = await Reader(engine, Context(journal)).open("1")
    await carol.catch_up()
    await until(lambda: engine.feeds.open_feeds == 1)
    bob.close()
    journal.tell(None)
    await carol.catch_up()
    carol.close()


async def test_a_snapshot_is_shared_by_those_alone_who_asked_before_it_was_begun(
    engine: Engine, journal: Journal
) -> None:
    async with nothing_left(engine, journal):
        journal.gate.clear()
        first = await Reader(engine, Context(journal)).open()
        await until(lambda: journal.reads == 1)
        # Its snapshot is under way: whoever comes now may have written meanwhile.
        journal.write("mine ")
        later = [await Reader(engine, Context(journal)).open() for _ in range(50)]
        assert engine.feeds.open_feeds == 2
        journal.gate.set()
        for reader in (first, *later):
            await reader.take()
            assert reader.book.text == "mine "
        assert journal.snapshots == 2
        assert engine.feeds.stats.snapshots == 2
        assert engine.feeds.stats.joined >= 49
        for reader in (first, *later):
            reader.close()


async def test_who_leaves_while_waiting_for_a_snapshot_takes_it_from_nobody(
    engine: Engine, journal: Journal
) -> None:
    async with nothing_left(engine, journal):
        journal.gate.clear()
        readers = [await Reader(engine, Context(journal)).open() for _ in range(6)]
        for reader in readers[:2]:
            reader.close()
        later = [await Reader(engine, Context(journal)).open() for _ in range(3)]
        later[0].close()
        await asyncio.sleep(0)
        readers[2].close()
        journal.gate.set()
        for reader in readers[3:] + later[1:]:
            await reader.take()
            assert reader.book.kinds == ["Anew"]
            reader.close()


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


# ---- failing


async def test_a_source_that_fails_in_the_middle_is_read_again(
    engine: Engine, journal: Journal, short_times: None
) -> None:
    async with nothing_left(engine, journal):
        readers = [await Reader(engine, Context(journal)).open() for _ in range(3)]
        for reader in readers:
            await reader.take()
        await until(lambda: stands_still(engine))
        journal.failure = OSError("the disk is gone")
        reads = journal.reads
        journal.write("a ", None)
        journal.tell("time ")
        await until(lambda: journal.reads >= reads + 3)
        journal.failure = None
        for reader in readers:
            await reader.catch_up()
            assert reader.book.kinds[0] == "Anew"
        assert engine.feeds.stats.interrupted >= 2
        for reader in readers:
            reader.close()


async def test_a_source_that_cannot_be_read_at_first_is_told_masked(
    engine: Engine, journal: Journal
) -> None:
    async with nothing_left(engine, journal):
        journal.failure = OSError("the password is hunter2")
        streams = [await opened(engine, Context(journal)) for _ in range(3)]
        for stream in streams:
            refused = await anext(stream)
            assert isinstance(refused, Result)
            assert not refused.is_executed
            assert refused.codes() == {"INTERNAL"}
            assert b"hunter2" not in refused.json()
            assert await anext(stream, None) is None
            stream.close()


async def test_an_answer_that_fails_is_told_in_its_place_and_the_rest_follows(
    ann: Reader, journal: Journal
) -> None:
    ann.context.failure = OSError("the password is hunter2")
    journal.tell("a ", None)
    await ann.take()
    assert ann.stream is not None
    failed = await taken(ann.stream)
    assert failed.cursor == "3"
    assert failed.payload()["data"] is None
    assert [error["extensions"]["code"] for error in failed.errors] == ["INTERNAL"]
    assert b"hunter2" not in failed.json()
    ann.context.failure = None
    ann.book.at = 3
    journal.tell("time ", None)
    await ann.catch_up()


async def test_a_lagging_reader_waits_out_a_source_that_fails(
    engine: Engine, journal: Journal, short_times: None
) -> None:
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open()
        await reader.take()
        await until(lambda: engine.feeds._shared)
        journal.tell("a ", *["x" * 50_000] * 40)
        assert reader.stream is not None
        assert reader.stream.is_lagging
        journal.failure = OSError("the disk is gone")
        reads = journal.reads
        taking = asyncio.create_task(reader.catch_up())
        await until(lambda: journal.reads > reads + 2 or taking.done())
        journal.failure = None
        await taking
        reader.close()


async def test_a_bus_that_closes_ends_all_readers_with_the_code_for_trying_again(
    engine: Engine, journal: Journal
) -> None:
    async with nothing_left(engine, journal):
        stream = await opened(engine, Context(journal))
        await taken(stream)
        await journal.bus.aclose()
        end = await anext(stream)
        assert isinstance(end, Result)
        assert end.codes() == {"UNAVAILABLE"}
        stream.close()


async def test_a_bus_that_does_not_answer_at_first_is_waited_for(
    engine: Engine, journal: Journal, short_times: None
) -> None:
    async with nothing_left(engine, journal):
        journal.failure = BusUnavailableError("away")
        journal.write("a ")
        readers = [await Reader(engine, Context(journal)).open() for _ in range(3)]
        await until(lambda: journal.reads >= 2)
        journal.failure = None
        for reader in readers:
            await reader.take()
            assert reader.book.kinds == ["Anew"]
            reader.close()


# ---- ending


async def test_the_end_of_the_source_completes_all_readers_with_everything_told(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    bob = await Reader(engine, Context(journal)).open("0")
    lagging = await Reader(engine, Context(journal)).open("1")
    await until(lambda: engine.feeds.open_feeds == 1)
    await bob.take()
    journal.tell("a ", None)
    await bob.catch_up()
    journal.tell(*["x" * 50_000] * 40, "the end")
    await bob.catch_up()
    assert lagging.stream is not None
    assert lagging.stream.is_lagging
    journal.close()
    for reader in (ann, bob, lagging):
        await reader.catch_up()
        assert reader.stream is not None
        assert await anext(reader.stream, None) is None
        assert reader.stream.is_done
        reader.close()


async def test_what_had_ended_before_completes_at_once(engine: Engine, journal: Journal) -> None:
    journal.write("a ", None, "b ")
    journal.close()
    async with nothing_left(engine, journal):
        for after, kinds in (
            ("3", []),
            ("1", ["Note", "Text"]),
            ("0", ["Text", "Note", "Text"]),
            (None, ["Anew"]),
            ("9", ["Anew"]),
        ):
            reader = Reader(engine, Context(journal))
            stream = reader.stream = await opened(engine, reader.context, after)
            if after not in (None, "9"):
                await reader.open(after)
                stream.close()
                stream = reader.stream
            for _ in kinds:
                await reader.take()
            assert await anext(stream, None) is None
            assert reader.book.kinds == kinds
            stream.close()


async def test_an_end_that_no_signal_told_of_is_found(
    engine: Engine, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_IDLE_S", 0.02)
    async with nothing_left(engine, journal):
        reader = await Reader(engine, Context(journal)).open()
        await reader.take()
        journal.write("the end")
        journal.is_closed = True
        await reader.catch_up()
        assert reader.stream is not None
        assert await anext(reader.stream, None) is None
        reader.close()
