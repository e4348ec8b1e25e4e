"""A Redis that forgets, crashes, restarts, stalls or is not there."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.events import open_bus
from services.events.base import BusUnavailableError, News
from services.events.redis import RedisBus
from tests.services.events.redis_buses import PATIENCE_S, Make, running, take, until_lost
from tests.services.events.redis_server import RedisServer

pytestmark = pytest.mark.redis


async def test_a_flushed_redis_begins_new_epochs(redis_server: RedisServer) -> None:
    async with running(redis_server) as bus, Redis.from_url(redis_server.url) as probe:
        for _ in range(3):
            await bus.append("t", {})
        before = await bus.read("t")
        await probe.flushall()
        await probe.script_flush()
        assert (await bus.read("t", 3)).is_complete is False
        async with bus.attach("t") as tap:
            assert await bus.append("t", {}) == 1
            news = await take(tap)
        after = await bus.read("t")
        assert after.epoch not in {"", before.epoch}
        assert news.epoch == after.epoch
        async with asyncio.timeout(PATIENCE_S):
            while await bus.nodes() != {"node-a"}:  # noqa: ASYNC110 - no event tells.
                await asyncio.sleep(0.01)


async def test_a_half_evicted_log_is_never_taken_for_complete(redis_server: RedisServer) -> None:
    async with running(redis_server) as bus, Redis.from_url(redis_server.url) as probe:
        await bus.append("t", {})
        await bus.append("u", {})
        await probe.delete("noosphere:log:t", "noosphere:meta:u")
        assert (await bus.read("t")).is_complete is False
        assert await bus.append("t", {}) == 2
        assert await bus.append("u", {}) == 1
        assert [e.seq for e in (await bus.read("u")).entries] == [1]


async def test_after_a_crash_of_redis_taps_are_lost_and_all_works_again(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as bus, bus.attach("t") as tap, bus.attach("u") as other:
        await bus.append("t", {"n": 1})
        before = await bus.read("t")
        await take(tap)
        await redis_server.kill()
        for use in (
            lambda: bus.append("t", {}),
            lambda: bus.publish("t", {}),
            lambda: bus.read("t"),
            bus.nodes,
            lambda: bus.count("c", 1),
            bus.ping,
        ):
            with pytest.raises(BusUnavailableError):
                await use()
        await redis_server.start()
        await until_lost(tap)
        await until_lost(other)
        assert (await bus.read("t")).entries == before.entries
        # The crash may have cost entries that readers saw: what comes now is another log.
        assert await bus.append("t", {"n": 2}) == 1
        news = await take(tap)
        assert news.data == {"n": 2}
        assert news.epoch == (await bus.read("t")).epoch != before.epoch
        await bus.publish("u", {"n": 3})
        assert (await take(other)).data == {"n": 3}
        assert await bus.append("t", {"n": 4}) == 2
        async with bus.attach("new") as fresh:
            await bus.publish("new", {})
            await take(fresh)


async def test_a_restart_of_redis_between_two_uses_fails_none(redis_server: RedisServer) -> None:
    async with running(redis_server) as bus, bus.attach("t") as tap:
        await bus.append("t", {"n": 1})
        before = await bus.read("t")
        await redis_server.kill()
        await redis_server.start()
        assert await bus.read("t") == before
        await until_lost(tap)
        await bus.publish("t", {"n": 2})
        assert (await take(tap)).data in ({"n": 1}, {"n": 2})


async def test_attaching_fails_while_redis_is_down_and_holds_nothing(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, timeout_s=0.5) as bus:
        await redis_server.kill()
        with pytest.raises(BusUnavailableError):
            async with bus.attach("t"):
                pytest.fail("attached to a dead Redis")
        assert bus._hub.topics() == []
        await redis_server.start()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(BusUnavailableError):
                    async with bus.attach("t") as tap:
                        await bus.publish("t", {})
                        news = await tap.get(PATIENCE_S)
                        if news is None:
                            # Attached while the bus was coming back, which all taps are told.
                            assert tap.lost()
                            continue
                        assert news == News("t", 0, {})
                        return


async def test_a_redis_that_does_not_answer_fails_every_use_in_time_then_recovers(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server, timeout_s=0.5) as bus:
        await bus.append("t", {})
        redis_server.freeze()
        try:
            async with asyncio.timeout(PATIENCE_S):
                outcomes = await asyncio.gather(
                    *(bus.append("t", {}) for _ in range(20)),
                    bus.read("t"),
                    bus.publish("t", {}),
                    bus.call("other", "m", {}),
                    return_exceptions=True,
                )
        finally:
            redis_server.thaw()
        assert [type(outcome) for outcome in outcomes] == [BusUnavailableError] * 23
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(BusUnavailableError):
                    await bus.ping()
                    break
        # What was refused may have been written; the numbers stay dense all the same.
        head = await bus.append("t", {})
        assert [e.seq for e in (await bus.read("t")).entries] == list(range(1, head + 1))


async def test_a_cancelled_command_disturbs_no_other(make_redis_bus: Make) -> None:
    bus = await make_redis_bus()
    for round_number in range(20):
        counts = [asyncio.ensure_future(bus.count(f"c{round_number}-{n}", 60)) for n in range(10)]
        await asyncio.sleep(0)
        counts[3].cancel()
        outcomes = await asyncio.gather(*counts, return_exceptions=True)
        assert isinstance(outcomes.pop(3), asyncio.CancelledError)
        assert outcomes == [1] * 9


async def test_a_redis_that_is_absent_stops_the_start(tmp_path: Path) -> None:
    bus = RedisBus(f"unix://{tmp_path}/none.sock", "node-a", timeout_s=0.5)
    with pytest.raises(BusUnavailableError):
        await bus.start()
    with pytest.raises(BusUnavailableError):
        await bus.append("t", {})


async def test_a_message_that_is_not_ours_is_skipped(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running(redis_server) as bus,
        Redis.from_url(redis_server.url) as probe,
        bus.attach("t") as tap,
    ):
        for channel in ("topic:t", "node:node-a"):
            for garbage in (b"", b"\xff\xfe", b"1 e [1]", b"x y {}", b"{}", b"[" * 10_000):
                await probe.publish(f"noosphere:{channel}", garbage)
        await bus.publish("t", {"fine": True})
        assert (await take(tap)).data == {"fine": True}
        assert not tap.lost()
    assert "could not be delivered" in caplog.text


async def test_open_bus_gives_a_redis_bus_for_a_url(redis_url: str, tmp_path: Path) -> None:
    bus = open_bus(redis_url, tmp_path, "node-a")
    await bus.start()
    try:
        assert isinstance(bus, RedisBus)
        await bus.ping()
    finally:
        await bus.aclose()
    assert os.listdir(tmp_path) == []
