"""Conditions and ranges of requests for files, by RFC 9110."""

import re

from starlette.datastructures import Headers

from services.sandboxes.transfers import Part

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})")
_TAG = re.compile(r'(?:W/)?("[^"]*")')


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
