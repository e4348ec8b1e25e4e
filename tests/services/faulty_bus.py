"""A bus that loses what a bus may lose: signals, its log, and for a while itself."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from services.events.base import Bus, BusUnavailableError, Json, Log, News, Spent
from services.events.hub import HubTap


class FaultyTap(HubTap):
    """Receives what its bus lets through, when and as often as it does."""

    __slots__ = ("_faults",)

    def __init__(self, bus: "FaultyBus", topics: tuple[str, ...], **limits: int) -> None:
        super().__init__(topics, **limits)
        self._faults = bus

    def offer(self, news: News, size_bytes: int) -> None:
        bus = self._faults
        if bus.is_deaf:
            return
        if bus.is_slow:
            bus.held.append((self, news, size_bytes))
            return
        for _ in range(2 if bus.doubles else 1):
            super().offer(news, size_bytes)

    def receive(self, news: News, size_bytes: int) -> None:
        """Take what was held."""
        super().offer(news, size_bytes)


class FaultyBus:
    """The bus of one process, behind faults that a test turns on and off.

    While it is `deaf` nothing reaches anybody who listens, and nobody is told; while it is `slow`
    it holds what it should deliver until `release`; when it `doubles`, all is delivered twice.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus: Any = bus
        self.is_away = False
        self.is_deaf = False
        self.is_slow = False
        self.doubles = False
        self.held: list[tuple[FaultyTap, News, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def _require_answer(self) -> None:
        if self.is_away:
            raise BusUnavailableError("turned off by the test")

    def mend(self) -> None:
        """End all faults; what was held is delivered."""
        self.is_away = self.is_deaf = self.doubles = False
        self.release()

    def release(self, *, backwards: bool = False) -> None:
        """Deliver what was held, and hold no more."""
        held, self.held, self.is_slow = self.held, [], False
        for tap, news, size_bytes in reversed(held) if backwards else held:
            tap.receive(news, size_bytes)

    def lose(self) -> None:
        """Have everybody told that something was lost."""
        self._bus._hub.lose()

    async def publish(self, topic: str, data: Json) -> None:
        self._require_answer()
        await self._bus.publish(topic, data)

    async def append(self, topic: str, data: Json) -> int:
        self._require_answer()
        return int(await self._bus.append(topic, data))

    async def read(self, topic: str, after: int = 0, limit: int | None = None) -> Log:
        self._require_answer()
        log: Log = await self._bus.read(topic, after, limit)
        return log

    async def expire(self, topic: str, ttl_s: float) -> None:
        self._require_answer()
        await self._bus.expire(topic, ttl_s)

    async def spend(self, name: str, amount: int, *, limit: int, window_s: float) -> Spent:
        self._require_answer()
        spent: Spent = await self._bus.spend(name, amount, limit=limit, window_s=window_s)
        return spent

    def spend_at_once(self, *_: object, **__: object) -> None:
        """Have everybody wait for `spend`, which may fail."""

    async def present(self, topic: str, member: str, data: Json, ttl_s: float) -> None:
        self._require_answer()
        await self._bus.present(topic, member, data, ttl_s)

    async def absent(self, topic: str, member: str) -> None:
        self._require_answer()
        await self._bus.absent(topic, member)

    async def members(self, topic: str) -> Mapping[str, Json]:
        self._require_answer()
        members: Mapping[str, Json] = await self._bus.members(topic)
        return members

    @asynccontextmanager
    async def attach(
        self, *topics: str, max_items: int = 256, max_bytes: int = 1_048_576
    ) -> AsyncIterator[FaultyTap]:
        tap = FaultyTap(self, topics, max_items=max_items, max_bytes=max_bytes)
        async with self._bus._hub.attached(tap):
            yield tap
