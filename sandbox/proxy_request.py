"""What programs ask a proxy for: requests of HTTP/1.1 (RFC 9112), read strictly.

Whatever two programs might understand in two ways is refused: it is how requests are smuggled.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from sandbox.addresses import Address, parse_host

MAX_HEAD_BYTES = 32 * 1024
MAX_LINE_BYTES = 256
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST = re.compile(rb"(%b) ([!-~]{1,16384}) HTTP/1\.([01])\Z" % _TOKEN)
_FIELD = re.compile(rb"(%b):[ \t]*([\t -~\x80-\xff]*?)[ \t]*\Z" % _TOKEN)
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~\x80-\xff]*)?\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
# Of one connection only, or between a program and its proxy (RFC 9110, 7.6.1).
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
# What a field of Connection must not take away: these say where a request goes and ends.
_KEPT = {b"host", b"content-length", b"transfer-encoding"}


class BadRequestError(Exception):
    """A request that is not understood; `status` and `reason` are for the program."""

    def __init__(self, reason: str, *, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Inbound:
    """What a program sends, by lines and by bytes. `read` gives some bytes, b"" at the end."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._read = read
        self._held = b""

    async def until(self, mark: bytes, limit: int) -> bytes:
        """Bytes up to a mark, without it.

        Raises BadRequestError beyond `limit` bytes, EOFError when they end before it.
        """
        start = 0
        while (at := self._held.find(mark, start)) < 0:
            if len(self._held) >= limit + len(mark):
                raise BadRequestError(f"More than {limit} bytes came at once.", status=431)
            start = max(0, len(self._held) - len(mark) + 1)
            data = await self._read()
            if not data:
                raise EOFError
            self._held += data
        found, self._held = self._held[:at], self._held[at + len(mark) :]
        if len(found) > limit:
            raise BadRequestError(f"More than {limit} bytes came at once.", status=431)
        return found

    async def some(self, most: int | None = None) -> bytes:
        """Some bytes, `most` at most; b"" at the end."""
        data = self._held or await self._read()
        if most is None:
            self._held = b""
            return data
        self._held = data[most:]
        return data[:most]


@dataclass(frozen=True, slots=True)
class Request:
    """A request to connect (`is_connect`), or one to pass on.

    `host` is a name or an address. `head` is what the server behind is sent, `length` how many
    bytes of a body follow; None: they come in chunks.
    """

    host: str | Address
    port: int
    is_connect: bool
    head: bytes = b""
    length: int | None = 0


async def read_request(inbound: Inbound) -> Request | None:
    """The next request, or None when the program ended without one.

    Raises BadRequestError; EOFError when it ended in the middle of one.
    """
    head = await _head(inbound)
    if head is None:
        return None
    first, *lines = head.split(b"\r\n")
    found = _REQUEST.match(first)
    if found is None:
        raise BadRequestError("The request line is malformed.")
    method, target, minor = found.groups()
    fields = [_field(line) for line in lines]
    if method == b"CONNECT":
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in fields):
            raise BadRequestError("CONNECT has no body.")
        host, port = _authority(target.decode(), None)
        return Request(host, port, is_connect=True)
    return _passed_on(method, target, minor, fields)


async def _head(inbound: Inbound) -> bytes | None:
    try:
        head = await inbound.until(b"\r\n\r\n", MAX_HEAD_BYTES)
    except EOFError:
        return None
    if re.search(rb"\r(?!\n)|(?<!\r)\n|\0", head):
        raise BadRequestError("Lines end with CR LF, and have no other control characters.")
    return head


def _field(line: bytes) -> tuple[bytes, bytes]:
    found = _FIELD.match(line)
    if found is None:
        # Folded lines, a space before the colon, control characters.
        raise BadRequestError("A header field is malformed.")
    return found[1].lower(), found[2]


def _passed_on(
    method: bytes, target: bytes, minor: bytes, fields: list[tuple[bytes, bytes]]
) -> Request:
    scheme, mark, rest = target.decode().partition("://")
    if not mark or scheme.lower() != "http":
        raise BadRequestError(
            "This is a proxy: ask for http://host/path, or CONNECT host:port for anything else."
        )
    at = next((i for i, char in enumerate(rest) if char in "/?#"), len(rest))
    authority, path = rest[:at], rest[at:].partition("#")[0]
    host, port = _authority(authority, 80)
    if not path.startswith("/"):
        path = f"/{path}"
    length = _body_length(fields, minor)
    dropped = _HOP_BY_HOP | {b"host"} | _connection_options(fields)
    lines = [b"%b %b HTTP/1.1" % (method, path.encode()), b"Host: " + authority.encode()]
    lines += [b"%b: %b" % field for field in fields if field[0] not in dropped]
    if length is None:
        lines.append(b"Transfer-Encoding: chunked")
    lines += [b"Connection: close", b"", b""]
    return Request(host, port, is_connect=False, head=b"\r\n".join(lines), length=length)


def _connection_options(fields: list[tuple[bytes, bytes]]) -> set[bytes]:
    named = b",".join(value for name, value in fields if name == b"connection")
    return {option.strip().lower() for option in named.split(b",")} - _KEPT


def _body_length(fields: list[tuple[bytes, bytes]], minor: bytes) -> int | None:
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise BadRequestError("The length of the body is said more than once.")
    if codings:
        if codings[0].lower() != b"chunked" or minor == b"0":
            raise BadRequestError("The only transfer coding is `chunked`, of HTTP/1.1.")
        return None
    if lengths and not _LENGTH.match(lengths[0]):
        raise BadRequestError("Content-Length is no number.")
    return int(lengths[0]) if lengths else 0


def _authority(text: str, default_port: int | None) -> tuple[str | Address, int]:
    if "@" in text:
        raise BadRequestError("The host must be named without a user.")
    host, colon, port = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, port = text, "" if default_port is None else str(default_port)
    if not _PORT.match(port) or not 1 <= int(port) <= 65535:
        raise BadRequestError("The port must be a number, 1 to 65535.")
    try:
        return parse_host(host), int(port)
    except ValueError:
        raise BadRequestError(
            "The host must be a name, an IPv4 address of four decimal numbers, or an IPv6 address "
            "in brackets."
        ) from None


async def body(inbound: Inbound, request: Request) -> AsyncIterator[bytes]:
    """The body of a request as the server behind gets it, and not a byte of what follows it.

    Raises BadRequestError for malformed chunks, EOFError when it ends too early.
    """
    if request.length is not None:
        async for data in _exactly(inbound, request.length):
            yield data
        return
    size = -1
    while size:
        line = await inbound.until(b"\r\n", MAX_LINE_BYTES)
        found = _CHUNK.match(line)
        if found is None:
            raise BadRequestError("A chunk of the body is malformed.")
        size = int(found[1], 16)
        if size:
            yield b"%x\r\n" % size
            async for data in _exactly(inbound, size):
                yield data
            if await inbound.until(b"\r\n", 0):
                raise BadRequestError("A chunk of the body is longer than it says.")
            yield b"\r\n"
    # Trailers are read and left out: nobody behind was told of them.
    trailers = 0
    while line := await inbound.until(b"\r\n", MAX_LINE_BYTES):
        trailers += len(line)
        if trailers > MAX_HEAD_BYTES:
            raise BadRequestError("The trailers are too long.", status=431)
    yield b"0\r\n\r\n"


async def _exactly(inbound: Inbound, count: int) -> AsyncIterator[bytes]:
    while count:
        data = await inbound.some(count)
        if not data:
            raise EOFError
        count -= len(data)
        yield data
