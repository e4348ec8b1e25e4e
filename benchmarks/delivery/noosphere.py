"""The product as it is, with Redis, and the processes around it that a measurement needs."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import update

from benchmarks.delivery.child import Child
from benchmarks.delivery.publisher import Publisher
from benchmarks.delivery.subscribers import Subscription
from models.conversations import Message
from models.database import Database
from models.states import MessageRole, MessageStatus
from tests.api import operations as op
from tests.product import Client, Product, free_port

_START_S = 20.0
_AT_ONCE = 4


class Redis:
    """A Redis of the benchmark's own that keeps everything in memory."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("redis-server")
        assert program, "the benchmark needs redis-server"
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process = subprocess.Popen(
            [
                *(program, "--bind", "127.0.0.1", "--port", str(self.port)),
                *("--dir", str(directory), "--save", "", "--appendonly", "no"),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while not self._answers(b"PING\r\n", b"+PONG"):
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.02)

    def _answers(self, command: bytes, expected: bytes) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                connection.sendall(command)
                return connection.recv(100).startswith(expected)
        except OSError:
            return False

    def flush(self) -> None:
        """Forget everything."""
        assert self._answers(b"FLUSHALL\r\n", b"+OK"), "Redis was not emptied"

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(10)


class World:
    """Viewers with conversations, in each an answer that grows; made once, used by every round."""

    def __init__(self, directory: Path, redis: Redis, *, conversations: int, viewers: int) -> None:
        self.redis = redis
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
            "NOOSPHERE_REDIS_URL": self.redis.url,
            "NOOSPHERE_WORKER_IN_SERVER": "false",
            "NOOSPHERE_SANDBOX_DRIVER": "off",
            "NOOSPHERE_MAX_SOCKETS_PER_VIEWER": "1000000",
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
        world.redis.flush()
        self._product = world.product().start()
        self._publisher = Child(Publisher, world.redis.url, world.messages)
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
