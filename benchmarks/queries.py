"""Requests per second of nested queries, against a hand-written application with the same SQL.

Q1: a conversation with 50 messages and their authors. Q2: 20 conversations with 10 messages and
authors each. Rounds of both servers alternate; every body is compared. Prints ratios to the floor.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import insert

from benchmarks.load import Round, measure, post
from models import accounts, tools  # noqa: F401 - tables the foreign keys point to.
from models.base import new_id, now
from models.conversations import Conversation, Message
from models.database import Database
from models.states import MessageRole
from tests.product import Client, Product, free_port

Q1 = """query($id: ID!) { conversation(id: $id) { id title
  messages(first: 50) { nodes { id content role author { id username } } } } }"""
Q2 = """{ conversations(first: 20) { nodes { id title
  messages(first: 10) { nodes { id content role author { id username } } } } } }"""


async def fill(url: str, user_id: str, conversations: int, messages: int) -> list[str]:
    """Insert conversations with messages of one user and give the conversations' ids."""
    database = Database(url)
    ids = []
    async with database.writing() as session:
        for number in range(conversations):
            id_ = new_id("cnv")
            ids.append(id_)
            await session.execute(
                insert(Conversation).values(
                    id=id_,
                    user_id=user_id,
                    title=f"Conversation {number}",
                    updated_at=now() - timedelta(seconds=number),
                )
            )
            await session.execute(
                insert(Message),
                [
                    {
                        "id": new_id("msg"),
                        "conversation_id": id_,
                        "user_id": user_id if index % 2 == 0 else None,
                        "role": MessageRole.ASSISTANT if index % 2 else MessageRole.USER,
                        "content": f"Message {index} of conversation {number}. " * 4,
                    }
                    for index in range(messages)
                ],
            )
        await session.commit()
    await database.aclose()
    return ids


def print_row(name: str, rounds: dict[str, list[Round]]) -> None:
    """Print the medians of both servers and their ratio."""
    rate = {server: statistics.median(r.rate for r in rs) for server, rs in rounds.items()}
    p99 = {server: statistics.median(r.p99_s for r in rs) for server, rs in rounds.items()}
    pairs = zip(rounds["noosphere"], rounds["floor"], strict=True)
    ratio = statistics.median(ours.rate / floor.rate for ours, floor in pairs)
    print(
        f"{name}: noosphere {rate['noosphere']:7.0f}/s p99 {p99['noosphere'] * 1e3:6.1f} ms"
        f" | floor {rate['floor']:7.0f}/s p99 {p99['floor'] * 1e3:6.1f} ms"
        f" | ratio to the floor {ratio:.2f}"
    )


async def compare(product: Product, arguments: argparse.Namespace, directory: Path) -> None:
    """Fill the database, start the floor, and alternate rounds."""
    client = Client(product.url)
    user = (await client.register("bench"))["user"]
    url = f"sqlite+aiosqlite:///{directory / 'data' / 'noosphere.sqlite3'}"
    ids = await fill(url, user["id"], arguments.conversations, arguments.messages)
    floor_port = free_port()
    floor = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.floor", url, str(floor_port)
    )
    try:
        for _ in range(200):
            try:
                (await asyncio.open_connection("127.0.0.1", floor_port))[1].close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        await _alternate(product.port, floor_port, client, user["id"], ids, arguments)
    finally:
        floor.terminate()
        await floor.wait()
        await client.aclose()


async def _alternate(
    port: int,
    floor_port: int,
    client: Client,
    user_id: str,
    ids: list[str],
    arguments: argparse.Namespace,
) -> None:
    chosen = ids[:100]
    one = [
        (
            post("/graphql", orjson.dumps({"query": Q1, "variables": {"id": id_}}), client.headers),
            post("/one", orjson.dumps({"id": id_, "user": user_id}), {}),
        )
        for id_ in chosen
    ]
    many = [
        (
            post("/graphql", orjson.dumps({"query": Q2}), client.headers),
            post("/many", orjson.dumps({"user": user_id}), {}),
        )
    ]
    for name, requests in (("Q1", one), ("Q2", many)):
        bodies: dict[int, Any] = {}

        def check(index: int, body: bytes, bodies: dict[int, Any] = bodies) -> None:
            data = orjson.loads(body)["data"]
            assert bodies.setdefault(index, data) == data, "the servers' answers differ"

        for connections in arguments.connections:
            rounds: dict[str, list[Round]] = {"noosphere": [], "floor": []}
            for _ in range(arguments.rounds):
                for server, at, which in (("noosphere", port, 0), ("floor", floor_port, 1)):
                    rounds[server].append(
                        await measure(
                            at,
                            [pair[which] for pair in requests],
                            connections=connections,
                            seconds=arguments.seconds,
                            check=check,
                        )
                    )
            print_row(f"{name} × {connections:2} connections", rounds)


def main() -> None:
    """Run the comparison on SQLite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=500)
    parser.add_argument("--messages", type=int, default=60, help="per conversation, at least 50")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        product = Product(Path(name) / "data", NOOSPHERE_SANDBOX_DRIVER="off").start()
        try:
            asyncio.run(compare(product, arguments, Path(name)))
        finally:
            product.close()


if __name__ == "__main__":
    main()
