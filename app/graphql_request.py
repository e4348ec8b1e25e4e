"""What HTTP and WebSocket requests have in common: parameters, ids, origins."""

import asyncio
import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_GONE_S = 5.0
_SAFE_HEADERS = ("authorization", "x-requested-with", "x-request-id", "x-graphql-preflight")
"""Headers a page cannot send to another site without the browser asking us first."""


class BadRequestError(Exception):
    """A request that is no GraphQL request; `message` is for the client."""

    def __init__(self, message: str, *, status: int = 400, code: str = "BAD_REQUEST") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class RequestHeaders(Headers):
    """Headers that are looked up by name a dozen times, not searched as often.

    `by_name` has the first of each name, in lower case, as they came.
    """

    def __init__(self, scope: Scope) -> None:
        self._list = list(scope["headers"])
        # The first of a name counts.
        self.by_name: dict[bytes, bytes] = dict(reversed(self._list))

    def get(self, key: str, default: Any = None) -> Any:
        """Give the first header of a name."""
        value = self.by_name.get(key.lower().encode("latin-1"))
        return default if value is None else value.decode("latin-1")

    def __contains__(self, key: Any) -> bool:
        return key.lower().encode("latin-1") in self.by_name


# Not frozen, though nobody changes them: made for each request, that would take thrice as long.
@dataclass(slots=True)
class RequestInfo:
    """What a context is made from.

    `is_stream` tells that the client asks for a stream, `resume_after` where it goes on
    (`Last-Event-ID`).
    """

    request_id: str
    headers: Headers
    client_host: str | None
    scope: Scope
    is_stream: bool = False
    resume_after: str | None = None


@dataclass(slots=True)
class Params:
    """Parameters of one GraphQL request; without a query, a document is named."""

    query: str | None
    operation_name: str | None
    variables: dict[str, Any] | None
    extensions: dict[str, Any] | None
    document_id: str | None = None


def read_params(data: Any) -> Params:
    """Check the parameters' types. Raises BadRequestError."""
    if isinstance(data, list):
        raise BadRequestError(
            "Batches are not taken here: send one operation per request, "
            "or several root fields in one operation."
        )
    if not isinstance(data, dict):
        raise BadRequestError("The request must be a map with the entry `query`.")
    query = data.get("query")
    extensions = data.get("extensions")
    if extensions is not None and not isinstance(extensions, dict):
        raise _wrong("extensions", "a map")
    document_id = data.get("documentId")
    if document_id is not None and not isinstance(document_id, str):
        raise _wrong("documentId", "a string")
    if query is None and not document_id and "persistedQuery" not in (extensions or {}):
        raise BadRequestError("`query` is missing: send the text of a GraphQL document.")
    if query is not None and not isinstance(query, str):
        raise BadRequestError("`query` must be a string: the text of a GraphQL document.")
    operation_name = data.get("operationName")
    if operation_name is not None and not isinstance(operation_name, str):
        raise _wrong("operationName", "a string")
    variables = data.get("variables")
    if variables is not None and not isinstance(variables, dict):
        raise _wrong("variables", "a map")
    return Params(query, operation_name, variables, extensions, document_id or None)


def query_parameters(query_string: bytes) -> dict[str, Any]:
    """Read the parameters of a URL. Raises BadRequestError."""
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


def _wrong(name: str, what: str) -> BadRequestError:
    return BadRequestError(f"`{name}` must be {what} or null.")


def request_id(headers: RequestHeaders) -> str:
    """Give the caller's X-Request-Id if it is fit to be logged, else a new one."""
    given = headers.by_name.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{random.getrandbits(128):032x}"


def request_info(
    scope: Scope,
    headers: Headers,
    id_: str,
    *,
    is_stream: bool = False,
    resume_after: str | None = None,
) -> RequestInfo:
    """Give what a context is made from."""
    return RequestInfo(id_, headers, client_host(scope), scope, is_stream, resume_after)


def traced_attributes(info: RequestInfo) -> dict[str, str]:
    """Give what a trace tells of a request."""
    return {
        "noosphere.transport": "http",
        "http.request.method": info.scope["method"],
        "url.scheme": info.scope["scheme"],
        "url.path": info.scope["path"],
        "http.route": "/graphql",
    }


def client_host(scope: Scope) -> str | None:
    """Give the address of the client, if it has one."""
    client = scope.get("client")
    return client[0] if client else None


def is_origin_allowed(origin: str, host: str | None, allowed: Collection[str]) -> bool:
    """Tell whether a browser page of `origin` may speak to us: same host, listed, or `*`."""
    return "*" in allowed or is_origin_trusted(origin, host, allowed)


def check_origin(headers: Headers, allowed: Collection[str]) -> None:
    """Refuse a GET that a page of another site made its visitor's browser send."""
    site = headers.get("sec-fetch-site", "none")
    if site in ("none", "same-origin") or any(name in headers for name in _SAFE_HEADERS):
        return
    origin = headers.get("origin")
    if origin and is_origin_allowed(origin, headers.get("host"), allowed):
        return
    raise BadRequestError(
        "A GET from another site needs the header X-GraphQL-Preflight: 1 (or use POST).",
        status=403,
        code="FORBIDDEN",
    )


def is_origin_trusted(origin: str, host: str | None, allowed: Collection[str]) -> bool:
    """Tell whether a page of `origin` may use what its visitor's browser adds by itself.

    That takes the same host or being listed by name: `*` lets pages in, but without cookies.
    """
    if origin in allowed:
        return True
    return bool(host) and urlsplit(origin).netloc.lower() == (host or "").lower()


def has_arrived(receive: Receive) -> bool:
    """Tell whether the body of a request is all there, if the server can tell."""
    return getattr(getattr(receive, "__self__", None), "more_body", True) is False


def abort(receive: Receive) -> bool:
    """Drop a connection without flushing, if the server can. ASGI has no word for that.

    Uvicorn's protocols can.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    drop = getattr(transport, "abort", None)
    if drop is None:
        return False
    drop()
    return True


async def break_off(receive: Receive) -> None:
    """Drop a connection, and wait until the server knows that it is gone.

    To a server that does not, an answer without an end is a mistake of the application's.
    """
    if not abort(receive):
        return
    try:
        async with asyncio.timeout(_GONE_S):
            await gone(receive)
    except TimeoutError:
        return


def hang_up(receive: Receive) -> bool:
    """Close a connection behind what was written, if the server can: an answer stays unfinished.

    `gone` tells when that has happened, which takes as long as the client takes to read.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    close = getattr(transport, "close", None)
    if close is None:
        return False
    close()
    return True


async def gone(receive: Receive) -> None:
    """Wait until the connection of a request is no more."""
    while (await receive())["type"] != "http.disconnect":
        pass
