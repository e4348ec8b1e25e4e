"""Whether the peer of one WebSocket is still there."""

import asyncio
from collections.abc import Callable

from app.graphql_outbox import Outbox
from app.graphql_protocol import SocketOptions

_PING = b'{"type":"ping"}'


class Heartbeat:
    """Pings a peer, and looks whether it takes what it is sent.

    `silent` is called when no message came in time after a ping, `stalled` when the connection has
    taken nothing for too long.
    """

    __slots__ = (
        "_loop",
        "_next",
        "_options",
        "_outbox",
        "_pong",
        "_silent",
        "_stalled",
        "is_pinging",
    )

    def __init__(
        self,
        outbox: Outbox,
        options: SocketOptions,
        *,
        silent: Callable[[], None],
        stalled: Callable[[], None],
    ) -> None:
        # Only a client that was acknowledged knows what a ping is.
        self.is_pinging = False
        self._outbox = outbox
        self._options = options
        self._silent = silent
        self._stalled = stalled
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.TimerHandle | None = None
        self._pong: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        self._next = self._loop.call_later(self._options.ping_interval_s, self._tick)

    def heard(self) -> None:
        """Take a message, whatever it is, for a sign of life."""
        if self._pong is not None:
            self._pong.cancel()
            self._pong = None

    def stop(self) -> None:
        """Look no longer."""
        self.heard()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _tick(self) -> None:
        if self._outbox.stalled_s() > self._options.send_timeout_s:
            self._stalled()
            return
        self.start()
        # Behind a queue that does not move a ping would time out for the wrong reason.
        if self.is_pinging and self._pong is None and self._outbox.is_empty:
            self._outbox.put_nowait(_PING)
            self._pong = self._loop.call_later(self._options.pong_timeout_s, self._silent)
