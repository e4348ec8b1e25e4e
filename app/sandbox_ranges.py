"""Conditions and ranges of requests for files, by RFC 9110."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from starlette.datastructures import Headers

from services.errors import UserError, UserErrorCode
from services.sandboxes.conditions import ANY, Condition
from services.sandboxes.transfers import Part

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})")
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_EACH = re.compile(r'(W/)?"([^"]*)"')
_LIST = re.compile(r'(?:W/)?"[^"]*"(?:[ \t]*,[ \t]*(?:W/)?"[^"]*")*')


def read_range(headers: Headers) -> Part | None:
    """Give the part that is asked for; None for the whole file.

    What is malformed, of another unit, or asks for several parts, is answered with the whole.
    """
    found = _RANGE.fullmatch(headers.get("range", "").strip().lower())
    if found is None or not any(found.groups()):
        return None
    first, last = (int(number) if number else None for number in found.groups())
    if first is not None and last is not None and last < first:
        return None
    only_of = headers.get("if-range")
    if only_of is None:
        return Part(first, last)
    # A weak tag, or a date, which may be older than its second: no proof that it is the same.
    is_strong = len(only_of) > 1 and only_of.startswith('"') and only_of.endswith('"')
    return Part(first, last, only_of[1:-1]) if is_strong else None


def is_met(headers: Headers, tag: str) -> bool | None:
    """Tell whether `If-None-Match` lets the content be sent; None without one."""
    given = headers.get("if-none-match")
    if given is None:
        return None
    return given.strip() != "*" and tag not in _TAG.findall(given)


def read_condition(headers: Headers, *, is_write: bool) -> Condition | None:
    """Give what must hold for a file to be replaced, or read; None when nothing is asked.

    Of those who read, `is_met` looks at `If-None-Match`.

    Raises UserError INVALID for what is malformed: to overlook it would cost somebody's work.
    """
    only = _listed(headers, "if-match", is_strong=True)
    never = _listed(headers, "if-none-match", is_strong=False) if is_write else None
    since = _date(headers.get("if-unmodified-since"))
    if only is None and never is None and since is None:
        return None
    return Condition(only, never, since)


def _listed(headers: Headers, name: str, *, is_strong: bool) -> tuple[str, ...] | None:
    given = headers.getlist(name)
    if not given:
        return None
    text = ", ".join(given).strip()
    if text == ANY:
        return (ANY,)
    if _LIST.fullmatch(text) is None:
        raise UserError(
            UserErrorCode.INVALID, f'{name} has to be "*" or a list of quoted tags.', (name,)
        )
    # A weak tag never is the same by the strong comparison. No version of ours is called `*`.
    found = _EACH.findall(text)
    return tuple(tag for weak, tag in found if tag != ANY and not (weak and is_strong))


def _date(given: str | None) -> datetime | None:
    """Give a moment; None for what is no date, which is to be overlooked (RFC 9110, 13.1.4)."""
    try:
        found = parsedate_to_datetime(given or "")
    except (ValueError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
