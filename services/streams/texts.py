"""Texts that grow in the log of a topic: appends with an offset in characters."""

import time
from collections.abc import Sequence

from services.base import Deps
from services.events.base import BusUnavailableError, News


async def append_text(deps: Deps, topic: str, key: str, offset: int, text: str) -> int:
    """Add to a growing text: kept by the bus, then sent to followers. Gives its number in the log.

    Raises BusUnavailableError.
    """
    at = round(time.time(), 3)
    return await deps.bus.append(topic, {"key": key, "offset": offset, "text": text, "at": at})


async def read_text(deps: Deps, topic: str, key: str, stored: str) -> str:
    """Give a growing text: what is stored of it, and what the bus, if it answers, has beyond."""
    return extend(stored, await kept(deps, topic), key)


async def resume_text(deps: Deps, topic: str, key: str, stored: str) -> tuple[str, bool]:
    """Give a growing text as it was sent, for another writer to go on with.

    The second value is False when more may have been sent than is known: the log was lost. Raises
    BusUnavailableError.
    """
    entries = (await deps.bus.read(topic)).entries
    ends = [end(news) for news in entries if news.data.get("key") == key]
    text = extend(stored, entries, key)
    return text, not stored or len(text) <= max(ends, default=0)


async def kept(deps: Deps, topic: str) -> Sequence[News]:
    """Give the appends the bus has kept; none when it does not answer."""
    try:
        return (await deps.bus.read(topic)).entries
    except BusUnavailableError:
        # The writer stores what it cannot send.
        return ()


def end(news: News) -> int:
    """Give the length of a text up to the end of an append."""
    return int(news.data["offset"]) + len(news.data["text"])


def extend(text: str, entries: Sequence[News], key: str) -> str:
    """Give `text` with what the appends to `key` have beyond it."""
    for news in entries:
        if news.data.get("key") == key and news.data["offset"] <= len(text):
            text += news.data["text"][len(text) - news.data["offset"] :]
    return text
