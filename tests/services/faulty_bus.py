"""A bus that loses what a bus may lose: signals, its log, and for a while itself."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from services.events.base import Bus, BusUnavailableError, Json, Log, News, Tap


class FaultyTap:
    """Hears nothing while its bus is deaf, and is not told."""

    def __init__(self, bus: "FaultyBus", tap: Tap) -> None:
        self._bus, self._tap = bus, tap

    async def get(self, timeout_s: float) -> News | None:
        while True:
            news = await self._tap.get(timeout_s)
            if news is None or not self._bus.is_deaf:
                return news

    def lost(self) -> bool:
        return self._tap.lost()


class FaultyBus:
    """A real bus behind faults that a test turns on and off."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.is_away = False
        self.is_deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def _require_answer(self) -> None:
        if self.is_away:
            raise BusUnavailableError("turned off by the test")

    async def publish(self, topic: str, data: Json) -> None:
        self._require_answer()
        await self._bus.publish(topic, data)

    async def append(self, topic: str, data: Json) -> int:
        self._require_answer()
        return await self._bus.append(topic, data)

    async def read(self, topic: str, after: int = 0, limit: int | None = None) -> Log:
        self._require_answer()
        return await self._bus.read(topic, after, limit)

    async def expire(self, topic: str, ttl_s: float) -> None:
        self._require_answer()
        await self._bus.expire(topic, ttl_s)

    async def present(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        self._require_answer()
        await self._bus.present(topic, member, data, ttl_s)

    async def absent(self, topic: str, member: str) -> None:
        self._require_answer()
        await self._bus.absent(topic, member)

    async def members(self, topic: str) -> Mapping[str, Json]:
        self._require_answer()
        return await self._bus.members(topic)

    @asynccontextmanager
    async def attach(self, *topics: str, **limits: int) -> AsyncIterator[FaultyTap]:
        async with self._bus.attach(*topics, **limits) as tap:
            yield FaultyTap(self, tap)
