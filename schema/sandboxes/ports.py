"""Ports of servers inside sandboxes."""

from datetime import datetime

import strawberry

from models import sandboxes as tables
from models.states import PortProtocol
from schema.base import Node, attr, described_enum

described_enum(
    PortProtocol,
    "The transport of a port.",
    {PortProtocol.TCP: "TCP.", PortProtocol.UDP: "UDP."},
    name="SandboxPortProtocol",
)


@strawberry.type(description="A port of a server inside a sandbox that is reachable from outside.")
class SandboxPort(Node, row=tables.SandboxPort):
    container_port: int = attr("The port inside.")
    host_port: int = attr("The port outside.")
    protocol: PortProtocol = attr("Its transport.")
    description: str | None = attr("What it is for.")
    created_at: datetime = attr("When it was opened.")
