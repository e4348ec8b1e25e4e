"""A moment that lasts: nothing changes between two answers but by what is asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from models.base import now
from services.memories import finding


@contextmanager
def standing_still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stop what moves by itself.

    What is remembered fades with every moment, and is strengthened by being found.
    """
    moment = now()

    async def touch(*_: Any) -> None:
        return

    with monkeypatch.context() as patched:
        patched.setattr(finding, "now", lambda: moment)
        patched.setattr(finding, "touch", touch)
        yield
