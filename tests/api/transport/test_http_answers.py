"""Whole answers, written at once by our protocol, against Uvicorn's own: they must be the same."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app import graphql_body
from app.graphql_body import Body, CancelOnDisconnect, ClientGoneError
from app.graphql_media import JSON
from app.graphql_reply import Reply
from app.graphql_request import RequestHeaders, request_id
from app.http_cycle import Head, cycle_of
from app.http_protocol import HttpProtocol
from tests.api.transport.served import App

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LARGE = 16 * 1024 * 1024


class Site:
    """A server of one application that says no more of a request than its answer."""

    def __init__(self, port: int, state: ServerState) -> None:
        self.port, self.state = port, state

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(30):
                yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def exchange(self, *pieces: bytes) -> bytes:
        """Send a piece after each word of the server's, and give all that it says."""
        async with self.connect() as (reader, writer):
            heard = b""
            for piece in pieces[:-1]:
                writer.write(piece)
                heard += await reader.readuntil(b"\r\n\r\n")
            writer.write(pieces[-1])
            return heard + await reader.read()


@asynccontextmanager
async def site(
    app: App, http: type[HttpToolsProtocol] = HttpProtocol, **options: Any
) -> AsyncIterator[Site]:
    logger = logging.getLogger("uvicorn.access")
    before = logger.propagate, logger.handlers
    config = uvicorn.Config(
        app, http=http, log_config=None, lifespan="off", access_log=False, **options
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT"), (b"x-more", b"always")]
    server = await asyncio.get_running_loop().create_server(
        lambda: http(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield Site(server.sockets[0].getsockname()[1], state)
        async with asyncio.timeout(30):
            while state.connections or state.tasks:  # noqa: ASYNC110 - they tell nobody.
                await asyncio.sleep(0.01)
    finally:
        server.close()
        logger.propagate, logger.handlers = before


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body, and with the status that the path names."""
    headers = RequestHeaders(scope)
    reply = Reply(send, request_id(headers))
    asked = await Body(2 * LARGE, 30).json(headers, receive) if scope["method"] == "POST" else "-"
    text = f"{scope['client'][0]} {scope['scheme']} {scope['raw_path'].decode()} {asked}"
    status = int(scope["path"].rpartition("/")[2])
    if status == 204:
        await reply.body(204, None, b"")
    else:
        await reply.body(status, JSON, text.encode())


def ask(
    path: str = "/200", method: str = "POST", version: str = "1.1", body: str = "", **headers: str
) -> bytes:
    body = body or '"hello"' if method == "POST" else ""
    named = {"host": "here", "x-request-id": "known", "content-length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n{body}".encode()


def parts(heard: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
    """Give the answers: the status line, the headers in no order, and the body."""
    found = []
    while heard:
        head, _, heard = heard.partition(b"\r\n\r\n")
        status, *headers = head.split(b"\r\n")
        sizes = [int(h.partition(b":")[2]) for h in headers if h.startswith(b"content-length")]
        # What answers HEAD has the length of what is not sent.
        size = min(sizes[0], len(heard)) if sizes else 0
        found.append((status, sorted(headers), heard[:size]))
        heard = heard[size:]
    return found


LAST = {"connection": "close"}
EXCHANGES = {
    "closing": [ask(**LAST)],
    "kept alive": [ask() + ask("/200/200", **LAST)],
    "in a row": [ask() + ask("/400") + ask("/503") + ask("/204") + ask(**LAST)],
    "HTTP/1.0": [ask(version="1.0")],
    "HEAD": [ask(method="HEAD", **LAST)],
    "no body": [ask("/204", **LAST)],
    "a waiting body": [ask(expect="100-continue", **LAST)[:-7], b'"hello"'],
    "a body that did not wait": [ask(expect="100-continue", **LAST)],
    "a body in chunks": [
        ask(transfer_encoding="chunked", content_length="", **LAST).replace(
            b"content-length: \r\n", b""
        )[:-7]
        + b'3\r\n"he\r\n4\r\nllo"\r\n0\r\n\r\n'
    ],
    "an upgrade that is not made": [ask(upgrade="h2c", connection="upgrade, close")],
    "a path in codes": [ask("/a%20b/200?c=d", **LAST)],
    "a large body": [ask(body=f'"{"x" * 300_000}"', **LAST)],
    "a proxy's word": [
        ask(x_forwarded_for="192.0.2.7", x_forwarded_proto="https") + ask("/200/200", **LAST)
    ],
    "no request": [b"no request\r\n\r\n"],
}


@pytest.mark.parametrize("name", EXCHANGES)
async def test_answers_are_as_uvicorn_gives_them(name: str) -> None:
    heard = []
    for http in (HttpToolsProtocol, HttpProtocol):
        async with site(echo, http, forwarded_allow_ips="127.0.0.1") as served:
            heard.append(parts(await served.exchange(*EXCHANGES[name])))
    assert heard[0] == heard[1]
    assert all(
        b"x-more: always" in headers for status, headers, _ in heard[1] if b"100" not in status
    )


async def test_a_proxy_speaks_for_its_own_requests_alone() -> None:
    async with site(echo, forwarded_allow_ips="127.0.0.1") as served:
        (_, _, first), (_, _, second) = parts(await served.exchange(*EXCHANGES["a proxy's word"]))
    assert (first, second) == (
        b"192.0.2.7 https /200 hello",
        b"127.0.0.1 http /200/200 hello",
    )
    async with site(echo, forwarded_allow_ips="192.0.2.1") as served:
        ((_, _, first), _) = parts(await served.exchange(*EXCHANGES["a proxy's word"]))
    assert first.startswith(b"127.0.0.1 http ")


def noting(answers: list[bool], body: Callable[[], bytes], **headers: str) -> App:
    """Give an application that notes whether its answers were written at once."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        reply = Reply(send, scope["path"].removeprefix("/"))
        reply.headers.update(headers)
        told = body()
        answers.append(reply.at_once(200, JSON, told))
        if not answers[-1]:
            await reply.body(200, JSON, told)

    return app


async def test_answers_are_written_at_once_where_nothing_else_is_asked_for() -> None:
    answers: list[bool] = []
    async with site(noting(answers, lambda: b"{}")) as served:
        await served.exchange(ask("/a", "GET") + ask("/b", "GET", **LAST))
        assert answers == [True, True]
        await served.exchange(ask("/a", "HEAD", **LAST))
        assert answers.pop() is False
    async with site(noting(answers, lambda: b"{}", allow="POST")) as served:
        heard = await served.exchange(ask("/a", "GET", **LAST))
        assert b"allow: POST\r\n" in heard
        assert answers.pop() is False
    async with site(noting(answers, lambda: b"{}"), HttpToolsProtocol) as served:
        await served.exchange(ask("/a", "GET", **LAST))
        assert answers.pop() is False


async def test_the_next_answer_waits_for_a_client_that_does_not_read() -> None:
    answers: list[bool] = []
    body = bytes(LARGE)
    async with site(noting(answers, lambda: body)) as served, served.connect() as (reader, writer):
        writer.write(ask("/a", "GET") * 3)
        # The first fills the buffers; nothing of the second is written before it was read.
        while len(answers) < 2:  # noqa: ASYNC110 - it tells nobody.
            await asyncio.sleep(0.01)
        (connection,) = served.state.connections
        assert connection.transport.get_write_buffer_size() <= LARGE + 1_000  # type: ignore[union-attr]
        for _ in range(3):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(LARGE) == body
    assert answers[:2] == [True, False]
    assert len(answers) == 3


async def test_a_client_that_has_gone_is_not_answered(caplog: pytest.LogCaptureFixture) -> None:
    asked, gone, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    answers: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        gone.set()
        reply = Reply(send, "a")
        answers.append(reply.at_once(200, JSON, b"{}"))
        await reply.body(200, JSON, b"{}")
        done.set()

    async with site(app) as served:
        async with served.connect() as (_, writer):
            writer.write(ask(method="GET"))
            await asked.wait()
        async with asyncio.timeout(30):
            await done.wait()
    assert (gone.is_set(), answers) == (True, [False])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_goes_after_its_body_was_read_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphql_body, "_DISCONNECT_PATIENCE_S", 0.0)
    asked, done = asyncio.Event(), asyncio.Event()

    async def running(receive: Receive) -> None:
        async with CancelOnDisconnect(receive, 60):
            asked.set()
            await asyncio.Event().wait()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        # In two pieces, each waited for.
        assert await receive() == {"type": "http.request", "body": b'"he', "more_body": True}
        asked.set()
        assert await receive() == {"type": "http.request", "body": b'llo"', "more_body": False}
        with pytest.raises(ClientGoneError):
            await running(receive)
        done.set()

    async def whole(scope: Scope, receive: Receive, _send: Send) -> None:
        assert await Body(100, 30).json(RequestHeaders(scope), receive) == "hello"
        with pytest.raises(ClientGoneError):
            await running(receive)
        done.set()

    for answering, pieces in ((app, (ask()[:-4], ask()[-4:])), (whole, (ask(),))):
        async with site(answering) as served:
            async with served.connect() as (_, writer):
                for piece in pieces:
                    asked.clear()
                    writer.write(piece)
                    await asked.wait()
            async with asyncio.timeout(30):
                await done.wait()
        done.clear()


async def test_an_answer_is_given_once() -> None:
    again: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        reply = Reply(send, "a")
        assert reply.at_once(200, JSON, b"{}")
        assert await receive() == {"type": "http.disconnect"}
        again.append(reply.at_once(200, JSON, b"{}"))
        with pytest.raises(RuntimeError, match="after response already completed"):
            await reply.body(200, JSON, b"{}")

    async with site(app) as served:
        assert len(parts(await served.exchange(ask(method="GET", **LAST)))) == 1
    assert again == [False]


@pytest.mark.parametrize("id_", ["a\r\nset-cookie: b", "a\nb", "a\0"])
async def test_no_header_can_be_slipped_in(id_: str) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await Reply(send, id_).body(200, JSON, b"{}")

    async with site(app) as served:
        ((status, headers, _),) = parts(await served.exchange(ask(method="GET", **LAST)))
    assert status == b"HTTP/1.1 500 Internal Server Error"
    assert not [header for header in headers if b"cookie" in header or header.startswith(b"b")]


@pytest.mark.parametrize("header", [(b"a b", b"c"), (b"a", b"b\r\nc: d"), (b"a\r\n", b"b")])
def test_a_head_has_proper_headers(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(RuntimeError, match="Invalid HTTP header"):
        Head(200, [(b"x", b"y"), header])


@pytest.mark.parametrize("status", [100, 204, 304])
def test_a_head_is_for_answers_with_a_body(status: int) -> None:
    with pytest.raises(ValueError, match="has no body"):
        Head(status, [])


def test_only_a_server_of_ours_takes_whole_answers() -> None:
    async def send(_message: Any) -> None:
        """Take a message."""

    assert cycle_of(send) is None
    assert cycle_of([].append) is None


async def test_the_date_is_that_of_the_answer() -> None:
    async with site(echo) as served, served.connect() as (reader, writer):
        for day in (b"2", b"3"):
            served.state.default_headers = [(b"date", day)]
            writer.write(ask())
            assert b"\r\ndate: %b\r\n" % day in await reader.readuntil(b"hello")


async def test_a_connection_is_closed_when_it_is_idle_and_not_while_it_is_busy() -> None:
    idle: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (connection,) = served.state.connections
        if scope["path"] == "/slow":
            # Longer than connections may be idle: the timer has come and gone.
            while connection.timeout_keep_alive_task is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            idle.append(connection.transport.is_closing())  # type: ignore[union-attr]
        await Reply(send, "a").body(200, JSON, b"{}")

    async with (
        site(app, timeout_keep_alive=1) as served,
        served.connect() as (reader, writer),
    ):
        for path in ("/", "/slow"):
            writer.write(ask(path, "GET"))
            await reader.readuntil(b"{}")
        assert await reader.read() == b""
    assert idle == [False]
