"""Clients that hop between processes, and processes that end, stall or are killed meanwhile."""

import asyncio
import random
import signal
from collections.abc import Iterator

import pytest

from tests.api.faults.redis import Redis
from tests.api.faults.world import World, living
from tests.api.following import following
from tests.api.transports import TRANSPORTS
from tests.product import Product
from tests.servers import require

pytestmark = [pytest.mark.mysql, pytest.mark.redis, pytest.mark.timeout(300)]
SERVERS = ("a", "b")
# A task that is taken from so many dead workers, and from one more, is given up.
_RETRIES = 3


@pytest.fixture(scope="module")
def running_world(
    tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str
) -> Iterator[World]:
    require("redis")
    made = World(tmp_path_factory.mktemp("world"), mysql_module_url, Redis())
    for name in (*SERVERS, "w"):
        made.add(name)
    with living(made):
        yield made


@pytest.fixture
def world(running_world: World) -> World:
    """Two servers and a worker; all of them run tasks."""
    running_world.start()
    return running_world


async def test_clients_that_come_back_200_times_read_one_exact_text(world: World) -> None:
    async with world.telling("a") as telling:
        staying = telling.follower("a")
        clients = [
            telling.restless(random.Random(name), "a", transport=transport)
            for name, transport in TRANSPORTS.items()
        ]
        async with following(staying, *clients):
            for client in clients:
                await client.until(lambda client=client: client.connections >= 200)  # type: ignore[misc]
            telling.story.end()
            text = await telling.check(staying, *clients)
    assert len(text) > 200
    assert [client.resets for client in (staying, *clients)] == [1] * 5


async def test_clients_that_hop_between_servers_read_one_exact_text(world: World) -> None:
    async with world.telling("a") as telling:
        chance = random.Random(7)
        clients = [
            telling.restless(chance, *SERVERS, transport=transport)
            for transport in (*TRANSPORTS.values(), *TRANSPORTS.values())
        ]
        async with following(*clients):
            for client in clients:
                await client.until(lambda client=client: client.connections >= 20)  # type: ignore[misc]
            telling.story.end()
            await telling.check(*clients)
    assert [client.resets for client in clients] == [1] * len(clients)


@pytest.mark.parametrize("varies", [False, True], ids=["same-again", "differs"])
async def test_an_answer_whose_writer_is_killed_goes_on_elsewhere(
    world: World, varies: bool
) -> None:
    async with world.telling("a", varies=varies) as telling:
        chance = random.Random(9)
        clients = [telling.restless(chance, *SERVERS), telling.follower(*SERVERS)]
        async with following(*clients):
            await clients[0].until_written(telling.reply, 120)
            writer = await world.writer_of(telling.reply)
            await asyncio.to_thread(world.by_name[writer].kill)
            await telling.told_again(2)
            await telling.hears_on(*clients)
            telling.story.end()
            text = await telling.check(*clients)
    assert ("/2" in text) == varies
    # Where the second writer goes on otherwise, clients are told to begin anew.
    assert max(client.resets for client in clients) == 1 + varies


async def test_an_answer_whose_writers_are_killed_too_often_fails_with_what_was_written(
    world: World,
) -> None:
    async with world.telling("a") as telling, asyncio.TaskGroup() as group:
        client = telling.follower(*SERVERS)
        restarts: dict[Product, asyncio.Task[Product]] = {}
        async with following(client):
            for telling_number in range(1, _RETRIES + 2):
                await telling.told_again(telling_number)
                await telling.hears_on(client)
                writer = world.by_name[await world.writer_of(telling.reply)]
                if writer in restarts:
                    # A server runs tasks before it listens.
                    await restarts[writer]
                known = client.texts[telling.reply]
                await asyncio.to_thread(writer.kill)
                # It may be the one that goes on: its tasks are its own when it comes back.
                restart = asyncio.to_thread(writer.start, within_s=150)
                restarts[writer] = group.create_task(restart)
            text = await telling.check(client, status="FAILED")
    assert text.startswith(known)
    assert telling.story.text.startswith(text)
    assert client.resets == 1


async def test_a_writer_that_stalls_for_long_is_replaced_and_cannot_interfere(
    world: World,
) -> None:
    async with world.telling("a", varies=True) as telling:
        name = await world.writer_of(telling.reply)
        client = telling.restless(random.Random(3), *(s for s in SERVERS if s != name))
        writer = world.by_name[name]
        async with following(client):
            await client.until_written(telling.reply, 120)
            assert writer.process is not None
            writer.process.send_signal(signal.SIGSTOP)
            try:
                await telling.told_again(2)
                await telling.hears_on(client)
            finally:
                writer.process.send_signal(signal.SIGCONT)
            while "lease lost" not in writer.output():
                # Now both write.
                await telling.moves_on(100)
                await telling.hears_on(client)
            telling.story.end()
            text = await telling.check(client)
    assert "/2" in text
    assert client.resets == 2


async def test_a_server_that_is_stopped_sends_its_clients_to_another(world: World) -> None:
    async with world.telling("a") as telling:
        clients = [
            telling.follower("b", "a", transport=transport) for transport in TRANSPORTS.values()
        ]
        async with following(*clients):
            await telling.hears_on(*clients)
            assert [client.connections for client in clients] == [1] * len(clients)
            assert await asyncio.to_thread(world.by_name["b"].stop) == 0
            await telling.hears_on(*clients)
            telling.story.end()
            await telling.check(*clients)
    assert [client.resets for client in clients] == [1] * len(clients)
    assert all(client.connections > 1 for client in clients)
