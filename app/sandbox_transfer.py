"""One exchange over HTTP that carries much: its body, its answer, and who is signed in."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from app import auth
from app.graphql_request import RequestHeaders, break_off, request_id, request_info
from resolvers.base import Context
from sandbox.errors import FileErrorCode
from services.base import Deps
from services.errors import (
    RateLimitedError,
    RequestError,
    UnauthenticatedError,
    UserError,
    UserErrorCode,
    UserErrors,
)
from services.events.calls import TaskSet
from services.sandboxes import conditions
from services.sandboxes.transfers import TransferError

log = logging.getLogger("noosphere.server")
# Each may hold two mebibytes or three here, of what is on its way.
MAX_TRANSFERS = 32
_SIGN_IN_S = 30.0
_STALL_S = 60.0
_LINGER_S, _LINGER_BYTES = 10.0, 256 * 1024 * 1024
_BIG = 1 << 62
_ENDED = "The sign-in has ended."
_HEADERS = {
    "cache-control": "private, no-store",
    "vary": "Authorization, Cookie, Origin",
    "x-content-type-options": "nosniff",
    # The content is a user's: were it shown, it would be a page without scripts or an origin.
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "same-origin",
}
_STATUS = {
    UserErrorCode.INVALID: 400,
    UserErrorCode.REQUIRED: 400,
    UserErrorCode.UNAUTHENTICATED: 401,
    UserErrorCode.FORBIDDEN: 403,
    UserErrorCode.NOT_FOUND: 404,
    UserErrorCode.CONFLICT: 409,
    UserErrorCode.LIMIT: 429,
    UserErrorCode.QUOTA: 429,
    UserErrorCode.UNAVAILABLE: 503,
}
_REASONS = {FileErrorCode.TOO_LARGE: 413, FileErrorCode.NO_SPACE: 507}
_REQUEST_STATUS = {"UNAUTHENTICATED": 401, "FORBIDDEN": 403, "RATE_LIMITED": 429}


class ClientGoneError(Exception):
    """Nobody is left to answer."""


class BadTransferError(Exception):
    """A request that cannot be carried out; `message` is for the client."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Transfer:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.headers = RequestHeaders(scope)
        self.query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        self.request_id = request_id(self.headers)
        self.is_started = self.is_answered = False
        self._receive, self._send = receive, send
        self._is_reading, self._has_more = False, True

    # The request.

    async def body(self, most: int | None) -> AsyncIterator[bytes]:
        """Give the body as it comes, as fast as it is taken.

        Raises BadTransferError, 413 beyond `most` bytes and 408 when nothing came for a minute;
        ClientGoneError.
        """
        self._check_body(most)
        self._is_reading = True
        size = 0
        while self._has_more:
            try:
                async with asyncio.timeout(_STALL_S):
                    message = await self._receive()
            except TimeoutError:
                raise BadTransferError(
                    408, "TIMED_OUT", "The body stopped arriving; send it again."
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            self._has_more = message.get("more_body", False)
            size += len(chunk)
            _check_size(size, most)
            if chunk:
                yield chunk

    def _check_body(self, most: int | None) -> None:
        if self.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadTransferError(
                415, "INVALID", "A body with a Content-Encoding is not taken; send it as it is."
            )
        if "content-range" in self.headers:
            raise BadTransferError(400, "INVALID", "Files are replaced as a whole; send all of it.")
        announced = self.headers.get("content-length", "")
        _check_size(int(announced) if announced.isdigit() else 0, most)

    async def watch(self) -> None:
        """Return when the client is gone, or answered; nothing of its body is wanted."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    # The answer.

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head."""
        self.is_started = True
        told = {**_HEADERS, "x-request-id": self.request_id, **headers}
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in told.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, body: bytes, *, more: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self.is_answered = not more

    async def empty(self, status: int, headers: Mapping[str, str]) -> None:
        """Answer without a body."""
        await self.start(status, headers)
        await self._put(b"")

    async def json(
        self,
        status: int,
        value: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        ends: bool = True,
    ) -> None:
        """Answer with JSON; unless it `ends` with it, the caller sends the last, empty piece."""
        body = json.dumps(value, ensure_ascii=False).encode()
        told = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, {**told, **(headers or {})})
        body = b"" if self.method == "HEAD" else body
        await self._put(body, more=not ends)

    async def refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error, or break the answer off if it has begun."""
        if self.is_started:
            await self.drop()
            return
        told = dict(headers or {})
        if status == 401:
            told["www-authenticate"] = "Bearer"
        if self.method != "PUT" or not self._is_reading or not self._has_more:
            await self.json(status, {"error": {"code": code, "message": message}}, told)
            return
        # A client that still sends would not hear an answer that ends the connection.
        told["connection"] = "close"
        await self.json(status, {"error": {"code": code, "message": message}}, told, ends=False)
        await self._linger()
        await self._put(b"")

    async def _linger(self) -> None:
        """Throw away what still comes of the body, for a while."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and self._has_more:
                    message = await self._receive()
                    self._has_more = message.get("more_body", False)
                    left -= len(message.get("body", b""))
        except TimeoutError:
            return

    async def refuse_method(self, allowed: Iterable[str]) -> None:
        """Answer that there is no such method."""
        allow = {"allow": ", ".join([*allowed, "OPTIONS"])}
        if self.method == "OPTIONS":
            await self.empty(204, allow)
        else:
            await self.refuse(405, "BAD_REQUEST", f"Use {', '.join(allowed)}.", allow)

    async def send_all(
        self,
        status: int,
        headers: Mapping[str, str],
        chunks: AsyncIterator[bytes],
        *,
        length: int | None = None,
    ) -> None:
        """Answer with bytes as they come, as fast as the client takes them.

        Raises ClientGoneError when it takes none for a minute. An answer that cannot be finished is
        broken off, which clients know from its length or its encoding.
        """
        more = {} if length is None else {"content-length": str(length)}
        left = _BIG if length is None else length
        await self.start(status, {**headers, **more})
        async for chunk in chunks:
            left -= len(chunk)
            await self._put_in_time(chunk, more=True)
        if length is not None and left:
            log.info("a file ended early", extra={"request_id": self.request_id, "missing": left})
            raise ClientGoneError
        await self._put_in_time(b"")

    async def _put_in_time(self, body: bytes, *, more: bool = False) -> None:
        try:
            async with asyncio.timeout(_STALL_S):
                await self._put(body, more=more)
        except TimeoutError:
            raise ClientGoneError from None

    async def drop(self) -> None:
        """Break the connection off, unless all of the answer is on its way."""
        if not self.is_answered:
            await break_off(self._receive)


def _check_size(size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise BadTransferError(
            413, "LIMIT", f"The body is larger than {most:,} bytes, which is the limit."
        )


Handler = Callable[[Transfer, Context], Awaitable[None]]


class Places:
    """How many transfers each person has under way in this process."""

    def __init__(self, most: int = MAX_TRANSFERS) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, user_id: str) -> Iterator[None]:
        """Take a place for a while. Raises RateLimitedError when all are taken."""
        if self._taken[user_id] >= self._most:
            raise RateLimitedError(
                f"You have {self._most} transfers under way, which is the limit; wait for one.", 1.0
            )
        self._taken[user_id] += 1
        try:
            yield
        finally:
            self._taken[user_id] -= 1
            if not self._taken[user_id]:
                del self._taken[user_id]


async def answer(
    transfer: Transfer,
    deps: Deps,
    allowed_origins: Collection[str],
    places: Places,
    handler: Handler,
) -> None:
    """Sign in, let the handler answer, and tell what goes wrong.

    The handler is cancelled when the client is gone, and when its sign-in ends.
    """
    try:
        context = await _context(transfer, deps, allowed_origins)
        with places.place(context.viewer.id):
            await _within_sign_in(transfer, context, handler)
    except ClientGoneError:
        await transfer.drop()
    except BadTransferError as error:
        await transfer.refuse(error.status, error.code, error.message)
    except RequestError as error:
        status = _REQUEST_STATUS.get(error.code, 503)
        retry = {"retry-after": "1"} if status in (429, 503) else None
        await transfer.refuse(status, error.code, error.message, retry)
    except UserErrors as errors:
        await _refuse(transfer, errors.errors[0])
    except UserError as error:
        await _refuse(transfer, error)
    except Exception:
        log.exception("a transfer failed", extra={"request_id": transfer.request_id})
        told = f"Something went wrong; the request was {transfer.request_id}."
        await transfer.refuse(500, "INTERNAL", told)


async def _within_sign_in(transfer: Transfer, context: Context, handler: Handler) -> None:
    tasks = TaskSet()
    limit = asyncio.timeout(None)
    errors: list[Exception] = []

    def stop(error: Exception) -> None:
        errors.append(error)
        limit.reschedule(asyncio.get_running_loop().time())

    async def watch() -> None:
        await transfer.watch()
        # To the server, a client that has been given everything is gone as well.
        if not transfer.is_answered:
            stop(ClientGoneError())

    try:
        async with limit:
            release = auth.hold(context, lambda reason: stop(UnauthenticatedError(_ENDED)))
            try:
                if transfer.method != "PUT":
                    tasks.start(watch(), name="watch a download")
                await handler(transfer, context)
            finally:
                release()
    except TimeoutError:
        if not limit.expired():
            raise
        raise errors[0] from None
    finally:
        await tasks.aclose()


async def _context(transfer: Transfer, deps: Deps, allowed_origins: Collection[str]) -> Context:
    info = request_info(transfer.scope, transfer.headers, transfer.request_id, is_stream=True)
    try:
        async with asyncio.timeout(_SIGN_IN_S):
            context = await auth.context_of_request(deps, info, allowed_origins=allowed_origins)
    except TimeoutError:
        raise BadTransferError(
            504, "TIMED_OUT", "Signing in took too long. Try again later."
        ) from None
    if not context.viewer.is_authenticated:
        raise UnauthenticatedError
    return context


async def _refuse(transfer: Transfer, error: UserError) -> None:
    status = _STATUS[error.code]
    if isinstance(error, TransferError) and error.reason in _REASONS:
        status = _REASONS[error.reason]
    elif error.code is UserErrorCode.CONFLICT and error.path == conditions.PATH:
        status = 412
    elif error.code is UserErrorCode.LIMIT and error.path == ("path",):
        status = 400
    retry = {"retry-after": "1"} if status in (429, 503) else None
    await transfer.refuse(status, error.code, error.message, retry)
