"""Driving a follower by the news of its topic."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from services.base import Deps
from services.streams.base import Follower

T = TypeVar("T")
# A follower that heard nothing for so long looks again, in case a signal was lost.
_IDLE_S = 15.0


def idle_s() -> float:
    """Give the seconds until the next look, the same moment for all who wait in this process.

    So that their looks can be answered by one statement.
    """
    now = asyncio.get_running_loop().time()
    left_s = _IDLE_S - now % _IDLE_S
    return left_s if left_s > _IDLE_S / 3 else left_s + _IDLE_S


async def follow(deps: Deps, follower: Follower[T]) -> AsyncGenerator[T, None]:
    """Give everything a follower gives, live, until it is over or closed.

    Consume it through `contextlib.aclosing`. Raises what the follower raises, and
    BusUnavailableError when the topic cannot be attached to or the bus is closed.
    """
    async with deps.bus.attach(follower.topic) as tap:
        items = follower.begin()
        while True:
            async with aclosing(items):
                async for item in items:
                    yield item
            if follower.is_over:
                return
            news = await tap.get(idle_s())
            is_lost = tap.lost()
            if news is not None and not is_lost:
                items = follower.take(news)
            elif is_lost or not await follower.is_current():
                items = follower.catch_up()
