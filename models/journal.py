"""Who looks on while statements are sent: the journal of one operation, or of one task.

Whoever wants to know sets a journal for what it is about to do; tasks that are started meanwhile
inherit it. Without one, a statement costs a look whether there is one.
"""

from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, event

_MOST = 200
"""Statements kept of one journal; later ones are only counted."""


class Journal:
    """Statements of one operation, with the seconds each took, in the order of their ends."""

    __slots__ = ("count", "is_open", "seconds", "sent")

    def __init__(self) -> None:
        self.sent: list[tuple[str, float]] = []
        self.count = 0
        self.seconds = 0.0
        # What was started meanwhile may outlive whoever looks on.
        self.is_open = True

    def begin(self, _dialect: Dialect, _text: str) -> Any:
        """Note that a statement is sent; give what `end` needs to know of it."""
        return perf_counter()

    def end(self, begun: Any, text: str, rows: int | None, error: BaseException | None) -> None:
        """Note that it was answered, with so many rows as far as that is known, or failed."""
        if self.is_open:
            seconds = perf_counter() - begun
            self.count += 1
            self.seconds += seconds
            if self.count <= _MOST:
                self.sent.append((text, seconds))

    def traceparent(self) -> str | None:
        """Give what others are told of who asks them, as W3C Trace Context writes it."""
        return None


journal: ContextVar[Journal | None] = ContextVar("journal", default=None)


def traceparent() -> str | None:
    """Give what others are to be told of who asks them, if anybody traces that."""
    noted = journal.get()
    return None if noted is None else noted.traceparent()


def listen(engine: Engine) -> Callable[[], None]:
    """Tell journals of what goes through SQLAlchemy as well; gives what stops that.

    Selects run straight on the driver (`models.statements`) tell them by themselves.
    """
    events: dict[str, Callable[..., None]] = {
        "before_cursor_execute": _begin,
        "after_cursor_execute": _end,
        "handle_error": _fail,
    }
    for name, heard in events.items():
        event.listen(engine, name, heard)

    def stop() -> None:
        for name, heard in events.items():
            event.remove(engine, name, heard)

    return stop


def _begin(
    connection: Connection, _cursor: Any, text: str, _values: Any, context: Any, _many: bool
) -> None:
    # Selects run straight on the driver have no context, and tell by themselves.
    noted = None if context is None else journal.get()
    if noted is not None:
        context.noosphere_begun = (noted, noted.begin(connection.dialect, text))


def _end(
    _connection: Connection, cursor: Any, text: str, _values: Any, context: Any, _many: bool
) -> None:
    noted, begun = _taken(context)
    if noted is not None:
        is_known = cursor.description is not None and cursor.rowcount >= 0
        noted.end(begun, text, cursor.rowcount if is_known else None, None)


def _fail(failure: Any) -> None:
    noted, begun = _taken(failure.execution_context)
    if noted is not None:
        noted.end(begun, failure.statement or "", None, failure.original_exception)


def _taken(context: Any) -> tuple[Journal | None, Any]:
    """Give what was begun, once: what fails after the statement itself is not its failure."""
    found: tuple[Journal | None, Any] = getattr(context, "noosphere_begun", (None, None))
    if found[0] is not None:
        context.noosphere_begun = (None, None)
    return found
