"""The taps of every bus: what reaches them, in which order, and what does not."""

import asyncio
import contextlib
from typing import Any

import pytest

from services.events.base import Bus, BusUnavailableError, News
from tests.services.events.patience import PATIENCE_S, take


async def test_what_is_sent_after_attaching_is_received(bus: Bus) -> None:
    for n in range(30):
        async with bus.attach(f"t{n}") as tap:
            await bus.append(f"t{n}", {"kind": "entry"})
            await bus.publish(f"t{n}", {"kind": "signal"})
            entry, signal = await take(tap, 2)
        assert (entry.seq, entry.data) == (1, {"kind": "entry"})
        assert signal == News(f"t{n}", 0, {"kind": "signal"})


async def test_a_signal_reaches_only_who_is_attached_and_leaves_no_log(bus: Bus) -> None:
    await bus.publish("t", {"n": 1})
    async with bus.attach("t") as tap, bus.attach("other") as other:
        await bus.publish("t", {"n": 2})
        assert [news.data for news in await take(tap, 1)] == [{"n": 2}]
        assert await other.get(0) is None
        assert not other.lost()
    assert (await bus.read("t")).head == 0


async def test_a_tap_of_several_topics_receives_each_once(bus: Bus) -> None:
    async with bus.attach("a", "b", "a") as tap:
        await bus.publish("a", {"n": 1})
        await bus.publish("b", {"n": 2})
        await bus.publish("c", {"n": 3})
        await bus.publish("a", {"n": 4})
        received = await take(tap, 3)
        assert [(news.topic, news.data["n"]) for news in received] == [("a", 1), ("b", 2), ("a", 4)]
        assert await tap.get(0) is None


async def test_the_counts_tell_what_came_what_waits_and_what_was_lost(bus: Bus) -> None:
    await bus.publish("unheard", {})
    begun = bus.stats
    async with (
        bus.attach("a") as reader,
        bus.attach("a", "b", max_items=2) as slow,
        bus.attach("last") as last,
    ):
        for topic in ("a", "a", "b", "b", "last"):
            await bus.publish(topic, {})
        await take(last, 1)
        await take(reader, 1)
        stats = bus.stats
        assert stats.received - begun.received == 5
        assert stats.delivered - begun.delivered == 7
        assert (stats.taps, stats.queued, stats.losses) == (3, 1, 1)
        assert slow.lost()
    async with bus.attach("c"):
        left = bus.stats
    assert (left.taps, left.queued, left.losses, left.reconnects) == (1, 0, 1, 0)


async def test_too_many_news_empty_the_tap_and_are_reported_once(bus: Bus) -> None:
    async with bus.attach("t", max_items=3) as slow, bus.attach("t") as fast:
        for n in range(10):
            await bus.publish("t", {"n": n})
        assert [news.data["n"] for news in await take(fast, 10)] == list(range(10))
        assert await slow.get(PATIENCE_S) is None
        assert slow.lost()
        assert not slow.lost()
        assert not fast.lost()
        await bus.publish("t", {"n": 10})
        assert [news.data["n"] for news in await take(slow, 1)] == [10]


async def test_too_many_bytes_empty_the_tap(bus: Bus) -> None:
    async with bus.attach("t", max_bytes=10_000) as tap, bus.attach("t") as witness:
        await bus.publish("t", {"text": "x" * 4_000})
        await bus.publish("t", {"text": "x" * 4_000})
        await take(witness, 2)
        assert len(await take(tap, 2)) == 2
        for _ in range(3):
            await bus.publish("t", {"text": "x" * 4_000})
        await take(witness, 3)
        assert await tap.get(PATIENCE_S) is None
        assert tap.lost()


async def test_room_in_a_tap_is_free_again_once_news_were_taken(bus: Bus) -> None:
    async with bus.attach("t", max_items=2, max_bytes=10_000) as tap:
        for n in range(20):
            await bus.publish("t", {"n": n, "text": "x" * 4_000})
            await bus.publish("t", {"n": n, "text": "x" * 4_000})
            assert [news.data["n"] for news in await take(tap, 2)] == [n, n]
        assert not tap.lost()


async def test_all_taps_of_a_topic_share_one_decoded_object(bus: Bus) -> None:
    async with contextlib.AsyncExitStack() as stack:
        taps = [await stack.enter_async_context(bus.attach("t")) for _ in range(50)]
        await bus.append("t", {"text": "hi"})
        received = [(await take(tap, 1))[0] for tap in taps]
    assert len({id(news) for news in received}) == 1
    assert len({id(news.data) for news in received}) == 1


async def test_what_the_sender_changes_later_reaches_nobody(bus: Bus) -> None:
    data: dict[str, Any] = {"items": [1]}
    async with bus.attach("t") as tap:
        await bus.append("t", data)
        await bus.publish("t", data)
        data["items"].append(2)
        assert [news.data for news in await take(tap, 2)] == [{"items": [1]}] * 2
    assert (await bus.read("t")).entries[0].data == {"items": [1]}


async def test_a_cancelled_get_loses_nothing(bus: Bus) -> None:
    async with bus.attach("t") as tap:
        waiting = asyncio.ensure_future(tap.get(PATIENCE_S))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await bus.publish("t", {"n": 1})
        assert (await take(tap, 1))[0].data == {"n": 1}


async def test_two_readers_of_one_tap_are_refused(bus: Bus) -> None:
    async with bus.attach("t") as tap:
        first = asyncio.ensure_future(tap.get(PATIENCE_S))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="same tap"):
            await tap.get(PATIENCE_S)
        await bus.publish("t", {})
        assert await first == News("t", 0, {})


async def test_get_gives_none_when_its_time_is_up(bus: Bus) -> None:
    async with bus.attach("t") as tap:
        assert await tap.get(0.01) is None
        assert await tap.get(0) is None
        assert not tap.lost()


async def test_a_closed_bus_wakes_its_taps_and_refuses_everything(bus: Bus) -> None:
    async with bus.attach("t") as tap:
        waiting = asyncio.ensure_future(tap.get(PATIENCE_S))
        await asyncio.sleep(0)
        await bus.aclose()
        assert await waiting is None
        assert tap.lost()
        with pytest.raises(BusUnavailableError):
            await tap.get(PATIENCE_S)
    for use in (
        bus.ping(),
        bus.publish("t", {}),
        bus.append("t", {}),
        bus.read("t"),
        bus.expire("t", 1),
        bus.call("node-a", "m", {}),
        bus.nodes(),
        bus.count("c", 1),
        bus.forget("c"),
        bus.spend("c", 1, limit=1, window_s=60),
        bus.attach("t").__aenter__(),
    ):
        with pytest.raises(BusUnavailableError):
            await use
    await bus.aclose()


async def test_a_bus_starts_once(bus: Bus) -> None:
    with pytest.raises(RuntimeError):
        await bus.start()
