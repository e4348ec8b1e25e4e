"""Following a durable log kept elsewhere (SQL rows with a dense seq) by the signals of a bus."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from services.events.base import Bus, News

T = TypeVar("T")


async def follow(
    bus: Bus,
    topic: str,
    *,
    after: int,
    read: Callable[[int], Awaitable[Sequence[T]]],
    decode: Callable[[News], T | None],
    seq_of: Callable[[T], int],
    idle_s: float = 5.0,
) -> AsyncGenerator[T, None]:
    """Give the records of `topic` after seq `after`: in order, without gap or duplicate, for ever.

    `read(position)` gives committed records with seq > `position`, in order and dense; it may give
    only the first of many (it is called until it gives none), never skip one. `decode` makes the
    record out of a signal, or gives None if the signal does not carry it whole (its log is then
    read); the signals are published after the commit and carry the record's seq in `data["seq"]`.
    A signal may come late, twice or never: whatever does not continue the last record given, lost
    news and `idle_s` seconds of silence all lead to a read. A lost signal costs at most `idle_s`.

    Attaches before it reads, so nothing falls between. Memory is one batch of `read` and one
    bounded tap, however slow the consumer; what overflows the tap is read again at its pace.

    Raises what `read` and `decode` raise, RuntimeError if the records are not dense, and
    BusUnavailableError if the topic cannot be attached to or the bus is closed. While a bus is down
    that will come back, records go on coming by a read every `idle_s` seconds. Consume it through
    `contextlib.aclosing`, so that it detaches at once.
    """
    last = after
    async with bus.attach(topic) as tap:
        must_read = True
        while True:
            while must_read:
                # Asked before the read: what is lost during the read must lead to another one.
                tap.lost()
                records = await read(last)
                for record in records:
                    last = _next(last, seq_of(record))
                    yield record
                must_read = bool(records)
            news = await tap.get(idle_s)
            if news is None:
                must_read = True
                continue
            seq = _seq(news)
            if seq is not None and seq <= last:
                continue
            record_of_news = decode(news) if seq == last + 1 else None
            if record_of_news is None:
                must_read = True
                continue
            last = _next(last, seq_of(record_of_news))
            yield record_of_news


def _seq(news: News) -> int | None:
    """Give the seq of the record a signal speaks of; None if it names none."""
    seq = news.data.get("seq")
    return seq if isinstance(seq, int) else None


def _next(last: int, seq: int) -> int:
    if seq != last + 1:
        raise RuntimeError(f"The log is not dense: record {seq} follows record {last}.")
    return seq
