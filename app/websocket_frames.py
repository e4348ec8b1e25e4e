"""WebSocket frames (RFC 6455, section 5), as a server reads and writes them; no extensions."""

from typing import NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - built without its extension in C.
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

PROTOCOL_ERROR = 1002
NO_STATUS = 1005
INVALID_DATA = 1007
TOO_BIG = 1009

_FIN, _RESERVED, _CONTROL, _MASKED = 0x80, 0x70, 0x08, 0x80
_MAX_CONTROL_BYTES = 125
_NO_MASK = b"\0\0\0\0"
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


class Fault(NamedTuple):
    """What a peer did wrong, as the close frame says it."""

    code: int
    reason: str


Message = tuple[int, str | bytes]
"""An opcode other than CONTINUATION, and the payload; that of TEXT is a str."""


def text_head(size: int) -> bytes:
    """Give the head of an unmasked text frame with a payload of `size` bytes."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2)
    return b"\x81\x7f" + size.to_bytes(8)


def frame(opcode: int, payload: bytes) -> bytes:
    """Give an unmasked, unfragmented frame."""
    head = text_head(len(payload))
    return bytes((_FIN | opcode,)) + head[1:] + payload


def close_frame(code: int, reason: str = "") -> bytes:
    """Give a close frame, with the reason cut to what it has room for; NO_STATUS says neither."""
    if code == NO_STATUS:
        return frame(CLOSE, b"")
    text = reason.encode()[: _MAX_CONTROL_BYTES - 2].decode(errors="ignore")
    return frame(CLOSE, code.to_bytes(2) + text.encode())


def read_close(payload: bytes) -> Fault | tuple[int, str]:
    """Give code and reason of a close frame, or what is wrong with it."""
    if not payload:
        return (NO_STATUS, "")
    code = int.from_bytes(payload[:2])
    if len(payload) < 2 or not (code in _CLOSE_CODES or 3000 <= code < 5000):
        return Fault(PROTOCOL_ERROR, "invalid close code")
    try:
        return (code, payload[2:].decode())
    except UnicodeDecodeError:
        return Fault(INVALID_DATA, "the reason of a close frame must be UTF-8")


class FrameReader:
    """Makes messages of what comes from a client, of up to `max_size` bytes each.

    Holds no more than one message and one frame that are not complete yet. Once there is a `fault`
    it reads nothing more.
    """

    __slots__ = ("_buffer", "_max_size", "_opcode", "_parts", "fault")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._buffer = bytearray()
        # Of a message in fragments: its opcode, and the payload so far.
        self._opcode = CONTINUATION
        self._parts = bytearray()
        self.fault: Fault | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Give the messages that `data` completes, those before a fault included."""
        if self.fault is not None:
            return []
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            source = self._buffer
        messages: list[Message] = []
        at, size = 0, len(source)
        while size - at >= 2 and self.fault is None:
            first, second = source[at], source[at + 1]
            length, begin = second & 0x7F, at + 6
            if length == 126:
                begin += 2
            elif length == 127:
                begin += 8
            if length >= 126:
                if size < begin - 4:
                    break
                length = int.from_bytes(source[at + 2 : begin - 4])
            self._check(first, second, length)
            end = begin + length
            if self.fault is not None or size < end:
                break
            payload, mask = source[begin:end], source[begin - 4 : begin]
            if mask != _NO_MASK:
                payload = apply_mask(bytes(payload), bytes(mask))
            self._add(first, payload, messages)
            at = end
        if source is not data:
            del self._buffer[:at]
        elif at < size:
            self._buffer += data[at:]
        return messages

    def _check(self, first: int, second: int, length: int) -> None:
        """Judge a frame by its head, before its payload is there."""
        opcode = first & 0x0F
        if not second & _MASKED:
            self.fault = Fault(PROTOCOL_ERROR, "frames of a client must be masked")
        elif first & _RESERVED:
            self.fault = Fault(PROTOCOL_ERROR, "reserved bits must be 0")
        elif opcode & _CONTROL:
            if opcode > PONG:
                self.fault = Fault(PROTOCOL_ERROR, "unknown opcode")
            elif not first & _FIN or length > _MAX_CONTROL_BYTES:
                self.fault = Fault(PROTOCOL_ERROR, "control frames are short and whole")
        elif opcode > BINARY:
            self.fault = Fault(PROTOCOL_ERROR, "unknown opcode")
        elif (opcode == CONTINUATION) != (self._opcode != CONTINUATION):
            self.fault = Fault(PROTOCOL_ERROR, "fragments out of order")
        elif len(self._parts) + length > self._max_size:
            self.fault = Fault(TOO_BIG, f"messages may have {self._max_size} bytes")

    def _add(self, first: int, payload: bytes | bytearray, messages: list[Message]) -> None:
        opcode = first & 0x0F
        if not opcode & _CONTROL:
            if not first & _FIN:
                self._opcode = self._opcode or opcode
                self._parts += payload
                return
            if opcode == CONTINUATION:
                self._parts += payload
                payload, opcode = self._parts, self._opcode
                self._parts, self._opcode = bytearray(), CONTINUATION
        if opcode != TEXT:
            messages.append((opcode, bytes(payload)))
            return
        try:
            messages.append((TEXT, payload.decode()))
        except UnicodeDecodeError:
            self.fault = Fault(INVALID_DATA, "text must be UTF-8")
