"""Asks the graph about sandboxes, without HTTP between."""

import asyncio
from contextlib import aclosing
from typing import Any

from resolvers.base import Context
from schema.execution import Engine, Prepared, Result
from services.base import Viewer
from tests.services.sandboxes.conftest import Server

MIB = 1_048_576
BOX = "sandbox { id status failure }  errors { code message path }"


def prepared(engine: Engine, document: str, variables: dict[str, Any]) -> Prepared:
    found = engine.prepare(document, None, variables)
    assert isinstance(found, Prepared), found
    return found


async def ask(
    engine: Engine, server: Server, viewer: Viewer, document: str, **variables: Any
) -> dict[str, Any]:
    """Run an operation that must not fail as a whole."""
    context = Context(server.deps, viewer)
    result = await engine.execute(prepared(engine, document, variables), context)
    assert not result.errors, result.errors
    assert result.data is not None
    return dict(result.data)


async def events(
    engine: Engine, server: Server, viewer: Viewer, document: str, **variables: Any
) -> list[Any]:
    """Consume a subscription to its end; the first word of its answer, of each event."""
    found = await engine.subscribe(
        prepared(engine, document, variables), Context(server.deps, viewer)
    )
    if isinstance(found, Result):
        return [found.errors]
    async with asyncio.timeout(60), aclosing(found) as results:
        return [result.errors or next(iter(result.data.values())) async for result in results]
