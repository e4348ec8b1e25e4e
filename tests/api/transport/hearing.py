"""What tests of streams over HTTP read, and what they look at in the server."""

import asyncio
import socket
from typing import Any

from prometheus_client import REGISTRY

from tests.api.transport.conftest import Server, until

NUMBERED = (
    "subscription($to: Int! = 2, $after: String) { numbered(to: $to, after: $after) { number } }"
)


def viewer_of(context: Any) -> str | None:
    return None if context.viewer is None else str(context.viewer)


def everything(connection: socket.socket) -> bytes:
    taken = b""
    while chunk := connection.recv(1 << 16):
        taken += chunk
    return taken


def gauge(transport: str) -> float:
    return REGISTRY.get_sample_value("noosphere_http_streams_open", {"transport": transport}) or 0.0


async def one_stream(server: Server) -> Any:
    await until(lambda: len(server.http.streams) == 1)
    return tuple(server.http.streams._open)


def stalled_s(stream: Any) -> float:
    since = stream._sending_since
    return 0.0 if since is None else asyncio.get_running_loop().time() - since
