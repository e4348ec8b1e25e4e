"""Counts in fixed windows of time, in the memory of one process."""

import time

from services.events.base import Spent

_CLEAN_AT = 1_024


class Windows:
    """Counts by name, each in a window that its first hit began.

    Windows that ended are dropped as the table doubles.
    """

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}
        self._clean_at = _CLEAN_AT

    def hit(self, name: str, window_s: float) -> int:
        """Count one hit; gives the total so far."""
        ends_at, hits = self._window(name, window_s)
        self._set(name, ends_at, hits + 1)
        return hits + 1

    def spend(self, name: str, amount: int, limit: int, window_s: float) -> Spent:
        """Add `amount` unless the total would pass `limit`."""
        ends_at, total = self._window(name, window_s)
        left_s = ends_at - time.monotonic()
        if total + amount > limit:
            return Spent(total, left_s, is_granted=False)
        if amount:
            self._set(name, ends_at, total + amount)
        return Spent(total + amount, left_s, is_granted=True)

    def forget(self, name: str) -> None:
        """Set a count back to nothing."""
        self._counts.pop(name, None)

    def _window(self, name: str, window_s: float) -> tuple[float, int]:
        now = time.monotonic()
        ends_at, total = self._counts.get(name, (0.0, 0))
        return (now + window_s, 0) if ends_at <= now else (ends_at, total)

    def _set(self, name: str, ends_at: float, total: int) -> None:
        self._counts[name] = (ends_at, total)
        if len(self._counts) > self._clean_at:
            now = time.monotonic()
            self._counts = {key: value for key, value in self._counts.items() if value[0] > now}
            self._clean_at = max(_CLEAN_AT, 2 * len(self._counts))
