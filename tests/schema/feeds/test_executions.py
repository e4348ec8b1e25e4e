"""Readers of a feed share what is executed."""

import asyncio

from schema.execution import Engine
from tests.schema.feeds.conftest import Reader, nothing_left
from tests.schema.journal import Context, Journal, until

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


async def test_who_finds_the_others_busy_joins_them_as_soon_as_they_stand_still(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    ann.context.gate.clear()
    journal.tell(None)
    late = [await Reader(engine, Context(journal)).open("1") for _ in range(20)]
    for reader in late:
        await reader.catch_up()
    assert engine.feeds.open_feeds == 21
    reads = journal.reads
    ann.context.gate.set()
    await ann.catch_up()
    for _ in range(20):
        # Long before anybody would look again in a silence, and without any news.
        await asyncio.sleep(0)
    assert engine.feeds.open_feeds == 1
    assert journal.reads == reads

    executed = engine.feeds.stats.executed
    journal.tell("a ", None)
    for reader in (ann, *late):
        await reader.catch_up()
    assert engine.feeds.stats.executed == executed + 1
    for reader in late:
        reader.close()


async def test_who_waits_for_others_that_end_goes_on_alone(
    ann: Reader, journal: Journal, engine: Engine
) -> None:
    ann.context.gate.clear()
    journal.tell(None)
    late = [await Reader(engine, Context(journal)).open("1") for _ in range(3)]
    for reader in late:
        await reader.catch_up()
    ann.close()
    ann.context.gate.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.feeds.open_feeds == 1

    journal.tell("a ", None)
    for reader in late:
        await reader.catch_up()
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
