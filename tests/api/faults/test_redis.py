"""A Redis that is killed, emptied or frozen while answers are written costs nobody a character."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis as Client

from tests.api.faults.redis import Redis
from tests.api.faults.world import World, living
from tests.api.following import following
from tests.servers import require

pytestmark = [pytest.mark.mysql, pytest.mark.redis, pytest.mark.timeout(300)]
_PAUSE_S = 10.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str) -> Iterator[World]:
    """A server that runs no tasks, and one that does."""
    require("redis")
    made = World(tmp_path_factory.mktemp("world"), mysql_module_url, Redis())
    made.add("a", NOOSPHERE_WORKER_IN_SERVER="false")
    made.add("b")
    with living(made):
        yield made


@pytest.mark.parametrize("is_empty", [False, True], ids=["with-its-data", "without-its-data"])
async def test_a_redis_that_is_killed_and_comes_back_costs_nothing(
    world: World, is_empty: bool
) -> None:
    async with world.telling("a") as telling:
        followers = [telling.follower("a"), telling.follower("b")]
        reconnects = await world.metric("a", "noosphere_bus_reconnects_total")
        async with following(*followers):
            await telling.hears_on(*followers)
            assert await world.metric("a", "noosphere_bus_taps") > 0
            await asyncio.to_thread(world.redis.kill)
            await telling.moves_on(150)
            await asyncio.to_thread(world.redis.start, is_empty=is_empty)
            await telling.hears_on(*followers)
            telling.story.end()
            await telling.check(*followers)
        late = telling.follower("b")
        async with following(late):
            await telling.check(late)
        assert await world.metric("a", "noosphere_bus_reconnects_total") == reconnects + 1
        assert await world.metric("a", "noosphere_bus_received_total") > 0
    assert [follower.resets for follower in followers] == [1, 1]


async def test_a_redis_that_is_frozen_for_ten_seconds_costs_nothing(world: World) -> None:
    async with world.telling("a") as telling:
        followers = [telling.follower("a"), telling.follower("b")]
        async with following(*followers):
            await telling.hears_on(*followers)
            world.redis.freeze()
            try:
                # The fault itself takes so long.
                await asyncio.sleep(_PAUSE_S)
            finally:
                world.redis.thaw()
            # Long enough for whoever takes its writer for dead.
            for _ in range(6):
                await telling.moves_on(300)
                await telling.hears_on(*followers)
            telling.story.end()
            await telling.check(*followers)
    assert [follower.resets for follower in followers] == [1, 1]
    # Nobody took the answer from its writer, who was well all the time.
    assert telling.story.tellings == 1


async def test_a_redis_that_is_flushed_again_and_again_costs_nothing(world: World) -> None:
    async with world.telling("a") as telling, Client.from_url(world.redis.url) as redis:
        staying = [telling.follower("a"), telling.follower("b")]
        late = [telling.follower("a", "b") for _ in range(3)]
        for follower in late:
            follower.hop_after = 2
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(following(*staying))
            for number, follower in enumerate(late, 1):
                await telling.hears_on(*staying)
                await redis.flushall()
                await stack.enter_async_context(following(follower))
                await telling.hears_on(*staying, *late[:number])
            telling.story.end()
            await telling.check(*staying, *late)
    assert [follower.resets for follower in staying] == [1, 1]
    # Who comes back to an empty log is told to begin anew: at most once for each flush it saw.
    assert all(1 <= follower.resets <= 3 - index for index, follower in enumerate(late))
    assert telling.story.tellings == 1
