"""How often a growing text is sent: at a steady pace, and less often while the process is late."""

_LATE_S = 0.02
"""Lateness that says nothing yet: a loop that serves many is a little late with each of them."""

_STRETCH = 4.0
_MEMORY = 0.3
LONGEST_S = 0.2
"""The longest window, in seconds."""


class Pace:
    """The window in which the pieces of one text are gathered: `base_s` seconds, or longer.

    A loop with more to do than it can wakes its sleepers late. Beyond 20 ms the window grows by
    four times what they were late of late, up to 0.2 s: each sending gathers more, so that all
    together cost less, and what was late becomes coarser instead of later and later. A single late
    wake-up (a collection of garbage, say) changes nothing, only one that follows another.
    """

    __slots__ = ("_base_s", "_before_s", "_late_s")

    def __init__(self, base_s: float) -> None:
        self._base_s = base_s
        self._before_s = self._late_s = 0.0

    @property
    def window_s(self) -> float:
        """The window that is due now."""
        late_s = self._late_s - _LATE_S
        if late_s <= 0:
            return self._base_s
        return max(self._base_s, min(LONGEST_S, self._base_s + _STRETCH * late_s))

    @property
    def is_stretched(self) -> bool:
        """Whether the window is longer than it would be in time."""
        return self._late_s > _LATE_S

    def woke(self, late_s: float) -> None:
        """Count one wake-up that came `late_s` seconds after its time."""
        lasting_s, self._before_s = min(late_s, self._before_s), late_s
        self._late_s += _MEMORY * (lasting_s - self._late_s)
