"""Both buses behind one fixture, each test on a topic space of its own."""

import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from services.events.base import Bus
from services.events.local import LocalBus
from services.events.redis import RedisBus
from tests.servers import give_up, require
from tests.services.events.redis_server import RedisServer


class MakeBus(Protocol):
    """Gives a started bus that is closed after the test."""

    def __call__(self, node_id: str = "node-a", **options: Any) -> Awaitable[Bus]: ...


@pytest.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A server of this test alone: it may flush, freeze and kill it."""
    require("redis")
    if shutil.which("redis-server") is None:
        give_up("redis", "redis-server is not installed, and this test needs one of its own")
    server = RedisServer()
    try:
        await server.start()
        yield server
    finally:
        await server.aclose()


@pytest.fixture
async def make_redis_bus(redis_url: str) -> AsyncIterator[Callable[..., Awaitable[RedisBus]]]:
    prefix = f"test-{secrets.token_hex(8)}:"
    async with AsyncExitStack() as stack:

        async def make(node_id: str = "node-a", **options: Any) -> RedisBus:
            bus = RedisBus(redis_url, node_id, prefix, **options)
            stack.push_async_callback(bus.aclose)
            await bus.start()
            return bus

        yield make


@pytest.fixture
async def make_local_bus(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[LocalBus]]]:
    async with AsyncExitStack() as stack:

        async def make(node_id: str = "node-a", **options: Any) -> LocalBus:
            path = options.pop("path", tmp_path / "data" / "events.sqlite3")
            bus = LocalBus(path, node_id, **options)
            stack.push_async_callback(bus.aclose)
            await bus.start()
            return bus

        yield make


@pytest.fixture(params=["local", "memory", pytest.param("redis", marks=pytest.mark.redis)])
def make_bus(request: pytest.FixtureRequest) -> MakeBus:
    if request.param == "redis":
        make_redis: MakeBus = request.getfixturevalue("make_redis_bus")
        return make_redis
    make_local: Callable[..., Awaitable[Bus]] = request.getfixturevalue("make_local_bus")
    if request.param == "local":
        return make_local

    def make(node_id: str = "node-a", **options: Any) -> Awaitable[Bus]:
        return make_local(node_id, path=None, **options)

    return make


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    return await make_bus()
