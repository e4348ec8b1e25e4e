"""Requests whose heads do not end, told to the protocol that serves them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn.server import ServerState

from app import http_protocol
from app.http_protocol import HttpProtocol

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


async def _echo(request: Request) -> PlainTextResponse:
    try:
        return PlainTextResponse(f"{len(await request.body())}")
    except ClientDisconnect:
        return PlainTextResponse("nobody hears it")


async def _refuse(request: Request) -> PlainTextResponse:
    return PlainTextResponse("no", 413)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    routes = [Route("/", _echo, methods=["GET", "POST"]), Route("/no", _refuse, methods=["POST"])]
    app = Starlette(routes=routes)
    config = uvicorn.Config(app, http=HttpProtocol, log_config=None, lifespan="off")
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    async with AsyncExitStack() as stack:

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.push_async_callback(_close, writer)
            return reader, writer

        opened.state = state  # type: ignore[attr-defined]
        yield opened
    server.close()
    async with asyncio.timeout(30):
        while state.connections:  # noqa: ASYNC110 - it tells nobody.
            await asyncio.sleep(0.01)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_requests_one_after_the_other_are_answered(connect: Connect) -> None:
    reader, writer = await connect()
    for size in (0, 5, 200_000):
        head = f"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: {size}\r\n\r\n"
        writer.write(head.encode() + b"x" * size)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(str(size))) == str(size).encode()


async def test_a_head_that_trickles_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: here\r\nx-more: ")
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 408 ")
    # And so is the second one of a connection, and one that says nothing at all.
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(1)
    writer.write(b"GET / HTTP/1.1\r\n")
    answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 408 ")
    reader, writer = await connect()
    assert await asyncio.wait_for(reader.read(), 30) == b""


async def test_a_head_without_end_is_refused(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n")
    sent = 0
    while not writer.is_closing() and sent < 64 * http_protocol.HEAD_MAX_BYTES:
        writer.write(b"x-more: " + b"y" * 1000 + b"\r\n")
        sent += 1010
        try:
            await writer.drain()
        except ConnectionError:
            break
        await asyncio.sleep(0)
    assert sent < 64 * http_protocol.HEAD_MAX_BYTES
    try:
        answer = await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        # What it had not read of ours overtook its answer.
        return
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""


async def test_a_body_may_take_longer_than_a_head(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    reader, writer = await connect()
    writer.write(b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 3\r\n\r\n")
    for _ in range(3):
        # Each takes as long as a head may, at least.
        await asyncio.sleep(0.2)
        writer.write(b"x")
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    assert answer.startswith(b"HTTP/1.1 200")


SLOW = b"POST %b HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000\r\n\r\n"


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, for ever."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


async def test_a_body_that_was_answered_goes_on_for_a_while_only(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REST_S", 0.3)
    reader, writer = await connect()
    writer.write(SLOW % b"/no")
    dripping = asyncio.ensure_future(drip(writer))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413")
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 30) == b"no"
    dripping.cancel()
    # One that comes to its end in time leaves the connection to the next request.
    monkeypatch.setattr(http_protocol, "REST_S", 60.0)
    reader, writer = await connect()
    writer.write(SLOW % b"/no")
    await reader.readuntil(b"\r\n\r\nno")
    writer.write(bytes(1_000_000) + b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_body_that_hardly_comes_does_not_keep_a_server_from_stopping(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "PACE_S", 0.3)
    reader, writer = await connect()
    writer.write(SLOW % b"/")
    dripping = asyncio.ensure_future(drip(writer))
    brisk_reader, brisk = await connect()
    brisk.write(SLOW % b"/")
    async with asyncio.timeout(30):
        open_ = connect.state.connections  # type: ignore[attr-defined]
        while [c for c in open_ if c.cycle] != [*open_] or len(open_) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for connection in tuple(open_):
            connection.shutdown()
        brisk.write(bytes(1_000_000))
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert (await brisk_reader.read()).endswith(b"1000000")
    dripping.cancel()
