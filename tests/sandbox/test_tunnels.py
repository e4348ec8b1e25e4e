"""Connections to programs inside, and from programs inside to a port that the agent holds."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from sandbox.client import Execution, Tunnel
from sandbox.errors import (
    InvalidArgumentError,
    PortError,
    ResourceExhaustedError,
    SandboxLostError,
)
from sandbox.inside import wire
from sandbox.limits import Limits
from sandbox.tunnels import WINDOW_BYTES
from tests.sandbox.conftest import MIB, Box, Boxes

ANY = "0.0.0.0"  # noqa: S104 - inside the sandbox.
WIDE = Limits(memory_bytes=192 * MIB, disk_bytes=MIB, pids=400)
SERVER = """
import os, socket, sys, threading
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
server = socket.socket(family)
server.bind((sys.argv[1], 0))
server.listen(200)
print(server.getsockname()[1], flush=True)
def handle(peer):
    exec(sys.argv[2])
while True:
    peer, _ = server.accept()
    threading.Thread(target=handle, args=(peer,), daemon=True).start()
"""
ECHO = """
while True:
    data = peer.recv(65536)
    if not data: break
    peer.sendall(data)
peer.close()
"""
COUNT = """
total = 0
while True:
    data = peer.recv(65536)
    if not data: break
    total += len(data)
peer.sendall(b'%d' % total)
peer.close()
"""
FLOOD = """
sent = 0
try:
    while True:
        sent += peer.send(bytes(65536))
        open('/workspace/sent', 'w').write(str(sent))
except OSError:
    open('/workspace/ended', 'w').write('1')
"""
STALL = "threading.Event().wait()"
RUDE = """
import struct
peer.recv(10)
peer.sendall(b'no')
peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
peer.close()
"""


@asynccontextmanager
async def serving(
    box: Box, handler: str, address: str = "127.0.0.1"
) -> AsyncIterator[tuple[int, Execution]]:
    """A server inside; its port."""
    execution = await box.start(["python3", "-c", SERVER, address, handler], timeout_s=120)
    async with aclosing(execution.output()) as output:
        async with asyncio.timeout(30):
            port = int((await anext(output)).data)
        yield port, execution
    await execution.cancel()
    await execution.result()


async def read_all(tunnel: Tunnel) -> bytes:
    data = b""
    async with asyncio.timeout(60):
        while chunk := await tunnel.read():
            data += chunk
    return data


async def content(box: Box, path: str) -> bytes:
    async with asyncio.timeout(30):
        while True:
            if path in {entry.name for entry in await box.client.files.list()}:
                return await box.client.files.read(path)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ANY])
async def test_a_server_inside_is_reached(box: Box, address: str) -> None:
    _, out, _ = await box.run("cat /proc/net/if_inet6 2>/dev/null | wc -l")
    if address == "::1" and int(out) == 0:
        pytest.skip("There is no IPv6 here.")
    async with serving(box, ECHO, address) as (port, _):
        tunnel = await box.client.dial(port)
        await tunnel.write(b"hello")
        assert await tunnel.read() == b"hello"
        await tunnel.end()
        assert await tunnel.read() == b""
        assert await tunnel.read() == b""
        await tunnel.aclose()
    assert box.client.tunnels == {}


async def test_bytes_pass_both_ways_at_once_and_exactly(box: Box) -> None:
    data = os.urandom(6 * MIB + 3)
    async with serving(box, ECHO) as (port, _):
        tunnel = await box.client.dial(port)

        async def send() -> None:
            await tunnel.write(data)
            await tunnel.end()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            received = group.create_task(read_all(tunnel))
        assert received.result() == data
        await tunnel.aclose()


async def test_each_direction_ends_on_its_own(box: Box) -> None:
    async with serving(box, COUNT) as (port, _):
        tunnel = await box.client.dial(port)
        await tunnel.write(bytes(300_000))
        await tunnel.end()
        await tunnel.end()
        assert await read_all(tunnel) == b"300000"
        with pytest.raises(PortError):
            await tunnel.write(b"more")
        await tunnel.aclose()
        await tunnel.aclose()


async def test_many_connections_at_once(boxes: Boxes) -> None:
    box = await boxes.make(limits=WIDE)  # Room for a thread each.
    async with serving(box, ECHO) as (port, _):

        async def one(number: int) -> bytes:
            tunnel = await box.client.dial(port)
            await tunnel.write(b"%d" % number)
            await tunnel.end()
            answer = await read_all(tunnel)
            await tunnel.aclose()
            return answer

        answers = await asyncio.gather(*(one(number) for number in range(100)))
        assert answers == [b"%d" % number for number in range(100)]


async def test_where_nobody_listens_the_attempt_is_refused(box: Box) -> None:
    with pytest.raises(PortError):
        await box.client.dial(9)
    for port in (0, -1, 65536):
        with pytest.raises(InvalidArgumentError):
            await box.client.dial(port)
    with pytest.raises(InvalidArgumentError):
        await box.client.listen(65536)
    assert box.client.tunnels == {}


async def test_connections_are_limited_and_given_back(boxes: Boxes) -> None:
    box = await boxes.make(limits=WIDE)  # Room for a thread each.
    async with serving(box, ECHO) as (port, _):
        tunnels = [await box.client.dial(port) for _ in range(wire.MAX_TUNNELS)]
        with pytest.raises(ResourceExhaustedError):
            await box.client.dial(port)
        await tunnels.pop().aclose()
        tunnels.append(await box.client.dial(port))
        await tunnels[-1].write(b"last")
        assert await tunnels[-1].read() == b"last"
        for tunnel in tunnels:
            await tunnel.aclose()
    assert box.client.tunnels == {}


async def test_a_stalled_reader_stops_the_program_alone(box: Box) -> None:
    async with serving(box, FLOOD) as (port, _):
        tunnel = await box.client.dial(port)
        before = b""
        # It has come to rest when two looks, each a whole execution apart, see the same.
        while True:
            _, now, _ = await box.run("sleep 0.2; cat sent 2>/dev/null")
            if now == before and now:
                break
            before = now
        assert sum(map(len, tunnel._chunks)) <= WINDOW_BYTES
        assert int(before) < 16 * MIB
        assert await tunnel.read()
        await tunnel.aclose()
        assert await content(box, "ended") == b"1"


async def test_a_stalled_program_makes_the_writer_wait(box: Box) -> None:
    async with serving(box, STALL) as (port, _):
        tunnel = await box.client.dial(port)
        writing = asyncio.ensure_future(tunnel.write(bytes(64 * MIB)))
        for _ in range(5):
            await box.run("true")
        assert not writing.done()
        await tunnel.aclose()
        with pytest.raises(PortError):
            await writing


async def test_what_came_before_a_reset_is_read(box: Box) -> None:
    async with serving(box, RUDE) as (port, _):
        tunnel = await box.client.dial(port)
        await tunnel.write(b"0123456789 and much more" * 1000)
        assert await tunnel.read() == b"no"
        with pytest.raises(PortError):
            await tunnel.read()
        with pytest.raises(PortError):
            await tunnel.write(b"more" * WINDOW_BYTES)
        await tunnel.aclose()


async def test_programs_connect_to_a_port_of_ours(box: Box) -> None:
    accepted: asyncio.Queue[tuple[Tunnel, int]] = asyncio.Queue()
    box.client.on_accepted = lambda tunnel, port: accepted.put_nowait((tunnel, port))
    listener = await box.client.listen()
    program = (
        "import socket, sys\n"
        "peer = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "peer.sendall(b'ask ' * 100000)\n"
        "peer.shutdown(socket.SHUT_WR)\n"
        "count = sum(len(data) for data in iter(lambda: peer.recv(65536), b''))\n"
        "sys.stdout.write(f'{count}\\n')\n"
    )
    execution = await box.start(["python3", "-c", program, str(listener.port)])
    async with asyncio.timeout(30):
        tunnel, port = await accepted.get()
    assert port == listener.port
    assert await read_all(tunnel) == b"ask " * 100_000
    await tunnel.write(bytes(500_000))
    await tunnel.end()
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"500000\n"
    await tunnel.aclose()
    with pytest.raises(PortError):
        await box.client.listen(listener.port)
    await listener.aclose()
    again = await box.client.listen(listener.port)
    assert again.port == listener.port
    await again.aclose()


async def test_without_anybody_to_accept_connections_are_broken_off(box: Box) -> None:
    listener = await box.client.listen(3128)
    program = "import socket; print(socket.create_connection(('127.0.0.1', 3128)).recv(9))"
    _, out, err = await box.python(program)
    assert out == b"b''\n" or b"ConnectionResetError" in err
    await listener.aclose()
    _, _, err = await box.python(program)
    assert b"ConnectionRefusedError" in err


async def test_more_connections_than_there_is_room_for_wait(box: Box) -> None:
    accepted: asyncio.Queue[Tunnel] = asyncio.Queue()
    box.client.on_accepted = lambda tunnel, _: accepted.put_nowait(tunnel)
    listener = await box.client.listen()
    program = (
        "import socket, sys\n"
        "peers = [socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "         for _ in range(int(sys.argv[2]))]\n"
        "print('up', flush=True)\n"
        "print(sum(len(peer.recv(9)) for peer in peers))\n"
    )
    count = wire.MAX_TUNNELS + 20
    execution = await box.start(["python3", "-c", program, str(listener.port), str(count)])
    async with asyncio.timeout(60):
        for _ in range(count):
            tunnel = await accepted.get()
            await tunnel.write(b"x")
            await tunnel.aclose()
        out = b"".join([chunk.data async for chunk in execution.output()])
    assert out.startswith(b"up\n")
    assert (await execution.result()).reason == "EXITED"
    await listener.aclose()


async def test_losing_the_sandbox_ends_its_connections(box: Box) -> None:
    async with serving(box, STALL) as (port, _):
        tunnel = await box.client.dial(port)
        reading = asyncio.ensure_future(tunnel.read())
        writing = asyncio.ensure_future(tunnel.write(bytes(64 * MIB)))
        await box.run("true")
        await box.driver.stop(box.id)
        async with asyncio.timeout(30):
            for waiting in (reading, writing):
                with pytest.raises(SandboxLostError):
                    await waiting
        await tunnel.aclose()


async def test_a_client_that_takes_over_finds_no_connection(box: Box) -> None:
    async with serving(box, ECHO) as (port, _):
        tunnel = await box.client.dial(port)
        listener = await box.client.listen()
        channel = await box.driver.open_channel(box.id)
        other = await type(box.client).connect(channel)
        try:
            with pytest.raises(SandboxLostError):
                await tunnel.read()
            again = await other.listen(listener.port)
            assert again.port == listener.port
        finally:
            await other.aclose()
