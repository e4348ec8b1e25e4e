"""How late the agent's loop is, and how much of that was taken from the whole sandbox.

A sandbox that is frozen stands still as a whole, and its executions' time with it. An agent that
is late because others hold the processor is another matter: they may be the very ones whose time
is up, and would have ever more of it.
"""

import time

# Nanoseconds on a processor, nanoseconds of waiting for one, and how often it had one.
SCHEDULED = "/proc/self/schedstat"
EVERY_S = 1.0


class Lateness:
    """Tells at each turn how long the sandbox was frozen since the last one."""

    def __init__(self, path: str = SCHEDULED) -> None:
        self.path = path
        self.last_turn = self.last_look = time.monotonic()
        self.waited = self.waited_s()

    def waited_s(self) -> float:
        """Seconds for which this process has waited for a processor; 0 if no kernel tells."""
        try:
            with open(self.path, "rb") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, LookupError, ValueError):
            return 0.0

    def turn(self, now: float, expected_s: float) -> float:
        """Seconds beyond those expected since the last turn, without those of waiting for a
        processor; these are known to the second, so that most turns do without a look."""
        lost = now - self.last_turn - expected_s
        self.last_turn = now
        if now - self.last_look >= EVERY_S:
            before, self.waited, self.last_look = self.waited, self.waited_s(), now
            lost -= self.waited - before
        return lost
