"""Which nodes are alive, as far as a Redis can tell that may be away and may forget.

And the same question about oneself: since when nobody can have got the wrong answer.
"""

import asyncio


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
