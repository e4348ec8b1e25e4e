"""The logs of every bus: numbered, read, trimmed and forgotten."""

import asyncio
from datetime import timedelta

import pytest

from services.events.base import Bus, Log, News
from services.events.store import Retention
from tests.services.events.conftest import MakeBus
from tests.services.events.patience import read_until_absent, take


async def test_entries_are_numbered_from_one_and_read_in_order(bus: Bus) -> None:
    assert [await bus.append("t", {"n": n}) for n in range(3)] == [1, 2, 3]
    log = await bus.read("t")
    assert log.head == 3
    assert log.is_complete
    assert log.epoch
    assert list(log.entries) == [News("t", n + 1, {"n": n}, log.epoch) for n in range(3)]


async def test_concurrent_appends_get_dense_numbers_and_reach_taps_in_their_order(bus: Bus) -> None:
    async with bus.attach("t", max_items=1_000) as tap:
        numbers = await asyncio.gather(*(bus.append("t", {"n": n}) for n in range(500)))
        received = await take(tap, 500)
    assert sorted(numbers) == list(range(1, 501))
    assert [news.seq for news in received] == list(range(1, 501))
    assert [numbers[news.data["n"]] for news in received] == list(range(1, 501))
    assert list((await bus.read("t")).entries) == received


async def test_one_writer_keeps_its_order_among_others(bus: Bus) -> None:
    async def write(writer: int) -> None:
        for n in range(50):
            await bus.append("t", {"writer": writer, "n": n})

    await asyncio.gather(*(write(writer) for writer in range(8)))
    entries = (await bus.read("t")).entries
    for writer in range(8):
        assert [e.data["n"] for e in entries if e.data["writer"] == writer] == list(range(50))


async def test_attaching_then_reading_misses_nothing(bus: Bus) -> None:
    total = 300
    half = asyncio.Event()

    async def write() -> None:
        for n in range(1, total + 1):
            assert await bus.append("t", {"n": n}) == n
            if n == total // 2:
                half.set()

    async def follow() -> list[int]:
        await half.wait()
        async with bus.attach("t", max_items=1_000) as tap:
            seen = [entry.seq for entry in (await bus.read("t")).entries]
            while seen[-1] < total:
                (news,) = await take(tap, 1)
                if news.seq > seen[-1]:
                    seen.append(news.seq)
            return seen

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        followers = [group.create_task(follow()) for _ in range(5)]
    assert [follower.result() for follower in followers] == [list(range(1, total + 1))] * 5


async def test_reading_starts_after_the_position_and_stops_at_the_limit(bus: Bus) -> None:
    for n in range(1, 11):
        await bus.append("t", {"n": n})

    async def seqs(after: int, limit: int | None = None) -> list[int]:
        log = await bus.read("t", after, limit)
        assert (log.head, log.is_complete) == (10, True)
        return [entry.seq for entry in log.entries]

    assert await seqs(0) == list(range(1, 11))
    assert await seqs(7) == [8, 9, 10]
    assert await seqs(7, 2) == [8, 9]
    assert await seqs(0, 0) == []
    assert await seqs(10) == []


async def test_a_position_beyond_the_head_is_not_complete(bus: Bus) -> None:
    await bus.append("t", {})
    log = await bus.read("t", 5)
    assert (log.head, log.is_complete, list(log.entries)) == (1, False, [])


async def test_an_absent_log_is_empty(bus: Bus) -> None:
    assert await bus.read("t") == Log("", 0, True, [])
    assert not (await bus.read("t", 3)).is_complete


@pytest.mark.parametrize(("after", "limit"), [(-1, None), (0, -1)])
async def test_negative_positions_and_limits_are_refused(
    bus: Bus, after: int, limit: int | None
) -> None:
    with pytest.raises(ValueError, match="negative"):
        await bus.read("t", after, limit)


async def test_a_trimmed_log_says_that_it_is_incomplete(make_bus: MakeBus) -> None:
    bus = await make_bus(retention=Retention(max_entries=100))
    for n in range(1, 501):
        await bus.append("t", {"n": n})
    log = await bus.read("t")
    assert (log.head, log.is_complete) == (500, False)
    # Redis trims whole nodes of a stream, of 100 entries each.
    assert 90 <= len(log.entries) <= 200
    kept = [entry.seq for entry in log.entries]
    assert kept == list(range(kept[0], 501))
    assert (await bus.read("t", kept[0] - 1)).is_complete
    assert not (await bus.read("t", kept[0] - 2)).is_complete
    assert await bus.append("t", {}) == 501


async def test_a_log_is_trimmed_by_bytes_but_keeps_its_newest_entry(make_bus: MakeBus) -> None:
    bus = await make_bus(retention=Retention(max_bytes=20_000))
    for _ in range(400):
        await bus.append("t", {"text": "x" * 1_000})
    log = await bus.read("t")
    assert (log.head, log.is_complete) == (400, False)
    assert len(log.entries) <= 120
    await bus.append("t", {"text": "y" * 50_000})
    log = await bus.read("t", 400)
    assert [entry.data["text"] for entry in log.entries] == ["y" * 50_000]


async def test_a_log_forgotten_at_once_begins_a_new_epoch(bus: Bus) -> None:
    await bus.append("t", {"n": 1})
    await bus.append("other", {"n": 1})
    before = await bus.read("t")
    await bus.expire("t", 0)
    assert await bus.read("t") == Log("", 0, True, [])
    async with bus.attach("t") as tap:
        assert await bus.append("t", {"n": 2}) == 1
        (news,) = await take(tap, 1)
    after = await bus.read("t")
    assert after.epoch != before.epoch
    assert news == News("t", 1, {"n": 2}, after.epoch) == after.entries[0]
    assert (await bus.read("other")).head == 1


async def test_a_log_is_forgotten_after_its_time(bus: Bus) -> None:
    await bus.append("t", {})
    await bus.append("kept", {})
    await bus.expire("t", 0.05)
    await read_until_absent(bus, "t")
    assert (await bus.read("kept")).head == 1
    assert await bus.append("t", {}) == 1


async def test_expiring_an_absent_log_does_nothing(bus: Bus) -> None:
    await bus.expire("t", 0)
    await bus.expire("t", 10)
    assert (await bus.read("t")).head == 0


async def test_an_append_revives_a_log_that_was_to_be_forgotten(bus: Bus) -> None:
    await bus.append("t", {})
    await bus.expire("t", 1.0)
    await bus.append("t", {})
    await bus.append("witness", {})
    await bus.expire("witness", 1.1)
    await read_until_absent(bus, "witness")
    assert (await bus.read("t")).head == 2


async def test_idle_logs_are_forgotten(make_bus: MakeBus) -> None:
    bus = await make_bus(retention=Retention(idle_s=0.1))
    await bus.append("t", {})
    assert (await read_until_absent(bus, "t")).epoch == ""


async def test_data_that_is_not_json_is_refused_and_writes_nothing(bus: Bus) -> None:
    for data in ({"x": {1, 2}}, {"x": timedelta(1)}, {"x": "\ud800"}):
        with pytest.raises(TypeError):
            await bus.append("t", data)
        with pytest.raises(TypeError):
            await bus.publish("t", data)
    assert (await bus.read("t")).head == 0


async def test_text_of_any_kind_arrives_unchanged(bus: Bus) -> None:
    data = {"text": 'tab\t nul\x00 quote" 한국어 🦉 line\u2028', "empty": "", "n": 2**53, "f": 0.1}
    topic = "sandbox:sbx_1 with space 한"
    async with bus.attach(topic) as tap:
        await bus.append(topic, data)
        (news,) = await take(tap, 1)
    assert news.data == data
    assert (await bus.read(topic)).entries == [news]
