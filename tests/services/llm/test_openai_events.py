"""The event stream of chat completions, cut anywhere."""

import pytest

from services.llm.openai_events import Events

STREAM = (
    b": hello\n\n"
    b'data: {"a": "\xed\x95\x9c"}\n\n'
    b"event: more\nid: 7\nretry: 10\ndata:first\ndata: second\ndata:  third\n\n"
    b"\n\n"
    b"event: nothing\n\n"
    b"data:\n\n"
    b"unknown: field\ndata\ndata: x: y\n: comment within\n\n"
    b"data: [DONE]\n\n"
    b"data: unfinished\n"
)
DATA = [
    b'{"a": "\xed\x95\x9c"}',
    b"first\nsecond\n third",
    b"\nx: y",
    b"[DONE]",
]


def read(pieces: list[bytes]) -> list[bytes]:
    events = Events()
    return [data for piece in pieces for data in events.feed(piece)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_is_read_the_same_wherever_it_is_cut(end: bytes) -> None:
    stream = STREAM.replace(b"\n", end)
    assert read([stream]) == DATA
    assert read([stream[i : i + 1] for i in range(len(stream))]) == DATA
    for size in range(2, 40):
        assert read([stream[i : i + size] for i in range(0, len(stream), size)]) == DATA
    for cut in range(len(stream) + 1):
        assert read([stream[:cut], b"", stream[cut:]]) == DATA


def test_an_event_is_given_as_soon_as_it_ends() -> None:
    events = Events()
    assert events.feed(b"data: one\r\n") == []
    assert events.feed(b"\r") == [b"one"]
    # The rest of the same line end is no empty line of its own.
    assert events.feed(b"\ndata: two\n\ndata: three\n\nda") == [b"two", b"three"]
    assert events.feed(b"ta: four\n\n") == [b"four"]
