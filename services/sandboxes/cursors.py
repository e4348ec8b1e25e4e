"""Opaque cursors of subscriptions: what a reader has, as plain values that it cannot read."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import orjson

from services.errors import RequestError

MOST = 2**53


def encode(values: Sequence[str | int | bool]) -> str:
    """Give a cursor of some values."""
    return base64.urlsafe_b64encode(orjson.dumps(list(values))).decode().rstrip("=")


def decode(cursor: str, *kinds: type) -> list[Any]:
    """Give the values of a cursor, which are of these kinds; numbers are 0 to `MOST`.

    Raises RequestError BAD_USER_INPUT when it is no such cursor.
    """
    try:
        padded = (cursor + "=" * (-len(cursor) % 4)).encode("ascii")
        values = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if not isinstance(values, list) or tuple(type(value) for value in values) != kinds:
            raise ValueError("not a cursor")
        if any(type(value) is int and not 0 <= value <= MOST for value in values):
            raise ValueError("not a cursor")
    except (ValueError, binascii.Error) as error:
        raise RequestError(
            "BAD_USER_INPUT",
            "`after` is not a cursor of this subscription; "
            "take one from an event, or leave it out.",
        ) from error
    return values
