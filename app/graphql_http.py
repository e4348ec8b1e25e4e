"""GraphQL over HTTP, by the draft of September 2025; all audits of `graphql-http` pass."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.types import Receive, Scope, Send

from app import graphql_caching, graphql_metrics
from app.graphql_batch import Batch
from app.graphql_body import Body, CancelOnDisconnect, ClientGoneError
from app.graphql_documents import Documents
from app.graphql_framing import FRAMINGS
from app.graphql_media import (
    EVENT_STREAM,
    HTML,
    JSON,
    MULTIPART,
    RESPONSE_JSON,
    Media,
    check_content,
    choose,
    is_plain,
)
from app.graphql_pieces import PiecesEndpoint
from app.graphql_preparing import prepare
from app.graphql_reply import Reply, tell
from app.graphql_request import (
    BadRequestError,
    Params,
    RequestHeaders,
    RequestInfo,
    check_origin,
    query_parameters,
    read_params,
    request_id,
    request_info,
    traced_attributes,
)
from app.graphql_single import SingleConnections
from app.graphql_stream import HttpStream, Streams
from app.graphql_upload import Upload, is_upload
from app.graphql_uploads import Uploads
from schema.execution import Engine, Prepared, Result, failure, request_failure
from services.errors import RequestError

if TYPE_CHECKING:
    from app.spans import Tracing

logger = logging.getLogger(__name__)

_METHODS = ("GET", "POST", "PUT", "DELETE")
"""The last two for streams of many operations alone."""

_NOT_ACCEPTABLE = (
    f"No acceptable media type: accept {RESPONSE_JSON} or {JSON}, "
    f"or {EVENT_STREAM} or {MULTIPART} for subscriptions."
)


def _nobody(_info: RequestInfo) -> Any:
    return None


class GraphQLHTTP:
    """ASGI endpoint for `Route`: POST and GET of operations, and GraphiQL for browsers.

    Subscriptions answer as a stream, to whoever accepts one; `streams` bounds and ends those.
    `documents` are those known by name. A body may hold a list of at most `max_batch` operations
    (0: none). Forms may carry a file to a mutation, `max_uploads` of each viewer
    at once (0: none). Answers to GET that are nobody's own may be kept for `max_age_s` seconds.
    `make_context` gives the context of each operation; a RequestError it raises refuses the
    request (401, 403, 429 or 503). `known_context` is asked first: it gives one where that takes
    no waiting, None otherwise, and raises the same. `max_body_bytes` bounds the body while it is
    read. A query whose client leaves is cancelled; a mutation is finished. After `timeout_s`
    seconds either is cancelled with the error TIMED_OUT.
    """

    def __init__(
        self,
        engine: Engine,
        make_context: Callable[[RequestInfo], Awaitable[Any]],
        *,
        max_body_bytes: int = 1024 * 1024,
        timeout_s: float = 30.0,
        body_timeout_s: float = 30.0,
        known_context: Callable[[RequestInfo], Any] = _nobody,
        graphiql_html: Callable[[], bytes] | None = None,
        graphiql_headers: Mapping[str, str] | None = None,
        allowed_origins: Collection[str] = (),
        streams: Streams | None = None,
        documents: Documents | None = None,
        max_batch: int = 0,
        max_uploads: int = 0,
        max_age_s: int = 0,
        max_operations: int = 100,
    ) -> None:
        self.documents = Documents() if documents is None else documents
        self.streams = Streams() if streams is None else streams
        # Whoever traces operations.
        self.tracing: Tracing | None = None
        self.engine = engine
        self.body = Body(max_body_bytes, body_timeout_s)
        self.timeout_s = timeout_s
        self.single = SingleConnections(self, max_operations=max_operations)
        self._pieces = PiecesEndpoint(engine, self.streams, timeout_s)
        self._make_context = make_context
        self._known_context = known_context
        self._max_body_bytes = max_body_bytes
        self._uploads = Uploads(self, max_uploads)
        self._max_batch = max_batch
        self._max_age_s = max_age_s
        self._graphiql_html = graphiql_html
        self._graphiql_headers = dict(graphiql_headers or {})
        self._allowed_origins = frozenset(allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = RequestHeaders(scope)
        id_ = request_id(headers)
        reply = Reply(send, id_)
        try:
            # Reading and running come one after the other here, not one within the other: a query
            # that waits for its rows is woken through every coroutine that awaits it.
            if self.tracing is None:
                asked = await self._asked(scope, headers, receive, reply)
                if asked is not None:
                    await self._run(*asked, receive, reply)
            else:
                with self.tracing.caller(headers):
                    await self._traced(self.tracing, scope, headers, receive, reply)
        except BadRequestError as error:
            result = Result.refused([failure(error.code, error.message)])
            await reply.result(result, status=error.status)
        except ClientGoneError:
            return
        except Exception as error:
            if reply.is_started:
                raise
            failed = Result.refused([request_failure(error, id_)])
            await reply.result(failed, status=500)

    async def _traced(
        self,
        tracing: "Tracing",
        scope: Scope,
        headers: RequestHeaders,
        receive: Receive,
        reply: Reply,
    ) -> None:
        asked = await self._asked(scope, headers, receive, reply)
        if asked is not None:
            run = partial(self._run, *asked, receive, reply)
            await tracing.operation(run, traced_attributes(asked[1]))

    async def _asked(
        self, scope: Scope, headers: RequestHeaders, receive: Receive, reply: Reply
    ) -> tuple[Params, RequestInfo, Media] | None:
        """Read a request for one operation. Whatever else is asked for is answered, giving None."""
        method = scope["method"]
        if method not in _METHODS:
            await self._refuse_method(method, reply)
            return None
        token = self.single.token(headers, scope["query_string"], method)
        if token is not None:
            info = request_info(scope, headers, reply.request_id, is_stream=True)
            await self.single.answer(token, headers, info, receive, reply)
            return None
        accept = headers.by_name.get(b"accept", b"").decode("latin-1")
        media = choose(accept, allows_html=method == "GET")
        if media.single == HTML:
            await self._graphiql(reply)
            return None
        if media.single is None and media.stream is None and media.pieces is None:
            raise BadRequestError(_NOT_ACCEPTABLE, status=406)
        reply.media_type = media.single or RESPONSE_JSON
        data: Any
        upload: Upload | None = None
        if method == "GET":
            check_origin(headers, self._allowed_origins)
            data = query_parameters(scope["query_string"])
        elif is_plain(headers.by_name):
            data = await self.body.json(headers, receive)
        elif self._uploads.most and is_upload(headers):
            upload = Upload(headers, receive, self._max_body_bytes)
            try:
                data = await upload.operation()
            except BadRequestError:
                await upload.linger()
                raise
        else:
            check_content(headers)
            data = await self.body.json(headers, receive)
        info = request_info(
            scope,
            headers,
            reply.request_id,
            is_stream=media.prefers_stream,
            # An EventSource repeats its URL with this header added: it is the newer of the two.
            resume_after=headers.get("last-event-id") or None
            if media.stream == EVENT_STREAM
            else None,
        )
        if isinstance(data, list) and self._max_batch:
            if media.single is None:
                raise BadRequestError(_NOT_ACCEPTABLE, status=406)
            await Batch(self, data, info, self._max_batch).answer(receive, reply)
            return None
        if upload is not None:
            await self._uploads.answer(upload, read_params(data), info, reply)
            return None
        return read_params(data), info, media

    async def _refuse_method(self, method: str, reply: Reply) -> None:
        reply.headers["allow"] = ", ".join(_METHODS)
        if method != "OPTIONS":
            raise BadRequestError("Use POST, or GET for queries.", status=405)
        await reply.body(204, None, b"")

    async def _run(
        self, params: Params, info: RequestInfo, media: Media, receive: Receive, reply: Reply
    ) -> None:
        context = self._known(info)
        if context is None:
            context = await self._signed_in(info)
        if isinstance(context, Result):
            graphql_metrics.record("unknown", "http", graphql_metrics.outcome(context))
            await reply.result(context)
            return
        prepared = await self.prepare(params, context, info.request_id)
        if isinstance(prepared, Result):
            await tell(prepared, media, reply)
            return
        if prepared.type != "query":
            self._check_type(prepared, info, media, reply)
        if prepared.type == "subscription":
            await self._subscribe(prepared, context, info, media, receive, reply)
            return
        if prepared.type == "mutation":
            # Half a mutation helps nobody: it is finished whether or not its client waits.
            result = await self.execute(prepared, context)
        elif prepared.document.is_divisible and media.pieces is not None:
            told = await self._pieces.answer(prepared, context, info, media.pieces, receive, reply)
            if told is None:
                return
            result = told
        else:
            result = await self.execute(prepared, context, receive=receive)
        if info.scope["method"] == "GET" and not media.prefers_stream:
            kept = self._max_age_s
            if graphql_caching.describe(result, context, info.headers, reply, kept):
                await reply.body(304, None, b"")
                return
        if media.single is None or media.prefers_stream or not reply.result_at_once(result):
            await tell(result, media, reply)

    async def drain(self, timeout_s: float = 10.0) -> None:
        """End every stream so that its client comes back, and refuse new ones.

        Returns when all have ended, or after `timeout_s` seconds.
        """
        await asyncio.gather(self.streams.drain(timeout_s), self.single.drain(timeout_s))

    async def prepare(self, params: Params, context: Any, id_: str) -> Prepared | Result:
        """Find and read the document of a request; gives the refusal otherwise."""
        try:
            prepared = await prepare(self.engine, self.documents, params, context)
        except RequestError as error:
            prepared = Result.refused([request_failure(error, id_)])
        if isinstance(prepared, Result):
            graphql_metrics.record("unknown", "http", "refused")
        return prepared

    @property
    def max_objects(self) -> int:
        """The most objects the operations of a request may ask for."""
        return self.engine.limits.max_objects

    @property
    def max_values(self) -> int:
        """The most values the variables of a request may have."""
        return self.engine.limits.max_values

    async def context(self, info: RequestInfo) -> Any:
        """Sign in; gives a Result for a request that is refused."""
        known = self._known(info)
        return await self._signed_in(info) if known is None else known

    def _known(self, info: RequestInfo) -> Any:
        """Do as `context` where that takes no waiting; None where it does."""
        try:
            return self._known_context(info)
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            return Result.refused([request_failure(error, info.request_id)])

    async def _signed_in(self, info: RequestInfo) -> Any:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._make_context(info)
        except TimeoutError:
            late = "Signing in took too long. Try again later."
            return Result.refused([failure("TIMED_OUT", late)])
        except Exception as error:  # noqa: BLE001 - masked and logged as any other bug.
            return Result.refused([request_failure(error, info.request_id)])

    async def execute(
        self,
        prepared: Prepared,
        context: Any,
        *,
        has_file: bool = False,
        receive: Receive | None = None,
    ) -> Result:
        """Run a query or mutation; with `receive`, as long as the client is there."""
        timeout_s = None if has_file else self.timeout_s
        started, outcome = time.perf_counter(), "canceled"
        try:
            if receive is None:
                result = await self.engine.execute(prepared, context, timeout_s=timeout_s)
            else:
                try:
                    async with CancelOnDisconnect(receive, timeout_s):
                        result = await self.engine.execute(prepared, context)
                except TimeoutError:
                    result = self.engine.timed_out(context, self.timeout_s)
            outcome = graphql_metrics.outcome(result) if result.errors else "ok"
        finally:
            graphql_metrics.record(prepared.type, "http", outcome, time.perf_counter() - started)
        return result

    async def _subscribe(
        self,
        prepared: Prepared,
        context: Any,
        info: RequestInfo,
        media: Media,
        receive: Receive,
        reply: Reply,
    ) -> None:
        framing = FRAMINGS[media.stream or EVENT_STREAM]
        outcome = "canceled"
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self.streams.place(context, info.client_host))
                async with CancelOnDisconnect(receive):
                    answers = await self.engine.subscribe(
                        prepared, context, timeout_s=self.timeout_s
                    )
                    if not isinstance(answers, Result):
                        stack.push_async_callback(answers.aclose)
                if isinstance(answers, Result):
                    outcome = graphql_metrics.outcome(answers)
                    await tell(answers, media, reply)
                    return
                stream = HttpStream(framing, receive, reply, options=self.streams.options)
                outcome = await self.streams.run(stream, context, answers)
                if stream.refusal is not None:
                    await tell(stream.refusal, media, reply)
        except RequestError as error:
            outcome = "refused"
            await reply.result(Result.refused([request_failure(error, reply.request_id)]))
        finally:
            graphql_metrics.record("subscription", framing.name, outcome)

    def _check_type(
        self, prepared: Prepared, info: RequestInfo, media: Media, reply: Reply
    ) -> None:
        if prepared.type == "subscription" and media.stream is None:
            raise BadRequestError(
                f"A subscription answers as a stream: accept {EVENT_STREAM} or {MULTIPART}, or use "
                "WebSocket at this same address with the subprotocol graphql-transport-ws.",
                code="SUBSCRIPTION_NOT_SUPPORTED",
            )
        if prepared.type == "mutation" and info.scope["method"] == "GET":
            reply.headers["allow"] = "POST"
            raise BadRequestError("Mutations need POST.", status=405)

    async def _graphiql(self, reply: Reply) -> None:
        if self._graphiql_html is None:
            raise BadRequestError(
                f"There is no page here: accept {RESPONSE_JSON} or {JSON}.", status=406
            )
        reply.headers.update({"x-frame-options": "DENY", **self._graphiql_headers})
        await reply.body(200, HTML, self._graphiql_html())
