"""WebSocket handshakes (RFC 6455, section 4), as a server reads and answers them; no extensions."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import unquote

from starlette.types import Scope

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Headers = Sequence[tuple[bytes, bytes]]


class Offer(NamedTuple):
    """A request for a WebSocket that may be granted."""

    accept: bytes
    """What proves to the client that it was understood."""

    raw_path: bytes
    query: bytes
    subprotocols: list[str]

    def scope(self, root: str) -> Scope:
        """Give what ASGI says of it to an application that is served under the path `root`."""
        path = self.raw_path.decode()
        return {
            "type": "websocket",
            "http_version": "1.1",
            "root_path": root,
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode("ascii") + self.raw_path,
            "query_string": self.query,
            "subprotocols": self.subprotocols,
        }


class Refusal(NamedTuple):
    """An answer of HTTP in the place of a WebSocket."""

    status: int
    headers: Headers = ()
    body: bytes = b""


FORBIDDEN = Refusal(HTTPStatus.FORBIDDEN)
FAILED = Refusal(HTTPStatus.INTERNAL_SERVER_ERROR)


def parse(data: bytes) -> tuple[bytes, bytes, Headers]:
    """Give method, target and header fields, with names in lower case, of a request as bytes.

    It comes as Uvicorn's protocols for HTTP write it after they parsed it, which is trusted.
    """
    line, *lines = data.rstrip(b"\r\n").split(b"\r\n")
    method, target, _ = line.split(b" ", 2)
    fields = (one.partition(b": ") for one in lines)
    return method, target, [(name.lower(), value) for name, _, value in fields]


def read(method: bytes, target: bytes, headers: Headers) -> Offer | Refusal:
    """Give what a request asks for, or what is wrong with it; names of headers are lower case."""
    key = version = b""
    keys = 0
    subprotocols: list[str] = []
    for name, value in headers:
        if name == b"sec-websocket-key":
            key, keys = value.strip(), keys + 1
        elif name == b"sec-websocket-version":
            version = value.strip()
        elif name == b"sec-websocket-protocol":
            subprotocols += [one.strip() for one in value.decode("latin-1").split(",")]
    if version != b"13":
        fields = [(b"sec-websocket-version", b"13")]
        body = b"WebSocket version 13 is spoken.\n"
        return Refusal(HTTPStatus.UPGRADE_REQUIRED, fields, body)
    if method != b"GET" or keys != 1 or not _is_key(key):
        body = b"This is no request for a WebSocket.\n"
        return Refusal(HTTPStatus.BAD_REQUEST, body=body)
    raw_path, _, query = target.partition(b"?")
    if not raw_path.isascii():
        return Refusal(HTTPStatus.BAD_REQUEST, body=b"A path is written in ASCII.\n")
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return Offer(base64.b64encode(digest), raw_path, query, subprotocols)


def granted(accept: bytes, subprotocol: str | None, headers: Headers) -> bytes:
    """Give the answer that opens a WebSocket. Raises ValueError for a header with a line break."""
    fields = list(headers)
    if subprotocol:
        # Written as in the standard, for there are clients that look for it letter by letter.
        fields.append((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")))
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, _lines(fields))
    )


def refused(refusal: Refusal, defaults: Headers) -> bytes:
    """Give the answer that opens none, with those defaults that the refusal does not set itself.

    Raises ValueError for a header with a line break.
    """
    status, headers, body = refusal
    own = (
        *defaults,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    )
    given = {name.lower() for name, _ in headers}
    fields = [*headers, *(field for field in own if field[0].lower() not in given)]
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    line = f"HTTP/1.1 {int(status)} {phrase}\r\n".encode()
    return line + _lines(fields) + b"\r\n" + body


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _lines(headers: Headers) -> bytes:
    """Give header fields as they travel. Raises ValueError for one that would not be one line."""
    lines = b"".join([b"%b: %b\r\n" % field for field in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise ValueError("A header field has a line break.")
    return lines
