"""Who is present: the same promises on every bus, and over the death of processes and of Redis."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.events.base import Bus, BusUnavailableError, Tap
from services.events.redis import RedisBus
from tests.services.events.conftest import MakeBus
from tests.services.events.patience import PATIENCE_S, patience, take
from tests.services.events.redis_server import RedisServer

MakeRedis = Callable[..., Awaitable[RedisBus]]
TTL_S = 1.0


async def until_members(bus: Bus, tap: Tap, *expected: str, topic: str = "t") -> None:
    """Read whenever the tap hears something, and only then, until these are present."""
    async with patience():
        while set(await bus.members(topic)) != set(expected):
            await tap.get(PATIENCE_S)
            tap.lost()


async def test_who_is_present_is_told_and_can_be_read(bus: Bus) -> None:
    assert await bus.members("t") == {}
    async with bus.attach("t") as tap, bus.attach("other") as other:
        await bus.present("t", "a", {"name": "Ann", "n": 1}, 30)
        await bus.present("t", "b", {"name": "Bob"}, 30)
        assert await bus.members("t") == {"a": {"name": "Ann", "n": 1}, "b": {"name": "Bob"}}
        # What is said again is no news; what is carried may change.
        await bus.present("t", "b", {"name": "Bob"}, 30)
        await bus.present("t", "b", {"name": "Bob", "n": 2}, 30)
        await bus.absent("t", "a")
        await bus.absent("t", "a")
        await bus.absent("t", "nobody")
        assert await bus.members("t") == {"b": {"name": "Bob", "n": 2}}
        told = [(n.seq, n.data["member"], n.data["is_present"]) for n in await take(tap, 4)]
        assert told == [(0, "a", True), (0, "b", True), (0, "b", True), (0, "a", False)]
        await bus.publish("t", {"is_last": True})
        assert (await take(tap, 1))[0].data == {"is_last": True}
        assert await other.get(0) is None
    assert await bus.members("other") == {}
    # Nothing of it is a log.
    assert (await bus.read("t")).head == 0


async def test_names_may_hold_anything_but_nul(bus: Bus) -> None:
    names = ["", " ", ":", "a:b", "한국", 'quote"\\', "%s", "a\nb", "x" * 1_000]
    for name in names:
        await bus.present(f"t{name}", name, {"name": name}, 30)
    for name in names:
        assert await bus.members(f"t{name}") == {name: {"name": name}}
        await bus.absent(f"t{name}", name)
        assert await bus.members(f"t{name}") == {}
    for topic, member, ttl_s in (("t\0", "a", 1), ("t", "\0", 1), ("t", "a", 0), ("t", "a", 4_000)):
        with pytest.raises(ValueError, match=r"NUL|time"):
            await bus.present(topic, member, {}, ttl_s)


async def test_many_are_present_at_many_topics(bus: Bus) -> None:
    await asyncio.gather(*(bus.present(f"t{n % 7}", f"m{n}", {"n": n}, 30) for n in range(1_000)))
    for topic in range(7):
        expected = {f"m{n}": {"n": n} for n in range(1_000) if n % 7 == topic}
        assert await bus.members(f"t{topic}") == expected
    await asyncio.gather(*(bus.absent(f"t{n % 7}", f"m{n}") for n in range(1_000)))
    assert [await bus.members(f"t{topic}") for topic in range(7)] == [{}] * 7


async def test_a_closed_bus_has_no_members_and_takes_none(make_bus: MakeBus) -> None:
    bus = await make_bus()
    await bus.present("t", "a", {}, 30)
    await bus.aclose()
    for call in (bus.present("t", "b", {}, 30), bus.absent("t", "a"), bus.members("t")):
        with pytest.raises(BusUnavailableError):
            await call


# ---- many processes


@pytest.mark.redis
async def test_members_of_all_processes_are_one_crowd(make_redis_bus: MakeRedis) -> None:
    first, second = await make_redis_bus("a"), await make_redis_bus("b")
    async with first.attach("t") as tap:
        await first.present("t", "one", {"n": 1}, 30)
        await second.present("t", "two", {"n": 2}, 30)
        assert await first.members("t") == await second.members("t")
        assert await first.members("t") == {"one": {"n": 1}, "two": {"n": 2}}
        # A process that stops says goodbye.
        await second.aclose()
        told = [(n.data["member"], n.data["is_present"]) for n in await take(tap, 3)]
        assert told == [("one", True), ("two", True), ("two", False)]
    assert set(await first.members("t")) == {"one"}


@pytest.mark.redis
async def test_members_of_a_dead_process_vanish_and_whoever_follows_is_told(
    make_redis_bus: MakeRedis,
) -> None:
    alive, dead = await make_redis_bus("a"), await make_redis_bus("b")
    # The follower has no member of its own there: who looks is not who is looked at.
    async with alive.attach("t") as tap, alive.attach("u") as other:
        await dead.present("t", "one", {}, TTL_S)
        await dead.present("u", "one", {}, TTL_S)
        await alive.present("t", "mine", {}, TTL_S)
        await until_members(alive, tap, "one", "mine")
        # As SIGKILL does it: nobody says anything any more.
        await dead._tasks.aclose()
        await until_members(alive, tap, "mine")
        await until_members(alive, other, topic="u")
    assert set(await alive.members("t")) == {"mine"}


@pytest.mark.redis
async def test_members_stay_however_short_their_time_is(make_redis_bus: MakeRedis) -> None:
    bus, other = await make_redis_bus("a"), await make_redis_bus("b")
    async with other.attach("t") as tap:
        await bus.present("t", "long", {}, 3_600)
        await bus.present("t", "short", {}, TTL_S)
        for member in ("long", "short"):
            assert (await take(tap, 1))[0].data == {"member": member, "is_present": True}
        # Over several of its times nothing is told of it.
        assert await tap.get(3 * TTL_S) is None
        assert not tap.lost()
        assert set(await other.members("t")) == {"long", "short"}


@pytest.mark.redis
async def test_a_redis_that_forgot_everybody_learns_of_them_again(
    redis_server: RedisServer,
) -> None:
    bus, other = RedisBus(redis_server.url, "a"), RedisBus(redis_server.url, "b")
    await bus.start()
    await other.start()
    try:
        async with other.attach("t") as tap:
            await bus.present("t", "one", {"n": 1}, TTL_S)
            await until_members(other, tap, "one")
            await bus._execute("FLUSHALL")
            assert await other.members("t") == {}
            await until_members(other, tap, "one")

            await redis_server.kill()
            with pytest.raises(BusUnavailableError):
                await bus.present("t", "two", {}, TTL_S)
            await redis_server.start()
            await until_members(other, tap, "one")
            await bus.present("t", "two", {}, TTL_S)
            await until_members(other, tap, "one", "two")
            assert (await other.members("t"))["one"] == {"n": 1}
    finally:
        await bus.aclose()
        await other.aclose()


@pytest.mark.redis
async def test_who_leaves_while_redis_is_away_is_gone_when_it_is_back(
    redis_server: RedisServer,
) -> None:
    bus = RedisBus(redis_server.url, "a", timeout_s=1)
    await bus.start()
    try:
        async with bus.attach("t") as tap:
            await bus.present("t", "one", {}, TTL_S)
            await bus.present("t", "two", {}, TTL_S)
            redis_server.freeze()
            with pytest.raises(BusUnavailableError):
                await bus.absent("t", "one")
            redis_server.thaw()
            await until_members(bus, tap, "two")
    finally:
        await bus.aclose()


@pytest.mark.redis
async def test_who_is_broken_off_in_leaving_has_left_all_the_same(
    make_redis_bus: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await make_redis_bus()
    members = bus._members
    run, is_asked = members._run, asyncio.Event()

    async def once_never(*arguments: object) -> object:
        if not is_asked.is_set():
            is_asked.set()
            await asyncio.Event().wait()
        return await run(*arguments)

    async with bus.attach("t") as tap:
        await bus.present("t", "one", {}, 3600)
        await bus.present("t", "two", {}, 3600)
        monkeypatch.setattr(members, "_run", once_never)
        leaving = asyncio.ensure_future(bus.absent("t", "one"))
        await is_asked.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await until_members(bus, tap, "two")
        # Who comes back under the same name stays.
        await bus.present("t", "one", {}, 3600)
        await until_members(bus, tap, "one", "two")
