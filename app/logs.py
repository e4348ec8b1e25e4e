"""Structured logs: JSON lines for machines, coloured lines for people."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

# What every record has, and Uvicorn's messages once more in colour; the rest was given as `extra`.
_COMMON = frozenset(vars(logging.makeLogRecord({}))) | {
    *("message", "asctime", "taskName", "color_message")
}
_COLOURS = {"DEBUG": "36", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def configure(level: str, log_format: str) -> None:
    """Send all logs of the process to standard error in one form."""
    is_terminal = sys.stderr.isatty()
    is_json = log_format == "json" or (log_format == "auto" and not is_terminal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if is_json else Text(is_coloured=is_terminal))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # One line per request of a library is noise below debugging.
    for name in ("uvicorn.access", "httpx", "httpx2", "httpcore", "openai", "alembic", "aiosqlite"):
        logging.getLogger(name).setLevel("DEBUG" if level == "debug" else "WARNING")


class Json(logging.Formatter):
    """One JSON object a record: `event`, `level`, `logger`, what was given as extra, `timestamp`.

    `exception` and `stack` are there if the record has them. Values JSON has no form for are shown
    as Python shows them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the line, without its end."""
        line = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_extras(record),
            "timestamp": _time(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=repr)


class Text(logging.Formatter):
    """One line a record, and what is known of an exception below it."""

    def __init__(self, *, is_coloured: bool) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """Give the line, without its end."""
        level = self._in(_COLOURS.get(record.levelname, "0"), f"{record.levelname.lower():<8}")
        given = "".join(
            f" {self._in('36', name)}={value!r}" for name, value in _extras(record).items()
        )
        lines = [
            f"{self._in('2', _time(record))} [{level}] {self._in('1', record.getMessage())}"
            f" [{self._in('34', record.name)}]{given}"
        ]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        if record.stack_info:
            lines.append(record.stack_info)
        return "\n".join(lines)

    def _in(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_coloured else text


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _COMMON}


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
