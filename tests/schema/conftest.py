"""What the tests of delivery share: a journal, an engine that shows it, and times made short."""

from collections.abc import AsyncIterator

import pytest

from schema.execution import Engine, feed
from services.events.local import LocalBus
from services.streams import following
from tests.schema.journal import Journal, make_engine


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    bus = LocalBus(None)
    await bus.start()
    try:
        yield Journal(bus)
    finally:
        await bus.aclose()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = make_engine()
    yield made
    await made.feeds.aclose()


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again, and try again, after a moment."""
    monkeypatch.setattr(following, "_IDLE_S", 0.02)
    monkeypatch.setattr(feed, "_RETRY_S", 0.01)
