"""Which nodes are alive, as far as a Redis can tell that may be away and may forget."""

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
