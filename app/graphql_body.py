"""The body of a request, read within bounds, and the end of a client that leaves meanwhile."""

import asyncio
from types import TracebackType
from typing import Any, Self

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from app.graphql_request import BadRequestError, has_arrived
from app.http_cycle import cycle_of

_DISCONNECT_PATIENCE_S = 0.2
"""Quick queries end before it pays to watch their connection."""


class ClientGoneError(Exception):
    """Nobody is left to answer."""


class Body:
    """Reads bodies of at most `max_bytes` bytes that arrive within `timeout_s` seconds."""

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def json(self, headers: Headers, receive: Receive) -> Any:
        """Give the body as JSON. Raises BadRequestError and ClientGoneError."""
        cycle = cycle_of(receive)
        body = None if cycle is None else cycle.take_body()
        if body is None:
            body = await self._received(headers, receive)
        elif len(body) > self._max_bytes:
            raise self._too_large()
        if not body:
            raise BadRequestError("The body is empty: send JSON with the entry `query`.")
        try:
            # Refuses invalid UTF-8 and lone surrogates too, which no answer could carry.
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequestError(f"The body is not valid JSON: {error}.") from None

    async def _received(self, headers: Headers, receive: Receive) -> bytes:
        if has_arrived(receive):
            return await self._whole(headers, receive)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._whole(headers, receive)
        except TimeoutError:
            raise BadRequestError("The body did not arrive in time.", status=408) from None

    async def _whole(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> BadRequestError:
        return BadRequestError(
            f"The body is larger than {self._max_bytes:,} bytes, which is the limit. Files of "
            "sandboxes may have any size: PUT /sandboxes/{id}/files/{path}.",
            status=413,
            code="LIMIT",
        )


class CancelOnDisconnect:
    """Cancels the block when the client disconnects, raising ClientGoneError.

    And after `timeout_s` seconds, if that is given, raising TimeoutError. Starts watching after a
    moment only, so that quick queries cost no task.
    """

    __slots__ = (
        "_cancelling",
        "_loop",
        "_reason",
        "_receive",
        "_task",
        "_timeout_s",
        "_timer",
        "_watcher",
    )

    def __init__(self, receive: Receive, timeout_s: float | None = None) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        # Why the block was cancelled from here, once it was.
        self._reason: type[Exception] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be cancelled")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(
            _DISCONNECT_PATIENCE_S, self._begin
        )
        return self

    def _begin(self) -> None:
        self._timer = None
        self._watcher = self._loop.create_task(self._watch())
        if self._timeout_s is not None:
            left_s = max(0.0, self._timeout_s - _DISCONNECT_PATIENCE_S)
            self._timer = self._loop.call_later(left_s, self._cancel, TimeoutError)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel(ClientGoneError)

    def _cancel(self, reason: type[Exception]) -> None:
        """Cancel the block, as `asyncio.timeout` does: once, and told apart from others' doing."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason, watcher = self._reason, self._watcher
        if watcher is None:
            return
        try:
            # Somebody else may have cancelled the task as well: that goes on.
            is_ours = reason is not None and self._task.uncancel() <= self._cancelling
            if reason is not None and is_ours and kind is asyncio.CancelledError:
                raise reason from error
        finally:
            # From here on it cancels nothing.
            self._reason = reason or ClientGoneError
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
