"""Counts in fixed windows of time, in the memory of one process."""

import time
from typing import NamedTuple

from services.events.base import Spent

_CLEAN_AT = 1_024


class _Window(NamedTuple):
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
        return self._add(name, self._present(name), 1, window_s).total

    def spend(self, name: str, amount: int, limit: int, window_s: float) -> Spent:
        """Add `amount` unless the total would pass `limit`."""
        window = self._present(name)
        is_granted = (window.total if window else 0) + amount <= limit
        if is_granted and amount:
            window = self._add(name, window, amount, window_s)
        if window is None:
            return Spent(0, None, window_s, is_granted)
        return Spent(window.total, window.ends_s, window.ends - time.monotonic(), is_granted)

    def forget(self, name: str) -> None:
        """Set a count back to nothing."""
        self._windows.pop(name, None)

    def _present(self, name: str) -> _Window | None:
        window = self._windows.get(name)
        return None if window is None or window.ends <= time.monotonic() else window

    def _add(self, name: str, window: _Window | None, amount: int, window_s: float) -> _Window:
        if window is None:
            window = _Window(0, time.monotonic() + window_s, time.time() + window_s)
        window = self._windows[name] = window._replace(total=window.total + amount)
        if len(self._windows) > self._clean_at:
            now = time.monotonic()
            self._windows = {key: value for key, value in self._windows.items() if value.ends > now}
            self._clean_at = max(_CLEAN_AT, 2 * len(self._windows))
        return window
