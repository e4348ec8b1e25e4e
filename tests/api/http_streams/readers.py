"""A server, people with accounts at it, and their streams."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.graphql_media import EVENT_STREAM
from tests.api import operations as op
from tests.api.transport.streams import Body, answers, parts, reading
from tests.product import Client, Product

PAGE = "https://app.example"
_names = (f"person{n}" for n in itertools.count())


def product(directory: Path, **environment: str) -> Product:
    return Product(
        directory, NOOSPHERE_SANDBOX_DRIVER="off", NOOSPHERE_SIGN_IN_ATTEMPTS="10000", **environment
    )


@asynccontextmanager
async def person(server: Product) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        client.session = (await client.register(next(_names)))["session"]  # type: ignore[attr-defined]
        yield client


async def conversation(client: Client) -> str:
    data = await client.run(op.CREATE_CONVERSATION, title="Talk")
    return str(data["conversationCreate"]["conversation"]["id"])


def following(
    client: Client, id_: str, *, after: str | None = None, **options: Any
) -> contextlib.AbstractAsyncContextManager[Body]:
    headers = {**client.headers, **options.pop("headers", {})}
    return reading(
        f"{client.url}/graphql",
        op.CONVERSATION_EVENTS,
        variables={"id": id_, "after": after},
        headers=headers,
        **options,
    )


def told(text: bytes, accept: str = EVENT_STREAM) -> list[dict[str, Any]]:
    """Give the events of a conversation."""
    if accept == EVENT_STREAM:
        payloads = [answer for answer in answers(whole(text)) if answer != "complete"]
    else:
        payloads = [part["payload"] for part in parts(text) if part and part != "end"]
    return [payload["data"]["conversationEvents"] for payload in payloads]


def whole(text: bytes) -> bytes:
    """Leave out an event that has come in part."""
    return text[: text.rindex(b"\n\n") + 2] if b"\n\n" in text else b""
