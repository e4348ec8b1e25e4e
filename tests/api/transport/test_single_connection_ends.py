"""How reserved streams end: at bounds, on draining, with their sign-in, and where nobody reads."""

import asyncio
import socket
from typing import Any

from prometheus_client import REGISTRY

from app.graphql_register import Register
from app.graphql_stream import StreamOptions, Streams
from tests.api.transport.conftest import Server, serving, until
from tests.api.transport.hearing import everything, one_stream, stalled_s, viewer_of
from tests.api.transport.reserving import ACCEPT, ANN, code_of
from tests.api.transport.streams import EVENT_STREAM, TOKEN, reserved


def gauge() -> float:
    labels = {"transport": "sse_single"}
    return REGISTRY.get_sample_value("noosphere_http_streams_open", labels) or 0.0


async def test_operations_and_streams_are_bounded() -> None:
    register = Register(max_per_viewer=1, max_per_address=1)
    streams = Streams(register, viewer_id=viewer_of)
    async with serving(http={"streams": streams, "max_operations": 2}) as server:
        async with reserved(server.url, ANN) as single:
            for id_ in ("1", "2"):
                assert (await single.post(id_, "subscription { forever }")).status_code == 202
            third = await single.post("3", "{ hello }")
            assert (third.status_code, code_of(third)) == (400, "LIMIT")
            full = await single.client.put(server.url)
            assert (full.status_code, code_of(full)) == (429, "RATE_LIMITED")
            assert int(full.headers["retry-after"]) >= 1
            await single.delete("1")
            await until(lambda: server.probe.open_streams == 1)
            assert (await single.post("3", "{ hello }")).status_code == 202
            await single.body.until(b"event: complete")
        await until(lambda: not register.counts)


async def test_draining_ends_streams_without_completing_anything_and_lets_mutations_finish(
    server: Server,
) -> None:
    async with reserved(server.url) as single, server.client() as client:
        unopened = {TOKEN: (await client.put(server.url)).text}
        assert (await single.post("1", "subscription { forever }")).status_code == 202
        await single.body.until(b'"forever":1')
        server.probe.entered.clear()
        assert (await single.post("2", 'mutation { slowNote(text: "done") }')).status_code == 202
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        draining = asyncio.create_task(server.http.drain(60))
        assert b"complete" not in await single.body.until_broken()
        assert not draining.done()
        server.probe.gate.set()
        await draining
        assert server.probe.mutations == ["done"]
        assert server.probe.open_streams == 0
        gone = await client.get(server.url, headers={**ACCEPT, **unopened})
        assert (gone.status_code, code_of(gone)) == (404, "NOT_FOUND")
        refused = await client.put(server.url)
        assert (refused.status_code, code_of(refused)) == (503, "UNAVAILABLE")
    assert len(server.http.single) == 0
    assert not server.http.streams.register.counts


async def test_what_was_written_before_a_stream_breaks_off_arrives() -> None:
    options = StreamOptions(close_timeout_s=60)
    async with serving(http={"streams": Streams(options=options)}) as server:
        async with server.client() as client:
            token = (await client.put(server.url)).text
            query = {
                "query": "subscription { flood(size: 100000) }",
                "extensions": {"operationId": "1"},
            }
            await client.post(server.url, json=query, headers={TOKEN: token})
        connection = deaf_reader(server.port, token)
        (live,) = await one_stream(server)
        await until(lambda: stalled_s(live) > 0.1)
        (reserved_stream,) = server.http.single._streams.values()
        reserved_stream.end()
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        connection.settimeout(60)
        text = await asyncio.to_thread(everything, connection)
        connection.close()
    assert not text.endswith(b"0\r\n\r\n")
    # What was written arrives whole, down to the last chunk.
    assert text.endswith(b"}}}\n\n\r\n")


async def test_draining_cancels_a_mutation_that_takes_too_long(server: Server) -> None:
    async with reserved(server.url) as single:
        assert (await single.post("1", 'mutation { slowNote(text: "late") }')).status_code == 202
        await asyncio.wait_for(server.probe.entered.wait(), 60)
        await server.http.drain(0.1)
    assert server.probe.mutations == []
    assert not server.http.single._tasks


class Session:
    """A sign-in that ends when the test says so."""

    def __init__(self) -> None:
        self.ends: set[Any] = set()

    def hold(self, _context: Any, end: Any) -> Any:
        self.ends.add(end)
        return lambda: self.ends.discard(end)


async def test_the_end_of_a_sign_in_ends_the_stream_whether_open_or_only_reserved() -> None:
    session = Session()
    async with serving(http={"streams": Streams(hold=session.hold)}) as server:
        async with reserved(server.url) as single, server.client() as client:
            unopened = {TOKEN: (await client.put(server.url)).text}
            assert (await single.post("1", "subscription { forever }")).status_code == 202
            await single.body.until(b'"forever":1')
            assert len(session.ends) == 2
            for end in tuple(session.ends):
                end("Session revoked")
            assert b"complete" not in await single.body.until_broken()
            await asyncio.wait_for(server.probe.closed.wait(), 60)
            gone = await client.get(server.url, headers={**ACCEPT, **unopened})
            assert (gone.status_code, code_of(gone)) == (404, "NOT_FOUND")
        assert not session.ends
        assert not server.http.streams.register.counts


async def test_an_idle_stream_is_kept_alive_and_one_that_takes_nothing_given_up() -> None:
    options = StreamOptions(keep_alive_s=0.05, send_timeout_s=0.3)
    async with serving(http={"streams": Streams(options=options)}) as server:
        async with reserved(server.url) as single:
            await single.body.until(b":\n\n", count=5)
        async with server.client() as client:
            token = (await client.put(server.url)).text
            query = {
                "query": "subscription { flood(size: 100000) }",
                "extensions": {"operationId": "1"},
            }
            await client.post(server.url, json=query, headers={TOKEN: token})
            connection = deaf_reader(server.port, token)
            await asyncio.wait_for(server.probe.closed.wait(), 60)
            await until(lambda: len(server.http.single) == 0)
            connection.settimeout(60)
            assert not (await asyncio.to_thread(everything, connection)).endswith(b"0\r\n\r\n")
            connection.close()


def deaf_reader(port: int, token: str) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    head = f"GET /graphql?token={token} HTTP/1.1\r\nHost: t\r\nAccept: {EVENT_STREAM}\r\n\r\n"
    connection.sendall(head.encode())
    return connection
