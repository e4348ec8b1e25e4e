"""Cursors: how far a follower of a topic has come."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from services.errors import RequestError

# What a cursor may hold: a client must not make every event carry what it likes.
_MAX_TEXTS, _MAX_KEY_CHARS, _MAX_CURSOR_CHARS = 200, 60, 20_000

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a follower has come: the last event, and the length of each text still growing."""

    epoch: str
    seq: int
    offsets: Mapping[str, int]

    def encode(self) -> str:
        """Give the opaque cursor."""
        return cursor_of(self.epoch, self.seq, dict(self.offsets))

    @staticmethod
    def decode(cursor: str) -> "Position":
        """Read a cursor. Raises RequestError BAD_USER_INPUT when it is not one."""
        try:
            if len(cursor) > _MAX_CURSOR_CHARS:
                raise ValueError("too long")
            padded = cursor + "=" * (-len(cursor) % 4)
            epoch, seq, offsets = orjson.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
            is_sound = (
                isinstance(epoch, str)
                and isinstance(seq, int)
                and seq >= 0
                and isinstance(offsets, dict)
                and len(offsets) <= _MAX_TEXTS
                and all(len(key) <= _MAX_KEY_CHARS for key in offsets)
                and all(isinstance(n, int) and n >= 0 for n in offsets.values())
            )
            if not is_sound:
                raise ValueError("not a cursor")
        except (ValueError, TypeError) as error:
            raise RequestError(
                "BAD_USER_INPUT",
                "`after` is not a cursor of this subscription; "
                "take one from an event, or leave it out.",
            ) from error
        return Position(epoch, seq, offsets)


def cursor_of(epoch: str, seq: int, offsets: dict[str, int]) -> str:
    """Give the opaque cursor of a position."""
    encoded = binascii.b2a_base64(orjson.dumps([epoch, seq, offsets]), newline=False)
    return encoded.translate(_URL_SAFE, b"=").decode("ascii")


def position(after: str | None) -> Position | None:
    """Read a cursor where one is given. Raises RequestError BAD_USER_INPUT when it is not one."""
    return None if after is None else Position.decode(after)
