"""Counts of what sandboxes of this process did since it began, for whoever watches it."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.sandboxes.live import Live

_BEGUN_S = 300.0


class Durations:
    """Durations in seconds, by the least of `bounds_s` they do not exceed; the last has none."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds


_CREATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_EXECUTIONS_S = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class Totals:
    """What was made and run. `creations` are by whether it was ready before: `warm`, `cold`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[str, float] = {}
        self.creations = {"warm": Durations(_CREATIONS_S), "cold": Durations(_CREATIONS_S)}
        self.executions: dict[str, int] = {}
        self.execution_seconds = Durations(_EXECUTIONS_S)
        # Harmful files found, by what found them, and how many are kept on this server's disk.
        self.findings: dict[str, int] = {}
        self.quarantine_files = 0

    def begin(self, sandbox_id: str) -> None:
        """Note that a sandbox is going to be made; nothing more is heard of one that fails."""
        at = self._clock()
        self._begun = {key: t for key, t in self._begun.items() if at - t < _BEGUN_S}
        self._begun[sandbox_id] = at

    def added(self, live: "Live") -> None:
        """Count a sandbox that was made; one that was taken up or resumed did not begin here."""
        begun = self._begun.pop(live.sandbox_id, None)
        if begun is not None:
            kind = "cold" if live.driver_id == live.sandbox_id else "warm"
            self.creations[kind].observe(self._clock() - begun)

    def quarantined(self, engine: str) -> None:
        """Count a file that was found harmful and put in quarantine."""
        self.findings[engine] = self.findings.get(engine, 0) + 1
        self.quarantine_files += 1

    def executed(self, reason: str, seconds: float) -> None:
        """Count an execution that ended, and how long it ran."""
        self.executions[reason] = self.executions.get(reason, 0) + 1
        self.execution_seconds.observe(max(0.0, seconds))


TOTALS = Totals()
