"""Frames as they are read: whole, in fragments, cut anywhere, and wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from app import websocket_frames as frames
from app.websocket_frames import Fault, FrameReader

MASKS = st.binary(min_size=4, max_size=4)
TEXTS = st.one_of(st.text(max_size=40), st.text("xé語😀", min_size=120, max_size=200))


def masked(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | size,))
    elif size < 65_536:
        head = b"\xfe" + size.to_bytes(2)
    else:
        head = b"\xff" + size.to_bytes(8)
    body = bytes(byte ^ mask[number % 4] for number, byte in enumerate(payload))
    return bytes(((0x80 if fin else 0) | opcode,)) + head + mask + body


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[frames.Message]]:
    """Give bytes of a well-behaved client and the messages they stand for."""
    data = b""
    messages: list[frames.Message] = []
    for _ in range(draw(st.integers(1, 6))):
        told: str | bytes = draw(st.one_of(TEXTS, st.binary(max_size=200)))
        payload = told.encode() if isinstance(told, str) else told
        opcode = frames.TEXT if isinstance(told, str) else frames.BINARY
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            kind = opcode if number == 0 else frames.CONTINUATION
            data += masked(kind, part, fin=is_last, mask=draw(MASKS))
            if not is_last and draw(st.booleans()):
                # Control frames come between the fragments of a message.
                data += masked(frames.PING, b"still there?")
                messages.append((frames.PING, b"still there?"))
        messages.append((opcode, told))
    return data, messages


@given(conversations(), st.lists(st.integers(0, 2000), max_size=8))
def test_messages_come_whole_wherever_the_network_cuts(
    conversation: tuple[bytes, list[frames.Message]], cuts: list[int]
) -> None:
    data, messages = conversation
    reader = FrameReader(10_000)
    heard: list[frames.Message] = []
    edges = sorted(min(cut, len(data)) for cut in cuts)
    for begin, end in zip([0, *edges], [*edges, len(data)], strict=True):
        heard += reader.feed(data[begin:end])
    assert heard == messages
    assert reader.fault is None
    assert not reader._buffer
    assert not reader._parts


def test_every_byte_on_its_own_makes_the_same_message() -> None:
    reader = FrameReader(100_000)
    payload = "語" * 25_000
    data = masked(frames.TEXT, payload.encode())
    heard = [message for byte in data for message in reader.feed(bytes((byte,)))]
    assert heard == [(frames.TEXT, payload)]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),
        (masked(0x1 | 0x40, b"compressed"), 1002),
        (masked(0x3, b"unknown"), 1002),
        (masked(0xB, b"unknown"), 1002),
        (masked(frames.PING, b"x", fin=False), 1002),
        (masked(frames.PING, b"x" * 126), 1002),
        (masked(frames.CONTINUATION, b"of nothing"), 1002),
        (masked(frames.TEXT, b"a", fin=False) + masked(frames.TEXT, b"b"), 1002),
        (masked(frames.TEXT, b"\xff"), 1007),
        (masked(frames.TEXT, "é".encode()[:1], fin=False) + masked(0, b""), 1007),
        (masked(frames.BINARY, b"x" * 1001), 1009),
        # Judged by the head: the payload need never come.
        (masked(frames.BINARY, b"x" * 70_000)[:14], 1009),
        (masked(frames.BINARY, b"x" * 600, fin=False) + masked(0, b"x" * 401), 1009),
    ],
)
def test_what_breaks_the_rules_is_told_and_ends_the_reading(data: bytes, code: int) -> None:
    reader = FrameReader(1000)
    good = masked(frames.TEXT, b"before")
    assert reader.feed(good + data + masked(frames.TEXT, b"after")) == [(frames.TEXT, "before")]
    assert reader.fault is not None
    assert reader.fault.code == code
    assert reader.feed(good) == []
    assert len(reader._buffer) <= len(good + data + good)


def test_fragments_without_content_take_no_room() -> None:
    reader = FrameReader(1000)
    reader.feed(masked(frames.TEXT, b"a", fin=False))
    for _ in range(10_000):
        assert reader.feed(masked(frames.CONTINUATION, b"", fin=False)) == []
    assert len(reader._parts) == 1
    assert not reader._buffer
    assert reader.feed(masked(frames.CONTINUATION, b"b")) == [(frames.TEXT, "ab")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
def test_frames_are_written_as_others_write_them(size: int) -> None:
    payload = b"x" * size
    for opcode in (Opcode.TEXT, Opcode.BINARY):
        expected = Frame(opcode, payload).serialize(mask=False)
        assert frames.frame(opcode, payload) == expected
    assert frames.text_head(size) + payload == Frame(Opcode.TEXT, payload).serialize(mask=False)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        (b"", (1005, "")),
        (b"\x03\xe8", (1000, "")),
        (b"\x11\x94bye", (4500, "bye")),
        (b"\x03", Fault(1002, "invalid close code")),
        (b"\x03\xed", Fault(1002, "invalid close code")),
        (b"\x03\xee", Fault(1002, "invalid close code")),
        (b"\x13\x88", Fault(1002, "invalid close code")),
        (b"\x03\xe8\xff", Fault(1007, "the reason of a close frame must be UTF-8")),
    ],
)
def test_close_frames_say_code_and_reason(payload: bytes, found: object) -> None:
    assert frames.read_close(payload) == found


def test_a_close_frame_holds_as_much_of_a_reason_as_fits() -> None:
    frame = frames.close_frame(4403, "語" * 100)
    assert frame[:4] == b"\x88\x7d\x11\x33"
    assert frame[4:].decode() == "語" * 41
    assert frames.close_frame(1005, "") == b"\x88\x00"
