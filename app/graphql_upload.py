"""A file that comes with an operation, by the GraphQL multipart request specification.

The form has `operations` (the request, null where the file belongs), `map` (the file's name in the
form, and that place) and then the file, which is read while the operation runs. One file a request:
of several, each but the first would have to be kept somewhere until its turn.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive

from app.graphql_body import ClientGoneError
from app.graphql_request import BadRequestError
from resolvers.uploads import UploadedFile
from services.errors import RequestError

CONTENT_TYPE = "multipart/form-data"
_GUARDS = (
    "authorization",
    "apollo-require-preflight",
    "x-apollo-operation-name",
    "x-graphql-preflight",
    "x-requested-with",
)
"""Headers that a page cannot send to another site without the browser asking us first."""

_HEAD_BYTES = 8 * 1024
_MAP_BYTES = 64 * 1024
# The slowest that is waited for: so many bytes, or the end, in so long a time of waiting.
_PACE_BYTES, _PACE_S = 64 * 1024, 60.0
_LINGER_S, _LINGER_BYTES = 10.0, 256 * 1024 * 1024
_EARLY = "The form ended before its last boundary."


def is_upload(headers: Headers) -> bool:
    """Tell whether a request is a form."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == CONTENT_TYPE


class Upload:
    """One form. `max_bytes` bounds what is not the file."""

    def __init__(self, headers: Headers, receive: Receive, max_bytes: int) -> None:
        self._delimiter = b"\r\n--" + _boundary(headers)
        self._receive = receive
        self._max_bytes = max_bytes
        # As if a line had ended before the first boundary.
        self._buffer = bytearray(b"\r\n")
        self._has_more = True
        self._waited_s, self._came = 0.0, 0
        if not any(name in headers for name in _GUARDS):
            # Any page can send a form to any site, with its visitor's cookies.
            raise BadRequestError(
                "A form needs the header X-GraphQL-Preflight: 1 (or Apollo-Require-Preflight).",
                status=403,
                code="FORBIDDEN",
            )

    async def operation(self) -> dict[str, Any]:
        """Read up to the file's content; give the request with the file in its place.

        Raises BadRequestError and ClientGoneError.
        """
        await self._until(self._delimiter, _HEAD_BYTES)
        data = await self._json("operations", self._max_bytes)
        if not isinstance(data, dict):
            raise BadRequestError("`operations` must be a map: one operation goes with a file.")
        places = await self._json("map", _MAP_BYTES)
        if not isinstance(places, dict) or not all(isinstance(p, list) for p in places.values()):
            raise BadRequestError("`map` must be a map of files to lists of places.")
        if len(places) != 1 or len(next(iter(places.values()))) != 1:
            raise BadRequestError(
                "One file in one place goes with an operation. Send a request for each file.",
                code="LIMIT",
            )
        ((key, (place,)),) = places.items()
        name, filename, content_type = await self._head()
        if name != key or filename is None:
            raise BadRequestError(f"After `map` the form must have the file {str(key)[:100]!r}.")
        _put(data, place, UploadedFile(filename, content_type, self._content()))
        return data

    async def linger(self) -> None:
        """Throw away what still comes, for a while: who still sends would not hear an answer."""
        left = _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and self._has_more:
                    self._buffer.clear()
                    left -= await self._fill()
        except (TimeoutError, ClientGoneError):
            return

    async def _json(self, name: str, most: int) -> Any:
        found, _, _ = await self._head()
        if found != name:
            raise BadRequestError(f"The form must have `{name}` here; this is {found[:100]!r}.")
        text = await self._until(self._delimiter, most)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise BadRequestError(f"`{name}` is not valid JSON: {error}.") from None

    async def _head(self) -> tuple[str, str | None, str | None]:
        """Read the head of a part: its name, the file's name and type if it is one."""
        if (await self._until(b"\r\n", _HEAD_BYTES)).startswith(b"--"):
            raise BadRequestError(_EARLY)
        lines = (await self._until(b"\r\n\r\n", _HEAD_BYTES)).decode("utf-8", "replace")
        headers = {
            key.strip().lower(): value.strip()
            for key, _, value in (line.partition(":") for line in lines.split("\r\n"))
        }
        told = _parameters(headers.get("content-disposition", ""))
        return told.get("name", ""), told.get("filename"), headers.get("content-type")

    async def _content(self) -> AsyncIterator[bytes]:
        """Give the file as it comes. Raises RequestError when it stops."""
        keep = len(self._delimiter) - 1
        while (end := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > keep:
                piece = bytes(self._buffer[:-keep])
                del self._buffer[:-keep]
                yield piece
            try:
                await self._fill_in_time()
            except (TimeoutError, ClientGoneError, BadRequestError) as error:
                raise RequestError("BAD_REQUEST", "The file did not come to its end.") from error
        if end:
            yield bytes(self._buffer[:end])
        del self._buffer[: end + len(self._delimiter)]

    async def _until(self, mark: bytes, most: int) -> bytes:
        """Read up to a mark, and past it; give what comes before it."""
        start = 0
        while (end := self._buffer.find(mark, start)) < 0:
            if len(self._buffer) > most + len(mark):
                break
            start = max(0, len(self._buffer) - len(mark) + 1)
            try:
                await self._fill_in_time()
            except TimeoutError:
                raise BadRequestError("The body did not arrive in time.", status=408) from None
        if not 0 <= end <= most:
            raise BadRequestError(
                f"A part of the form is larger than {most:,} bytes, which is the limit.",
                status=413,
                code="LIMIT",
            )
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    async def _fill_in_time(self) -> None:
        """Read on. Raises TimeoutError when it stops, and when it comes a byte now and then.

        Only time that is waited for the client counts, not what the file's reader takes.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(_PACE_S - self._waited_s):
            self._came += await self._fill()
        self._waited_s += loop.time() - started
        if self._came >= _PACE_BYTES:
            self._waited_s, self._came = 0.0, 0

    async def _fill(self) -> int:
        if not self._has_more:
            raise BadRequestError(_EARLY)
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._has_more = False
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        self._buffer += chunk
        self._has_more = message.get("more_body", False)
        return len(chunk)


def _boundary(headers: Headers) -> bytes:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequestError("Compressed bodies are not supported.", status=415)
    boundary = _parameters(headers.get("content-type", "")).get("boundary", "")
    if not 0 < len(boundary) <= 70:
        raise BadRequestError("The form's Content-Type must name its boundary.", status=415)
    return boundary.encode("latin-1", "replace")


def _parameters(value: str) -> dict[str, str]:
    """Give the parameters of a header: `form-data; name="0"; filename="a \\"b\\".txt"`."""
    found: dict[str, str] = {}
    rest = value.partition(";")[2]
    while rest:
        name, _, rest = rest.partition("=")
        rest = rest.lstrip()
        if rest.startswith('"'):
            text, at = "", 1
            while at < len(rest) and rest[at] != '"':
                # Browsers write quotes as %22; others escape them.
                at += rest[at] == "\\" and rest[at + 1 : at + 2] in ('"', "\\")
                text, at = text + rest[at : at + 1], at + 1
            rest = rest[at + 1 :].partition(";")[2]
        else:
            text, _, rest = rest.partition(";")
        found[name.strip().lower()] = text.strip()
    return found


def _put(data: dict[str, Any], place: Any, file: UploadedFile) -> None:
    """Put the file in its place, such as `variables.input.file`, where null stands."""
    parts = place.split(".") if isinstance(place, str) else []
    holder: Any = data
    for part in parts[:-1]:
        holder = _inner(holder, part)
    if len(parts) < 2 or parts[0] != "variables" or not isinstance(holder, dict | list):
        raise BadRequestError("`map` must name a place below `variables`.")
    last: Any = parts[-1]
    if isinstance(holder, list):
        last = int(last) if last.isdecimal() and int(last) < len(holder) else None
    is_there = last is not None and (isinstance(holder, list) or last in holder)
    if not is_there or holder[last] is not None:
        raise BadRequestError("`map` must name a place among the variables where null stands.")
    holder[last] = file


def _inner(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdecimal() and int(part) < len(holder):
        return holder[int(part)]
    return None
