"""A network that breaks between a server and Redis: answers go on, and stay what they are."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.api.faults.network import Network
from tests.api.faults.redis import Redis
from tests.api.faults.world import Telling, World, living
from tests.api.following import following
from tests.servers import require

# A lease is looked at every few seconds, and a round takes about one.
_ROUNDS = 100
pytestmark = [pytest.mark.mysql, pytest.mark.redis, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(require("network")["NOOSPHERE_TEST_IP"]) as made:
        yield made


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str, network: Network
) -> Iterator[World]:
    """A server beside Redis, and one that reaches it through a network; both run tasks."""
    require("redis")
    port = 6379
    redis = Redis(prefix=network.far, listen=(network.address, port))
    made = World(tmp_path_factory.mktemp("world"), mysql_module_url, redis)
    made.add("near")
    made.add("far", redis_url=f"redis://{network.address}:{port}")
    with living(made):
        yield made


@asynccontextmanager
async def told_by(world: World, writer: str, *, varies: bool = False) -> AsyncIterator[Telling]:
    """Begin stories until one falls to the writer wanted; the others stay unheard."""
    async with AsyncExitStack() as others:
        while True:
            async with AsyncExitStack() as stack:
                telling = await stack.enter_async_context(world.telling("near", varies=varies))
                found = await world.writer_of(telling.reply)
                if found != writer:
                    others.push_async_callback(stack.pop_all().aclose)
                    continue
                yield telling
                return


@pytest.mark.parametrize("writer", ["near", "far"])
@pytest.mark.parametrize("cut", ["drop", "reset"])
async def test_a_short_cut_costs_nothing(
    world: World, network: Network, cut: str, writer: str
) -> None:
    async with told_by(world, writer) as telling:
        hopping = telling.follower("near", "far")
        hopping.hop_after = 3
        followers = [telling.follower("near"), telling.follower("far"), hopping]
        async with following(*followers):
            await telling.hears_on(*followers)
            getattr(network, cut)()
            try:
                await telling.moves_on(500)
            finally:
                network.heal()
            await telling.hears_on(*followers)
            telling.story.end()
            await telling.check(*followers)
    assert [follower.resets for follower in followers] == [1, 1, 1]
    assert telling.story.tellings == 1


@pytest.mark.parametrize("varies", [False, True], ids=["same-again", "differs"])
async def test_a_writer_that_is_cut_off_for_long_is_replaced_and_cannot_interfere(
    world: World, network: Network, varies: bool
) -> None:
    """It lives, reaches the database and goes on writing; but the answer is another's."""
    async with told_by(world, "far", varies=varies) as telling:
        hopping = telling.follower("near")
        hopping.hop_after = 1
        followers = [telling.follower("near"), telling.follower("far"), hopping]
        async with following(*followers):
            await telling.hears_on(*followers)
            lost = await world.interrupted("far")
            network.drop()
            try:
                assert await world.writer_of(telling.reply, other_than="far") == "near"
                rounds = 0
                while await world.interrupted("far") < lost + 1:
                    # Now both write.
                    await telling.moves_on(100)
                    await telling.hears_on(hopping)
                    rounds += 1
                    assert rounds < _ROUNDS, world.by_name["far"].output()[-8_000:]
            finally:
                network.heal()
            await telling.hears_on(*followers)
            telling.story.end()
            text = await telling.check(*followers)
    assert telling.story.tellings == 2
    # What the first one wrote last reached nobody but the database: the second has to say so, and
    # again where it goes on otherwise.
    assert max(follower.resets for follower in followers) == 2 + varies
    assert ("/2" in text) == varies
