"""Values nobody means well with, and what no answer may ever show."""

import json
import re
from typing import Any

LONG = "x" * 1_048_576
TEXTS: dict[str, str] = {
    "empty": "",
    "blank": " \n\t ",
    "too long": LONG,
    "NUL": "a\x00b",
    "half a surrogate pair": "a\ud800b",
}
IDS: dict[str, str] = {
    "empty": "",
    "no id": "nothing",
    "10 KB": "x" * 10_240,
    "emoji": "🦆",
    "NUL": "cnv_\x00",
    "half a surrogate pair": "\ud800",
    "quotes": "' OR '1'='1",
    "percent": "%",
}
# Ordinary text of the world's scripts: it must be taken as it is.
WORDS = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "right to left": "שלום עולם مرحبا",
    "combining": "Z̸͉̈a̷l̶g̴o̵ é",
    "hangul": "안녕하세요 세계",
    "bidi marks": "a\u202eb\u2066c",
    "beyond the BMP": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
}

_LEAKS = re.compile(
    r"Traceback|File \"|sqlalchemy|sqlite3|aiosqlite|pymysql|aiomysql|OperationalError"
    r"|ProgrammingError"
    r"|SELECT |INSERT |UPDATE \w+ SET|/work/|/tmp/|/home/|/usr/lib|\.py\b|noosphere\.sqlite|argon2",
)


def assert_decent(answer: Any, *, size: int = 20_000) -> None:
    """Check that an answer shows nothing of our inside, echoes no flood and hides no bug."""
    text = json.dumps(answer)
    assert len(text) < size, f"{len(text):,} characters: {text[:300]}"
    assert '"INTERNAL"' not in text, text[:2000]
    found = _LEAKS.search(text)
    assert found is None, (found, text[:2000])


def nested(levels: int) -> Any:
    """Give lists in lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value
