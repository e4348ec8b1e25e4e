"""Whether no other process of the system lives: what only the last one left may conclude from."""

import asyncio
from collections.abc import Callable

from services.events.base import Bus

_ALONE_S = 5.0
"""As long nobody else must be heard of. Whoever lives says so every second, or late by a few."""


class Solitude:
    """Concludes from looks at who is alive, seconds apart, that nobody else is.

    One look tells nothing: a bus that has just forgotten everybody, or that this process has only
    just begun to use, knows of nobody yet. So all looks of `_ALONE_S` seconds must have found this
    node and no other, and the bus must have known this one all that time.
    """

    def __init__(self, bus: Bus, *, clock: Callable[[], float] | None = None) -> None:
        self._bus = bus
        self._clock = clock
        # Since when every look has found nobody else.
        self._since: float | None = None

    async def look(self) -> bool:
        """Look again, and tell whether nobody else lives. Raises BusUnavailableError."""
        clock = self._clock or asyncio.get_running_loop().time
        at = clock()
        try:
            alive = await self._bus.nodes()
        except BaseException:
            self._since = None
            raise
        if alive != {self._bus.node_id}:
            self._since = None
            return False
        if self._since is None or self._bus.unbroken_since() > self._since:
            self._since = at
        return at - self._since >= _ALONE_S
