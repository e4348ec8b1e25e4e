"""Servers over one database and one Redis, and people who listen to stories on them."""

import asyncio
import itertools
import json
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.api import operations as op
from tests.api.faults.redis import Redis
from tests.api.faults.storyteller import Story, Storyteller
from tests.api.following import ConversationFollower
from tests.api.transports import POLITE, Transport
from tests.product import Client, Product

_LEASE_S = "600"
"""Far longer than any test waits: a dead process must be noticed by itself."""


class World:
    """Processes by name: a `serve` each, and a `worker` where the name begins with "w"."""

    def __init__(self, directory: Path, database_url: str, redis: Redis) -> None:
        self.database_url, self.redis = database_url, redis
        self.model = Storyteller()
        self.by_name: dict[str, Product] = {}
        self._directory = directory

    def add(self, name: str, *, redis_url: str = "", **environment: str) -> Product:
        """Prepare a process; it is not started."""
        product = self.by_name[name] = Product(
            self._directory / name,
            command="worker" if name.startswith("w") else "serve",
            **{
                "NOOSPHERE_DATABASE_URL": self.database_url,
                "NOOSPHERE_REDIS_URL": redis_url or self.redis.url,
                "NOOSPHERE_NODE_ID": name,
                "NOOSPHERE_SANDBOX_DRIVER": "off",
                "NOOSPHERE_TASK_LEASE": _LEASE_S,
                **self.model.environment,
                **environment,
            },
        )
        return product

    def start(self) -> None:
        """Start whatever does not run, all at the same moment."""
        ended = [
            p for p in self.by_name.values() if p.process is None or p.process.poll() is not None
        ]
        with ThreadPoolExecutor() as pool:
            # Three of them start at once, perhaps on two busy cores.
            list(pool.map(lambda product: product.start(within_s=150), ended))

    def close(self) -> None:
        """End everything."""
        for product in self.by_name.values():
            product.close()
        self.redis.close()
        self.model.close()

    def a_server(self) -> Product:
        """Give a server that runs."""
        servers = [p for name, p in self.by_name.items() if not name.startswith("w")]
        return next(p for p in servers if p.process is not None and p.process.poll() is None)

    async def metric(self, server: str, name: str) -> float:
        """Give what a server counts."""
        async with httpx.AsyncClient(base_url=self.by_name[server].url) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    async def interrupted(self, server: str) -> float:
        """Give how many answers a server had to leave to others."""
        async with httpx.AsyncClient(base_url=self.by_name[server].url, timeout=60) as client:
            lines = (await client.get("/metrics")).text.splitlines()
        name = 'noosphere_tasks_total{outcome="interrupted",type="answer"} '
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    async def writer_of(self, message_id: str, *, other_than: str = "") -> str:
        """Give the name of the process that writes an answer, once one (another one) does."""
        engine = create_async_engine(self.database_url)
        running = text(
            "SELECT payload, lease_owner FROM tasks"
            " WHERE status = 'running' AND task_type = 'answer'"
        )
        try:
            async with asyncio.timeout(60), engine.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                while True:
                    for payload, owner in await connection.execute(running):
                        if json.loads(payload)["id"] == message_id and owner != other_than:
                            return str(owner)
                    # Rows tell nobody when they change.
                    await asyncio.sleep(0.05)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def telling(self, server: str, *, varies: bool = False) -> AsyncIterator["Telling"]:
        """Have somebody ask for a story at a server."""
        client = Client(self.by_name[server].url)
        try:
            await client.register(f"listener{secrets.token_hex(6)}")
            ask, story = self.model.story(varies=varies)
            created = await client.run(op.CREATE_CONVERSATION)
            conversation = created["conversationCreate"]["conversation"]["id"]
            sent = (await client.run(op.SEND, id=conversation, content=ask))["messageSend"]
            assert sent["errors"] == []
            try:
                yield Telling(self, client, conversation, sent["reply"]["id"], story)
            finally:
                story.end()
        finally:
            await client.aclose()


@dataclass
class Telling:
    """A story being told in a conversation."""

    world: World
    client: Client
    conversation: str
    reply: str
    story: Story

    def follower(self, *servers: str, transport: Transport = POLITE) -> ConversationFollower:
        """Make a client that follows, by turns at the servers named."""
        turns = itertools.cycle([self.world.by_name[name].url for name in servers])
        follower = ConversationFollower(lambda: next(turns), self.client.token, self.conversation)
        follower.transport = transport
        return follower

    def restless(
        self, chance: random.Random, *servers: str, transport: Transport = POLITE
    ) -> ConversationFollower:
        """Make a client that leaves after some events, or before any, and comes back anywhere."""
        urls = [self.world.by_name[name].url for name in servers]
        follower = ConversationFollower(
            lambda: chance.choice(urls), self.client.token, self.conversation
        )
        follower.transport = transport
        follower.leaves = lambda: (
            None if self.story.is_ending else chance.choice((0, 0, 1, 1, 2, 4))
        )
        return follower

    async def hears_on(self, *followers: ConversationFollower) -> None:
        """Wait until the followers have heard more than what is written now."""
        written = len(self.story.text)
        for follower in followers:
            await follower.until_written(self.reply, written + 1)

    async def moves_on(self, chars: int) -> None:
        """Wait until so many characters more are written, whoever hears of them."""
        goal = len(self.story.text) + chars
        async with asyncio.timeout(60):
            while len(self.story.text) < goal:  # noqa: ASYNC110 - it is written by other threads.
                await asyncio.sleep(0.02)

    async def told_again(self, tellings: int) -> None:
        """Wait until the model was asked so often."""
        async with asyncio.timeout(60):
            while self.story.tellings < tellings:  # noqa: ASYNC110 - other threads are asked.
                await asyncio.sleep(0.02)

    async def check(self, *followers: ConversationFollower, status: str = "COMPLETED") -> str:
        """See that the answer has ended so, and that all followers know exactly what there is.

        Gives the text.
        """
        for follower in followers:
            await follower.until_final(self.reply)
        client = Client(self.world.a_server().url, self.client.token)
        try:
            data = await client.run(op.MESSAGES, id=self.conversation)
        finally:
            await client.aclose()
        nodes: list[dict[str, Any]] = data["conversation"]["messages"]["nodes"]
        assert [node["role"] for node in nodes] == ["USER", "ASSISTANT"]
        answer = nodes[1]
        assert (answer["id"], answer["status"]) == (self.reply, status), answer["error"]
        for follower in followers:
            assert follower.states[self.reply] == status
            assert follower.texts[self.reply] == answer["content"]
            assert set(follower.texts) == {node["id"] for node in nodes}
        return str(answer["content"])


@contextmanager
def living(world: World) -> Iterator[World]:
    """Run a world while the block lasts."""
    try:
        world.redis.start()
        # On an empty database: one of them migrates and seeds, the others wait for it.
        world.start()
        yield world
    finally:
        world.close()
