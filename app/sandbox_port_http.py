"""One request to a server inside a sandbox over one connection, and its answer."""

import asyncio
import re
from collections import deque
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send

from app.graphql_request import break_off
from app.sandbox_port_headers import Place, inward, outward
from services.errors import UserError
from services.sandboxes.relay import Pipe

HEAD_S = 120.0
IDLE_S = 600.0
_HEAD_BYTES = 64 * 1024
_STATUSES = range(200, 600)
_BODILESS = (204, 304)
# What our server refuses to send.
_NO_NAME = re.compile(rb"[\x00-\x20\x7f()<>@,;:\[\]={}\\\"]|^$")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class GoneError(Exception):
    """Nobody is left to answer."""


class UpstreamError(Exception):
    """The server inside gave no answer that can be passed on; with a status before it began."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Answer:
    """What a parser tells of an answer."""

    def __init__(self, *, is_head: bool) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.fields: list[tuple[bytes, bytes]] = []
        self.status = 0
        self.body: deque[bytes] = deque()
        self.has_head = self.is_complete = False
        self._is_head = is_head

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes after the head ends the body, or belongs to an answer nobody asked for.
        if not self.has_head:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.has_head:
            return
        status = self.parser.get_status_code()
        if status < 200:
            self.fields.clear()  # More is to come.
            return
        self.status, self.has_head = status, True
        self.is_complete = not self.has_body

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self.body.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head

    @property
    def has_body(self) -> bool:
        """Whether what comes after the head belongs to the answer (RFC 9112, 6.3)."""
        return not self._is_head and self.status not in _BODILESS

    def outward(self, place: Place) -> list[tuple[bytes, bytes]]:
        """Give the head's fields for the client. Raises UpstreamError for what cannot be sent."""
        if self.status not in _STATUSES:
            told = f"The server inside answered with the status {self.status}, which is none."
            raise UpstreamError(502, told)
        fields = outward(self.fields, place)
        if any(_NO_NAME.search(name) or _NO_VALUE.search(value) for name, value in fields):
            raise UpstreamError(502, "The head of the server's answer has characters it may not.")
        if self.status in _BODILESS:
            # Its length would be that of a body which does not come.
            fields = [field for field in fields if field[0] != b"content-length"]
        return fields

    @property
    def ends_with_connection(self) -> bool:
        """Whether nothing but the end of the connection tells where the body ends."""
        names = {name.lower() for name, _ in self.fields}
        return not names & {b"content-length", b"transfer-encoding"}

    def feed(self, data: bytes) -> None:
        """Raises UpstreamError for what is no answer."""
        if self.is_complete:
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise UpstreamError(502, "The server inside does not speak HTTP.") from error


class Exchange:
    """Carries one request in and its answer out, each as fast as the other side takes it."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, pipe: Pipe, place: Place, target: bytes
    ) -> None:
        self._method: str = scope["method"]
        self._fields: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive, self._send = receive, send
        self._pipe, self._place, self._target = pipe, place, target
        self._limit: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Raises GoneError when the client has gone, UpstreamError, UserError."""
        names = [name for name, _ in self._fields]
        if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
            raise UpstreamError(400, "The length of the body is said more than once.")
        try:
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(self._forward())
                await self._answer()
                sending.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def drop(self) -> None:
        """Break off an answer that has begun, so that nobody takes it for whole."""
        await break_off(self._receive)

    # Inward.

    async def _forward(self) -> None:
        is_chunked = any(name == b"transfer-encoding" for name, _ in self._fields)
        is_heard = await self._write(self._head(is_chunked=is_chunked))
        has_more = True
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            data = message.get("body", b"")
            if data and is_heard:
                framed = b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data
                is_heard = await self._write(framed)
                self._wait_again()
            if has_more and not message.get("more_body", False):
                has_more = False
                if is_chunked and is_heard:
                    is_heard = await self._write(b"0\r\n\r\n")

    def _wait_again(self) -> None:
        """Give the server inside its time from now on: there was more to read for it."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + HEAD_S)

    async def _write(self, data: bytes) -> bool:
        """Whether the server inside still listens; its answer may come all the same."""
        try:
            await self._pipe.write(data)
        except UserError:
            return False
        return True

    def _head(self, *, is_chunked: bool) -> bytes:
        fields = inward(self._fields, self._place)
        fields += [field for field in self._fields if field[0] == b"content-length"]
        if is_chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        fields.append((b"connection", b"close"))
        lines = [b"%b %b HTTP/1.1" % (self._method.encode("latin-1"), self._target)]
        lines += [b"%b: %b" % field for field in fields]
        return b"\r\n".join([*lines, b"", b""])

    # Outward.

    async def _answer(self) -> None:
        answer = _Answer(is_head=self._method == "HEAD")
        try:
            async with asyncio.timeout(HEAD_S) as self._limit:
                await self._read_head(answer)
            self._limit = None
        except TimeoutError:
            raise UpstreamError(504, "The server inside did not answer in time.") from None
        await self._start(answer)
        while True:
            while answer.body:
                await self._send_body(answer.body.popleft(), more=True)
            if answer.is_complete:
                break
            try:
                async with asyncio.timeout(IDLE_S):
                    data = await self._pipe.read()
            except TimeoutError:
                raise UpstreamError(504, "The server inside stopped in its answer.") from None
            if not data:
                if not answer.ends_with_connection:
                    raise UpstreamError(502, "The server inside broke its answer off.")
                break
            answer.feed(data)
        await self._send_body(b"", more=False)

    async def _read_head(self, answer: _Answer) -> None:
        size = 0
        while not answer.has_head:
            data = await self._pipe.read()
            if not data:
                raise UpstreamError(502, "The server inside ended without an answer.")
            size += len(data)
            answer.feed(data)
            if size > _HEAD_BYTES and not answer.has_head:
                raise UpstreamError(502, "The head of the server's answer is too long.")

    async def _start(self, answer: _Answer) -> None:
        headers: list[Any] = answer.outward(self._place)
        await self._send(
            {"type": "http.response.start", "status": answer.status, "headers": headers}
        )

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
