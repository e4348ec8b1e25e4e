"""The texts that events carry: they name topic, number and moment, so that all can be checked."""

import re

TEXT_CHARS = 200
END = "|END"
STAMP = re.compile(rb"\[(\d{5})\.(\d{7})@(\d{19})\]")

_FILLER = "abcdefghijklmnopqrstuvwxyz" * 10


def event_text(topic: int, number: int, now_ns: int, *, is_last: bool) -> str:
    """Give the text of an event: 200 ASCII characters, the last event of a series marked."""
    head = f"[{topic:05d}.{number:07d}@{now_ns:019d}]"
    tail = END if is_last else ""
    start = number % 26
    return head + _FILLER[start : start + TEXT_CHARS - len(head) - len(tail)] + tail


def check_texts(text: str, *, topic: int, first: int, count: int) -> None:
    """Check a whole series, put together. Raises AssertionError naming the first difference."""
    assert len(text) == count * TEXT_CHARS, f"{len(text)} characters of {count * TEXT_CHARS}"
    for index in range(count):
        found = text[index * TEXT_CHARS : (index + 1) * TEXT_CHARS]
        number = first + index
        now_ns = int(found[15:34])
        expected = event_text(topic, number, now_ns, is_last=index == count - 1)
        assert found == expected, f"event {number} of topic {topic} is {found!r}"
