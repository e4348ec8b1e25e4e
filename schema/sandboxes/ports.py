"""Ports of servers inside sandboxes."""

from datetime import datetime

import strawberry

from models import sandboxes as tables
from models.states import PortProtocol
from resolvers import sandbox_ports
from resolvers.base import Info
from schema.base import Id, Node, Payload, answer, attr, described_enum, field, mutation
from services.sandboxes import ports

described_enum(
    PortProtocol,
    "The transport of a port.",
    {PortProtocol.TCP: "TCP.", PortProtocol.UDP: "UDP."},
    name="SandboxPortProtocol",
)


@strawberry.type(description="A port of a server inside a sandbox that is reachable from outside.")
class SandboxPort(Node, row=tables.SandboxPort):
    container_port: int = attr("The port inside.")
    host_port: int = attr("The port of this server, which reaches it; no other is opened.")
    protocol: PortProtocol = attr("Its transport.")
    description: str | None = attr("What it is for.")
    created_at: datetime = attr("When it was opened.")
    path: str = field(
        sandbox_ports.path, "Where its owner reaches it on this server, by HTTP and WebSocket."
    )


@strawberry.input(description="A port to open.")
class SandboxPortOpenInput:
    sandbox_id: strawberry.ID = attr("Where.")
    port: int = attr("The TCP port a server listens on inside, on any address.")
    description: str | None = attr("What it is for.", default=None)


@strawberry.input(description="A link to a port.")
class SandboxPortShareInput:
    seconds: int | None = attr(
        "How long it lives; as long as the server lets it by default.", default=None
    )
    revokes_earlier: bool = attr(
        "Whether links given before are void, and their connections end.", default=False
    )


@strawberry.type(description="Answer to `sandboxPortOpen`.")
class SandboxPortOpenPayload(Payload):
    port: SandboxPort | None = answer("The open port.")


@strawberry.type(description="Answer to `sandboxPortClose`.")
class SandboxPortClosePayload(Payload):
    port: SandboxPort | None = answer("The port as it was.")


@strawberry.type(description="Answer to `sandboxPortShare`.")
class SandboxPortSharePayload(Payload):
    port: SandboxPort | None = answer("The shared port.")
    path: str | None = answer("The link, as a path on this server; whoever has it gets in.")
    expires_at: datetime | None = answer("When the link expires.")


async def _open(info: Info, input: SandboxPortOpenInput) -> dict[str, object]:
    context = info.context
    port = await ports.open(
        context.deps,
        context.viewer,
        sandbox_id=input.sandbox_id,
        port=input.port,
        description=input.description,
    )
    return {"port": port}


async def _close(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    return {"port": await ports.close(context.deps, context.viewer, port_id=id)}


async def _share(
    info: Info, id: Id, input: SandboxPortShareInput | None = None
) -> dict[str, object]:
    wish, context = input or SandboxPortShareInput(), info.context
    shared = await ports.share(
        context.deps,
        context.viewer,
        port_id=id,
        seconds=wish.seconds,
        revokes_earlier=wish.revokes_earlier,
    )
    return {"port": shared.port, "path": shared.path, "expires_at": shared.expires_at}


@strawberry.type
class SandboxPortsMutation:
    sandbox_port_open = mutation(
        SandboxPortOpenPayload, "Let a server inside a sandbox be reached; see `SandboxPort.path`."
    )(_open)
    sandbox_port_close = mutation(
        SandboxPortClosePayload, "Let a port be reached no more; its links are void."
    )(_close)
    sandbox_port_share = mutation(
        SandboxPortSharePayload, "Give a link by which anybody reaches a port until it expires."
    )(_share)
