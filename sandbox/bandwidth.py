"""A limit of bytes a second, held by a token bucket."""

import asyncio


class Bandwidth:
    """Bytes a second for everything that takes from it together; None: as many as there are.

    Up to a quarter of a second's worth, at least `burst`, passes at once after a pause. Those who
    wait are served in the order they came.
    """

    def __init__(self, bytes_per_s: int | None = None, *, burst: int = 16 * 1024) -> None:
        self._rate = bytes_per_s
        self._burst = burst
        self._level = 0.0
        self._at = 0.0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def bytes_per_s(self) -> int | None:
        """The limit; setting it holds for those who wait already."""
        return self._rate

    @bytes_per_s.setter
    def bytes_per_s(self, value: int | None) -> None:
        self._refill()
        self._rate = value
        self._changed.set()

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._rate is not None:
            most = max(self._rate / 4, self._burst)
            self._level = min(most, self._level + (now - self._at) * self._rate)
        self._at = now

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may pass. Cancelled, it has taken none."""
        if self._rate is None:
            return
        async with self._turn:
            while self._rate is not None:
                self._refill()
                # A piece larger than the bucket passes on credit, which the next ones wait for.
                if self._level > 0:
                    self._level -= count
                    return
                self._changed.clear()
                try:
                    async with asyncio.timeout((1 - self._level) / self._rate):
                        await self._changed.wait()
                except TimeoutError:
                    continue
