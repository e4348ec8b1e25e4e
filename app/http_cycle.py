"""One request over HTTP/1.1 and its answer, as Uvicorn has them; whole answers are sent at once.

ASGI sends an answer in two messages, of which Uvicorn checks and writes every header. An answer of
the graph has the same headers as the one before it, but for its id and its length.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

if TYPE_CHECKING:
    from app.http_protocol import HttpProtocol

_JOINED_BYTES = 65_536
"""Bodies up to this size are copied behind their heads: one buffer is cheaper than two."""


class Head:
    """A status, and headers that many answers have in common: checked and written down once.

    The answers tell their length besides, so theirs must be a status that has a body. Raises
    RuntimeError for headers that cannot be sent, as Uvicorn does.
    """

    __slots__ = ("lines", "status_line")

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if status < 200 or status in (204, 304):
            raise ValueError(f"an answer with the status {status} has no body")
        self.status_line = STATUS_LINE[status]
        self.lines = _lines(headers)


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise RuntimeError("Invalid HTTP header.")
    return b"".join(b"%b: %b\r\n" % (name.lower(), value) for name, value in headers)


class _Defaults:
    """What Uvicorn says in every answer, such as the date, written down when that changes."""

    __slots__ = ("_headers", "_written")

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._written = b""

    def lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        # Uvicorn makes a new list each second. It is held, so that no other takes its place.
        if headers is not self._headers:
            self._headers, self._written = headers, _lines(headers)
        return self._written


_DEFAULTS = _Defaults()


class Cycle(RequestResponseCycle):
    """Uvicorn's cycle, which knows without an event what has come already."""

    def __init__(self, protocol: "HttpProtocol", *, keep_alive: bool) -> None:
        # All that the inherited one does, but for the event.
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding: bool | None = None
        self.expected_content_length = 0
        # Whether anything came since `receive` gave something; made once somebody waits for it.
        self.has_news = False
        self._news: asyncio.Event | None = None

    @property
    def message_event(self) -> "Cycle":  # type: ignore[override] # Only `set` is asked of it.
        """What Uvicorn sets when something has come."""
        return self

    def set(self) -> None:
        """Have whoever waits in `receive` look again."""
        self.has_news = True
        if self._news is not None:
            self._news.set()

    def _unset(self) -> None:
        self.has_news = False
        if self._news is not None:
            self._news.clear()

    async def receive(self) -> ASGIReceiveEvent:
        """Give what has come of the request, or that the client or the answer is gone."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.flow.read_paused:
                self.flow.resume_reading()
            if not self.has_news:
                if self._news is None:
                    self._news = asyncio.Event()
                await self._news.wait()
            self._unset()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def take_body(self) -> bytes | None:
        """Give the body, as `receive` would, where all of it has come; None where it must wait."""
        if self.more_body or self.waiting_for_100_continue or not self.has_news:
            return None
        if self.disconnected or self.response_complete:
            return None
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._unset()
        body, self.body = bytes(self.body), bytearray()
        return body

    def answer(self, head: Head, request_id: bytes, body: bytes) -> bool:
        """Send a whole answer, and tell whether that was done.

        It is not where the answer must wait for its client, or is none of the plain ones: what is
        sent by ASGI's messages then comes to the same. Raises RuntimeError as `send` does.
        """
        if (
            self.response_started
            or self.disconnected
            or self.flow.write_paused
            or self.access_log
            or self.scope["method"] == "HEAD"
        ):
            return False
        if HEADER_VALUE_RE.search(request_id):
            raise RuntimeError("Invalid HTTP header value.")
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding = False
        start = b"%b%bx-request-id: %b\r\n%bcontent-length: %d\r\n%b\r\n" % (
            head.status_line,
            _DEFAULTS.lines(self.default_headers),
            request_id,
            head.lines,
            len(body),
            b"" if self.keep_alive else b"connection: close\r\n",
        )
        if len(body) <= _JOINED_BYTES:
            self.transport.write(start + body)
        else:
            self.transport.writelines((start, body))
        self.response_complete = True
        self.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


def cycle_of(channel: Any) -> Cycle | None:
    """Give the cycle whose own `send` or `receive` this is; None if others stand in between."""
    owner = getattr(channel, "__self__", None)
    return owner if type(owner) is Cycle else None
