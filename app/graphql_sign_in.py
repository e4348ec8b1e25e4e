"""Who speaks over one WebSocket: from its `connection_init` to the end of that sign-in."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope

from app import graphql_protocol as protocol
from app.graphql_operations import Spawn
from app.graphql_protocol import Connect, ConnectionState, ConnectKnown, Signal
from services.errors import RequestError
from services.outages import outage

logger = logging.getLogger(__name__)

_EXPIRY_CHECK_S = 60.0
"""A client that signs in anew on the open socket moves its expiry: look again now and then."""


class SignIn:
    """The sign-in of a socket. Whatever is wrong with it calls `close` with a code and a reason.

    `welcome` is called with the state once it is known, and tells whether the client may stay. That
    has `timeout_s` seconds to begin, and as many until it is signed in.
    """

    __slots__ = (
        "_close",
        "_connect",
        "_connect_known",
        "_has_begun",
        "_loop",
        "_release",
        "_scope",
        "_socket_id",
        "_spawn",
        "_tasks",
        "_timeout_s",
        "_timer",
        "_welcome",
        "state",
    )

    def __init__(
        self,
        connect: Connect,
        connect_known: ConnectKnown,
        *,
        scope: Scope,
        timeout_s: float,
        close: Callable[[int, str], None],
        welcome: Callable[[ConnectionState], bool],
        spawn: Spawn,
        socket_id: str,
    ) -> None:
        self.state: ConnectionState | None = None
        self._connect = connect
        self._connect_known = connect_known
        self._scope = scope
        self._timeout_s = timeout_s
        self._close = close
        self._welcome = welcome
        self._spawn = spawn
        self._socket_id = socket_id
        self._has_begun = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._release: Callable[[], None] | None = None

    def expect(self) -> None:
        """Give the client its time to begin."""
        self._timer = self._loop.call_later(self._timeout_s, self._timed_out)

    def begin(self, payload: dict[str, Any] | None) -> None:
        """Sign in by a `connection_init`."""
        if self._has_begun:
            self._close(protocol.TOO_MANY_INITS, "Too many initialisation requests")
            return
        self._has_begun = True
        self._stop_timer()
        try:
            state = self._connect_known(self._scope, payload)
        except Exception as error:  # noqa: BLE001 - told, and logged unless it is a refusal.
            self._failed(error)
            return
        if state is not None:
            self._done(state)
            return
        # In a task of its own, for what arrives before the acknowledgement must be refused.
        self._tasks.append(self._spawn(self._wait(payload)))

    def end(self) -> None:
        """Care no more about how it ends."""
        self._stop_timer()
        # Those cancelled know this sign-in by their tracebacks.
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        if self._release is not None:
            self._release()
            self._release = None

    async def _wait(self, payload: dict[str, Any] | None) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                state = await self._connect(self._scope, payload)
        except Exception as error:  # noqa: BLE001 - told, and logged unless it is a refusal.
            self._failed(error)
            return
        self._done(state)

    def _failed(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            self._close(protocol.TRY_AGAIN, "Signing in took too long. Try again later")
        elif (away := outage(error)) is not None:
            logger.warning("Nobody is signed in (socket id %s): %s", self._socket_id, error)
            self._close(protocol.TRY_AGAIN, away.message)
        elif isinstance(error, RequestError) and error.code in ("RATE_LIMITED", "UNAVAILABLE"):
            self._close(protocol.TRY_AGAIN, error.message)
        elif isinstance(error, RequestError):
            self._close(protocol.FORBIDDEN, "Forbidden")
        else:
            id_ = self._socket_id
            logger.error("Signing in on a socket failed (socket id %s).", id_, exc_info=error)
            self._close(protocol.INTERNAL, "Internal server error")

    def _done(self, state: ConnectionState) -> None:
        self.state = state
        if not self._welcome(state):
            return
        self._release = state.on_end(self._ended)
        if self._release is not None:
            return
        self._check_expiry()
        if state.revoked is not None:
            self._tasks.append(self._spawn(self._heed(state.revoked)))

    # ---- its end

    async def _heed(self, revoked: Signal) -> None:
        await revoked.wait()
        self._close(protocol.FORBIDDEN, "Session revoked")

    def _ended(self, reason: str) -> None:
        self._close(protocol.FORBIDDEN, reason)

    def _check_expiry(self) -> None:
        self._stop_timer()
        expires_at = self.state.expires_at if self.state else None
        left_s = _EXPIRY_CHECK_S
        if expires_at is not None:
            left_s = (expires_at - datetime.now(UTC)).total_seconds()
            if left_s <= 0:
                self._close(protocol.FORBIDDEN, "Session expired")
                return
        self._timer = self._loop.call_later(min(left_s, _EXPIRY_CHECK_S), self._check_expiry)

    def _timed_out(self) -> None:
        self._close(protocol.INIT_TIMEOUT, "Connection initialisation timeout")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
