"""Sources that fail, and sources that end."""

import asyncio

import pytest

from schema.execution import Engine, Result
from services.events.base import BusUnavailableError
from services.streams import following
from tests.schema.feeds.conftest import Reader, nothing_left, stands_still, taken
from tests.schema.journal import Context, Journal, opened, until

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
