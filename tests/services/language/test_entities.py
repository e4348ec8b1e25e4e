"""Entities: what is found, and that spans are always what they say."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.language.entities import MAX_ENTITIES, READ_CHARS, find

CASES: list[tuple[str, list[tuple[str, str, str]]]] = [
    (
        "Mail bob.smith@example.com or see https://example.com/a(b)?x=1).",
        [
            ("EMAIL", "email", "bob.smith@example.com"),
            ("URL", "https", "https://example.com/a(b)?x=1"),
        ],
    ),
    ("문의는 help@naver.com으로", [("EMAIL", "email", "help@naver.com")]),
    ("https://example.com을 봐", [("URL", "https", "https://example.com")]),
    (
        "https://ko.wikipedia.org/wiki/대한민국",
        [("URL", "https", "https://ko.wikipedia.org/wiki/대한민국")],
    ),
    (
        "Call 010-1234-5678, +82 10-1234-5678 or (02) 555-1234",
        [
            ("PHONE", "phone", "010-1234-5678"),
            ("PHONE", "phone", "+82 10-1234-5678"),
            ("PHONE", "phone", "(02) 555-1234"),
        ],
    ),
    ("1588-1234로 전화해", [("PHONE", "phone", "1588-1234")]),
    (
        "tomorrow at 5, or next Monday at 10:30 am, by 3pm",
        [
            ("DATETIME", "datetime", "tomorrow at 5"),
            ("DATETIME", "datetime", "next Monday at 10:30 am"),
            ("TIME", "time", "3pm"),
        ],
    ),
    (
        "2024-05-01T10:00:00Z, 2024-05-02, May 5, 2024; 5 May; 2 weeks ago",
        [
            ("DATETIME", "datetime", "2024-05-01T10:00:00Z"),
            ("DATE", "date", "2024-05-02"),
            ("DATE", "date", "May 5, 2024"),
            ("DATE", "date", "5 May"),
            ("DATE", "date", "2 weeks ago"),
        ],
    ),
    ("I may go, the sun is up, a second later on", []),
    (
        "내일 오후 3시에 회의, 다음 주 월요일 2시 30분까지 3시간 동안",
        [
            ("DATETIME", "datetime", "내일 오후 3시"),
            ("DATETIME", "datetime", "다음 주 월요일 2시 30분"),
            ("NUMBER", "quantity", "3시간"),
        ],
    ),
    ("오늘 저녁 7시 반에 봐", [("DATETIME", "datetime", "오늘 저녁 7시 반")]),
    (
        "2024년 5월 3일 오전 10시에 서울",
        [("DATETIME", "datetime", "2024년 5월 3일 오전 10시")],
    ),
    ("다시 해 줘, 한시간 걸려, 도시와 역시", []),
    ("세시에 만나", [("TIME", "time", "세시")]),
    (
        "$1,200.50 or 3만 5천원, 20% off, 5 km, 10,000 users, 42",
        [
            ("MONEY", "money", "$1,200.50"),
            ("MONEY", "money", "3만 5천원"),
            ("NUMBER", "percentage", "20%"),
            ("NUMBER", "quantity", "5 km"),
            ("NUMBER", "quantity", "10,000 users"),
            ("NUMBER", "number", "42"),
        ],
    ),
    ("Python 3.11.2 at 192.168.0.1, 1st, abc123", []),
    (
        "run `print(2**10)` then\n```python\nprint(1)\n```\n7",
        [
            ("CODE", "code", "print(2**10)"),
            ("CODE", "python", "print(1)"),
            ("NUMBER", "number", "7"),
        ],
    ),
    ("```\nnever closed 5", [("CODE", "code", "never closed 5")]),
    (
        "msg_01jd000000000000000000000a and 3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        [
            ("ID", "message", "msg_01jd000000000000000000000a"),
            ("ID", "uuid", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"),
        ],
    ),
    (
        "/etc/hosts, src/app/main.py, 보고서.pdf를 열고 C:\\a\\b.txt, node.js and/or x",
        [
            ("FILE", "path", "/etc/hosts"),
            ("FILE", "py", "src/app/main.py"),
            ("FILE", "pdf", "보고서.pdf"),
            ("FILE", "txt", "C:\\a\\b.txt"),
        ],
    ),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text[:30] for text, _ in CASES])
def test_what_is_found(text: str, expected: list[tuple[str, str, str]]) -> None:
    assert [(e.type, e.name, e.value) for e in find(text)] == expected


PIECES = st.sampled_from(
    [word for text, _ in CASES for word in text.split(" ") if word]
    + [
        "`",
        "``",
        "```\n",
        "~~~",
        "@",
        "://",
        "www.",
        "\x00",
        "😀",
        "é",
        "\u0301",
        "시",
        "원",
        "1.",
        ",",
    ]
)
TEXTS = st.lists(
    PIECES | st.text(max_size=8) | st.from_regex(r"\A[ -~가-힣]{0,20}\Z"), max_size=40
).flatmap(lambda parts: st.sampled_from(["", " ", "\n"]).map(lambda glue: glue.join(parts)))


@given(TEXTS)
@settings(max_examples=400, deadline=None)
@example("😀 내일 3시 `a`😀`b` x@y.zz")
@example("\x00`a`\x00")
@example("a" * (READ_CHARS - 3) + " 12345678 ")
def test_a_span_is_its_value_and_no_two_overlap(text: str) -> None:
    found = find(text)
    end = 0
    for entity in found:
        assert text[entity.start : entity.end] == entity.value
        assert end <= entity.start < entity.end <= READ_CHARS
        assert entity.value == entity.value.strip() != ""
        assert entity.type.isupper()
        assert 0 < len(entity.name) <= 100
        end = entity.end
    assert len(found) <= MAX_ENTITIES


UNITS = [
    "a",
    "1",
    "1,",
    "1-",
    "a.",
    "/a",
    "`",
    "`a",
    "a@",
    "a@a.",
    "+1",
    "(1)",
    "www.",
    "http://(",
    ")",
    "월",
    "1월",
    "다음",
    "next",
    "1만",
    "in\ta\tfew",
    "오후",
    "a-",
    "\\a",
    ".py",
    "a.py",
    "1.",
    "12/",
    "pln_",
    "0",
    "```\n",
    "~~~\n```\n",
    "전",
    "3일전",
    "1:1",
    "$",
    ",",
]


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_reading_takes_time_linear_in_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        return min(_timed(text) for _ in range(3))

    # Eight times as much takes about eight times as long; quadratic would be 64 times.
    assert seconds(8_000) <= 32 * max(seconds(1_000), 0.001)


def _timed(text: str) -> float:
    begun = time.perf_counter()
    find(text)
    return time.perf_counter() - begun


def test_no_more_than_the_beginning_is_read() -> None:
    text = "x " * (READ_CHARS // 2) + "a@example.com"
    assert find(text) == []
    assert len(find("7 " * 1_000)) == MAX_ENTITIES
