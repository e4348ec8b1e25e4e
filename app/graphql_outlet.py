"""The way out of one WebSocket: past ASGI where the server lets us, message by message elsewhere.

An ASGI `send` costs a coroutine, a frame object and a system call for each message. Under our own
server (`WebSocketProtocol`) many messages are framed and written at once, and the bodies they share
with other sockets are never copied before that. The frames are those of RFC 6455, section 5.2:
unmasked, unfragmented text.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send

from app.websocket_protocol import EXTENSION, WebSocketProtocol

__all__ = ["AsgiOutlet", "Outlet", "WebSocketProtocol", "outlet_of"]


class Outlet(Protocol):
    """Takes messages while it is writable, and says when it is again."""

    on_writable: Callable[[], None] | None
    on_text: Callable[[str], bool] | None
    """Given texts where they come, if the server can; those it answers True for are dealt with."""

    @property
    def is_writable(self) -> bool:
        """Whether the connection keeps up."""

    def add(self, size: int, *parts: bytes) -> None:
        """Add a message of `size` bytes that is made of parts."""

    def flush(self) -> None:
        """Write what was added."""

    def stalled_s(self) -> float:
        """Give the seconds since which the connection has taken nothing; 0 if it takes."""

    def abort(self) -> None:
        """Drop the connection with what was not sent yet."""


class AsgiOutlet:
    """The outlet under any other server: `run` sends one message after the other."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.on_writable: Callable[[], None] | None = None
        self.on_text: Callable[[str], bool] | None = None
        self._receive = receive
        self._send = send
        self._messages: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._sending_since: float | None = None

    @property
    def is_writable(self) -> bool:
        """Whether everything was sent."""
        return not self._messages and self._sending_since is None

    def add(self, size: int, *parts: bytes) -> None:
        """Add a message of `size` bytes that is made of parts."""
        self._messages.append(b"".join(parts))

    def flush(self) -> None:
        """Let what was added be sent."""
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled. Raises OSError when the connection is lost."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            while self._messages:
                message = self._messages.popleft()
                self._sending_since = loop.time()
                await self._send({"type": "websocket.send", "text": message.decode()})
            self._sending_since = None
            if self.on_writable is not None:
                self.on_writable()

    def stalled_s(self) -> float:
        """Give the seconds since which the connection has not taken a message."""
        if self._sending_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._sending_since

    def abort(self) -> None:
        """Drop the connection, if the server has a way. ASGI has no word for that."""
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        abort = getattr(transport, "abort", None)
        if abort is not None:
            abort()


def outlet_of(scope: Scope, receive: Receive, send: Send) -> Any:
    """Give the outlet of a connection."""
    return scope.get("extensions", {}).get(EXTENSION) or AsgiOutlet(receive, send)
