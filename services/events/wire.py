"""A connection to Redis that is read in large pieces: one wake-up may bring many replies.

redis-py finds the server, speaks TLS and signs in; from then on what the server sends is read here
and parsed by hiredis. redis-py's own reader costs a dozen calls for every reply.
"""

import contextlib
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

# More than a stream buffers, so that one read empties it.
_READ_BYTES = 1 << 20
_NOTHING: Final = object()
_ERRORS: dict[str, type[RedisError]] = {
    "LOADING": BusyLoadingError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
    "READONLY": ReadOnlyError,
}


class Wire:
    """One connection, used by one task that sends and one that receives.

    Every method raises RedisError or OSError when the connection is broken; nothing is sent twice,
    and a wire that was closed is not opened again.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError, replyError=_error, notEnoughData=_NOTHING
        )
        self._is_ended = False

    async def open(self) -> None:
        """Connect and sign in. The limits are those of the connection."""
        await self._connection.connect()  # type: ignore[no-untyped-call]
        if await self._connection.can_read():
            raise RedisConnectionError("Redis spoke before it was asked.")

    async def send(self, packed: bytes) -> None:
        """Send packed commands; waits while the server takes nothing more."""
        if not self._connection.is_connected:
            # redis-py would connect anew, and what was asked on the old one would stay unanswered.
            raise RedisConnectionError("The connection to Redis is closed.")
        await self._connection.send_packed_command(packed, check_health=False)

    async def receive(self) -> list[Any]:
        """Give all replies that have come, at least one; an error is given as its exception.

        Has no limit of its own. Cancelled, it loses nothing.
        """
        replies: list[Any] = []
        while not replies:
            stream = self._connection._reader
            if stream is None:
                raise RedisConnectionError("The connection to Redis is closed.")
            data = await stream.read(_READ_BYTES)
            if not data:
                self._is_ended = True
                raise RedisConnectionError("Redis closed the connection.")
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                replies.append(reply)
        return replies

    async def is_quiet(self) -> bool:
        """Tell whether the server has said nothing that was not received, and is still there."""
        try:
            return not (
                self._is_ended or self._reader.has_data() or await self._connection.can_read()
            )
        except (RedisError, OSError):
            return False

    async def close(self) -> None:
        """Close the connection without waiting for the server. Idempotent."""
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=True)


def pack(*arguments: bytes) -> bytes:
    """Give a command as it travels."""
    # hiredis declares a tuple of one; it takes any length.
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]
    return packed


def _error(text: str) -> RedisError:
    """Make the exception that redis-py would make of an error reply."""
    name, _, rest = text.partition(" ")
    kind = _ERRORS.get(name)
    return ResponseError(text) if kind is None else kind(rest)
