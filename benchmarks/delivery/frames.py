"""WebSocket frames and graphql-transport-ws messages, from bytes."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import orjson

_KEY = base64.b64encode(b"noosphere fanout").decode()
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ACCEPT = base64.b64encode(hashlib.sha1((_KEY + _GUID).encode(), usedforsecurity=False).digest())

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA

EVENTS = """subscription($id: ID!) { conversationEvents(conversationId: $id) {
  __typename cursor ... on MessageDelta { offset text } } }"""


def upgrade(host: str, path: str) -> bytes:
    """Give the request that opens a WebSocket; compression is not offered."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: graphql-transport-ws",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def check_upgraded(head: bytes) -> None:
    """Check the answer to `upgrade`. Raises AssertionError."""
    lower = head.lower()
    assert head.startswith(b"HTTP/1.1 101"), head
    assert ACCEPT in head, head
    assert b"sec-websocket-protocol: graphql-transport-ws" in lower, head
    assert b"sec-websocket-extensions" not in lower, head


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Give a client's frame. The masking key is zero, so the payload stays as it is."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size)) + b"\0\0\0\0" + payload
    assert size < 65536
    return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload


def message(kind: str, **rest: Any) -> bytes:
    """Give the frame of a message."""
    return frame(orjson.dumps({"type": kind, **rest}))


def split(data: bytes, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Give opcode, begin and end of the payload of every whole frame from `start` on."""
    size = len(data)
    while start + 2 <= size:
        length, begin = data[start + 1] & 0x7F, start + 2
        if length == 126:
            begin = start + 4
            length = int.from_bytes(data[start + 2 : begin], "big")
        elif length == 127:
            begin = start + 10
            length = int.from_bytes(data[start + 2 : begin], "big")
        if begin > size or begin + length > size:
            return
        assert data[start] & 0x80, "a fragmented message"
        yield data[start] & 0x0F, begin, begin + length
        start = begin + length


def event_of(payload: bytes) -> dict[str, Any] | None:
    """Give the event of a message; None for a ping. Raises AssertionError for anything else."""
    content = orjson.loads(payload)
    if content["type"] == "ping":
        return None
    assert content["type"] == "next", content
    assert "errors" not in content["payload"], content
    event: dict[str, Any] = content["payload"]["data"]["conversationEvents"]
    return event
