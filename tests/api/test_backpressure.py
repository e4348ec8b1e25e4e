"""A reader that stops reading: it costs the server little, other readers nothing, itself nothing.

The test writes an answer as a worker of another process does, through the database and Redis that
a server has in common with it, and two readers follow it at that server.
"""

import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from app.runtime import running
from services.accounts import sessions
from services.base import Deps
from tests.api import operations as op
from tests.api.following import ConversationFollower, following
from tests.api.transports import Events, Subscription, WebSocket, in_time
from tests.fixtures import settings_for
from tests.product import Client, Product
from tests.services.streams.authors import Author

pytestmark = [pytest.mark.redis, pytest.mark.timeout(400)]

MEBI = 1024 * 1024
EVENTS = 10_000
PIECE = "0123456789 " * 40


class DeafWebSocket(WebSocket):
    """A connection with next to no room on the way, whose reader may stop for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.is_deaf = False
        self.sockets: list[ClientConnection] = []

    @asynccontextmanager
    async def open(self, url: str, wanted: Subscription) -> AsyncIterator[Events]:
        address = httpx.URL(url)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect((address.host, address.port))
        raw.setblocking(False)
        async with connect(
            url.replace("http", "ws") + "/graphql",
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
            sock=raw,
            compression=None,
            max_size=None,
            max_queue=1,
            ping_interval=None,
        ) as connection:
            payload = {
                "query": wanted.query,
                "variables": {**wanted.variables, "after": wanted.after},
            }
            headers = {"Authorization": f"Bearer {wanted.token}"}
            await connection.send(json.dumps({"type": "connection_init", "payload": headers}))
            assert json.loads(await in_time(connection.recv()))["type"] == "connection_ack"
            subscribe = {"id": "1", "type": "subscribe", "payload": payload}
            await connection.send(json.dumps(subscribe))
            self.sockets.append(connection)
            yield self._events(connection)

    def stop(self) -> None:
        """Take nothing more from the connection."""
        self.sockets[-1].transport.pause_reading()

    def go_on(self) -> None:
        """Take again what there is."""
        self.sockets[-1].transport.resume_reading()


class Told:
    """When text was written, and how long after it a reader knew it."""

    def __init__(self, follower: ConversationFollower, message_id: str) -> None:
        self._follower, self._id = follower, message_id
        self._written: list[tuple[int, float]] = []
        self.latencies_s: list[float] = []
        follower.on_event = self._on_event

    def write(self, chars: int) -> None:
        """Note that the text has so many characters now."""
        self._written.append((chars, time.monotonic()))

    def _on_event(self) -> None:
        known, now = len(self._follower.texts.get(self._id, "")), time.monotonic()
        while self._written and self._written[0][0] <= known:
            self.latencies_s.append(now - self._written.pop(0)[1])

    def p99_s(self) -> float:
        """Give the time within which 99 of 100 were known, and forget them."""
        found, self.latencies_s = quantiles(self.latencies_s, n=100)[98], []
        return found


@pytest.fixture
def server(tmp_path: Path, redis_url: str) -> Iterator[Product]:
    product = Product(
        tmp_path / "server",
        NOOSPHERE_REDIS_URL=redis_url,
        NOOSPHERE_WORKER_IN_SERVER="false",
        NOOSPHERE_SANDBOX_DRIVER="off",
    )
    with product.started():
        yield product


@pytest.fixture
async def ann(server: Product) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        await client.register("ann")
        yield client


@pytest.fixture
async def deps(server: Product, redis_url: str, tmp_path: Path) -> AsyncIterator[Deps]:
    """What a worker of its own works with."""
    database_url = f"sqlite+aiosqlite:///{server.data_dir / 'noosphere.sqlite3'}"
    settings = settings_for(
        tmp_path / "worker", database_url=database_url, redis_url=redis_url, node_id="worker"
    )
    async with running(settings) as deps:
        yield deps


def resident_bytes(server: Product) -> int:
    """Give the memory a server has."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def metric(server: Product, name: str) -> float:
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


async def test_a_reader_that_stops_costs_little_and_misses_nothing(
    server: Product, ann: Client, deps: Deps
) -> None:
    created = await ann.run(op.CREATE_CONVERSATION)
    id_ = created["conversationCreate"]["conversation"]["id"]
    assert ann.token is not None
    viewer = await sessions.authenticate(deps, ann.token)
    writer = Author(deps, viewer, id_)
    answer = await writer.add()
    reading = ConversationFollower(lambda: server.url, ann.token, id_)
    stopping = ConversationFollower(lambda: server.url, ann.token, id_)
    deaf = DeafWebSocket()
    stopping.transport = deaf
    told = Told(reading, answer.id)
    memory: list[int] = []

    async def write(events: int) -> float:
        for number in range(events):
            await answer.writer.write(f"{number} {PIECE}")
            await answer.writer.flush()
            answer.texts[answer.key] = answer.writer.text
            told.write(len(answer.writer.text))
            if number % 50 == 49:
                await writer.say()
            if number % 500 == 499:
                await answer.writer.store()
                memory.append(resident_bytes(server))
        await reading.until(lambda: len(reading.texts[answer.id]) == len(answer.writer.text))
        return told.p99_s()

    async with following(reading, stopping):
        await reading.until_told(1)
        await stopping.until_told(1)
        alone = await write(1_500)
        await stopping.until(lambda: stopping.texts[answer.id] == answer.writer.text)
        before = max(memory)
        memory.clear()

        deaf.stop()
        beside_one_who_stopped = await write(EVENTS)
        # The kernel of a busy machine may take all of that; it takes no more than some megabytes.
        while not await metric(server, "noosphere_stream_lagged_total"):
            assert len(memory) < 10 * EVENTS // 500, "it ought to lag by now"
            await write(1_000)

        assert len(answer.writer.text) - len(stopping.texts[answer.id]) > 2 * MEBI
        assert await metric(server, "noosphere_stream_queue_bytes") < 1.2 * MEBI
        assert max(memory) - before < 64 * MEBI

        deaf.go_on()
        await stopping.until(lambda: stopping.texts[answer.id] == answer.writer.text)
        alone = max(alone, await write(1_500))
        assert beside_one_who_stopped < 10 * alone
        await writer.end(answer)
        for follower in (reading, stopping):
            await follower.until_final(answer.id)
            assert follower.texts[answer.id] == answer.writer.text
    rows = await writer.rows()
    for follower in (reading, stopping):
        assert follower.texts.keys() == rows.keys()
        assert follower.resets == 1
    assert reading.connections == 1
