"""Transactions that got in each other's way: what may be run again is, the rest says so.

A database that finds transactions waiting for each other in a circle takes one of them back as a
whole; one that waited too long for a lock is given up. Either way nothing of it was kept.
"""

import asyncio
import functools
import logging
import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from services.errors import UnavailableError

log = logging.getLogger("noosphere.database")
P = ParamSpec("P")
T = TypeVar("T")

_REASONS = {1213: "deadlock", 1205: "lock_wait"}
"""By the number of MySQL's error."""

_ATTEMPTS = 4
_WAIT_S = 0.02
_RETRY_AFTER_S = 1.0

COUNTS: Counter[str] = Counter()
"""What happened in this process: `deadlock`, `lock_wait` and `busy` by what the database said,
`repeated` and `given_up` by what became of the verbs that may be run again."""


class ContendedError(UnavailableError, SQLAlchemyError):  # type: ignore[misc] # `code` is ours.
    """A transaction was taken back for the sake of others; `what` says why, as in `COUNTS`."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "Others were changing the same at that moment, so this was not done. Try again.",
            _RETRY_AFTER_S,
        )
        self.what = what


def _what(error: DBAPIError) -> str | None:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        # Another process held the file for longer than we wait. The low byte is the kind of error.
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        return "busy" if code == sqlite3.SQLITE_BUSY else None
    return _REASONS.get(cause.args[0]) if cause is not None and cause.args else None


@contextmanager
def told() -> Iterator[None]:
    """Raise ContendedError for what the database says of contention in the block."""
    try:
        yield
    except DBAPIError as error:
        what = _what(error)
        if what is None:
            raise
        COUNTS[what] += 1
        raise ContendedError(what) from error


def repeatable(verb: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Run a verb again, up to three times, when its transaction was taken back.

    For verbs that do nothing but read and open one unit of work: what was taken back has left no
    trace, and news go out after the commit alone. Between attempts they wait some hundredths of a
    second at random, so that the same transactions do not meet again. One that waited for a lock in
    vain is tried once more only, for that took long already. Raises ContendedError in the end.
    """

    @functools.wraps(verb)
    async def repeated(*args: P.args, **kwargs: P.kwargs) -> T:
        attempt = 1
        while True:
            try:
                return await verb(*args, **kwargs)
            except ContendedError as error:
                most = _ATTEMPTS if error.what == "deadlock" else 2
                if attempt >= most:
                    COUNTS["given_up"] += 1
                    log.warning("%s was given up after %d attempts", verb.__qualname__, attempt)
                    raise
            COUNTS["repeated"] += 1
            longest_s = _WAIT_S * 2.0**attempt
            await asyncio.sleep(random.uniform(longest_s / 4, longest_s))  # noqa: S311 - no secret.
            attempt += 1

    return repeated
