"""Whatever a server inside a sandbox answers, nothing of it raises in ours."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.sandbox_port_headers import Place
from app.sandbox_port_http import Exchange, UpstreamError

_PLACE = Place("/sandboxes/s/ports/80", "/sandboxes/s/ports/80", 80, "http", "host", "", False)


class _Pipe:
    """Gives what the server inside answers, in pieces."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def write(self, data: bytes) -> None:
        """Take a request."""


class _Wire(asyncio.Transport):
    """Keeps what our server writes to its client."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Stay open: the bytes are looked at."""


def _ended() -> None:
    """Leave the connection as it is."""


async def passed_on(method: str, pieces: Sequence[bytes]) -> bytes:
    """Give what the client gets; raises what the exchange raises."""
    scope: Any = {"type": "http", "method": method, "headers": [], "http_version": "1.1"}
    wire, log = _Wire(), logging.getLogger("tests.ports")
    cycle = RequestResponseCycle(
        scope, wire, FlowControl(wire), log, log, False, [], asyncio.Event(), False, True, _ended
    )
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if asked:
            return asked.pop()
        return await asyncio.get_running_loop().create_future()

    pipe: Any = _Pipe(pieces)
    await Exchange(scope, receive, cycle.send, pipe, _PLACE, b"/").run()
    assert cycle.response_complete
    return wire.written


@pytest.mark.parametrize(
    ("method", "told", "status", "body"),
    [
        ("GET", b"HTTP/1.1 204 No\r\ncontent-length: 3\r\n\r\nabc", b"204", b""),
        ("GET", b"HTTP/1.1 304 No\r\ncontent-length: 3\r\n\r\n", b"304", b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", b"200", b""),
        ("GET", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcdef", b"200", b"abc"),
        (
            "GET",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 404 No\r\nx: y\r\n\r\n",
            b"200",
            b"a",
        ),
    ],
)
async def test_an_answer_is_as_long_as_it_may_be(
    method: str, told: bytes, status: bytes, body: bytes
) -> None:
    head, _, rest = (await passed_on(method, [told])).partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert rest == body
    assert b"x: y" not in head


@pytest.mark.parametrize("status", [b"999", b"600", b"0", b"000", b"99999", b"-1", b"two"])
async def test_a_status_that_is_none_is_a_bad_gateway(status: bytes) -> None:
    with pytest.raises(UpstreamError) as refused:
        await passed_on("GET", [b"HTTP/1.1 " + status + b" X\r\ncontent-length: 0\r\n\r\n"])
    assert refused.value.status == 502


_STATUS = st.one_of(
    st.integers(0, 1000).map(lambda n: b"%03d" % n), st.sampled_from([b"101", b"204", b"304"])
)
_BYTES = st.binary(max_size=12)
_FIELD = st.one_of(
    st.sampled_from(
        [
            b"content-length: 3",
            b"content-length: 0",
            b"Content-Length: +3",
            b"content-length: 99999999999999999999",
            b"transfer-encoding: chunked",
            b"transfer-encoding: gzip, chunked",
            b"connection: close, content-length",
            b"upgrade: websocket",
            b"set-cookie: a=b; path=/x; \xff",
            b"location: http://[",
            b"location: http://localhost:99999/\xff",
            b"trailer: x",
            b" folded",
        ]
    ),
    st.tuples(_BYTES, _BYTES).map(lambda both: both[0] + b": " + both[1]),
)
_BODY = st.one_of(
    _BYTES, st.sampled_from([b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"-1\r\n"])
)


@st.composite
def _answers(draw: st.DrawFn) -> list[bytes]:
    whole = b""
    for _ in range(draw(st.integers(1, 3))):
        fields = b"".join(field + b"\r\n" for field in draw(st.lists(_FIELD, max_size=4)))
        whole += b"HTTP/1.1 " + draw(_STATUS) + b" X\r\n" + fields + b"\r\n" + draw(_BODY)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@settings(max_examples=400, deadline=None)
@given(method=st.sampled_from(["GET", "HEAD", "POST"]), pieces=_answers())
@example(method="GET", pieces=[b"HTTP/1.1 999 X\r\n\r\n"])
@example(method="GET", pieces=[b"HTTP/1.1 204 X\r\ncontent-length: 3\r\n\r\nabc"])
def test_nothing_raises_but_what_is_told_as_a_bad_gateway(method: str, pieces: list[bytes]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30):
            await passed_on(method, pieces)

    with suppress(UpstreamError):
        asyncio.run(run())
