"""Events per second to many subscribers of one conversation, against a bare broadcast.

One client sends messages; the embedded assistant answers without pauses; every subscriber receives
every event and reads the texts whole. The limit is a process that does nothing but send the same
frames to as many sockets. Rounds alternate; prints the ratio to the limit.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.api import operations as op
from tests.product import Client, Product, free_port

_EVENTS = """subscription($id: ID!) { conversationEvents(conversationId: $id) {
  __typename cursor ... on MessageDelta { offset text }
  ... on MessageCompleted { message { content } } } }"""


class Subscriber:
    """One socket that follows a conversation and checks what it is told."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.events = 0
        self.frames: list[str] = []

    async def follow(self, answers: int) -> None:
        """Read until so many answers are complete; their texts must be whole."""
        text = ""
        while answers:
            frame = await self.socket.recv()
            message = json.loads(frame)
            if message["type"] == "ping":
                await self.socket.send('{"type":"pong"}')
                continue
            event = message["payload"]["data"]["conversationEvents"]
            self.events += 1
            self.frames.append(frame)
            if event["__typename"] == "MessageDelta":
                text = text[: event["offset"]] + event["text"]
            elif event["__typename"] == "MessageCompleted":
                assert event["message"]["content"] == text, "a subscriber missed text"
                text, answers = "", answers - 1


async def product_round(product: Product, subscribers: int, messages: int) -> tuple[float, Any]:
    """Give events per second of the product, and the frames one subscriber got."""
    client = Client(product.url)
    await client.register(f"fan{time.monotonic_ns()}")
    created = await client.run(op.CREATE_CONVERSATION)
    id_ = created["conversationCreate"]["conversation"]["id"]
    sockets = []
    for _ in range(subscribers):
        socket = await connect(
            product.url.replace("http", "ws") + "/graphql",
            subprotocols=["graphql-transport-ws"],
            compression=None,
        )
        await socket.send(json.dumps({"type": "connection_init", "payload": client.headers}))
        assert json.loads(await socket.recv())["type"] == "connection_ack"
        payload = {"query": _EVENTS, "variables": {"id": id_}}
        await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}))
        first = json.loads(await socket.recv())
        assert first["payload"]["data"]["conversationEvents"]["__typename"] == "ConversationReset"
        sockets.append(Subscriber(socket))
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for subscriber in sockets:
            group.create_task(subscriber.follow(messages))
        for number in range(messages):
            sent = await client.run(op.SEND, id=id_, content=f"what can you do? ({number})")
            assert sent["messageSend"]["errors"] == []
    elapsed = time.perf_counter() - begun
    for subscriber in sockets:
        await subscriber.socket.close()
    await client.aclose()
    return sum(s.events for s in sockets) / elapsed, sockets[0].frames


async def limit_round(frames: list[str], subscribers: int) -> float:
    """Give frames per second of a bare broadcast of the same frames to as many sockets."""
    connected: set[ServerConnection] = set()
    complete = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        connected.add(connection)
        if len(connected) == subscribers:
            complete.set()
        await connection.wait_closed()

    port = free_port()
    async with serve(handler, "127.0.0.1", port, compression=None):
        clients = [
            await connect(f"ws://127.0.0.1:{port}", compression=None) for _ in range(subscribers)
        ]
        async with asyncio.timeout(30):
            await complete.wait()

        async def read(client: Any) -> None:
            for frame in frames:
                assert await client.recv() == frame, "the broadcast lost a frame"

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(read(client))
            for frame in frames:
                for connection in connected:
                    await connection.send(frame)
        elapsed = time.perf_counter() - begun
        for client in clients:
            await client.close()
    return len(frames) * subscribers / elapsed


async def compare(product: Product, arguments: argparse.Namespace) -> None:
    """Alternate rounds and print the ratio."""
    ours, limits = [], []
    for _ in range(arguments.rounds):
        rate, frames = await product_round(product, arguments.subscribers, arguments.messages)
        ours.append(rate)
        limits.append(await limit_round(frames, arguments.subscribers))
    ratio = statistics.median(a / b for a, b in zip(ours, limits, strict=True))
    print(
        f"one topic × {arguments.subscribers} subscribers:"
        f" noosphere {statistics.median(ours):,.0f} events/s"
        f" | bare broadcast {statistics.median(limits):,.0f} frames/s"
        f" | ratio to the limit {ratio:.2f}"
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, default=50)
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        product = Product(
            Path(name) / "data",
            NOOSPHERE_SANDBOX_DRIVER="off",
            NOOSPHERE_EMBEDDED_WORD_DELAY_MS="0",
        ).start()
        try:
            asyncio.run(compare(product, arguments))
        finally:
            product.close()


if __name__ == "__main__":
    main()
