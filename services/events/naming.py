"""One process under each node id: calls of a node must reach the one that is meant."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from services.events.base import NodeTakenError

# One that is being replaced may still be closing.
_PATIENCE_S = 3.0
_LOOK_S = 0.2


async def until_free(
    node_id: str,
    channel: bytes,
    execute: Callable[..., Awaitable[Any]],
    alive: Callable[[], Awaitable[set[str]]],
) -> None:
    """Return once no process whose heart beats listens to the calls of a node on its `channel`.

    One that was killed is gone at once, one whose machine vanished once its heartbeat has lapsed.
    Raises NodeTakenError after 3 s, and what `execute` and `alive` raise.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                _, listening = await execute("PUBSUB", "NUMSUB", channel)
                if not listening or node_id not in await alive():
                    return
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise NodeTakenError(f"Another process is alive under the node id {node_id}.") from None
