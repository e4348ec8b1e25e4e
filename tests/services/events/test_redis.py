"""What the Redis bus promises beyond the contract: many processes, and who of them is alive."""

import asyncio
import contextlib

import pytest
from redis.asyncio import Redis

from services.events.base import BusUnavailableError, CallError, Json, NodeUnavailableError
from services.events.liveness import Liveness, Pulse
from services.events.redis import RedisBus
from tests.services.events.redis_buses import PATIENCE_S, Make, running, stop_beating, take
from tests.services.events.redis_server import RedisServer

pytestmark = pytest.mark.redis


async def test_two_processes_share_signals_logs_counts_and_nodes(make_redis_bus: Make) -> None:
    a, b = await make_redis_bus("node-a"), await make_redis_bus("node-b")
    async with a.attach("t") as at_a, b.attach("t") as at_b:
        await a.publish("t", {"from": "a"})
        assert await b.append("t", {"from": "b"}) == 1
        assert await a.append("t", {"from": "a"}) == 2
        assert [await take(at_a) for _ in range(3)] == [await take(at_b) for _ in range(3)]
    assert await a.read("t") == await b.read("t")
    assert [await a.count("c", 60), await b.count("c", 60)] == [1, 2]
    assert await a.nodes() == await b.nodes() == {"node-a", "node-b"}
    await b.aclose()
    assert await a.nodes() == {"node-a"}


async def test_buses_of_other_prefixes_are_strangers(redis_url: str, make_redis_bus: Make) -> None:
    mine = await make_redis_bus()
    other = RedisBus(redis_url, "node-a", "test-other:")
    await other.start()
    try:
        async with mine.attach("t") as tap:
            await other.append("t", {})
            await mine.publish("t", {"mine": True})
            assert (await take(tap)).data == {"mine": True}
        assert (await mine.read("t")).head == 0
        await other.expire("t", 0)
    finally:
        await other.aclose()


async def test_calls_reach_other_nodes_and_bring_back_answers_and_refusals(
    make_redis_bus: Make,
) -> None:
    a, b = await make_redis_bus("node-a"), await make_redis_bus("node-b")

    class RefusedError(Exception):
        code = "LIMIT"
        message = "Too many sandboxes."

    async def echo(data: Json) -> Json:
        return {"echo": data, "by": "b"}

    async def refuse(_: Json) -> Json:
        raise RefusedError

    async def fail(_: Json) -> Json:
        raise OSError("a path")

    b.serve("echo", echo)
    b.serve("refuse", refuse)
    b.serve("fail", fail)
    answers = await asyncio.gather(*(a.call("node-b", "echo", {"n": n}) for n in range(200)))
    assert answers == [{"echo": {"n": n}, "by": "b"} for n in range(200)]
    with pytest.raises(CallError) as refusal:
        await a.call("node-b", "refuse", {})
    assert (refusal.value.code, refusal.value.message) == ("LIMIT", "Too many sandboxes.")
    with pytest.raises(CallError) as bug:
        await a.call("node-b", "fail", {})
    assert (bug.value.code, "path" in bug.value.message) == ("INTERNAL", False)
    with pytest.raises(CallError) as unknown:
        await a.call("node-b", "nothing", {})
    assert unknown.value.code == "UNKNOWN_METHOD"


async def test_a_node_that_dies_before_it_answers_fails_the_call(make_redis_bus: Make) -> None:
    a, b = await make_redis_bus("node-a"), await make_redis_bus("node-b")
    started = asyncio.Event()

    async def endless(_: Json) -> Json:
        started.set()
        await asyncio.Event().wait()
        return {}

    b.serve("endless", endless)
    call = asyncio.ensure_future(a.call("node-b", "endless", {}, timeout_s=PATIENCE_S))
    async with asyncio.timeout(PATIENCE_S):
        await started.wait()
        await b.aclose()
        with pytest.raises(NodeUnavailableError, match="died"):
            await call


async def test_a_silent_node_fails_the_call_in_time_and_a_late_answer_is_ignored(
    make_redis_bus: Make,
) -> None:
    a, b = await make_redis_bus("node-a"), await make_redis_bus("node-b")
    release = asyncio.Event()

    async def slow(_: Json) -> Json:
        await release.wait()
        return {"late": True}

    async def quick(_: Json) -> Json:
        return {"late": False}

    b.serve("slow", slow)
    b.serve("quick", quick)
    with pytest.raises(NodeUnavailableError, match="did not answer"):
        await a.call("node-b", "slow", {}, timeout_s=0.1)
    release.set()
    assert await a.call("node-b", "quick", {}) == {"late": False}
    assert not a._calls


async def test_a_process_holds_one_subscription_connection_for_all_its_taps(
    redis_server: RedisServer,
) -> None:
    async with running(redis_server) as bus, contextlib.AsyncExitStack() as stack:
        taps = [await stack.enter_async_context(bus.attach(f"t{n}")) for n in range(150)]
        taps += [await stack.enter_async_context(bus.attach("shared")) for _ in range(50)]
        for n in range(150):
            await bus.publish(f"t{n}", {"n": n})
        await bus.publish("shared", {"n": -1})
        assert [(await take(tap)).data["n"] for tap in taps] == [*range(150), *[-1] * 50]
        probe = await stack.enter_async_context(Redis.from_url(redis_server.url))
        clients = [c for c in await probe.client_list() if c["name"] == "noosphere-node-a"]
        assert len(clients) <= 3
        # The two permanent channels, and one for each topic.
        assert [int(c["sub"]) for c in clients if int(c["sub"])] == [153]


async def test_channels_nobody_follows_are_unsubscribed_in_the_end(
    redis_server: RedisServer,
) -> None:
    async with (
        running(redis_server) as bus,
        Redis.from_url(redis_server.url) as probe,
        bus.attach("kept") as tap,
    ):
        for _ in range(20):
            async with bus.attach("brief"), bus.attach("brief"):
                pass
        kept = [b"noosphere:topic:kept"]
        async with asyncio.timeout(PATIENCE_S):
            while await probe.pubsub_channels("*topic*") != kept:  # noqa: ASYNC110 - no event tells.
                await asyncio.sleep(0.01)
        async with bus.attach("brief") as again:
            await bus.publish("brief", {})
            await bus.publish("kept", {})
            await take(again)
            await take(tap)
            assert not tap.lost()


async def test_a_killed_node_is_missed_sooner_than_one_that_stalls(
    redis_server: RedisServer,
) -> None:
    async with (
        running(redis_server) as bus,
        running(redis_server, "killed") as killed,
        running(redis_server, "stalled") as stalled,
    ):
        assert await bus.nodes() == {"node-a", "killed", "stalled"}
        # Both stop beating; the connections of one break, as those of a process that ended do.
        await killed._tasks.aclose()
        await stop_beating(stalled)
        async with asyncio.timeout(PATIENCE_S):
            while "killed" in (alive := await bus.nodes()):  # noqa: ASYNC110 - no event tells.
                await asyncio.sleep(0.05)
            assert alive == {"node-a", "stalled"}
            while "stalled" in (alive := await bus.nodes()):  # noqa: ASYNC110 - no event tells.
                await asyncio.sleep(0.05)
        assert alive == {"node-a"}


@pytest.mark.parametrize("outage", ["flush", "restart"])
async def test_nobody_is_taken_for_dead_because_redis_forgot(
    redis_server: RedisServer, outage: str
) -> None:
    async with (
        running(redis_server) as bus,
        running(redis_server, "node-b") as other,
        Redis.from_url(redis_server.url) as probe,
    ):
        assert await bus.nodes() == {"node-a", "node-b"}
        # It comes back late.
        await stop_beating(other)
        if outage == "restart":
            await redis_server.kill()
            await redis_server.start()
        await probe.flushall()
        assert await bus.nodes() == {"node-a", "node-b"}
        async with asyncio.timeout(PATIENCE_S):
            while not await probe.zscore("noosphere:nodes", "node-a"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await bus.nodes() == {"node-a", "node-b"}
        assert await other.nodes() == {"node-a", "node-b"}


async def test_who_does_not_come_back_after_an_outage_is_dead_in_the_end() -> None:
    liveness = Liveness(trust_s=0.05)
    assert liveness.judge({"a", "b"}) == {"a", "b"}
    assert liveness.judge({"a"}) == {"a"}
    assert liveness.judge({"a", "b"}) == {"a", "b"}
    liveness.doubt()
    assert liveness.judge(set()) == {"a", "b"}
    assert liveness.judge({"c"}) == {"a", "b", "c"}
    async with asyncio.timeout(PATIENCE_S):
        while (alive := liveness.judge({"a"})) != {"a"}:
            assert alive == {"a", "b", "c"}
            await asyncio.sleep(0.01)


async def test_a_node_that_beats_knows_that_it_was_not_missed(redis_server: RedisServer) -> None:
    time = asyncio.get_running_loop().time
    async with running(redis_server) as bus:
        async with Redis.from_url(redis_server.url) as probe:
            since = bus.unbroken_since()
            await bus._nodes.beat()
            assert bus.unbroken_since() == since
            # Asking who is alive is no heartbeat.
            await stop_beating(bus)
            await bus.nodes()
            assert bus._nodes._pulse._sent_at is not None
            bus._nodes._pulse._sent_at -= 60
            stalled = time()
            assert bus.unbroken_since() >= stalled
            await bus._nodes.beat()
            again = bus.unbroken_since()
            assert again >= stalled
            await bus._nodes.beat()
            assert bus.unbroken_since() == again
            await probe.flushall()
            forgotten = time()
            await bus._nodes.beat()
            assert bus.unbroken_since() >= forgotten
        await redis_server.kill()
        with pytest.raises(BusUnavailableError):
            await bus._nodes.beat()
        missed = time()
        assert bus.unbroken_since() >= missed


async def test_heartbeats_are_unbroken_from_the_first_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, now = asyncio.get_running_loop(), 100.0
    monkeypatch.setattr(loop, "time", lambda: now)
    pulse = Pulse(late_s=2.5)
    assert pulse.unbroken_since() == 100.0
    pulse.beat(99.0, is_known=False)
    for now in (101.0, 102.0, 104.0):
        pulse.beat(now - 0.4, is_known=True)
        assert pulse.unbroken_since() == 100.0
    now = 106.0
    assert pulse.unbroken_since() == 100.0
    # Redis may have noted the one as it was sent, and the other as it was answered.
    now = 106.2
    assert pulse.unbroken_since() == 106.2
    pulse.beat(106.1, is_known=True)
    now = 107.0
    assert pulse.unbroken_since() == 106.2
    pulse.miss()
    assert pulse.unbroken_since() == 107.0
    pulse.beat(107.0, is_known=True)
    now = 108.0
    assert pulse.unbroken_since() == 107.0
