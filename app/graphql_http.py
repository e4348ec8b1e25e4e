"""GraphQL over HTTP, by the draft of September 2025; all audits of `graphql-http` pass."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app import graphql_metrics
from app.graphql_media import HTML, JSON, RESPONSE_JSON, check_content, negotiate
from app.graphql_request import (
    BadRequestError,
    Params,
    RequestInfo,
    is_origin_allowed,
    read_params,
    request_id,
    request_info,
)
from schema.execution import Engine, Prepared, Result, failure, request_failure

logger = logging.getLogger(__name__)

_REQUEST_STATUS = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "RATE_LIMITED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "TIMED_OUT": 504,
}
"""Statuses of requests of which nothing was executed, whatever media type was asked for."""

_DISCONNECT_PATIENCE_S = 0.05
"""Quick queries end before it pays to watch their connection."""

_SAFE_HEADERS = ("authorization", "x-requested-with", "x-request-id", "x-graphql-preflight")
"""Headers a page cannot send to another site without the browser asking us first."""


class GraphQLHTTP:
    """ASGI endpoint for `Route`: POST and GET of operations, and GraphiQL for browsers.

    `make_context` gives the context of each operation; a RequestError it raises refuses the
    request (401, 403, 429 or 503). `max_body_bytes` bounds the body while it is read. A query
    whose client leaves is cancelled; a mutation is finished. After `timeout_s` seconds either is
    cancelled with the error TIMED_OUT.
    """

    def __init__(
        self,
        engine: Engine,
        make_context: Callable[[RequestInfo], Awaitable[Any]],
        *,
        max_body_bytes: int = 1024 * 1024,
        timeout_s: float = 30.0,
        body_timeout_s: float = 30.0,
        graphiql_html: Callable[[], bytes] | None = None,
        graphiql_headers: Mapping[str, str] | None = None,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self._engine = engine
        self._make_context = make_context
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._body_timeout_s = body_timeout_s
        self._graphiql_html = graphiql_html
        self._graphiql_headers = dict(graphiql_headers or {})
        self._allowed_origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        id_ = request_id(headers)
        reply = _Reply(send, id_)
        try:
            await self._answer(scope, headers, receive, reply)
        except BadRequestError as error:
            result = Result.refused([failure(error.code, error.message)])
            await reply.result(result, reply.media_type, status=error.status)
        except _ClientGoneError:
            return
        except Exception as error:
            if reply.is_started:
                raise
            failed = Result.refused([request_failure(error, id_)])
            await reply.result(failed, reply.media_type, status=500)

    async def _answer(
        self, scope: Scope, headers: Headers, receive: Receive, reply: "_Reply"
    ) -> None:
        method = scope["method"]
        if method not in ("GET", "POST"):
            reply.headers["allow"] = "GET, POST"
            if method == "OPTIONS":
                await reply.body(204, None, b"")
                return
            raise BadRequestError("Use POST, or GET for queries.", status=405)
        media_type = negotiate(headers.get("accept", ""), allows_html=method == "GET")
        if media_type is None:
            raise BadRequestError(
                f"No acceptable media type: accept {RESPONSE_JSON} or {JSON}.", status=406
            )
        if media_type == HTML:
            await self._graphiql(reply)
            return
        reply.media_type = media_type
        if method == "GET":
            self._check_origin(headers)
            params = read_params(_query_parameters(scope["query_string"]))
        else:
            params = read_params(await self._json_body(headers, receive))
        info = request_info(scope, headers, reply.request_id)
        result = await self._operate(params, info, receive, reply)
        await reply.result(result, media_type)

    async def _operate(
        self, params: Params, info: RequestInfo, receive: Receive, reply: "_Reply"
    ) -> Result:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                context = await self._make_context(info)
        except TimeoutError:
            graphql_metrics.record("unknown", "http", "timed_out")
            late = "Signing in took too long. Try again later."
            return Result.refused([failure("TIMED_OUT", late)])
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            graphql_metrics.record("unknown", "http", "refused")
            return Result.refused([request_failure(error, info.request_id)])
        prepared = await self._engine.prepare_async(
            params.query, params.operation_name, params.variables
        )
        if not isinstance(prepared, Prepared):
            graphql_metrics.record("unknown", "http", "refused")
            return Result.refused(prepared)
        self._check_type(prepared, info, reply)
        outcome = "canceled"
        try:
            result = await self._execute(prepared, context, receive)
            outcome = graphql_metrics.outcome(result)
        finally:
            graphql_metrics.record(prepared.type, "http", outcome, time.perf_counter() - started)
        return result

    async def _execute(self, prepared: Prepared, context: Any, receive: Receive) -> Result:
        if prepared.type == "mutation":
            # Half a mutation helps nobody: it is finished whether or not its client waits.
            return await self._engine.execute(prepared, context, timeout_s=self._timeout_s)
        async with _CancelOnDisconnect(receive):
            return await self._engine.execute(prepared, context, timeout_s=self._timeout_s)

    def _check_type(self, prepared: Prepared, info: RequestInfo, reply: "_Reply") -> None:
        if prepared.type == "subscription":
            raise BadRequestError(
                "Subscriptions run over WebSocket at this same address, "
                "with the subprotocol graphql-transport-ws.",
                code="SUBSCRIPTION_NOT_SUPPORTED",
            )
        if prepared.type == "mutation" and info.scope["method"] == "GET":
            reply.headers["allow"] = "POST"
            raise BadRequestError("Mutations need POST.", status=405)

    def _check_origin(self, headers: Headers) -> None:
        """Refuse a GET that a page of another site made its visitor's browser send."""
        site = headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin") or any(name in headers for name in _SAFE_HEADERS):
            return
        origin = headers.get("origin")
        if origin and is_origin_allowed(origin, headers.get("host"), self._allowed_origins):
            return
        raise BadRequestError(
            "A GET from another site needs the header X-GraphQL-Preflight: 1 (or use POST).",
            status=403,
            code="FORBIDDEN",
        )

    async def _json_body(self, headers: Headers, receive: Receive) -> Any:
        check_content(headers)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await self._body(headers, receive)
        except TimeoutError:
            raise BadRequestError("The body did not arrive in time.", status=408) from None
        if not body:
            raise BadRequestError("The body is empty: send JSON with the entry `query`.")
        try:
            # Refuses invalid UTF-8 and lone surrogates too, which no answer could carry.
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BadRequestError(f"The body is not valid JSON: {error}.") from None

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise self._too_large()
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> BadRequestError:
        return BadRequestError(
            f"The body is larger than {self._max_body_bytes} bytes, which is the limit.",
            status=413,
            code="LIMIT",
        )

    async def _graphiql(self, reply: "_Reply") -> None:
        if self._graphiql_html is None:
            raise BadRequestError(
                f"There is no page here: accept {RESPONSE_JSON} or {JSON}.", status=406
            )
        reply.headers.update({"x-frame-options": "DENY", **self._graphiql_headers})
        await reply.body(200, HTML, self._graphiql_html())


class _ClientGoneError(Exception):
    """Nobody is left to answer."""


class _CancelOnDisconnect:
    """Cancels the block when the client disconnects, raising _ClientGoneError.

    Starts watching after a moment only, so that quick queries cost no task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = asyncio.timeout(None)
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.call_later(_DISCONNECT_PATIENCE_S, self._begin)
        await self._gone.__aenter__()
        return self

    def _begin(self) -> None:
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.reschedule(self._loop.time())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._start.cancel()
        try:
            await self._gone.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise _ClientGoneError from None
        finally:
            if self._watcher is not None:
                self._watcher.cancel()
                await asyncio.gather(self._watcher, return_exceptions=True)


class _Reply:
    """The one answer to a request."""

    def __init__(self, send: Send, id_: str) -> None:
        self._send = send
        self.request_id = id_
        self.media_type = JSON
        self.headers: dict[str, str] = {}
        self.is_started = False

    async def result(self, result: Result, media_type: str, status: int | None = None) -> None:
        try:
            body = result.json()
        except TypeError as error:
            result = Result(None, [request_failure(error, self.request_id)])
            body, status = result.json(), 500
        if status is None:
            status = status_of(result, media_type)
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"
        retry_after_s = _retry_after_s(result)
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)
        await self.body(status, media_type, body)

    async def body(self, status: int, media_type: str | None, body: bytes) -> None:
        headers = {
            "x-request-id": self.request_id,
            "cache-control": "no-store",
            "vary": "Accept, Origin",
            "x-content-type-options": "nosniff",
            **self.headers,
        }
        if media_type is not None:
            headers["content-type"] = f"{media_type}; charset=utf-8"
            headers["content-length"] = str(len(body))
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.is_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


def status_of(result: Result, media_type: str) -> int:
    """Give the HTTP status of a result.

    Requests refused before GraphQL had a say get their own status. What GraphQL refuses is 400 for
    application/graphql-response+json and 200 for application/json, whose clients take any other
    status for a failure of the network. Executed operations are 200, but for those that came to
    nothing for a reason HTTP has a status for.
    """
    statuses = {_REQUEST_STATUS.get(code or "") for code in result.codes()}
    status = next(iter(statuses)) if len(statuses) == 1 else None
    if not result.is_executed:
        return status or (400 if media_type == RESPONSE_JSON else 200)
    if result.data is None and media_type == RESPONSE_JSON and status in (401, 403, 429, 503):
        return status
    return 200


def _retry_after_s(result: Result) -> int | None:
    waits = [
        error["extensions"]["retryAfter"]
        for error in result.errors
        if "retryAfter" in error.get("extensions", {})
    ]
    return max(1, math.ceil(max(waits))) if waits else None


def _query_parameters(query_string: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=20
        )
    except ValueError:
        raise BadRequestError("The query string is not valid URL-encoded UTF-8.") from None
    data: dict[str, Any] = dict(pairs)
    for name in ("variables", "extensions"):
        if name in data:
            data[name] = _json_parameter(name, data[name])
    return data


def _json_parameter(name: str, text: str) -> Any:
    try:
        return orjson.loads(text) if text else None
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"`{name}` is not valid JSON: {error}.") from None
