"""Following durable records: always the whole log, in order, whatever becomes of the signals."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.events.base import Bus, BusUnavailableError, News
from services.events.follow import follow
from services.events.local import LocalBus
from tests.services.events.conftest import MakeBus

PATIENCE_S = 30.0
Record = tuple[int, str]


class Table:
    """Committed records with a dense seq; `read` gives at most `batch` of them, and is counted."""

    def __init__(self, batch: int = 1_000) -> None:
        self.records: list[Record] = []
        self.reads = 0
        self._has_read = asyncio.Event()
        self._batch = batch

    def commit(self, text: str = "") -> int:
        seq = len(self.records) + 1
        self.records.append((seq, text or f"text {seq}"))
        return seq

    async def read(self, after: int) -> Sequence[Record]:
        self.reads += 1
        self._has_read.set()
        # As with a database: what is committed during the wait is seen or not.
        found = self.records[after : after + self._batch]
        await asyncio.sleep(0)
        return found

    async def until_read(self, count: int) -> None:
        """Return once `read` was called `count` times."""
        async with asyncio.timeout(PATIENCE_S):
            while self.reads < count:
                self._has_read.clear()
                await self._has_read.wait()


def announce(bus: Bus, table: Table, seq: int) -> Awaitable[None]:
    return bus.publish("t", {"seq": seq, "text": table.records[seq - 1][1]})


def decode(news: News) -> Record | None:
    return (news.data["seq"], news.data["text"]) if "text" in news.data else None


def following(
    bus: Bus,
    table: Table,
    *,
    after: int = 0,
    idle_s: float = PATIENCE_S,
    decode: Callable[[News], Record | None] = decode,
) -> AsyncGenerator[Record, None]:
    return follow(
        bus,
        "t",
        after=after,
        read=table.read,
        decode=decode,
        seq_of=lambda record: record[0],
        idle_s=idle_s,
    )


async def go_live(records: AsyncGenerator[Record, None], table: Table) -> asyncio.Task[Record]:
    """Ask for the next record and return when only news, or idleness, can bring it."""
    reads = table.reads
    waiting = asyncio.ensure_future(anext(records))
    await table.until_read(reads + 1)
    # The rest of that read, which finds nothing.
    for _ in range(3):
        await asyncio.sleep(0)
    return waiting


async def take(records: AsyncGenerator[Record, None], count: int) -> list[Record]:
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(records) for _ in range(count)]


async def test_records_before_and_after_the_start_are_given_once(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    for _ in range(3):
        table.commit()
    async with aclosing(following(bus, table, after=1)) as records:
        assert await take(records, 2) == table.records[1:]
        waiting = await go_live(records, table)
        reads = table.reads
        for _ in range(5):
            await announce(bus, table, table.commit())
        assert await waiting == table.records[3]
        assert await take(records, 4) == table.records[4:]
    assert table.reads == reads


async def test_records_committed_while_it_attaches_are_not_missed(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()

    async def write() -> None:
        for _ in range(200):
            await announce(bus, table, table.commit())

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        async with aclosing(following(bus, table)) as records:
            assert await take(records, 200) == table.records


async def test_a_lost_signal_costs_only_the_idle_time(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    async with aclosing(following(bus, table, idle_s=0.05)) as records:
        waiting = asyncio.ensure_future(anext(records))
        await table.until_read(1)
        table.commit("never announced")
        async with asyncio.timeout(PATIENCE_S):
            assert await waiting == (1, "never announced")


async def test_a_gap_is_filled_from_the_table_at_once(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    table.commit()
    async with aclosing(following(bus, table)) as records:
        await take(records, 1)
        waiting = await go_live(records, table)
        table.commit("not announced")
        await announce(bus, table, table.commit())
        async with asyncio.timeout(PATIENCE_S):
            assert await waiting == table.records[1]
        assert await take(records, 1) == table.records[2:]


async def test_signals_too_late_or_repeated_are_dropped(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    for _ in range(3):
        table.commit()
    async with aclosing(following(bus, table)) as records:
        await take(records, 3)
        waiting = await go_live(records, table)
        reads = table.reads
        for seq in (1, 3, 2, 3):
            await announce(bus, table, seq)
        await announce(bus, table, table.commit())
        await announce(bus, table, 4)
        await announce(bus, table, table.commit())
        async with asyncio.timeout(PATIENCE_S):
            assert await waiting == table.records[3]
        assert await take(records, 1) == table.records[4:]
        assert table.reads == reads


async def test_a_signal_without_its_record_leads_to_a_read(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    table.commit()
    async with aclosing(following(bus, table)) as records:
        await take(records, 1)
        for hint in ({"seq": 2}, {"hint": "look"}):
            waiting = await go_live(records, table)
            table.commit()
            await bus.publish("t", hint)
            async with asyncio.timeout(PATIENCE_S):
                assert await waiting == table.records[-1]


async def test_a_reader_slower_than_its_tap_reads_the_table_instead(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table(batch=50)
    table.commit()
    async with (
        bus.attach("t", max_items=2_000) as witness,
        aclosing(following(bus, table)) as records,
    ):
        await take(records, 1)
        for _ in range(1_000):
            await announce(bus, table, table.commit())
        for _ in range(1_000):
            assert await witness.get(PATIENCE_S) is not None
        assert await take(records, 1_000) == table.records[1:]


async def test_a_table_that_is_not_dense_is_an_error(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    table.records = [(1, "a"), (3, "c")]
    async with aclosing(following(bus, table)) as records:
        assert await take(records, 1) == [(1, "a")]
        with pytest.raises(RuntimeError, match="not dense"):
            await take(records, 1)


async def test_closing_the_bus_ends_it_with_what_is_left(make_bus: MakeBus) -> None:
    bus, table = await make_bus(), Table()
    table.commit()
    async with aclosing(following(bus, table)) as records:
        await take(records, 1)
        table.commit()
        await bus.aclose()
        assert await take(records, 1) == table.records[1:]
        with pytest.raises(BusUnavailableError):
            await take(records, 1)


async def test_closing_it_detaches(make_local_bus: Callable[..., Awaitable[LocalBus]]) -> None:
    bus, table = await make_local_bus(), Table()
    table.commit()
    async with aclosing(following(bus, table)) as records:
        await take(records, 1)
        assert bus._hub.follows("t")
    assert not bus._hub.follows("t")
    abandoned = following(bus, table, after=1)
    waiting = asyncio.ensure_future(anext(abandoned))
    await table.until_read(2)
    assert bus._hub.follows("t")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not bus._hub.follows("t")


# What may happen between a commit and its reader: announced, announced without the record, out of
# order, again, not at all; the tap lost; the reader taking its time.
_events = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 5)),
        st.tuples(st.sampled_from(("announce", "hint")), st.integers(0, 40)),
        st.tuples(st.sampled_from(("announce next", "lose", "take", "pause", "settle"))),
    ),
    max_size=60,
)


@given(_events, st.integers(1, 7), st.integers(0, 3), st.booleans())
@settings(deadline=None, max_examples=150)
def test_the_output_is_the_table_whatever_happens_to_the_signals(
    events: list[Any], batch: int, after: int, is_eager: bool
) -> None:
    async def run() -> None:
        bus = LocalBus(None)
        await bus.start()
        try:
            await _shake(bus, Table(batch), events, after, is_eager)
        finally:
            await bus.aclose()

    asyncio.run(run())


async def _shake(
    bus: LocalBus, table: Table, events: list[Any], after: int, is_eager: bool
) -> None:
    for _ in range(after):
        table.commit()
    received: asyncio.Queue[Record] = asyncio.Queue()
    may_take = asyncio.Semaphore(1_000 if is_eager else 0)

    async def consume() -> None:
        async with aclosing(following(bus, table, after=after, idle_s=0.01)) as records:
            async for record in records:
                received.put_nowait(record)
                await may_take.acquire()

    announced = after
    async with asyncio.TaskGroup() as group:
        consumer = group.create_task(consume())
        for event, *arguments in events:
            if event == "commit":
                for _ in range(arguments[0]):
                    table.commit()
            elif event == "announce" and arguments[0] < len(table.records):
                await announce(bus, table, arguments[0] + 1)
            elif event == "hint" and arguments[0] < len(table.records):
                await bus.publish("t", {"seq": arguments[0] + 1})
            elif event == "announce next" and announced < len(table.records):
                announced += 1
                await announce(bus, table, announced)
            elif event == "lose":
                bus._hub.lose(["t"])
            elif event == "take":
                may_take.release()
            elif event == "settle" and is_eager:
                # An idle reader reads and then waits for news again.
                await table.until_read(table.reads + 2)
                await asyncio.sleep(0)
            elif event == "pause":
                await asyncio.sleep(0)
        for _ in range(len(table.records) + 1):
            may_take.release()
        async with asyncio.timeout(PATIENCE_S):
            output = [await received.get() for _ in table.records[after:]]
            # Two idle reads more: nothing comes twice.
            await table.until_read(table.reads + 2)
        consumer.cancel()
    assert output == table.records[after:]
    assert received.empty()
