"""A moment that lasts: nothing changes between two answers but by what is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from models.base import now
from resolvers import rate_limits
from services.events import windows
from services.memories import finding


@contextmanager
def standing_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop what moves by itself: the clocks of budgets and memories, and that being found counts.

    A minute of points begins with what is spent first, and ends at another time until then. What
    is remembered fades with every moment, and is strengthened by being found.
    """
    moment = now()

    async def touch(*_: Any) -> None:
        return

    with monkeypatch.context() as patched:
        patched.setattr(windows, "time", SimpleNamespace(monotonic=lambda: 1.0))
        for module in (rate_limits, finding):
            patched.setattr(module, "now", lambda: moment)
        patched.setattr(finding, "touch", touch)
        yield
