"""Buses on a Redis of the test's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from services.events.base import News, Tap
from services.events.redis import RedisBus
from tests.services.events.redis_server import RedisServer

Make = Callable[..., Awaitable[RedisBus]]
PATIENCE_S = 60.0


@contextlib.asynccontextmanager
async def running(
    server: RedisServer, node_id: str = "node-a", timeout_s: float = 5.0
) -> AsyncIterator[RedisBus]:
    bus = RedisBus(server.url, node_id, timeout_s=timeout_s)
    await bus.start()
    try:
        yield bus
    finally:
        await bus.aclose()


async def until_lost(tap: Tap) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not tap.lost():
            await tap.get(PATIENCE_S)


async def take(tap: Tap) -> News:
    news = await tap.get(PATIENCE_S)
    assert news is not None
    return news


async def stop_beating(bus: RedisBus) -> None:
    (beating,) = [t for t in bus._tasks._tasks if t.get_name() == "redis heartbeat"]
    beating.cancel()
    await asyncio.wait({beating})
