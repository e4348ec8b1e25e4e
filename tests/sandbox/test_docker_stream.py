"""Docker's stream of several streams, however the connection cuts it."""

import asyncio
import random
import socket
import struct
from collections.abc import Callable

import pytest
import uvloop

from sandbox.docker_stream import COMPLAINT_BYTES, READ_AHEAD_BYTES, Demultiplexer, Intake


class Reading:
    """Whether the connection is being read."""

    def __init__(self) -> None:
        self.changes: list[str] = []
        self.output = Demultiplexer(
            lambda: self.changes.append("pause"), lambda: self.changes.append("resume")
        )

    def feed(self, data: bytes) -> None:
        assert self.output.feed_data(data) == (False, b"")


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


@pytest.mark.parametrize("most", [1, 3, 7, 8, 9, 100, 100_000])
async def test_output_is_whole_wherever_it_is_cut(most: int) -> None:
    chance = random.Random(most)
    sizes = (0, 1, 5, 300)
    parts = [(chance.choice((1, 1, 2)), chance.randbytes(chance.choice(sizes))) for _ in range(200)]
    sent = b"".join(frame(stream, data) for stream, data in parts)
    reading = Reading()
    received = b""
    at = 0
    while at < len(sent):
        size = chance.randint(1, most)
        reading.feed(sent[at : at + size])
        at += size
        if chance.random() < 0.5 and reading.output._held:
            received += await reading.output.read()
    reading.output.feed_eof()
    while data := await reading.output.read():
        received += data
    assert received == b"".join(data for stream, data in parts if stream == 1)
    complaints = b"".join(data for stream, data in parts if stream == 2)
    assert reading.output.complaints == complaints[-COMPLAINT_BYTES:]
    assert await reading.output.read() == b""


async def test_it_reads_ahead_so_far_and_no_farther() -> None:
    reading = Reading()
    block = bytes(64 * 1024)
    blocks = 0
    while not reading.changes:
        reading.feed(frame(1, block))
        blocks += 1
    assert blocks * len(block) > READ_AHEAD_BYTES >= (blocks - 1) * len(block)
    # What was on its way already is taken, too.
    reading.feed(frame(1, block))
    assert len(await reading.output.read()) == (blocks + 1) * len(block)
    assert reading.changes == ["pause", "resume"]


async def test_a_reader_that_waits_is_told_of_data_and_of_the_end() -> None:
    reading = Reading()
    waiting = asyncio.ensure_future(reading.output.read())
    await asyncio.sleep(0)
    reading.feed(frame(2, b"complaint"))
    reading.feed(frame(1, b"word")[:9])
    async with asyncio.timeout(20):
        assert await waiting == b"w"
    waiting = asyncio.ensure_future(reading.output.read())
    await asyncio.sleep(0)
    reading.output.set_exception(ConnectionResetError())
    async with asyncio.timeout(20):
        assert await waiting == b""


class Before(asyncio.Protocol):
    """What a connection was spoken to by until then."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.is_lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def eof_received(self) -> None:
        self.heard.append("eof")

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append(exc)
        self.is_lost.set()


async def _taken_over() -> None:
    """Let a connection be taken over in the middle, read in turns, written to and ended."""
    near, far = socket.socketpair()
    before = Before()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: before, sock=near)
    reader, writer = await asyncio.open_unix_connection(sock=far)
    writer.write(b"head")
    while not before.heard:  # noqa: ASYNC110 - a protocol has nobody to tell.
        await asyncio.sleep(0)
    output = Demultiplexer(transport.pause_reading, transport.resume_reading)
    Intake.insert(transport, before, output.feed_data)
    sent = random.Random(7).randbytes(9 * 1024 * 1024)

    async def send() -> None:
        for at in range(0, len(sent), 32_768):
            writer.write(frame(1, sent[at : at + 32_768]))
            await writer.drain()

    sending = asyncio.ensure_future(send())
    received = bytearray()
    while len(received) < len(sent):
        received += await output.read()
    await sending
    assert received == sent
    transport.write(bytes(4 * 1024 * 1024))
    assert len(await reader.readexactly(4 * 1024 * 1024)) == 4 * 1024 * 1024
    writer.close()
    await before.is_lost.wait()
    assert before.heard == [b"head", "pause", "resume", "eof", None]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_a_connection_is_taken_over_from_its_protocol(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(asyncio.wait_for(_taken_over(), 60))

    await asyncio.to_thread(run)
