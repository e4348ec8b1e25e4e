"""From a header or a `connection_init` payload to a viewer, and the life of a signed-in socket."""

import asyncio
import logging
import random
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from app.graphql_protocol import ConnectionState
from app.graphql_request import RequestInfo
from resolvers.base import Context
from services.accounts import sessions
from services.accounts.sessions import Client
from services.base import ANONYMOUS, Deps, Viewer
from services.errors import UnauthenticatedError

log = logging.getLogger("noosphere.auth")
_RECHECK_S = 60.0
_RETRY_S = 2.0


def bearer(value: str | None) -> str | None:
    """Give the token of an `Authorization` value; None without one.

    Raises UnauthenticatedError for another scheme or an empty token.
    """
    if value is None:
        return None
    scheme, _, token = value.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(
            "The Authorization value is not understood; expected `Bearer TOKEN`."
        )
    return token.strip()


async def _viewer(deps: Deps, token: str | None) -> Viewer:
    return ANONYMOUS if token is None else await sessions.authenticate(deps, token)


def _client(scope: Scope, headers: Headers) -> Client:
    client = scope.get("client")
    return Client(client[0] if client else None, headers.get("user-agent"))


async def context_of_request(deps: Deps, info: RequestInfo) -> Context:
    """Make the context of an HTTP request."""
    viewer = await _viewer(deps, bearer(info.headers.get("authorization")))
    client = Client(info.client_host, info.headers.get("user-agent"))
    return Context(deps, viewer, info.request_id, client)


async def connect(deps: Deps, scope: Scope, payload: dict[str, Any] | None) -> ConnectionState:
    """Sign a WebSocket in: by its payload, or else by the handshake's header."""
    headers = Headers(scope=scope)
    given = next(
        (value for name, value in (payload or {}).items() if name.lower() == "authorization"),
        headers.get("authorization"),
    )
    if given is not None and not isinstance(given, str):
        raise UnauthenticatedError("`Authorization` must be a string: `Bearer TOKEN`.")
    viewer = await _viewer(deps, bearer(given))
    watch = SessionWatch(deps, viewer, _client(scope, headers))
    state = ConnectionState(
        make_context=watch.context,
        expires_at=viewer.expires_at,
        revoked=watch if viewer.is_authenticated else None,
        viewer_id=viewer.user_id,
    )
    watch.state = state
    return state


class SessionWatch:
    """Keeps a socket's sign-in true: its end, its renewal, and the roles of its user."""

    def __init__(self, deps: Deps, viewer: Viewer, client: Client) -> None:
        self._deps, self._viewer, self._client = deps, viewer, client
        self.state: ConnectionState | None = None

    async def context(self, request_id: str) -> Context:
        """Make the context of one operation on the socket."""
        return Context(self._deps, self._viewer, request_id, self._client)

    async def wait(self) -> None:
        """Return when the sign-in has been revoked, here or in another process."""
        while True:
            try:
                await self._watch(self._viewer.session_id or "", self._viewer.user_id or "")
            except Exception as error:  # noqa: BLE001 - whatever is away comes back.
                # A database or a bus that is away for a moment is no reason to drop a socket; the
                # sign-in's own end is kept by a timer.
                log.warning("a sign-in cannot be watched right now: %s", error)
                await asyncio.sleep(_RETRY_S * random.uniform(0.5, 1.5))  # noqa: S311
            else:
                return

    async def _watch(self, session_id: str, user_id: str) -> None:
        topics = (f"session:{session_id}", f"viewer:{user_id}")
        async with self._deps.bus.attach(*topics) as tap:
            while await self._is_open(session_id):
                news = await tap.get(_RECHECK_S * random.uniform(0.8, 1.2))  # noqa: S311
                if tap.lost() or news is None:
                    continue
                if news.data.get("revoked"):
                    return
                if "renewed" in news.data and self.state is not None:
                    self.state.expires_at = datetime.fromtimestamp(news.data["expires_at"], UTC)

    async def _is_open(self, session_id: str) -> bool:
        """Read the sign-in again: what it may, and whether it still stands."""
        expires_at = await sessions.open_until(self._deps, session_id)
        if expires_at is None:
            return False
        viewer = await sessions.viewer_of(self._deps, self._viewer.id, session_id)
        if viewer is None:
            return False
        self._viewer = viewer
        if self.state is not None:
            self.state.expires_at = expires_at
        return True
