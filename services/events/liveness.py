"""Which nodes are alive, as far as a Redis can tell that may be away and may forget.

And the same question about oneself: since when nobody can have got the wrong answer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from services.events.base import BusUnavailableError
from services.events.scripts import BEAT

_log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
# A node that is late and has no connection for subscriptions was killed. One that has is given more
# time: a machine that is short of CPU, or a network that is cut, delays heartbeats as well.
_LATE_S = 2.5
_TTL_S = 8.0


class Liveness:
    """Keeps those for alive that were, for a time after Redis was away or lost its data.

    Heartbeats that nobody could send or see say nothing about who is alive. So whoever was alive
    before an outage is taken to be for `trust_s` seconds after it, in which all come back.
    """

    def __init__(self, trust_s: float) -> None:
        self._trust_s = trust_s
        self._known: set[str] = set()
        self._doubtful_until = 0.0

    def doubt(self) -> None:
        """Note an outage that is under way, or was a moment ago."""
        self._doubtful_until = asyncio.get_running_loop().time() + self._trust_s

    def judge(self, heard: set[str]) -> set[str]:
        """Give the nodes alive, of which `heard` are those whose heartbeat can be seen now."""
        if asyncio.get_running_loop().time() < self._doubtful_until:
            self._known |= heard
        else:
            self._known = heard
        return set(self._known)


class Pulse:
    """Knows since when the heartbeats of this node left nobody a reason to take it for dead.

    Redis notes a heartbeat at some moment between its sending and its answer. So two that follow
    each other are at most as far apart, in Redis, as the sending of the one and the answer to the
    other are here; that must not exceed `late_s` seconds. Moments are in the loop's time.
    """

    def __init__(self, late_s: float) -> None:
        self._late_s = late_s
        self._sent_at: float | None = None
        self._since = 0.0

    def beat(self, sent_at: float, *, is_known: bool) -> None:
        """Note a heartbeat, sent at `sent_at`, that was answered now.

        Unless Redis still knew the one before (`is_known`), others may have missed this node.
        """
        now = asyncio.get_running_loop().time()
        if not is_known or self._sent_at is None or now - self._sent_at > self._late_s:
            self._since = now
        self._sent_at = sent_at

    def miss(self) -> None:
        """Note a heartbeat that failed."""
        self._sent_at = None

    def unbroken_since(self) -> float:
        """Give the moment since which heartbeats are unbroken: now, if the last is too old."""
        now = asyncio.get_running_loop().time()
        if self._sent_at is None or now - self._sent_at > self._late_s:
            return now
        return self._since


class RedisNodes:
    """The heartbeat of this node, and the nodes whose heartbeat can be heard.

    `run(script, keys, *arguments)` runs a script, which looks below `channel_prefix` for who has a
    connection for subscriptions; `is_subscribed` tells whether this node has one.
    """

    def __init__(
        self,
        node_id: str,
        run: Callable[..., Awaitable[Any]],
        *,
        key: str,
        channel_prefix: bytes,
        is_subscribed: Callable[[], bool],
    ) -> None:
        self._node_id = node_id
        self._run = run
        self._keys = [key]
        self._channel_prefix = channel_prefix
        self._is_subscribed = is_subscribed
        self._liveness = Liveness(_TTL_S + 2 * _INTERVAL_S)
        self._pulse = Pulse(_LATE_S)
        self._has_joined = False

    async def beat(self) -> None:
        """Let the others hear of this node. Raises BusUnavailableError."""
        sent_at = asyncio.get_running_loop().time()
        try:
            is_known, _ = await self._hear(self._node_id)
        except BusUnavailableError:
            self._pulse.miss()
            raise
        self._pulse.beat(sent_at, is_known=is_known)

    async def keep(self) -> None:
        """Beat for ever, after the first beat and with subscriptions that stand."""
        self._has_joined = True
        while True:
            await asyncio.sleep(_INTERVAL_S)
            try:
                await self.beat()
            except BusUnavailableError as error:
                self._liveness.doubt()
                _log.warning("The heartbeat did not reach Redis: %s", error)

    async def alive(self) -> set[str]:
        """Give the ids of the nodes alive. Raises BusUnavailableError."""
        return (await self._hear(""))[1]

    def doubt(self) -> None:
        """Note an outage of Redis that is under way, or was a moment ago."""
        self._liveness.doubt()

    def unbroken_since(self) -> float:
        """Give the loop time since which no other node had reason to take this one for dead."""
        return self._pulse.unbroken_since()

    async def _hear(self, node_id: str) -> tuple[bool, set[str]]:
        """Beat for `node_id`, if not empty; tell whether it was known, and who is alive."""
        is_new, names = await self._run(
            BEAT,
            self._keys,
            node_id,
            round(_TTL_S * 1000),
            round(_LATE_S * 1000),
            self._channel_prefix,
        )
        heard = {name.decode() for name in names}
        is_forgotten = is_new or self._node_id not in heard
        if self._has_joined and (is_forgotten or not self._is_subscribed()):
            # Whoever is forgotten between two heartbeats is not the only one.
            self._liveness.doubt()
        return not is_forgotten, self._liveness.judge(heard)
