"""What one socket may take, and all of them: operations, readers that stop, deploys."""

import asyncio
import gc
import weakref

from app.graphql_protocol import SocketOptions
from tests.api.transport.conftest import Server, closing, hear, say, serving, subscribe, until
from tests.api.transport.streams import reserved


async def test_a_peer_that_pongs_stays_and_one_that_does_not_is_dropped() -> None:
    options = SocketOptions(ping_interval_s=0.05, pong_timeout_s=30.0)
    async with serving(options=options) as server, server.socket() as socket:
        for _ in range(3):
            assert await hear(socket) == {"type": "ping"}
            await say(socket, {"type": "pong"})
    options = SocketOptions(ping_interval_s=0.05, pong_timeout_s=0.05)
    async with serving(options=options) as server, server.socket() as socket:
        assert await hear(socket) == {"type": "ping"}
        assert await closing(socket) == (4499, "No pong in time")


async def test_one_socket_runs_a_bounded_number_of_operations() -> None:
    async with (
        serving(options=SocketOptions(max_operations=2)) as server,
        server.socket() as socket,
    ):
        for id_ in "ab":
            await subscribe(socket, id_, "subscription { forever }")
            assert (await hear(socket))["type"] == "next"
        await subscribe(socket, "c", "{ hello }")
        message = await hear(socket)
        assert (message["id"], message["type"]) == ("c", "error")
        assert message["payload"][0]["extensions"]["code"] == "LIMIT"
        await say(socket, {"id": "a", "type": "complete"})
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await subscribe(socket, "c", "{ hello }")
        assert (await hear(socket))["type"] == "next"


async def test_one_viewer_opens_a_bounded_number_of_sockets() -> None:
    ann = {"Authorization": "Bearer ann"}
    async with serving(ws={"max_sockets_per_viewer": 2}) as server:
        async with server.socket(ann), server.socket(ann) as second:
            async with server.socket({"Authorization": "Bearer bob"}), server.socket():
                pass
            async with server.connect() as third:
                await say(third, {"type": "connection_init", "payload": ann})
                assert (await closing(third))[0] == 1013
            await second.close()
            await until(lambda: server.ws.open_sockets == 1)
            async with server.socket(ann):
                pass
        await until(lambda: server.ws.open_sockets == 0)
        assert not server.ws._register.counts


async def test_a_reader_that_stops_stops_its_stream_and_loses_nothing(server: Server) -> None:
    async with server.connect(max_queue=1) as socket:
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        await subscribe(socket, "1", "subscription { flood(size: 10000) }")
        (live,) = server.ws._sockets
        # Whatever the kernel still takes, in the end one frame is not taken any more.
        await until(lambda: live._outbox.stalled_s() > 0.2)
        assert len(live._outbox) <= 256
        assert live._outbox.size_bytes <= 1024 * 1024 + 20_000
        assert live._outbox.is_full
        stopped_at = server.probe.produced
        for expected in range(1, stopped_at + 50):  # Reading on lets the stream go on.
            message = await hear(socket)
            number, _, rest = message["payload"]["data"]["flood"].partition(":")
            assert (int(number), len(rest)) == (expected, 10_000)
        assert server.probe.produced > stopped_at > 100
        socket.transport.abort()
    await asyncio.wait_for(server.probe.closed.wait(), 60)


async def test_a_peer_that_takes_nothing_is_dropped() -> None:
    options = SocketOptions(ping_interval_s=0.1, send_timeout_s=0.3, pong_timeout_s=60)
    async with serving(options=options) as server, server.connect(max_queue=1) as socket:
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        socket.transport.pause_reading()
        await subscribe(socket, "1", "subscription { flood(size: 100000) }")
        await asyncio.wait_for(server.probe.closed.wait(), 60)
        await until(lambda: server.ws.open_sockets == 0)
        socket.transport.abort()


async def test_two_hundred_sockets_come_and_go_and_leave_nothing(server: Server) -> None:
    before = len(asyncio.all_tasks())

    async def visit(number: int) -> None:
        async with server.socket({"Authorization": f"Bearer v{number}"}) as socket:
            await subscribe(socket, "1", "subscription { forever }")
            assert (await hear(socket))["type"] == "next"
            if number % 2:
                socket.transport.abort()

    for batch in range(4):
        await asyncio.gather(*(visit(batch * 50 + n) for n in range(50)))
    await until(lambda: server.ws.open_sockets == 0 and server.probe.open_streams == 0)
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert not server.ws._register.counts


async def test_what_is_closed_needs_no_garbage_collection(server: Server) -> None:
    gc.disable()
    try:
        async with server.socket() as socket, reserved(server.url) as single:
            await subscribe(socket, "1", "subscription { forever }")
            await hear(socket)
            assert (await single.post("1", "subscription { forever }")).status_code == 202
            await single.body.until(b'"forever":1')
            closed = [weakref.ref(one) for one in server.ws._sockets]
            closed += [weakref.ref(one) for one in server.http.single._streams.values()]
            assert len(closed) == 2
        await until(lambda: not any(one() for one in closed))
    finally:
        gc.enable()


async def test_draining_closes_every_socket_with_1012_and_refuses_new_ones(
    server: Server,
) -> None:
    async with server.socket() as first, server.socket() as second:
        await subscribe(first, "1", "subscription { forever }")
        await hear(first)
        await server.ws.drain()
        assert server.ws.open_sockets == 0
        assert server.probe.open_streams == 0
        assert await closing(first) == (1012, "Service restart")
        assert await closing(second) == (1012, "Service restart")
    async with server.connect() as late:
        assert await closing(late) == (1012, "Service restart")
