"""Logs in both forms: what a record says, what was given with it, and exceptions."""

import json
import logging
import sys
from typing import Any

import pytest

from app.logs import Json, Text


def _record(message: str, *args: Any, failed: bool = False, **extra: Any) -> logging.LogRecord:
    exc_info = None
    if failed:
        try:
            raise ValueError("wrong")
        except ValueError:
            exc_info = sys.exc_info()
    record = logging.getLogger("noosphere.test").makeRecord(
        "noosphere.test", logging.WARNING, __file__, 1, message, args, exc_info, extra=extra
    )
    record.created = 1_700_000_000.25
    return record


def test_a_record_is_one_json_object_on_one_line() -> None:
    line = Json().format(_record("%d of\n%s", 3, "four", topic="a:1", at={1}))
    assert "\n" not in line
    assert json.loads(line) == {
        "event": "3 of\nfour",
        "level": "warning",
        "logger": "noosphere.test",
        "topic": "a:1",
        "at": "{1}",
        "timestamp": "2023-11-14T22:13:20.250000Z",
    }


def test_an_exception_is_part_of_the_object() -> None:
    found = json.loads(Json().format(_record("failed", failed=True)))
    assert found["event"] == "failed"
    assert found["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert found["exception"].splitlines()[-1] == "ValueError: wrong"


def test_text_that_no_encoding_has_a_form_for_is_written_all_the_same() -> None:
    line = Json().format(_record("half \ud83d of a pair", name_="\udc80"))
    line.encode("ascii")
    assert json.loads(line)["event"] == "half \ud83d of a pair"


def test_people_read_a_line_with_the_exception_below() -> None:
    lines = Text(is_coloured=False).format(_record("failed", failed=True, id="m_1")).splitlines()
    assert lines[0] == "2023-11-14T22:13:20.250000Z [warning ] failed [noosphere.test] id='m_1'"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: wrong"


@pytest.mark.parametrize("is_coloured", [True, False])
def test_only_a_terminal_gets_colours(is_coloured: bool) -> None:
    line = Text(is_coloured=is_coloured).format(_record("hello"))
    assert ("\x1b[" in line) is is_coloured
    assert "hello" in line
    assert "color_message" not in Json().format(_record("hello", color_message="x"))
