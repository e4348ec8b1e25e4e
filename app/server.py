"""The HTTP server: GraphQL over HTTP and WebSocket, GraphiQL, health and metrics."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

import schema
from app import auth, graphiql, graphql_budget
from app.config import PREFIX, Settings
from app.cors import Cors
from app.database_metrics import DatabaseMetrics
from app.errors import ConfigurationError
from app.execution_metrics import ExecutionMetrics
from app.feed_metrics import FeedMetrics, exporting
from app.graphql_documents import Documents, ManifestError, hash_of, read_manifest
from app.graphql_http import GraphQLHTTP
from app.graphql_register import Register
from app.graphql_single import TOKEN_HEADER
from app.graphql_stream import Streams
from app.graphql_ws import GraphQLWebSocket, SocketOptions
from app.runtime import running
from app.sandbox_files import SandboxFiles
from app.sandbox_metrics import SandboxMetrics
from app.sandbox_ports import SandboxPorts
from app.sandbox_transfer import MAX_TRANSFERS
from app.slow_operations import SlowOperations
from app.tracing import tracing
from app.watching import Watch
from app.worker import working
from models import journal
from schema.execution import Engine, Limits
from services.base import Deps

if TYPE_CHECKING:
    from app.spans import Tracing

log = logging.getLogger("noosphere.server")
_PROBE_S = 3.0
_GRAPHQL = "/graphql"


class Server:
    """One application: its routes, and what they work with while it runs."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._deps: Deps | None = None
        self.engine = engine = Engine(
            schema.build()._schema,
            limits=Limits(
                max_depth=settings.max_query_depth,
                max_aliases=settings.max_query_aliases,
                max_tokens=settings.max_query_tokens,
                max_values=settings.max_variable_values,
                max_objects=settings.max_query_objects,
            ),
            admit=graphql_budget.admit,
            is_compiling=settings.compile_queries,
        )
        origins, documents = settings.cors_origins, _documents(settings)
        register = Register(
            max_per_viewer=settings.max_sockets_per_viewer,
            max_per_address=settings.max_sockets_per_address,
        )
        self.http = GraphQLHTTP(
            engine,
            lambda info: auth.context_of_request(self.deps, info, allowed_origins=origins),
            known_context=lambda info: auth.context_known(
                self._deps or self.deps, info, allowed_origins=origins
            ),
            max_body_bytes=settings.max_body_bytes,
            timeout_s=settings.request_timeout,
            graphiql_html=graphiql.page if settings.graphiql else None,
            graphiql_headers=graphiql.HEADERS,
            allowed_origins=origins,
            streams=Streams(
                register,
                viewer_id=lambda context: context.viewer.user_id,
                who=lambda context: (context.viewer.user_id, context.viewer.session_id),
                hold=auth.hold,
            ),
            documents=documents,
            max_batch=settings.max_batch,
            max_uploads=MAX_TRANSFERS,
            max_age_s=settings.public_max_age,
            max_operations=settings.max_operations_per_socket,
        )
        self.sockets = GraphQLWebSocket(
            engine,
            lambda scope, payload: auth.connect(self.deps, scope, payload, allowed_origins=origins),
            connect_known=lambda scope, payload: auth.connect_known(
                self.deps, scope, payload, allowed_origins=origins
            ),
            options=SocketOptions(
                max_operations=settings.max_operations_per_socket,
                max_frame_bytes=settings.max_body_bytes,
                operation_timeout_s=settings.request_timeout,
            ),
            allowed_origins=origins,
            register=register,
            documents=documents,
        )

        self.files = SandboxFiles(lambda: self.deps, allowed_origins=origins)
        self.ports = SandboxPorts(lambda: self.deps, allowed_origins=origins)

    @property
    def deps(self) -> Deps:
        """What the running application works with."""
        if self._deps is None:
            raise RuntimeError("the application has not started")
        return self._deps

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Deps]:
        """Open everything before the first request, and close it after the last."""
        async with AsyncExitStack() as stack:
            self._deps = await stack.enter_async_context(running(self.settings))
            stack.push_async_callback(auth.watches(self._deps).aclose)
            stack.push_async_callback(self.engine.feeds.aclose)
            stack.enter_context(exporting(FeedMetrics(self.engine.feeds)))
            stack.enter_context(exporting(ExecutionMetrics(self.engine)))
            stack.enter_context(exporting(SandboxMetrics()))
            stack.enter_context(exporting(DatabaseMetrics()))
            traced = await stack.enter_async_context(tracing(self.settings, self._deps))
            self._look_on(stack, traced)
            if self.settings.worker_in_server:
                await stack.enter_async_context(working(self._deps, traced))
            yield self._deps

    def _look_on(self, stack: AsyncExitStack, traced: "Tracing | None") -> None:
        """Trace, and tell of slow operations, as configured."""
        from_s = self.settings.slow_operation
        if traced is None and not from_s:
            return
        stack.callback(journal.listen(self.deps.db.engine.sync_engine))
        self.engine.watch = Watch(SlowOperations(from_s) if from_s else None, traced)
        if traced is not None:
            self.engine.trace = traced.trace
            self.http.tracing = self.sockets.tracing = traced

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Open the application under a server that has not opened it itself."""
        async with self.opened():
            try:
                yield
            finally:
                await self.drain()

    async def drain(self) -> None:
        """End sockets and streams in ways after which clients come back, and refuse new ones."""
        timeout_s = self.settings.shutdown_timeout
        await asyncio.gather(self.sockets.drain(timeout_s), self.http.drain(timeout_s))

    async def healthz(self, _request: Request) -> Response:
        """Answer that the process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Ask database, bus and sandbox driver whether they answer right now."""
        deps = self.deps
        probes: dict[str, Callable[[], Awaitable[object]]] = {
            "database": deps.db.ping,
            "bus": deps.bus.ping,
            "sandboxes": deps.sandboxes.check,
        }
        states = await asyncio.gather(*(_probe(name, probe) for name, probe in probes.items()))
        checks = dict(zip(probes, states, strict=True))
        is_ready = all(state["status"] != "down" for state in states)
        body = {"status": "ready" if is_ready else "unavailable", "checks": checks}
        return JSONResponse(body, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Give the process's metrics in Prometheus' text format."""
        token = self.settings.metrics_token.get_secret_value()
        given = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return Response("metrics need a bearer token\n", 401)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def home(self, _request: Request) -> Response:
        """Lead people who open the root to GraphiQL."""
        return RedirectResponse("/graphql" if self.settings.graphiql else "/healthz")

    def routes(self) -> list[BaseRoute]:
        """Give the routes. `/graphql` is no Mount: that would close its WebSockets."""
        routes: list[BaseRoute] = [
            Route("/", self.home),
            Route(_GRAPHQL, self.http),
            WebSocketRoute(_GRAPHQL, self.sockets),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            *self.files.routes(),
            *self.ports.routes(),
        ]
        if self.settings.graphiql:
            routes.append(Mount("/graphiql", graphiql.Assets()))
        return routes


def _documents(settings: Settings) -> Documents:
    """Read the manifest. Raises ConfigurationError."""
    manifest: dict[str, str] = {}
    if settings.trusted_documents:
        try:
            manifest = read_manifest(Path(settings.trusted_documents))
        except ManifestError as error:
            raise ConfigurationError(
                f"{PREFIX}TRUSTED_DOCUMENTS={settings.trusted_documents} is not usable, {error}"
            ) from error
        if settings.graphiql:
            # Whoever signs in to its page may turn out to be permitted everything.
            manifest = {**{hash_of(text): text for text in graphiql.DOCUMENTS}, **manifest}
    return Documents(
        manifest,
        may_register=settings.persisted_queries,
        only_trusted=settings.trusted_documents_only,
    )


async def _probe(name: str, probe: Callable[[], Awaitable[object]]) -> dict[str, str]:
    try:
        async with asyncio.timeout(_PROBE_S):
            detail = await probe()
    except TimeoutError:
        return {"status": "down", "detail": f"no answer within {_PROBE_S:g} s"}
    except Exception as error:  # noqa: BLE001 - a probe's failure is its answer.
        log.warning("%s is down: %s", name, error)
        return {"status": "down", "detail": getattr(error, "message", type(error).__name__)}
    return {"status": "up", "detail": detail} if isinstance(detail, str) else {"status": "up"}


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer what no route takes."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        code, message = "NOT_FOUND", "There is nothing at that path."
    else:
        code, message = "BAD_REQUEST", f"{request.method} is not taken there."
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, error.status_code, error.headers)


class Application(Starlette):
    """The routes of one process, with a short way to the graph.

    Each layer of middleware and routing is a coroutine more: for sockets one that lasts as long as
    they do, for queries a tenth of what they take. What the layers would do is done where they
    lead: refusing methods, and answering errors. Allowed origins keep theirs, around `graphql`.
    """

    sockets: ASGIApp | None = None
    graphql: ASGIApp | None = None

    def endpoint_of(self, scope: Scope) -> ASGIApp | None:
        """Give what answers for the graph where a connection is for it; None for all others.

        A server that asks first, and calls that, is spared this application's own coroutine.
        """
        type_ = scope["type"]
        if type_ == "lifespan" or scope["path"] != _GRAPHQL or scope.get("root_path"):
            return None
        return self.graphql if type_ == "http" else self.sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the process's lifespan."""
        endpoint = self.endpoint_of(scope)
        if endpoint is None:
            await super().__call__(scope, receive, send)
        else:
            await endpoint(scope, receive, send)


def create_app(settings: Settings) -> Application:
    """Build the application of one process."""
    server = Server(settings)
    middleware = []
    if settings.cors_origins:
        middleware.append(
            Middleware(
                Cors,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"],
                allow_headers=[
                    "Apollo-Require-Preflight",
                    "Authorization",
                    "Content-Type",
                    "If-Match",
                    "If-None-Match",
                    "If-Range",
                    "If-Unmodified-Since",
                    "Last-Event-ID",
                    "Range",
                    TOKEN_HEADER,
                    "Traceparent",
                    "Tracestate",
                    "X-GraphQL-Preflight",
                    "X-Request-Id",
                ],
                # For the sign-in by cookie, which takes an origin that is listed by name.
                allow_credentials="*" not in settings.cors_origins,
                expose_headers=[
                    "Accept-Ranges",
                    "Content-Disposition",
                    "Content-Range",
                    "ETag",
                    "X-Request-Id",
                    "Retry-After",
                ],
                max_age=86400,
            )
        )
    app = Application(
        routes=server.routes(),
        middleware=middleware,
        lifespan=server.lifespan,
        exception_handlers={HTTPException: _refuse},
    )
    # It would lead wherever the Host header of a request says.
    app.router.redirect_slashes = False
    app.state.server = server
    app.sockets = server.sockets
    app.graphql = server.http
    for layer in middleware:
        app.graphql = layer.cls(app.graphql, *layer.args, **layer.kwargs)
    return app


__all__ = ["Server", "create_app"]
