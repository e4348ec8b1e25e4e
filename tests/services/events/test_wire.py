"""What the bus makes of what a Redis sends, whatever pieces it comes in."""

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import hiredis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from services.events.base import BusUnavailableError
from services.events.lane import Lane
from services.events.redis import RedisBus
from services.events.subscriber import Subscriber
from services.events.wire import Wire
from tests.servers import require
from tests.servers.base import free_port

PATIENCE_S = 30.0
Answer = Callable[[list[bytes], asyncio.StreamWriter], Awaitable[None]]


class Server:
    """The far end of the network: signs anybody in, and answers the rest as a test says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.port = free_port()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                if command[0] == b"CLIENT":
                    writer.write(b"+OK\r\n")
                elif command[0] == b"INFO":
                    writer.write(b"$12\r\nrun_id:abc\r\n\r\n")
                else:
                    await self._answer(command, writer)
        writer.close()

    def wire(self) -> Wire:
        pool = ConnectionPool.from_url(
            f"redis://127.0.0.1:{self.port}", protocol=2, socket_timeout=None, client_name="test"
        )
        return Wire(pool.make_connection())  # type: ignore[no-untyped-call]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Server, Lane]]:
    async with Server(answer) as server:
        lane = Lane(server.wire, timeout_s=5.0)
        running = asyncio.create_task(lane.run())
        try:
            yield server, lane
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_replies_are_whole_however_they_are_cut() -> None:
    async def drip(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        for byte in b"*2\r\n$%d\r\n%s\r\n:7\r\n" % (len(command[1]), command[1]):
            writer.write(bytes([byte]))
            await writer.drain()

    async with serving(drip) as (_, lane):
        words = [f"word {n}\r\n" for n in range(50)]
        replies = await asyncio.gather(*(lane.execute("ECHO", word) for word in words))
    assert replies == [[word.encode(), 7] for word in words]


async def test_an_error_is_the_answer_to_its_command_alone() -> None:
    async def answer(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(command[1] + b"\r\n")

    async with serving(answer) as (server, lane):
        outcomes = await asyncio.gather(
            *(
                lane.execute("SAY", reply)
                for reply in (":1", "-NOSCRIPT none", "-READONLY", "-WRONGTYPE held", ":2")
            ),
            return_exceptions=True,
        )
        assert [type(o) for o in outcomes] == [
            int,
            NoScriptError,
            ReadOnlyError,
            ResponseError,
            int,
        ]
        assert str(outcomes[3]) == "WRONGTYPE held"
        # What is demoted may have another master behind its name.
        assert await lane.execute("SAY", ":3") == 3
        assert server.connections == 2


async def test_a_server_that_loads_its_data_fails_what_waits_and_is_asked_anew() -> None:
    replies = iter([b"-LOADING Redis is loading\r\n", b":5\r\n"])

    async def answer(_: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(next(replies))

    async with serving(answer) as (server, lane):
        with pytest.raises(BusUnavailableError, match="loading"):
            await lane.execute("GET", "k")
        assert await lane.execute("GET", "k") == 5
        assert server.connections == 2


async def test_a_server_that_says_more_than_it_is_asked_is_left() -> None:
    replies = iter([b":1\r\n:2\r\n", b":3\r\n"])

    async def answer(_: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(next(replies))

    async with serving(answer) as (server, lane):
        with pytest.raises(BusUnavailableError, match="more answers"):
            await lane.execute("GET", "k")
        assert await lane.execute("GET", "k") == 3
        assert server.connections == 2


async def test_a_server_that_speaks_no_redis_is_left() -> None:
    async def answer(_: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(answer) as (_, lane):
        with pytest.raises(BusUnavailableError, match="Protocol error"):
            await lane.execute("GET", "k")


async def test_a_connection_that_ended_is_not_used_again() -> None:
    async def hang_up(_: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with Server(hang_up) as server:
        wire = server.wire()
        await wire.open()
        await wire.send(b"*1\r\n$4\r\nPING\r\n")
        with pytest.raises(RedisConnectionError):
            await wire.receive()
        assert not await wire.is_quiet()
        await wire.close()
        with pytest.raises(RedisConnectionError):
            await wire.send(b"*1\r\n$4\r\nPING\r\n")
        assert server.connections == 1


async def test_many_messages_of_one_packet_are_taken_in_their_order() -> None:
    got: list[tuple[bytes, bytes]] = []
    is_done = asyncio.Event()

    def take(channel: bytes, payload: bytes) -> None:
        got.append((channel, payload))
        if payload == b"1":
            raise ValueError("one bad message stops no other")
        if payload == b"499":
            is_done.set()

    async def answer(command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if command[0] != b"SUBSCRIBE":
            return
        pieces = [hiredis.pack_command(("subscribe", command[1]))]
        pieces += [hiredis.pack_command(("message", "c", str(n))) for n in range(500)]
        whole = b"".join(pieces)
        writer.write(whole[:-3])
        await writer.drain()
        writer.write(whole[-3:])

    async with Server(answer) as server:
        subscriber = Subscriber(
            server.wire, permanent=(b"c",), on_message=take, on_restored=is_done.set, timeout_s=5
        )
        running = asyncio.create_task(subscriber.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await subscriber.wait_ready()
                await is_done.wait()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert got == [(b"c", str(n).encode()) for n in range(500)]
    assert (subscriber.received, subscriber.reconnects) == (500, 0)


@pytest.mark.redis
async def test_a_redis_behind_tls_and_a_password_serves_who_knows_both(tmp_path: Path) -> None:
    require("redis")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    _certify(key, certificate)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *("redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"),
        *("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no"),
        *("--requirepass", "secret", "--dir", tmp_path, "--save", "", "--appendonly", "no"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"eady to accept connections" not in (line := await process.stdout.readline()):
                assert line, "redis-server did not start"
        address = f"127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        bus = RedisBus(f"rediss://:secret@{address}", "node-a")
        await bus.start()
        try:
            async with bus.attach("t", max_items=300, max_bytes=10_000_000) as tap:
                text = {"text": "x" * 10_000}
                await asyncio.gather(*(bus.append("t", text) for _ in range(300)))
                for n in range(1, 301):
                    news = await tap.get(PATIENCE_S)
                    assert news is not None
                    assert (news.seq, news.data) == (n, text)
        finally:
            await bus.aclose()
        for url in (f"rediss://:wrong@{address}", f"rediss://{address}"):
            stranger = RedisBus(url, "node-b", timeout_s=2.0)
            with pytest.raises(BusUnavailableError):
                await stranger.start()
    finally:
        process.kill()
        await process.communicate()


def _certify(key: Path, certificate: Path) -> None:
    """Write a certificate for 127.0.0.1 that signs itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    today = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
