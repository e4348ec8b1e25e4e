"""Words of graphql-transport-ws: close codes, messages, and what one connection is given."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson
from starlette.types import Scope

from schema.execution import Event, Result, encode

SUBPROTOCOL = "graphql-transport-ws"

BAD_REQUEST = 4400
UNAUTHORIZED = 4401
FORBIDDEN = 4403
SUBPROTOCOL_NOT_ACCEPTABLE = 4406
INIT_TIMEOUT = 4408
DUPLICATE_ID = 4409
TOO_MANY_INITS = 4429
TERMINATED = 4499
INTERNAL = 4500
TOO_BIG = 1009
RESTART = 1012
TRY_AGAIN = 1013


class Signal(Protocol):
    """Something that happens once, such as an asyncio.Event."""

    async def wait(self) -> object:
        """Return when it has happened."""


@dataclass(slots=True, eq=False)
class ConnectionState:
    """What signing in gave a connection.

    `make_context` gives a fresh context for every operation. The socket is closed at `expires_at`
    (aware), which may be moved later while the socket is open, and when `revoked` happens.
    `viewer_id` is what open sockets are counted by; None is not counted.
    """

    make_context: Callable[[str], Awaitable[Any]]
    expires_at: datetime | None = None
    revoked: Signal | None = None
    viewer_id: str | None = None
    ack_payload: Mapping[str, Any] | None = None

    def on_end(self, callback: Callable[[str], None]) -> Callable[[], None] | None:
        """Have `callback` called once with the reason when the sign-in ends; gives what lets go.

        None where the end is told by `expires_at` and `revoked` alone, at the cost of a task.
        """
        return None


Connect = Callable[[Scope, dict[str, Any] | None], Awaitable[ConnectionState]]

ConnectKnown = Callable[[Scope, dict[str, Any] | None], ConnectionState | None]
"""Does the same where that takes no waiting, and gives None where it does."""


def connect_nobody(_scope: Scope, _payload: dict[str, Any] | None) -> None:
    """Know nobody: every sign-in is waited for."""
    return


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Times in seconds, sizes in bytes; the numbers of one socket."""

    init_timeout_s: float = 10.0
    ping_interval_s: float = 15.0
    pong_timeout_s: float = 15.0
    send_timeout_s: float = 30.0
    close_timeout_s: float = 1.0
    operation_timeout_s: float = 30.0
    max_frame_bytes: int = 1024 * 1024
    max_operations: int = 100
    max_queued_messages: int = 256
    max_queued_bytes: int = 1024 * 1024


class SocketWords:
    """The messages of an operation: `next`, `complete` and `error`."""

    transport = "ws"

    def head(self, id_: str) -> bytes:
        """Give all of a `next` message that comes before its payload."""
        return _head(id_, b"next")

    def tail(self, _answer: Event | Result) -> bytes:
        """Give the end of a message."""
        return b"}"

    def complete(self, id_: str) -> bytes:
        """Give the message that ends an operation."""
        return b'{"id":' + orjson.dumps(id_) + b',"type":"complete"}'

    def failed(self, id_: str, refusal: Result) -> bytes:
        """Give the message that ends an operation which failed."""
        return _head(id_, b"error") + encode(refusal.errors) + b"}"


def _head(id_: str, kind: bytes) -> bytes:
    return b'{"id":' + orjson.dumps(id_) + b',"type":"' + kind + b'","payload":'
