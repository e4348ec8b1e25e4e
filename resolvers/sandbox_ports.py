"""Computed fields of what goes in and out of sandboxes over connections."""

from collections.abc import Sequence

from models.sandboxes import Sandbox, SandboxConnection, SandboxPort
from resolvers.base import Info, Order, Page, PageArgs
from services.sandboxes import ports as service

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


async def path(ports: Sequence[SandboxPort], info: Info) -> list[str]:
    """Where ports are reached on this server."""
    return [f"{service.path(port.sandbox_id, port.container_port)}/" for port in ports]
