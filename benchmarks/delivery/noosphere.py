"""The product as it is, with Redis, and the processes around it that a measurement needs."""

import asyncio
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from sqlalchemy import update

from benchmarks.delivery.child import Child
from benchmarks.delivery.publisher import Publisher
from benchmarks.delivery.subscribers import Subscription
from models.conversations import Message
from models.database import Database
from models.states import MessageRole, MessageStatus
from tests.api import operations as op
from tests.product import Client, Product, free_port
from tests.servers.base import program

_START_S = 20.0
_AT_ONCE = 4


class Redis:
    """A Redis that keeps everything in memory and may be emptied; started unless `url` is given."""

    def __init__(self, directory: Path, url: str | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.url = url or self._start(directory)

    def _start(self, directory: Path) -> str:
        redis_server = program("redis-server")
        assert redis_server, "the benchmark needs redis-server, or --redis with the URL of one"
        port = free_port()
        self._process = subprocess.Popen(
            [
                *(redis_server, "--bind", "127.0.0.1", "--port", str(port)),
                *("--dir", str(directory), "--save", "", "--appendonly", "no"),
            ],
            stdout=subprocess.DEVNULL,
        )
        url = f"redis://127.0.0.1:{port}/0"
        # Tried again until it listens.
        retry = Retry(ConstantBackoff(0.05), int(_START_S / 0.05))
        with redis.Redis.from_url(url, retry=retry) as client:
            client.ping()
        return url

    def flush(self) -> None:
        """Empty the database."""
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()

    def close(self) -> None:
        """End it, if it was started here."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)


class World:
    """Viewers with conversations, in each an answer that grows; made once, used by every round."""

    def __init__(self, directory: Path, bus: Redis, *, conversations: int, viewers: int) -> None:
        self.bus = bus
        self._data_dir = directory / "data"
        self.tokens: list[str] = []
        self.messages: list[tuple[str, str]] = []
        product = self.product().start()
        try:
            asyncio.run(self._fill(product.url, conversations, min(viewers, conversations)))
        finally:
            product.close()

    def product(self, **environment: str) -> Product:
        """Give a server over these data, not yet started. Answers are written elsewhere."""
        defaults = {
            "NOOSPHERE_REDIS_URL": self.bus.url,
            "NOOSPHERE_WORKER_IN_SERVER": "false",
            "NOOSPHERE_SANDBOX_DRIVER": "off",
            "NOOSPHERE_MAX_SOCKETS_PER_VIEWER": "1000000",
            "NOOSPHERE_POINTS_PER_MINUTE": "0",
            "NOOSPHERE_ACCESS_TOKEN_TTL": "86400",
            "NOOSPHERE_LOG_LEVEL": "warning",
        }
        return Product(self._data_dir, **{**defaults, **environment})

    async def _fill(self, url: str, conversations: int, viewers: int) -> None:
        clients = [Client(url) for _ in range(viewers)]
        for number, client in enumerate(clients):
            await client.register(f"viewer{number}")
            self.tokens.append(str(client.token))
        made: dict[int, tuple[str, str]] = {}
        waiting = iter(range(conversations))

        async def make() -> None:
            for number in waiting:
                client = clients[number % viewers]
                created = await client.run(op.CREATE_CONVERSATION)
                id_ = created["conversationCreate"]["conversation"]["id"]
                sent = await client.run(op.SEND, id=id_, content="Tell me a long story.")
                assert sent["messageSend"]["errors"] == [], sent
                made[number] = (id_, sent["messageSend"]["reply"]["id"])

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(make())
        for client in clients:
            await client.aclose()
        self.messages = [made[number] for number in range(conversations)]
        await self._begin_answers()

    async def _begin_answers(self) -> None:
        """Do to the rows what a worker does when it takes the answers up."""
        database = Database(f"sqlite+aiosqlite:///{self._data_dir / 'noosphere.sqlite3'}")
        try:
            async with database.engine.begin() as connection:
                await connection.execute(
                    update(Message)
                    .where(Message.role == MessageRole.ASSISTANT)
                    .values(status=MessageStatus.STREAMING)
                )
        finally:
            await database.aclose()


class Ours:
    """One server of the product, and the process that appends as its workers would."""

    name = "noosphere"

    def __init__(self, world: World) -> None:
        self._world = world
        # What an earlier round appended must not be there: texts begin empty.
        world.bus.flush()
        self._product = world.product().start()
        self._publisher = Child(Publisher, world.bus.url, world.messages)
        assert self._product.process is not None
        self.pid, self.port = self._product.process.pid, self._product.port

    def subscriptions(self, topics: int, subscribers: int) -> Sequence[Subscription]:
        """Give what each subscriber follows, signed in as the owner of the conversation."""
        found = []
        for number in range(subscribers):
            topic = number % topics
            token = self._world.tokens[topic % len(self._world.tokens)]
            sign_in = {"Authorization": f"Bearer {token}"}
            found.append(Subscription(self._world.messages[topic][0], topic, sign_in))
        return found

    def prepare(self, kind: str, series: dict[str, Any]) -> None:
        """Note the series that `publish` begins: `burst` or `paced`."""
        self._publisher.call("prepare", kind, series)

    def publish(self) -> int:
        """Publish the series; gives the time of the first event in nanoseconds."""
        begun: int = self._publisher.call("publish")
        return begun

    def close(self) -> None:
        """End it."""
        self._publisher.close()
        self._product.close()
