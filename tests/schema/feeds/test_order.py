"""Feeds tell everything in order, whatever becomes of signals."""

import asyncio

from schema.execution import Engine
from services.events.base import News
from tests.schema.feeds.conftest import Reader, nothing_left
from tests.schema.journal import Context, Journal

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
