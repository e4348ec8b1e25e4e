"""From a header, a cookie or a `connection_init` payload to a viewer."""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from app.graphql_protocol import ConnectionState
from app.graphql_request import RequestInfo, client_host, is_origin_trusted
from app.session_watch import EXPIRED, OnEnd
from app.session_watches import SessionWatches
from resolvers.base import Context
from services.accounts.sessions import Client
from services.base import ANONYMOUS, Deps, Viewer
from services.errors import ForbiddenError, UnauthenticatedError

COOKIE = "noosphere_token"
"""Written by the page itself, never by us: an EventSource cannot send headers."""

_CACHE = "app.sign_ins"


def watches(deps: Deps) -> SessionWatches:
    """Give the watches of this process's sign-ins."""
    found: SessionWatches | None = deps.caches.get(_CACHE)
    if found is None:
        found = deps.caches[_CACHE] = SessionWatches(deps)
    return found


def bearer(value: str) -> str:
    """Give the token of an `Authorization` value.

    Raises UnauthenticatedError for another scheme or an empty token.
    """
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(
            "The Authorization value is not understood; expected `Bearer TOKEN`."
        )
    return token.strip()


def cookie_token(headers: Headers, allowed_origins: Collection[str]) -> str | None:
    """Give the token of our cookie; None without one.

    Browsers add cookies to whatever any page makes them send, so the page must be known to be ours
    or one of `allowed_origins`, by what the browser says of it. Raises ForbiddenError otherwise.
    """
    cookies = "; ".join(headers.getlist("cookie"))
    token = cookie_parser(cookies).get(COOKIE) if COOKIE in cookies else None
    if not token:
        return None
    origin = headers.get("origin")
    is_trusted = headers.get("sec-fetch-site") == "same-origin" or (
        origin is not None and is_origin_trusted(origin, headers.get("host"), allowed_origins)
    )
    if not is_trusted:
        raise ForbiddenError(
            f"The cookie {COOKIE} signs in pages of this host and of allowed origins alone; "
            "others send the header `Authorization: Bearer TOKEN`."
        )
    return token


async def context_of_request(
    deps: Deps, info: RequestInfo, *, allowed_origins: Collection[str] = ()
) -> Context:
    """Make the context of an HTTP request.

    A cookie that does not sign in any more leaves a single answer anonymous, for the browser adds
    it even to the request that asks for a new sign-in; a stream is refused.
    """
    authorization = info.headers.get("authorization")
    viewer = ANONYMOUS
    if authorization is not None:
        viewer = await _viewer(deps, bearer(authorization), info)
    else:
        token = cookie_token(info.headers, allowed_origins)
        try:
            viewer = ANONYMOUS if token is None else await _viewer(deps, token, info)
        except UnauthenticatedError:
            if info.is_stream:
                raise
    return _context(deps, viewer, info)


def context_known(
    deps: Deps, info: RequestInfo, *, allowed_origins: Collection[str] = ()
) -> Context | None:
    """Do as `context_of_request` where that takes no waiting; None where it does."""
    authorization = info.headers.get("authorization")
    if authorization is not None:
        token = bearer(authorization)
    else:
        given = cookie_token(info.headers, allowed_origins)
        if given is None:
            return _context(deps, ANONYMOUS, info)
        token = given
    viewer = watches(deps).signed_in(token)
    return None if viewer is None else _context(deps, viewer, info)


def _context(deps: Deps, viewer: Viewer, info: RequestInfo) -> Context:
    client = Client(info.client_host, info.headers.get("user-agent"))
    return Context(deps, viewer, info.request_id, client, info.resume_after)


async def _viewer(deps: Deps, token: str, info: RequestInfo) -> Viewer:
    known = watches(deps)
    return await (known.authenticate(token) if info.is_stream else known.sign_in(token))


def hold(context: Context, on_end: OnEnd) -> Callable[[], None]:
    """Have `on_end` called when the sign-in of a context ends; gives what lets go of it."""
    if context.viewer.session_id is None:
        return lambda: None
    return watches(context.deps).watch(context.viewer).hold(on_end)


async def connect(
    deps: Deps,
    scope: Scope,
    payload: dict[str, Any] | None,
    *,
    allowed_origins: Collection[str] = (),
) -> ConnectionState:
    """Sign a WebSocket in: by its payload, or else by the handshake's header or cookie."""
    token, client = _given(scope, payload, allowed_origins)
    if token is None:
        return _anonymous(deps, client)
    viewer = await watches(deps).authenticate(token)
    return SignedInState(deps, viewer, client)


def connect_known(
    deps: Deps,
    scope: Scope,
    payload: dict[str, Any] | None,
    *,
    allowed_origins: Collection[str] = (),
) -> ConnectionState | None:
    """Do as `connect` where that takes no waiting; None where it does."""
    token, client = _given(scope, payload, allowed_origins)
    if token is None:
        return _anonymous(deps, client)
    viewer = watches(deps).known(token)
    return None if viewer is None else SignedInState(deps, viewer, client)


def _given(
    scope: Scope, payload: dict[str, Any] | None, allowed_origins: Collection[str]
) -> tuple[str | None, Client]:
    headers = Headers(scope=scope)
    given = next(
        (value for name, value in (payload or {}).items() if name.lower() == "authorization"),
        headers.get("authorization"),
    )
    if given is not None and not isinstance(given, str):
        raise UnauthenticatedError("`Authorization` must be a string: `Bearer TOKEN`.")
    token = cookie_token(headers, allowed_origins) if given is None else bearer(given)
    return token, Client(client_host(scope), headers.get("user-agent"))


def _anonymous(deps: Deps, client: Client) -> ConnectionState:
    async def anonymous(request_id: str) -> Context:
        return Context(deps, ANONYMOUS, request_id, client)

    return ConnectionState(anonymous)


class SignedInState(ConnectionState):
    """The state of a signed-in connection, which follows its session while it is held.

    It is held by `on_end` until that is let go, and while somebody waits in `wait`. `expires_at`
    moves when the sign-in is renewed.
    """

    def __init__(self, deps: Deps, viewer: Viewer, client: Client) -> None:
        self._deps, self._client = deps, client
        self._watch = watches(deps).watch(viewer)
        self.make_context = self._context
        self.revoked = self
        self.viewer_id = viewer.user_id
        self.ack_payload = None

    @property
    def expires_at(self) -> datetime:  # type: ignore[override] # The session alone moves it.
        """When the sign-in ends, as far as is known now."""
        return self._watch.expires_at

    def on_end(self, callback: OnEnd) -> Callable[[], None]:
        """Have `callback` called once with the reason when the sign-in ends; gives what lets go.

        It is called before this returns if that has happened already, and must not raise.
        """
        if self._watch.ended is None:
            # The watch may have been given up since: one that nobody holds does not last.
            self._watch = watches(self._deps).watch(self._watch.viewer)
        return self._watch.hold(callback)

    async def wait(self) -> str:
        """Return why the sign-in was ended before its time; its time is `expires_at`."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        release = self.on_end(partial(_resolve, ended))
        try:
            return await ended
        finally:
            release()

    async def _context(self, request_id: str) -> Context:
        viewer = await self._watch.certain()
        return Context(self._deps, viewer, request_id, self._client)


def _resolve(ended: "asyncio.Future[str]", reason: str) -> None:
    if reason != EXPIRED and not ended.done():
        ended.set_result(reason)
