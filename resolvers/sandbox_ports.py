"""Computed fields of what goes in and out of sandboxes over connections."""

from collections.abc import Sequence

from models.sandboxes import Sandbox, SandboxConnection
from resolvers.base import Info, Order, Page, PageArgs

_NEWEST = Order(is_descending=True)


async def connections(
    sandboxes: Sequence[Sandbox], info: Info, page: PageArgs
) -> list[Page[SandboxConnection]]:
    """What sandboxes connected to, or tried to, the newest first."""
    return await info.context.load.page(
        SandboxConnection,
        SandboxConnection.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        page,
        order=_NEWEST,
    )
