"""Answers in pieces, read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.api.transport.conftest import Server, serving
from tests.api.transport.pieces_sample import BY_ID, Context, Gates, parts, schema
from tests.api.transport.streams import read

JSON = "application/json"
GATED = '{ thing { id ... @defer(label: "late") { a: gate(name: "a") } } }'
COST = {"cost": {"requested": 1}}


@asynccontextmanager
async def pieces(**options: Any) -> AsyncIterator[tuple[Server, Gates]]:
    gates = Gates()

    def context(_probe: Any, request_id: str, *_: Any) -> Context:
        return Context(gates, request_id)

    async with serving(schema=schema, context=context, **options) as server:
        yield server, gates


async def told(query: str, accept: str = BY_ID, *gates: str, **options: Any) -> list[Any]:
    """Give the parts of an answer whose gates are open from the beginning."""
    async with pieces(**options) as (server, known):
        for name in gates:
            known.open[name].set()
        _, text = await read(server.url, query, accept=accept)
    found = parts(text)
    assert found.pop() == "end"
    assert b"hunter2" not in text
    assert [one["hasNext"] for one in found] == [True] * (len(found) - 1) + [False]
    return found


def metric(server: Server) -> dict[str, int]:
    return dict(server.engine.undivided)


def _only(text: bytes) -> bytes:
    """Give the one part of an answer to who accepts multipart for subscriptions too."""
    return text if text.startswith(b"{") else text.split(b"\r\n\r\n")[1].split(b"\r\n--")[0]


async def _empty(server: Server) -> bool:
    await server.http.streams.drain(60)
    return len(server.http.streams) == 0


def _bare(data: Any) -> Any:
    """Leave out `__typename`, which clients ask for."""
    if isinstance(data, dict):
        return {key: _bare(value) for key, value in data.items() if key != "__typename"}
    return [_bare(item) for item in data] if isinstance(data, list) else data
