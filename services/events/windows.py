"""Counts in fixed windows of time, in the memory of one process."""

import time
from dataclasses import dataclass

from services.events.base import Spent

_CLEAN_AT = 1_024


@dataclass(slots=True)
class _Window:
    """A count until `ends` of the monotonic clock, which is `ends_s` seconds since 1970."""

    total: int
    ends: float
    ends_s: float


class Windows:
    """Counts by name, each in a window that its first hit began.

    Windows that ended are dropped as the table doubles.
    """

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._clean_at = _CLEAN_AT

    def hit(self, name: str, window_s: float) -> int:
        """Count one hit; gives the total so far."""
        now = time.monotonic()
        window = self._windows.get(name)
        if window is None or window.ends <= now:
            window = self._begin(name, now, window_s)
        window.total += 1
        return window.total

    def spend(self, name: str, amount: int, limit: int, window_s: float) -> Spent:
        """Add `amount` unless the total would pass `limit`."""
        now = time.monotonic()
        window = self._windows.get(name)
        if window is not None and window.ends <= now:
            window = None
        is_granted = (0 if window is None else window.total) + amount <= limit
        if is_granted and amount:
            if window is None:
                window = self._begin(name, now, window_s)
            window.total += amount
        if window is None:
            return Spent(0, None, window_s, is_granted)
        return Spent(window.total, window.ends_s, window.ends - now, is_granted)

    def forget(self, name: str) -> None:
        """Set a count back to nothing."""
        self._windows.pop(name, None)

    def _begin(self, name: str, now: float, window_s: float) -> _Window:
        window = self._windows[name] = _Window(0, now + window_s, time.time() + window_s)
        if len(self._windows) > self._clean_at:
            self._windows = {key: value for key, value in self._windows.items() if value.ends > now}
            self._clean_at = max(_CLEAN_AT, 2 * len(self._windows))
        return window
