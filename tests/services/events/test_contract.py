"""What every bus promises: the same tests for the local one (on disk, in memory) and for Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from services.errors import UserError, UserErrorCode
from services.events.base import (
    Bus,
    BusUnavailableError,
    CallError,
    Json,
    Log,
    News,
    NodeUnavailableError,
    Tap,
)
from services.events.store import Retention
from tests.services.events.conftest import MakeBus

PATIENCE_S = 30.0


async def take(tap: Tap, count: int) -> list[News]:
    """Give the next `count` news of a tap that loses none."""
    news = []
    for _ in range(count):
        item = await tap.get(PATIENCE_S)
        assert item is not None
        news.append(item)
    return news


@contextlib.asynccontextmanager
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def read_until_absent(bus: Bus, topic: str) -> Log:
    """Read until the log is forgotten; each read is a round trip to the far end."""
    async with patience():
        while (log := await bus.read(topic)).head:
            pass
    return log


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


async def test_ping_and_nodes_answer(bus: Bus) -> None:
    await bus.ping()
    assert await bus.nodes() == {"node-a"}


async def test_nobody_had_reason_to_take_a_node_that_runs_for_dead(make_bus: MakeBus) -> None:
    time = asyncio.get_running_loop().time
    before = time()
    bus = await make_bus()
    since, started = bus.unbroken_since(), time()
    assert before <= since <= started
    await bus.append("t", {})
    assert bus.unbroken_since() == since
    await bus.aclose()
    closed = time()
    assert bus.unbroken_since() >= closed


async def test_a_call_to_this_node_runs_its_handler(bus: Bus) -> None:
    async def double(data: Json) -> Json:
        return {"n": data["n"] * 2}

    bus.serve("double", double)
    assert await bus.call("node-a", "double", {"n": 21}) == {"n": 42}


async def test_calls_run_concurrently(bus: Bus) -> None:
    everybody = asyncio.Barrier(10)

    async def meet(_: Json) -> Json:
        await everybody.wait()
        return {}

    bus.serve("meet", meet)
    async with patience():
        await asyncio.gather(*(bus.call("node-a", "meet", {}) for _ in range(10)))


async def test_a_refusal_of_the_handler_is_raised_with_its_code(bus: Bus) -> None:
    async def refuse(_: Json) -> Json:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such sandbox.")

    bus.serve("refuse", refuse)
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "refuse", {})
    assert (refusal.value.code, refusal.value.message) == ("NOT_FOUND", "There is no such sandbox.")


async def test_a_bug_of_the_handler_is_masked_and_logged(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Json) -> Json:
        raise ZeroDivisionError("secret path")

    bus.serve("fail", fail)
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "fail", {})
    assert refusal.value.code == "INTERNAL"
    assert "secret" not in refusal.value.message
    assert "ZeroDivisionError: secret path" in caplog.text


async def test_a_method_nobody_serves_is_refused(bus: Bus) -> None:
    with pytest.raises(CallError) as refusal:
        await bus.call("node-a", "nothing", {})
    assert refusal.value.code == "UNKNOWN_METHOD"


async def test_a_call_to_a_dead_node_fails(bus: Bus) -> None:
    with pytest.raises(NodeUnavailableError):
        await bus.call("nobody", "m", {}, timeout_s=PATIENCE_S)


async def test_a_call_given_up_goes_on_at_the_handler(bus: Bus) -> None:
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_: Json) -> Json:
        started.set()
        await release.wait()
        ended.set()
        return {}

    bus.serve("slow", slow)
    with pytest.raises(NodeUnavailableError):
        await bus.call("node-a", "slow", {}, timeout_s=0.01)
    cancelled = asyncio.ensure_future(bus.call("node-a", "slow", {}))
    await started.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    release.set()
    async with patience():
        await ended.wait()


async def test_closing_the_bus_cancels_its_handlers(bus: Bus) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: Json) -> Json:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return {}

    bus.serve("endless", endless)
    call = asyncio.ensure_future(bus.call("node-a", "endless", {}))
    await started.wait()
    await bus.aclose()
    assert cancelled.is_set()
    with pytest.raises(BusUnavailableError):
        await call


async def test_counts_add_up_and_can_be_forgotten(bus: Bus) -> None:
    hits = await asyncio.gather(*(bus.count("sign-in", 60) for _ in range(20)))
    assert sorted(hits) == list(range(1, 21))
    assert await bus.count("other", 60) == 1
    await bus.forget("sign-in")
    assert await bus.count("sign-in", 60) == 1


async def test_what_is_spent_adds_up_to_the_limit_and_no_further(bus: Bus) -> None:
    asked = [bus.spend("ann", 3, limit=10, window_s=60) for _ in range(5)]
    answers = await asyncio.gather(*asked)
    assert sorted(a.total for a in answers if a.is_granted) == [3, 6, 9]
    assert [a.total for a in answers if not a.is_granted] == [9, 9]
    assert all(0 < a.left_s <= 60 for a in answers)

    looked = await bus.spend("ann", 0, limit=10, window_s=60)
    assert (looked.total, looked.is_granted) == (9, True)
    last = await bus.spend("ann", 1, limit=10, window_s=60)
    assert (last.total, last.is_granted) == (10, True)
    other = await bus.spend("ben", 11, limit=10, window_s=60)
    assert (other.total, other.is_granted) == (0, False)
    # A limit that was lowered since is passed already.
    lowered = await bus.spend("ann", 0, limit=5, window_s=60)
    assert (lowered.total, lowered.is_granted) == (10, False)


async def test_looking_begins_no_window_and_a_window_ends(bus: Bus) -> None:
    first = await bus.spend("ann", 0, limit=10, window_s=0.2)
    assert (first.total, first.is_granted) == (0, True)
    assert (await bus.spend("ann", 10, limit=10, window_s=0.2)).is_granted
    async with patience():
        while not (again := await bus.spend("ann", 10, limit=10, window_s=0.2)).is_granted:
            assert again.total == 10
            await bus.ping()
    assert again.total == 10


async def test_a_count_begins_anew_after_its_window(bus: Bus) -> None:
    async with patience():
        hits = [await bus.count("c", 0.2)]
        while (hit := await bus.count("c", 0.2)) > hits[-1]:
            hits.append(hit)
            await bus.ping()
    assert hit == 1
    assert hits == list(range(1, len(hits) + 1))
