"""How event streams stay alive, how they end, and how many there may be."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from app.graphql_framing import EventStream
from app.graphql_register import Register
from app.graphql_stream import StreamOptions, Streams
from tests.api.transport.conftest import Server, closing, hear, say, serving, until
from tests.api.transport.hearing import (
    NUMBERED,
    everything,
    gauge,
    one_stream,
    stalled_s,
    viewer_of,
)
from tests.api.transport.streams import answers, deaf_request, read, reading

# The life of a stream.


async def test_an_idle_stream_is_kept_alive_by_comments(server: Server) -> None:
    options = StreamOptions(keep_alive_s=0.05)
    async with (
        serving(http={"streams": Streams(options=options)}) as quick,
        reading(quick.url, "subscription { forever }") as body,
    ):
        text = await body.until(b":\n\n", count=5)
    assert [answer["data"] for answer in answers(text)] == [{"forever": 1}]
    begin, _, rest = text.partition(b"event: next")
    assert begin.startswith(b"retry: ")
    assert rest.partition(b"\n\n")[2].strip(b":\n") == b""


async def test_a_client_that_leaves_closes_its_source_at_once(server: Server) -> None:
    open_before = gauge("sse")
    async with reading(server.url, "subscription { forever }") as body:
        await body.until(b"event: next")
        assert len(server.http.streams) == server.probe.open_streams == 1
        assert gauge("sse") == open_before + 1
    await asyncio.wait_for(server.probe.closed.wait(), 60)
    await until(lambda: len(server.http.streams) == 0)
    assert server.probe.open_streams == 0
    assert gauge("sse") == open_before
    assert not server.http.streams.register.counts


async def test_a_reader_that_stops_stops_its_stream_and_loses_nothing(server: Server) -> None:
    connection = deaf_request(server.port, "subscription { flood(size: 10000) }")
    connection.setblocking(False)
    probe = server.probe
    # Whatever the buffers take, in the end one event is not taken any more.
    (live,) = await one_stream(server)
    await until(lambda: live._sending_since is not None and stalled_s(live) > 0.2)
    stopped_at = probe.produced
    loop = asyncio.get_running_loop()
    text = b""
    async with asyncio.timeout(60):
        while text.count(b"data: ") < stopped_at + 50:  # Reading on lets the stream go on.
            text += await loop.sock_recv(connection, 1 << 16)
    connection.close()
    numbers = [int(number) for number in re.findall(rb'"flood":"(\d+):', text)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > stopped_at > 0
    await asyncio.wait_for(probe.closed.wait(), 60)


async def test_a_reader_that_takes_nothing_is_given_up() -> None:
    options = StreamOptions(send_timeout_s=0.3, keep_alive_s=0.1)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { flood(size: 100000) }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: len(server.http.streams) == 0)
        # It was cut off, not ended: the end never fitted into what it did not read.
        connection.settimeout(60)
        taken = await asyncio.to_thread(everything, connection)
        assert taken.startswith(b"HTTP/1.1 200 OK")
        assert not taken.endswith(b"0\r\n\r\n")
        connection.close()
        assert (await server.post("{ hello }")).status_code == 200


async def test_a_reader_that_takes_no_sign_of_life_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So large that signs of life alone fill the buffers.
    monkeypatch.setattr(EventStream, "idle", b":" + b"x" * 1_000_000 + b"\n\n")
    options = StreamOptions(send_timeout_s=0.2, keep_alive_s=0.05)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { forever }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: len(server.http.streams) == 0)
        connection.close()


async def test_many_streams_come_and_go_and_leave_nothing(server: Server) -> None:
    await server.post("{ hello }")
    before = len(asyncio.all_tasks())

    async def visit(number: int) -> None:
        query = "subscription { forever }" if number % 2 else "subscription { count(to: 3) }"
        async with reading(server.url, query) as body:
            await body.until(b"event: next")

    for _ in range(4):
        await asyncio.gather(*(visit(number) for number in range(25)))
    await until(lambda: len(server.http.streams) == 0 and server.probe.open_streams == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert not server.http.streams.register.counts


async def test_streams_are_counted_by_how_they_end(server: Server) -> None:
    def count(outcome: str) -> float:
        labels = {"type": "subscription", "transport": "sse", "outcome": outcome}
        return REGISTRY.get_sample_value("noosphere_operations_total", labels) or 0.0

    outcomes = ("ok", "error", "refused", "canceled")
    before = [count(outcome) for outcome in outcomes]
    await read(server.url, NUMBERED)
    await read(server.url, "subscription { failing }")
    await read(server.url, "subscription { absent }")
    async with reading(server.url, "subscription { forever }") as body:
        await body.until(b"event: next")
    await until(lambda: len(server.http.streams) == 0)
    assert [count(outcome) for outcome in outcomes] == [value + 1 for value in before]


# Draining, bounds, sign-ins.


async def test_draining_ends_streams_without_completing_them_and_refuses_new_ones(
    server: Server,
) -> None:
    async with (
        reading(server.url, "subscription { forever }") as first,
        reading(server.url, "subscription { forever }") as second,
    ):
        await first.until(b"event: next")
        await second.until(b"event: next")
        await server.http.streams.drain()
        assert len(server.http.streams) == server.probe.open_streams == 0
        for body in (first, second):
            # The response ends as a whole one does, but nothing says that the operation did.
            assert b"complete" not in await body.rest()
    response, text = await read(server.url, NUMBERED)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert json.loads(text)["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
    single, _ = await read(server.url, "{ hello }")
    assert single.status_code == 200


async def test_draining_gives_up_a_reader_that_takes_nothing() -> None:
    options = StreamOptions(close_timeout_s=0.1)
    async with serving(http={"streams": Streams(options=options)}) as server:
        connection = deaf_request(server.port, "subscription { flood(size: 100000) }")
        (live,) = await one_stream(server)
        await until(lambda: stalled_s(live) > 0.1)
        await server.http.streams.drain(60)
        assert len(server.http.streams) == 0
        connection.close()


async def test_streams_and_sockets_of_one_viewer_are_bounded_together() -> None:
    register = Register(max_per_viewer=2, max_per_address=1)
    streams = Streams(register, viewer_id=viewer_of)
    ann = {"authorization": "Bearer ann"}
    async with serving(http={"streams": streams}, ws={"register": register}) as server:
        # Sockets are signed in as `ann`, requests here as `Bearer ann`.
        payload = {"Authorization": "Bearer Bearer ann"}
        async with (
            server.socket(payload) as opened,
            reading(server.url, "subscription { forever }", headers=ann) as body,
        ):
            await body.until(b"event: next")
            response, text = await read(server.url, NUMBERED, headers=ann)
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert json.loads(text)["errors"][0]["extensions"]["code"] == "RATE_LIMITED"
            async with server.connect() as third:
                await say(third, {"type": "connection_init", "payload": payload})
                assert (await closing(third))[0] == 1013
            bob, _ = await read(server.url, NUMBERED, headers={"authorization": "Bearer bob"})
            assert bob.status_code == 200
            single, _ = await read(server.url, "{ hello }", headers=ann)
            assert single.status_code == 200
            await opened.close()
            await until(lambda: server.ws.open_sockets == 0)
            again, _ = await read(server.url, NUMBERED, headers=ann)
            assert again.status_code == 200
        await until(lambda: not register.counts)


async def test_those_of_nobody_are_bounded_by_their_address() -> None:
    register = Register(max_per_viewer=1, max_per_address=2)
    streams = Streams(register, viewer_id=viewer_of)
    async with serving(http={"streams": streams}, ws={"register": register}) as server:
        async with (
            server.socket(),
            reading(server.url, "subscription { forever }") as body,
        ):
            await body.until(b"event: next")
            response, _ = await read(server.url, NUMBERED)
            assert response.status_code == 429
            async with server.connect() as third:
                await say(third, {"type": "connection_init"})
                assert (await closing(third))[0] == 1013
            async with server.socket({"Authorization": "Bearer ann"}):
                pass
        await until(lambda: not register.counts)


def test_an_address_is_what_one_client_has_of_them() -> None:
    register = Register(max_per_address=1)
    assert register.enter(None, "2001:db8::1") == register_place("2001:db8::")
    assert register.enter(None, "2001:db8::2") is None
    assert register.enter(None, "2001:db8:0:1::2") == register_place("2001:db8:0:1::")
    assert register.enter(None, "::ffff:192.0.2.1") == "address:192.0.2.1"
    assert register.enter(None, "192.0.2.1") is None
    assert register.enter(None, "not an address") == "address:not an address"
    # Nobody knows whose these are: they are not counted.
    assert register.enter(None, None) == register.enter(None, "") == ""


def register_place(network: str) -> str | None:
    return Register().enter(None, network)


class Session:
    """The sign-in of every stream of a server."""

    def __init__(self) -> None:
        self.holders: list[Callable[[str], None]] = []
        self.is_over = False

    def hold(self, _context: Any, on_end: Callable[[str], None]) -> Callable[[], None]:
        if self.is_over:
            on_end("Session revoked")
        self.holders.append(on_end)
        return lambda: self.holders.remove(on_end)


async def test_a_sign_in_that_ends_ends_its_streams_without_completing_them() -> None:
    session = Session()
    async with serving(http={"streams": Streams(hold=session.hold)}) as server:
        async with reading(server.url, "subscription { forever }") as body:
            await body.until(b"event: next")
            (on_end,) = session.holders
            on_end("Session expired")
            on_end("Session revoked")  # Both at once is no more than one.
            text = await body.rest()
        assert answers(text)[1:] == []
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: not session.holders)
        await read(server.url, NUMBERED)
        assert not session.holders

        session.is_over = True
        response, text = await read(server.url, NUMBERED)
        assert response.status_code == 200
        assert answers(text) == []
        assert not session.holders


async def test_a_socket_beside_streams_hears_as_ever(server: Server) -> None:
    async with reading(server.url, "subscription { forever }") as body, server.socket() as other:
        await body.until(b"event: next")
        await say(other, {"type": "ping"})
        assert await hear(other) == {"type": "pong"}
