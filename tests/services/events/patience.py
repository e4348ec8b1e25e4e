"""How long tests of buses wait, and for what."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from services.events.base import Bus, Log, News, Tap

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
