"""The protocol under WebSockets: handshakes, what ASGI applications hear and say, and ends."""

import asyncio
import contextlib
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from app import websocket_protocol
from app.http_protocol import HttpProtocol
from app.websocket_protocol import WebSocketProtocol
from tests.api.transport.served import HEAD, KEY, MAX_BYTES, _drop, closed, echo, serving
from tests.api.transport.test_frames import masked

# ---- handshakes


@pytest.mark.parametrize("http", [HttpProtocol, HttpToolsProtocol])
async def test_an_application_hears_of_the_request_what_asgi_says(
    http: type[HttpToolsProtocol],
) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async with (
        serving(app, http) as served,
        served.connect(
            subprotocols=["one", "two"], additional_headers={"X-Word": "a: b"}, origin="http://a"
        ) as socket,
    ):
        assert socket.subprotocol == "one"
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers
    (scope,) = scopes
    assert scope["path"] == "/a b"
    assert scope["raw_path"] == b"/a%20b"
    assert scope["query_string"] == b"c=d"
    assert (scope["scheme"], scope["root_path"]) == ("ws", "")
    assert scope["subprotocols"] == ["one", "two"]
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"
    assert scope["server"][1] == served.port
    assert (b"origin", b"http://a") in scope["headers"]
    assert (b"x-word", b"a: b") in scope["headers"]


@pytest.mark.parametrize(
    ("version", "keys", "status"),
    [
        ("8", f"Sec-WebSocket-Key: {KEY}\r\n", b"426"),
        ("13", "", b"400"),
        ("13", "Sec-WebSocket-Key: short\r\n", b"400"),
        ("13", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n", b"400"),
        ("13", f"Sec-WebSocket-Key: {KEY}\r\n" * 2, b"400"),
    ],
)
async def test_what_is_no_request_for_a_websocket_is_refused(
    version: str, keys: str, status: bytes
) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the application must not hear of it")

    async with serving(app) as served:
        head, reader, _ = await served.ask(version=version, keys=keys)
        assert head.startswith(b"HTTP/1.1 " + status)
        assert (b"sec-websocket-version: 13" in head) == (status == b"426")
        await asyncio.wait_for(reader.read(), 30)


async def test_the_accepted_key_is_that_of_the_standard() -> None:
    async with serving(echo) as served:
        head, _, _ = await served.ask()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head


async def test_an_application_may_refuse_in_its_own_words() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if scope["path"] == "/plain":
            await send({"type": "websocket.close"})
            return
        headers = [(b"content-type", b"text/html"), (b"set-cookie", b"a=b")]
        await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
        body = {"type": "websocket.http.response.body"}
        await send({**body, "body": b"no", "more_body": True})
        await send({**body, "body": b"thing"})

    async with serving(app) as served:
        head, reader, _ = await served.ask("/other")
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"set-cookie: a=b\r\n" in head
        assert head.count(b"content-type") == 1
        assert await asyncio.wait_for(reader.read(), 30) == b"nothing"
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{served.port}/plain")
        assert caught.value.response.status_code == 403


@pytest.mark.parametrize("is_open", [False, True])
async def test_an_application_that_fails_is_no_secret(is_open: bool) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if is_open:
            await send({"type": "websocket.accept"})
        raise LookupError("a bug")

    async with serving(app) as served:
        if is_open:
            async with served.connect() as socket:
                assert (await closed(socket))[0] == 1011
        else:
            with pytest.raises(InvalidStatus) as caught:
                await served.connect()
            assert caught.value.response.status_code == 500


async def test_a_header_with_a_line_break_is_never_sent() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"set-cookie", b"a=b\r\nx-injected: yes")]
        await send({"type": "websocket.accept", "headers": headers})

    async with serving(app) as served:
        head, _, _ = await served.ask()
        assert b"injected" not in head
        assert head.startswith(b"HTTP/1.1 500 ")


# ---- messages


@pytest.mark.parametrize("http", [HttpProtocol, HttpToolsProtocol])
async def test_texts_and_bytes_come_back_as_they_were(http: type[HttpToolsProtocol]) -> None:
    async with serving(echo, http) as served, served.connect(max_size=None) as socket:
        for message in ("", "語" * 20_000, b"", b"\0\xff" * 40_000, ["frag", "men", "ts"], "end"):
            await socket.send(message)
            whole = "".join(message) if isinstance(message, list) else message
            assert await asyncio.wait_for(socket.recv(), 30) == whole
        waiter = await socket.ping(b"there?")
        await asyncio.wait_for(waiter, 30)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),
        (masked(0x1, b"\xff"), 1007),
        (masked(0x2, b"x" * (MAX_BYTES + 1)), 1009),
        (masked(0x8, b"\x03\xed"), 1002),
        (masked(0x8, b"\x11\x94bye"), 4500),
        (masked(0x8, b""), 1005),
    ],
)
async def test_the_application_hears_why_it_ended_and_so_does_the_peer(
    data: bytes, code: int
) -> None:
    heard: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        heard.extend([await receive(), await receive(), await receive()])
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "too late"})

    async with serving(app) as served:
        _, reader, writer = await served.ask()
        writer.write(masked(0x1, b"first") + data)
        rest = await asyncio.wait_for(reader.read(), 30)
    assert rest[:1] == b"\x88"
    assert rest[2:4] == (b"" if code == 1005 else code.to_bytes(2))
    assert heard[0] == {"type": "websocket.receive", "text": "first"}
    assert heard[1]["type"] == "websocket.disconnect"
    assert heard[1]["code"] == code
    # Whoever asks again is told again, and does not wait for ever.
    assert heard[2] == heard[1]


async def test_an_application_that_does_not_listen_stops_its_client() -> None:
    may_listen = asyncio.Event()
    count = 0

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        await receive()
        await send({"type": "websocket.accept"})
        await may_listen.wait()
        while (await receive())["type"] == "websocket.receive":
            count += 1

    async with serving(app) as served, served.connect() as socket:
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 10_000:
                async with asyncio.timeout(1):
                    await socket.send(b"x" * 50_000)
                sent += 1
        assert sent < 10_000
        (protocol,) = served.state.connections
        assert isinstance(protocol, WebSocketProtocol)
        assert protocol._inbox_size < 1_000_000
        may_listen.set()
        await socket.send("last")
        await socket.close()
    assert count >= sent + 1


async def test_a_client_that_does_not_read_stops_its_application() -> None:
    sent = 0
    ended = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": b"x" * 50_000})
                sent += 1
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with serving(app) as served:
        _, _, writer = await served.ask()
        (protocol,) = served.state.connections
        assert isinstance(protocol, WebSocketProtocol)
        async with asyncio.timeout(60):
            while protocol.stalled_s() == 0:  # noqa: ASYNC110 - it tells nobody.
                await asyncio.sleep(0)
            # What it has not read is not answered either: the answers would pile up.
            waiting = protocol.transport.get_write_buffer_size()
            writer.write(masked(0x9, b"x" * 100) * 1000)
            await writer.drain()
            writer.write(masked(0x1, b"heard"))
            while not protocol._inbox:  # noqa: ASYNC110 - it tells nobody.
                await asyncio.sleep(0.01)
        assert protocol.transport.get_write_buffer_size() <= waiting
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 30)


# ---- ends


async def test_both_sides_agree_on_the_end() -> None:
    codes: list[int] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        text = (await receive())["text"]
        await send({"type": "websocket.close", "code": 4403, "reason": text})
        codes.append((await receive())["code"])

    async with serving(app) as served, served.connect() as socket:
        await socket.send("語" * 100)
        assert await closed(socket) == (4403, "語" * 41)
    assert codes == [4403]


async def test_a_connection_that_breaks_is_told() -> None:
    codes: asyncio.Queue[int] = asyncio.Queue()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        codes.put_nowait((await receive())["code"])

    async with serving(app) as served:
        _, _, writer = await served.ask()
        writer.transport.abort()
        assert await asyncio.wait_for(codes.get(), 30) == 1005


async def test_a_server_that_stops_says_so() -> None:
    async with serving(echo) as served, served.connect() as socket:
        await socket.send("here")
        assert await socket.recv() == "here"
        for connection in list(served.state.connections):
            connection.shutdown()
        assert (await closed(socket))[0] == 1012


@pytest.mark.parametrize("ends", ["closes", "returns", "fails"])
async def test_a_peer_that_takes_nothing_is_dropped_after_a_while(
    monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(websocket_protocol, "_CLOSE_TIMEOUT_S", 0.2)

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        # More than the sockets of both sides take.
        await send({"type": "websocket.send", "bytes": b"x" * 50_000_000})
        (protocol,) = served.state.connections
        assert protocol.transport.get_write_buffer_size() > 0
        if ends == "closes":
            protocol._close(1000, "")
        elif ends == "fails":
            raise RuntimeError("broken")

    async with serving(app) as served:
        await served.ask()
        async with asyncio.timeout(30):
            # The client is still there, and reads no more than its head.
            while served.state.connections:  # noqa: ASYNC110 - it tells nobody.
                await asyncio.sleep(0.01)


async def test_a_path_that_is_not_written_in_ascii_is_refused() -> None:
    async with serving(echo) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        served.stack.push_async_callback(_drop, writer)
        head = HEAD.format(target="/TARGET", version="13", keys=f"Sec-WebSocket-Key: {KEY}\r\n")
        writer.write(head.encode().replace(b"TARGET", b"\xc3\xa9"))
        answer = await asyncio.wait_for(reader.read(), 30)
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_what_makes_no_sense_is_refused() -> None:
    errors: list[str] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for kind in ("websocket.send", "websocket.http.response.body", "nonsense"):
            with pytest.raises(RuntimeError) as caught:
                await send({"type": kind, "text": ""})
            errors.append(str(caught.value))
        await send({"type": "websocket.accept"})
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    async with serving(app) as served, served.connect() as socket:
        assert await closed(socket) == (1000, "")
    assert len(errors) == 3
