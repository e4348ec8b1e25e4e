"""Checks of what people type, with answers that say what to change."""

import re
import unicodedata

from services.errors import UserError, UserErrorCode

_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(
    value: str | None, name: str, *, max_chars: int, min_chars: int = 1, multiline: bool = True
) -> str:
    """Give `value` if it is fit to be stored.

    Raises UserError REQUIRED when it is empty or blank (and `min_chars` > 0), LIMIT when it is
    longer
    than `max_chars` characters, INVALID when it holds NUL or half a surrogate pair, or, for a
    single line, control characters.
    """
    if value is None or (min_chars and not value.strip()):
        raise UserError(UserErrorCode.REQUIRED, f"{label(name)} must not be empty.", (name,))
    if len(value) > max_chars:
        raise UserError(
            UserErrorCode.LIMIT,
            f"{label(name)} has {len(value):,} characters; at most {max_chars:,} are allowed.",
            (name,),
        )
    if len(value.strip()) < min_chars:
        raise UserError(
            UserErrorCode.INVALID,
            f"{label(name)} must have at least {min_chars} characters.",
            (name,),
        )
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise UserError(
            UserErrorCode.INVALID,
            f"{label(name)} contains a NUL or invalid character; remove it.",
            (name,),
        )
    if not multiline and any(unicodedata.category(char) == "Cc" for char in value):
        raise UserError(
            UserErrorCode.INVALID,
            f"{label(name)} must be a single line without control characters.",
            (name,),
        )
    return value


def mended(text: str) -> str:
    """Give a text that can be stored and sent: no half of a surrogate pair, and no NUL.

    Two halves that belong together become their character, any other becomes U+FFFD.
    """
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    # Every token of every answer passes here.
    if not text.isascii() and _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def in_range(value: float, name: str, *, low: float, high: float, unit: str = "") -> None:
    """Raise UserError INVALID unless low ≤ value ≤ high (NaN is out of every range)."""
    if not low <= value <= high:
        tail = f" {unit}" if unit else ""
        raise UserError(
            UserErrorCode.INVALID,
            f"{label(name)} must be between {low:,} and {high:,}{tail}; {value:,} is not.",
            (name,),
        )


def label(name: str) -> str:
    """Turn a parameter's name into the start of a sentence: `display_name` → `Display name`."""
    return name.replace("_", " ").capitalize()
