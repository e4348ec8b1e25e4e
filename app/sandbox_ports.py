"""Servers inside sandboxes, reached at `/sandboxes/{id}/ports/{port}/…` by HTTP and WebSocket.

With the sign-in of the sandbox's owner, or by a link, `/sandboxes/{id}/ports/{port}/~{token}/…`:
relative links of a page then lead to the same place without cookies. Redirects and cookies of a
server inside are made to fit; bodies are passed as they are.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from app import auth
from app.graphql_request import client_host
from app.sandbox_paths import REST
from app.sandbox_port_headers import Place
from app.sandbox_port_http import Exchange, GoneError, UpstreamError
from app.sandbox_port_socket import SocketExchange
from models.base import now
from services.base import ANONYMOUS, Deps, Viewer
from services.errors import RequestError, UnauthenticatedError, UserError, UserErrorCode
from services.sandboxes import links, ports
from services.sandboxes.ports import Door

_TARGET = re.compile(r"((/sandboxes/([^/]+)/ports/([0-9]{1,5}))(?:/~([^/]+))?)(/.*)?\Z", re.DOTALL)
_STATUS = {
    UserErrorCode.UNAUTHENTICATED: 401,
    UserErrorCode.FORBIDDEN: 403,
    UserErrorCode.NOT_FOUND: 404,
    UserErrorCode.CONFLICT: 409,
    UserErrorCode.LIMIT: 503,
    UserErrorCode.UNAVAILABLE: 503,
}
_REQUEST_STATUS = {"UNAUTHENTICATED": 401, "FORBIDDEN": 403, "RATE_LIMITED": 429}
_REFUSALS = {
    ports.CLOSED: (502, "Nothing listens on that port in the sandbox."),
    ports.SLOW: (504, "The sandbox did not answer in time."),
    ports.FULL: (503, "Too many connections to the sandbox are open; try again."),
}


class _Refusal(Exception):  # noqa: N818 - an answer more than an error.
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class SandboxPorts:
    """The endpoint. `deps` gives what the running application works with."""

    def __init__(self, deps: Callable[[], Deps], *, allowed_origins: Collection[str] = ()) -> None:
        self._deps = deps
        self._allowed_origins = frozenset(allowed_origins)

    def routes(self) -> list[BaseRoute]:
        """Give the routes."""
        paths = ("/sandboxes/{id}/ports/{port}", f"/sandboxes/{{id}}/ports/{{port}}/{REST}")
        return [Route(path, self) for path in paths] + [
            WebSocketRoute(path, self) for path in paths
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or serve one WebSocket."""
        try:
            if scope["type"] == "websocket":
                await receive()  # Its beginning, which is answered once the way in is open.
            await self._serve(scope, receive, send)
        except GoneError:
            return
        except _Refusal as refusal:
            await _refuse(scope, send, refusal)
        except UserError as error:
            status = _STATUS.get(error.code, 400)
            await _refuse(scope, send, _Refusal(status, error.code, error.message))
        except RequestError as error:
            status = _REQUEST_STATUS.get(error.code, 503)
            await _refuse(scope, send, _Refusal(status, error.code, error.message))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or scope["path"].encode()
        path = raw.decode("latin-1").removeprefix(scope.get("root_path", ""))
        found = _TARGET.match(path)
        if found is None or scope.get("method") in ("TRACE", "CONNECT"):
            raise _Refusal(404, "NOT_FOUND", "There is no such port.")
        root, prefix, sandbox_id, port, token, rest = found.groups()
        if token is not None and not links.is_token(token):
            # A path of the server inside that begins with a tilde.
            root, token, rest = prefix, None, path[len(prefix) :]
        if not rest:
            await _redirect(scope, send, f"{scope.get('root_path', '')}{root}/")
            return
        headers, deps = Headers(scope=scope), self._deps()
        if token is not None:
            viewer, has_own_sign_in = ANONYMOUS, not await _is_ours(deps, headers)
            door = await ports.by_link(deps, token, sandbox_id=sandbox_id, port=int(port))
        else:
            viewer, has_own_sign_in = await self._viewer(deps, headers)
            door = await ports.by_viewer(deps, viewer, sandbox_id=sandbox_id, port=int(port))
        base = scope.get("root_path", "")
        place = Place(
            base + prefix,
            base + root,
            int(port),
            "https" if scope["scheme"] in ("https", "wss") else "http",
            headers.get("host", ""),
            client_host(scope) or "",
            has_own_sign_in,
        )
        query = scope["query_string"]
        target = rest.encode("latin-1") + (b"?" + query if query else b"")
        await self._carry(
            scope, receive, send, deps=deps, viewer=viewer, door=door, place=place, target=target
        )

    async def _viewer(self, deps: Deps, headers: Headers) -> tuple[Viewer, bool]:
        """Give who asks, and whether `Authorization` is none of ours, for our cookie signed in."""
        given, watches = headers.get("authorization"), auth.watches(deps)
        if given is not None:
            try:
                return await watches.authenticate(auth.bearer(given)), False
            except UnauthenticatedError:
                if auth.COOKIE not in "".join(headers.getlist("cookie")):
                    raise
        token = auth.cookie_token(headers, self._allowed_origins)
        if token is None:
            raise UnauthenticatedError
        return await watches.authenticate(token), True

    async def _carry(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        deps: Deps,
        viewer: Viewer,
        door: Door,
        place: Place,
        target: bytes,
    ) -> None:
        async with aclosing(await ports.connect(deps, door)) as pipe:
            if (why := pipe.head["refusal"]) is not None:
                status, message = _REFUSALS[why]
                raise _Refusal(status, "UNAVAILABLE", message)
            kind = Exchange if scope["type"] == "http" else SocketExchange
            tracked = _Tracked(send)
            exchange = kind(scope, receive, tracked, pipe, place, target)
            try:
                async with _while_allowed(deps, viewer, door):
                    await exchange.run()
            except (UpstreamError, UserError, TimeoutError) as error:
                if not tracked.is_started:
                    raise _explained(error) from error
                await exchange.drop()


class _Tracked:
    """Sends, and knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self.is_started = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        self.is_started = True
        await self._send(message)


@asynccontextmanager
async def _while_allowed(deps: Deps, viewer: Viewer, door: Door) -> AsyncIterator[None]:
    """Raise TimeoutError inside when the sign-in ends, or the link expires."""
    left_s = None if door.until is None else (door.until - now()).total_seconds()
    async with asyncio.timeout(left_s) as limit:

        def end(_reason: str) -> None:
            if not limit.expired():
                limit.reschedule(0)

        release = _nothing
        if viewer.is_authenticated:
            release = auth.watches(deps).watch(viewer).hold(end)
        try:
            yield
        finally:
            release()


async def _is_ours(deps: Deps, headers: Headers) -> bool:
    """Tell whether `Authorization` signs in to us: then nobody inside is to see it."""
    given = headers.get("authorization")
    if given is None:
        return False
    try:
        await auth.watches(deps).authenticate(auth.bearer(given))
    except RequestError:
        return False
    return True


def _nothing() -> None:
    return None


async def _refuse(scope: Scope, send: Send, refusal: _Refusal) -> None:
    body = json.dumps({"error": {"code": refusal.code, "message": refusal.message}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"private, no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 503:
        headers.append((b"retry-after", b"1"))
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


async def _redirect(scope: Scope, send: Send, path: str) -> None:
    if scope["type"] == "websocket":
        await _refuse(scope, send, _Refusal(404, "NOT_FOUND", f"Its path begins with {path}."))
        return
    query = scope["query_string"]
    target = path.encode("latin-1") + (b"?" + query if query else b"")
    headers = [(b"location", target), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 308, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _explained(error: UpstreamError | UserError | TimeoutError) -> _Refusal:
    if isinstance(error, UpstreamError):
        return _Refusal(error.status, "UNAVAILABLE", error.message)
    if isinstance(error, UserError) and error.code is not UserErrorCode.UNAVAILABLE:
        return _Refusal(_STATUS.get(error.code, 400), error.code, error.message)
    if isinstance(error, UserError):
        return _Refusal(502, "UNAVAILABLE", "The connection to the server inside broke off.")
    return _Refusal(504, "UNAVAILABLE", "The server inside did not answer in time.")
