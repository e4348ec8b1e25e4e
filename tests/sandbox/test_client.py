"""A client before an agent that somebody took over: whatever comes, it ends as a lost sandbox."""

import asyncio
import gc
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits, Hold
from sandbox.client import WINDOW_BYTES, Execution, Reason, SandboxClient, Tunnel
from sandbox.errors import SandboxLostError
from sandbox.inside import wire

LIMIT = 4 * WINDOW_BYTES
Frame = tuple[int, bytes]
BLOCK = bytes(wire.CHUNK)
ANSWERED = (
    wire.EXEC, wire.READ, wire.LIST, wire.STAT, wire.MAKE_DIR, wire.WRITE_OPEN, wire.MEASURE,
    wire.PACK, wire.UNPACK_OPEN, wire.PROCESSES, wire.KILL, wire.DIAL, wire.LISTEN,
)  # fmt: skip


def frame(kind: int, op: int, body: bytes) -> bytes:
    return wire.HEADER.pack(kind, op, len(body)) + body


class Taken:
    """A channel whose far end greets properly and then answers each request with given frames."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.answers: list[Frame] = []
        self.asked: list[tuple[int, int]] = []
        self.greeting = wire.HELLO_BODY.pack(wire.VERSION, 0)

    async def read(self) -> bytes:
        return await self.incoming.get()

    def write(self, data: bytes) -> None:
        data = data.lstrip(b"\0")
        if not data:
            return
        kind, op, _ = wire.HEADER.unpack_from(data)
        self.asked.append((kind, op))
        if kind == wire.HELLO:
            nonce = data[wire.HEADER.size :]
            self.incoming.put_nowait(frame(wire.HELLO_ACK, 0, nonce + self.greeting))
        elif kind in ANSWERED:
            for answer, body in self.answers:
                self.incoming.put_nowait(frame(answer, op, body))

    async def drain(self) -> None:
        return

    async def aclose(self) -> None:
        self.incoming.put_nowait(b"")


@pytest.fixture
async def taken() -> AsyncIterator[tuple[Taken, SandboxClient]]:
    """Nothing may be left for the loop to complain about either."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    channel = Taken()
    client = await SandboxClient.connect(channel)
    yield channel, client
    await client.aclose()
    gc.collect()
    assert complaints == []


async def execute(client: SandboxClient) -> Execution:
    return await client.execute("true", timeout_s=30, output_limit_bytes=LIMIT)


STARTED = (wire.STARTED, struct.pack(">I", 7))
RESULT = wire.RESULT_BODY


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([(wire.OUTPUT, b"")], id="output without a stream"),
        pytest.param([(wire.OUTPUT, b"\x02data")], id="a third stream"),
        pytest.param([(wire.OUTPUT, b"\0")], id="output of nothing"),
        pytest.param([(wire.STARTED, b"\1")], id="a short number"),
        pytest.param([(wire.STDIN_CREDIT, b"\1\2\3\4\5")], id="a long number"),
        pytest.param([(wire.STDIN_CREDIT, b"\xff\xff\xff\xff")], id="room for what was not sent"),
        pytest.param([(wire.RESULT, b"short")], id="a short result"),
        pytest.param([(wire.RESULT, RESULT.pack(99, 0, 0, 0, 0, 0, 0, 0, 0))], id="a new reason"),
        pytest.param([(wire.ERROR, b"DENIED\0too late")], id="a refusal after the start"),
        pytest.param([(wire.OUTPUT, b"\0" + BLOCK)] * 17, id="output beyond the window"),
    ],
)
async def test_garbage_ends_an_execution_as_lost(
    taken: tuple[Taken, SandboxClient], answers: list[Frame]
) -> None:
    channel, client = taken
    channel.answers = [STARTED, *answers]
    execution = await execute(client)
    async with asyncio.timeout(20):
        await client.wait_lost()
        result = await execution.result()
    assert result.reason is Reason.SANDBOX_LOST
    with pytest.raises(SandboxLostError):
        await execute(client)


async def test_a_window_full_of_output_is_no_flood(taken: tuple[Taken, SandboxClient]) -> None:
    channel, client = taken
    body = RESULT.pack(wire.EXITED, 0, 0, 0, WINDOW_BYTES, 0, 0, 0, 0)
    full = [(wire.OUTPUT, b"\0" + BLOCK)] * (WINDOW_BYTES // wire.CHUNK)
    channel.answers = [STARTED, *full, (wire.RESULT, body)]
    execution = await execute(client)
    async with asyncio.timeout(20):
        size = sum([len(chunk.data) async for chunk in execution.output()])
        result = await execution.result()
    assert (size, result.reason) == (WINDOW_BYTES, Reason.EXITED)
    assert not client.is_lost


async def test_output_beyond_the_limit_is_refused_even_where_it_is_read(
    taken: tuple[Taken, SandboxClient],
) -> None:
    channel, client = taken
    channel.answers = [STARTED, *[(wire.OUTPUT, b"\1" + BLOCK)] * (LIMIT // wire.CHUNK + 1)]
    execution = await execute(client)
    async with asyncio.timeout(20):
        result = await execution.result()
    assert result.reason is Reason.SANDBOX_LOST
    assert result.stderr_bytes <= LIMIT + wire.CHUNK


Ask = Callable[[SandboxClient], Awaitable[object]]


async def gathered(chunks: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(chunks):
        return b"".join([chunk async for chunk in chunks])


async def nothing() -> AsyncIterator[bytes]:
    no_chunks: tuple[bytes, ...] = ()
    for chunk in no_chunks:
        yield chunk


READ: Ask = lambda client: client.files.read("file")  # noqa: E731
SOME: Ask = lambda client: client.files.read("file", 0, 10)  # noqa: E731
LIST: Ask = lambda client: client.files.list()  # noqa: E731
STAT: Ask = lambda client: client.files.stat("file")  # noqa: E731
MAKE: Ask = lambda client: client.files.make_dir("folder")  # noqa: E731
WRITE: Ask = lambda client: client.files.write("file", b"data")  # noqa: E731
MEASURE: Ask = lambda client: client.files.measure()  # noqa: E731
SHOW: Ask = lambda client: client.processes()  # noqa: E731
KILL: Ask = lambda client: client.kill(7, 9)  # noqa: E731
DIAL: Ask = lambda client: client.dial(80)  # noqa: E731
PACK: Ask = lambda client: gathered(client.files.pack(".", ArchiveFormat.TAR))  # noqa: E731
UNPACK: Ask = lambda client: client.files.unpack(  # noqa: E731
    "a", nothing(), ArchiveFormat.TAR, ArchiveLimits(1, 1, 1)
)


async def held(client: SandboxClient) -> None:
    """Unpack an archive that is looked at first."""

    async def check(entries: int) -> None:
        """Have nothing against it."""

    client.holds_archives = True
    hold = Hold(1, check)
    await client.files.unpack("a", nothing(), ArchiveFormat.TAR, ArchiveLimits(1, 1, 1), hold=hold)


LISTEN: Ask = lambda client: client.listen(80)  # noqa: E731
PROC = wire.PROC.pack(7, 1, 0, b"S", 0, 0, 0) + wire.pack(b"true")
BAD_PROC = wire.PROC.pack(7, 1, 0, b"\xff", 0, 0, 0) + wire.pack(b"true")
ENDLESS = wire.PROC.pack(7, 1, 0, b"S", 0, 0, 0) + b"\xff\xff\xff\xff" + BLOCK * 5
DONE = (wire.DONE, b"")
ENTRY = wire.ENTRY.pack(0, 1, 0.0, 0o644) + wire.pack(b"file")


@pytest.mark.parametrize(
    ("ask", "answers"),
    [
        pytest.param(READ, [(wire.DATA, BLOCK)] * 17, id="data beyond the window"),
        pytest.param(READ, [(wire.DATA, b"")] * 2000, id="data of nothing without end"),
        pytest.param(SOME, [(wire.DATA, b"elf letters")], id="more than was asked for"),
        pytest.param(LIST, [(wire.DATA, BLOCK * 2)] * 40, id="a list without end"),
        pytest.param(LIST, [(wire.DATA, b"short"), DONE], id="a torn entry"),
        pytest.param(LIST, [(wire.DATA, ENTRY[:-1]), DONE], id="a torn name"),
        pytest.param(STAT, [(wire.DATA, b""), DONE], id="no entry"),
        pytest.param(STAT, [(wire.DATA, ENTRY * 2), DONE], id="two entries"),
        pytest.param(MAKE, [(wire.DATA, b"?"), DONE], id="data where none belongs"),
        pytest.param(MAKE, [(wire.OUTPUT, b"?"), DONE], id="output of no execution"),
        pytest.param(MAKE, [(wire.ERROR, b"\xff\xfe")], id="an unknown error"),
        pytest.param(MAKE, [(wire.WRITE_CREDIT, b"\0\0\0\1")], id="room for what was not sent"),
        pytest.param(WRITE, [(wire.WRITE_CREDIT, b"\xff\xff\xff\xff")], id="too much room"),
        pytest.param(MEASURE, [(wire.DATA, b"short"), DONE], id="a torn measure"),
        pytest.param(MEASURE, [DONE], id="no measure"),
        pytest.param(PACK, [(wire.DATA, BLOCK)] * 17, id="more of an archive than was granted"),
        pytest.param(PACK, [(wire.WRITE_CREDIT, b"\0\0\0\1")], id="room for an archive from it"),
        pytest.param(UNPACK, [(wire.DATA, b"?"), DONE], id="data about an archive"),
        pytest.param(UNPACK, [DONE], id="an archive of nothing known"),
        pytest.param(UNPACK, [(wire.DONE, b"short")], id="a torn account of an archive"),
        pytest.param(
            held, [(wire.DONE, wire.UNPACKED.pack(1, 1))], id="an archive it did not hold"
        ),
        pytest.param(held, [(wire.DATA, b"short")], id="a torn account of what it holds"),
        pytest.param(held, [(wire.DATA, BLOCK)], id="a long account of what it holds"),
        pytest.param(SHOW, [(wire.DATA, PROC[:-1]), DONE], id="a torn process"),
        pytest.param(SHOW, [(wire.DATA, BAD_PROC), DONE], id="a process in no state"),
        pytest.param(SHOW, [(wire.DATA, BLOCK * 4)] * 80, id="processes without end"),
        pytest.param(SHOW, [(wire.DATA, ENDLESS), DONE], id="a command line without end"),
        pytest.param(KILL, [(wire.DATA, b"?"), DONE], id="data about a signal"),
        pytest.param(DIAL, [(wire.DONE, b"")], id="a connection that is done"),
        pytest.param(DIAL, [(wire.ERROR, b"?\0")], id="a connection refused for no reason"),
        pytest.param(DIAL, [(wire.DATA, BLOCK)] * 3, id="more than the window of a connection"),
        pytest.param(DIAL, [(wire.DATA, b"")], id="nothing from a connection"),
        pytest.param(DIAL, [(wire.TUNNEL_ENDED, b"")] * 2, id="a connection that ends twice"),
        pytest.param(DIAL, [(wire.TUNNEL_ENDED, b""), (wire.DATA, b"?")], id="data after its end"),
        pytest.param(DIAL, [(wire.WRITE_CREDIT, b"\0\0\0\1")], id="room in a full window"),
        pytest.param(LISTEN, [(wire.OPENED, b"")], id="no port"),
        pytest.param(LISTEN, [(wire.DONE, b"")], id="a port that is done"),
        pytest.param(LISTEN, [(wire.ACCEPTED, b"")], id="a connection as an answer"),
    ],
)
async def test_garbage_ends_an_operation_on_files_as_lost(
    taken: tuple[Taken, SandboxClient], ask: Ask, answers: list[Frame]
) -> None:
    channel, client = taken
    channel.answers = answers
    async with asyncio.timeout(20):
        with pytest.raises(SandboxLostError):
            await ask(client)
        await client.wait_lost()


async def test_a_time_outside_the_calendar_is_no_garbage(
    taken: tuple[Taken, SandboxClient],
) -> None:
    channel, client = taken
    entry = wire.ENTRY.pack(0, 1, 1e300, 0o644) + wire.pack(b"file")
    channel.answers = [(wire.DATA, entry), DONE]
    async with asyncio.timeout(20):
        info = await client.files.stat("file")
    assert (info.name, info.modified_at.year) == ("file", 1970)
    assert not client.is_lost


async def test_an_agent_of_another_version_is_refused() -> None:
    channel = Taken()
    # As the first version said it.
    channel.greeting = struct.pack(">H", 1)
    with pytest.raises(SandboxLostError, match="another version"):
        await SandboxClient.connect(channel)


async def test_an_agent_that_knows_no_names_is_served_without() -> None:
    channel = Taken()
    channel.greeting = wire.HELLO_BODY.pack(wire.OLDEST, 0)
    size = WINDOW_BYTES // wire.CHUNK
    body = RESULT.pack(wire.EXITED, 0, 0, 0, WINDOW_BYTES, 0, 0, 0, 0)
    channel.answers = [STARTED, *[(wire.OUTPUT, b"\0" + BLOCK)] * size, (wire.RESULT, body)]
    async with asyncio.timeout(20), SandboxClient(channel) as client:
        execution = await client.execute(
            "true", timeout_s=30, output_limit_bytes=LIMIT, name="unheard of"
        )
        async for _ in execution.output():
            execution.acknowledge(1, 0)
        assert (await execution.result()).exit_code == 0
        execution.release()
        asked = {kind for kind, _ in channel.asked}
    assert asked == {wire.HELLO, wire.EXEC}
    assert client.kept == {}


def kept(name: bytes = b"one", **changes: int) -> bytes:
    record = {
        "op": 7, "pid": 9, "window": WINDOW_BYTES, "safe_out": 5, "safe_err": 0, "out": 8,
        "err": 2, "taken": 0, "waiting": 0, "flags": 0,
    } | changes  # fmt: skip
    return wire.KEPT.pack(*record.values()) + wire.pack(name)


async def test_what_outlived_another_client_is_known_by_name() -> None:
    channel = Taken()
    channel.greeting += kept() + kept(b"two", op=9, out=5, err=0)
    async with asyncio.timeout(20), SandboxClient(channel) as client:
        one, two = client.kept.pop("one"), client.kept.pop("two")
        assert client.kept == {}
        assert (one.operation, one.pid, one.nearest(6, 1)) == (7, 9, (6, 1))
        # The log may lack what was safe, but never have what was never read.
        assert (one.nearest(0, 0), one.nearest(99, 99)) == ((5, 0), (8, 2))
        assert client.operation() == 10
        two.release()
        two.release()
        assert (await two.result()).reason is Reason.SANDBOX_LOST
    assert channel.asked == [(wire.HELLO, 0), (wire.RELEASE, 9)]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(kept()[:-1], id="a torn name"),
        pytest.param(kept()[:20], id="a torn record"),
        pytest.param(kept(b"\xff"), id="a name that is no text"),
        pytest.param(kept(safe_out=9), id="more acknowledged than read"),
        pytest.param(kept(window=1), id="more held than the window"),
        pytest.param(kept(window=1 << 31), id="a window without end"),
        pytest.param(kept(waiting=wire.STDIN_WINDOW + 1), id="more input than there may be"),
        pytest.param(kept(op=0), id="no number"),
        pytest.param(kept(op=wire.AGENT_OPERATION), id="a number of the agent's"),
    ],
)
async def test_what_cannot_have_outlived_a_client_ends_the_sandbox(record: bytes) -> None:
    channel = Taken()
    channel.greeting += record
    client = SandboxClient(channel)
    with pytest.raises(SandboxLostError):
        async with asyncio.timeout(20), client:
            pass
    assert client.is_distrusted
    await client.aclose()


async def test_what_was_meant_for_an_earlier_client_is_skipped() -> None:
    channel = Taken()
    channel.incoming.put_nowait(b"half of a frame" * 99)
    client = await SandboxClient.connect(channel)
    assert not client.is_lost
    await client.aclose()


ACCEPTED = wire.AGENT_OPERATION | 5


def accepted(op: int, room: int = wire.TUNNEL_WINDOW) -> bytes:
    return frame(wire.ACCEPTED, op, wire.PORT.pack(3128, room))


async def test_a_connection_of_a_program_is_passed_on(
    taken: tuple[Taken, SandboxClient],
) -> None:
    channel, client = taken
    tunnels: asyncio.Queue[tuple[Tunnel, int]] = asyncio.Queue()
    client.on_accepted = lambda tunnel, port: tunnels.put_nowait((tunnel, port))
    channel.incoming.put_nowait(accepted(ACCEPTED) + frame(wire.DATA, ACCEPTED, b"hello"))
    async with asyncio.timeout(20):
        tunnel, port = await tunnels.get()
        assert (await tunnel.read(), port) == (b"hello", 3128)
    assert (wire.CREDIT, ACCEPTED) in channel.asked
    await tunnel.aclose()
    # What was still on its way is nobody's any more.
    channel.incoming.put_nowait(frame(wire.DATA, ACCEPTED, b"late"))
    channel.incoming.put_nowait(accepted(ACCEPTED + 1))
    async with asyncio.timeout(20):
        await tunnels.get()
    assert not client.is_lost


async def test_without_anybody_to_take_it_a_connection_is_broken_off(
    taken: tuple[Taken, SandboxClient],
) -> None:
    channel, client = taken
    channel.incoming.put_nowait(accepted(ACCEPTED))
    channel.answers = [STARTED]
    await execute(client)
    assert (wire.CANCEL, ACCEPTED) in channel.asked


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(accepted(5), id="with a number of ours"),
        pytest.param(accepted(ACCEPTED, wire.TUNNEL_WINDOW + 1), id="too much room"),
        pytest.param(accepted(ACCEPTED) * 2, id="twice"),
        pytest.param(frame(wire.ACCEPTED, ACCEPTED, b""), id="on no port"),
        pytest.param(b"".join(accepted(ACCEPTED + n) for n in range(9999)), id="without end"),
    ],
)
async def test_connections_that_no_agent_accepts_end_as_lost(
    taken: tuple[Taken, SandboxClient], frames: bytes
) -> None:
    channel, client = taken
    client.on_accepted = lambda tunnel, port: None
    channel.incoming.put_nowait(frames)
    async with asyncio.timeout(20):
        await client.wait_lost()
    assert client.tunnels == {}
