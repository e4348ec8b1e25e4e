"""graphql-sse's single connection mode: requests that reserve, open, feed and end one stream.

PUT reserves a stream and gives its token, GET with the token opens it, POST with the token runs an
operation whose answers go there, DELETE with the token stops one. A token is good for one stream,
and for whoever reserved it; to everybody else it is as unknown as any other.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Receive

from app.graphql_media import EVENT_STREAM, RESPONSE_JSON, check_content, choose
from app.graphql_outbox import Dispatcher
from app.graphql_reply import Reply
from app.graphql_request import (
    BadRequestError,
    RequestHeaders,
    RequestInfo,
    query_parameters,
    read_params,
)
from app.graphql_reserved import Framing, ReservedStream
from app.graphql_stream import HttpStream
from schema.execution import Prepared, Result, request_failure
from services.errors import RequestError

if TYPE_CHECKING:
    from app.graphql_http import GraphQLHTTP

logger = logging.getLogger(__name__)

TOKEN_HEADER = "X-GraphQL-Event-Stream-Token"  # noqa: S105 - a name.
_TOKEN_NAME = TOKEN_HEADER.lower().encode()
_FRAMING = Framing()


class SingleConnections:
    """The reserved streams of a process.

    Each counts as one open stream of whoever reserved it from its reservation on, and runs at most
    `max_operations` at once. One that is not opened in time is given up.
    """

    def __init__(self, endpoint: "GraphQLHTTP", *, max_operations: int = 100) -> None:
        self._endpoint = endpoint
        self._max_operations = max_operations
        self._streams: dict[str, ReservedStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatcher: Dispatcher | None = None

    def __len__(self) -> int:
        return len(self._streams)

    def token(self, headers: RequestHeaders, query_string: bytes, method: str) -> str | None:
        """Give the token that a request names; None if it has nothing to do with this mode.

        An empty one is what PUT and DELETE have without a token.
        """
        given = headers.by_name.get(_TOKEN_NAME)
        token = None if given is None else given.decode("latin-1")
        if not token and b"token=" in query_string:
            parameters = query_parameters(query_string)
            # Beside an operation it is none of ours: operations of a stream come by POST.
            token = None if "query" in parameters else parameters.get("token")
        return token or ("" if method in ("PUT", "DELETE") else None)

    async def answer(
        self, token: str, headers: Headers, info: RequestInfo, receive: Receive, reply: Reply
    ) -> None:
        """Answer a request of this mode. Raises BadRequestError and ClientGoneError."""
        reply.media_type = RESPONSE_JSON
        method = info.scope["method"]
        if method == "PUT":
            await self._reserve(info, reply)
        elif method == "GET":
            await self._open(token, headers, info, receive, reply)
        elif method == "DELETE":
            await self._stop(token, info, reply)
        else:
            await self._operate(token, headers, info, receive, reply)

    async def drain(self, timeout_s: float = 10.0) -> None:
        """End every stream; return when mutations under way are finished.

        What still runs after `timeout_s` seconds is cancelled.
        """
        for stream in tuple(self._streams.values()):
            stream.end()
        if self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # ---- requests

    async def _reserve(self, info: RequestInfo, reply: Reply) -> None:
        context = await self._endpoint.context(info)
        if isinstance(context, Result):
            await reply.result(context)
            return
        try:
            leave = self._endpoint.streams.enter(context, info.client_host)
        except RequestError as error:
            await reply.result(Result.refused([request_failure(error, reply.request_id)]))
            return
        token = secrets.token_urlsafe(32)
        if self._dispatcher is None:
            self._dispatcher = Dispatcher()
        release: list[Callable[[], None]] = [leave]
        stream = self._streams[token] = ReservedStream(
            self._endpoint.streams.who(context),
            self._endpoint.engine,
            self._dispatcher,
            max_operations=self._max_operations,
            timeout_s=self._endpoint.timeout_s,
            tasks=self._tasks,
            on_close=partial(self._closed, token, release),
        )
        unused_s = self._endpoint.streams.options.unused_s
        unused = asyncio.get_running_loop().call_later(unused_s, self._unused, stream)
        release.append(unused.cancel)
        let_go = self._endpoint.streams.hold(context, stream.end)
        if stream.is_closed:
            # The sign-in ended just now.
            let_go()
        else:
            release.append(let_go)
        # In a header, too: by it a proxy can send what follows to the same process.
        reply.headers[TOKEN_HEADER.lower()] = token
        await reply.body(201, "text/plain", token.encode())

    def _unused(self, stream: ReservedStream) -> None:
        if not stream.is_open:
            stream.close()

    def _closed(
        self, token: str, release: list[Callable[[], None]], _stream: ReservedStream
    ) -> None:
        self._streams.pop(token, None)
        for let_go in release:
            let_go()

    async def _open(
        self, token: str, headers: Headers, info: RequestInfo, receive: Receive, reply: Reply
    ) -> None:
        if choose(headers.get("accept", ""), allows_html=False).stream != EVENT_STREAM:
            raise BadRequestError(
                f"Accept {EVENT_STREAM} to open a reserved stream; its operations need POST.",
                status=406,
            )
        stream = self._known(token)
        # An EventSource sends no header: to open the stream once, its token is enough.
        if "authorization" in headers and await self._context(stream, info, reply) is None:
            return
        if stream.is_open:
            raise BadRequestError(
                "This stream is open already: reserve another one with PUT.",
                status=409,
                code="CONFLICT",
            )
        streams = self._endpoint.streams
        response = HttpStream(_FRAMING, receive, reply, options=streams.options)
        try:
            await streams.run(response, None, stream.open(response))
        finally:
            stream.close()

    async def _stop(self, token: str, info: RequestInfo, reply: Reply) -> None:
        stream = self._known(token)
        if await self._context(stream, info, reply) is None:
            return
        id_ = query_parameters(info.scope["query_string"]).get("operationId")
        if not id_:
            raise BadRequestError("Name the operation to stop: DELETE ?operationId=ID.")
        stream.stop(id_)
        await reply.body(200, None, b"")

    async def _operate(
        self, token: str, headers: Headers, info: RequestInfo, receive: Receive, reply: Reply
    ) -> None:
        check_content(headers)
        stream = self._known(token)
        params = read_params(await self._endpoint.body.json(headers, receive))
        context = await self._context(stream, info, reply)
        if context is None:
            return
        operation = await stream.reserve((params.extensions or {}).get("operationId"))
        prepared: Prepared | Result | None = None
        try:
            prepared = await self._endpoint.prepare(params, context, info.request_id)
        finally:
            if not isinstance(prepared, Prepared) or operation.is_silent:
                stream.give_up(operation)
        if isinstance(prepared, Result):
            await reply.result(prepared)
            return
        if stream.is_closed:
            raise _unknown()
        if operation.is_silent:
            # It was stopped before it began.
            await reply.body(204, None, b"")
            return
        stream.start(operation, prepared, context, info.request_id)
        await reply.body(202, None, b"")

    # ---- whose

    def _known(self, token: str) -> ReservedStream:
        if not token:
            raise BadRequestError(
                f"Name the stream by the header {TOKEN_HEADER}, with the token that PUT gave."
            )
        stream = self._streams.get(token)
        if stream is None:
            raise _unknown()
        return stream

    async def _context(self, stream: ReservedStream, info: RequestInfo, reply: Reply) -> Any:
        """Sign in as who reserved the stream; None if the request was answered instead.

        Raises BadRequestError for everybody else, and for a stream that ended meanwhile.
        """
        after = info.headers.get("last-event-id") or None
        context = await self._endpoint.context(replace(info, is_stream=True, resume_after=after))
        if isinstance(context, Result):
            await reply.result(context)
            return None
        if stream.is_closed or self._endpoint.streams.who(context) != stream.who:
            raise _unknown()
        return context


def _unknown() -> BadRequestError:
    return BadRequestError(
        "There is no such stream. It has ended, was not opened in time, or was reserved by "
        "somebody else or at another server: reserve one with PUT.",
        status=404,
        code="NOT_FOUND",
    )
