"""The head and the body of an HTTP answer: statuses, headers, and how long to wait."""

import math
from functools import lru_cache

from starlette.types import Message, Send

from app.graphql_framing import HEADERS, framing_of, whole
from app.graphql_media import JSON, RESPONSE_JSON, Media
from app.http_cycle import Head, cycle_of
from schema.execution import Result, request_failure

_REQUEST_STATUS = {
    "UNAUTHENTICATED": 401,
    "FORBIDDEN": 403,
    "RATE_LIMITED": 429,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "TIMED_OUT": 504,
}
"""Statuses of requests of which nothing was executed, whatever media type was asked for."""


_ALWAYS = {
    "cache-control": (b"cache-control", b"no-store"),
    "vary": (b"vary", b"Accept, Origin"),
    "x-content-type-options": (b"x-content-type-options", b"nosniff"),
}
"""Headers of answers that say nothing else."""


@lru_cache(maxsize=64)
def _head(status: int, media_type: str) -> Head:
    """Give the head of answers that have no headers of their own."""
    content_type = f"{media_type}; charset=utf-8".encode("latin-1")
    return Head(status, [(b"content-type", content_type), *_ALWAYS.values()])


class Reply:
    """The one answer to a request."""

    def __init__(self, send: Send, id_: str) -> None:
        self.send = send
        self.request_id = id_
        self.media_type = JSON
        self.headers: dict[str, str] = {}
        self.is_started = False

    async def result(
        self, result: Result, media_type: str | None = None, status: int | None = None
    ) -> None:
        """Answer with a result as JSON, with the status it stands for unless one is given."""
        media_type = media_type or self.media_type
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

    def result_at_once(self, result: Result) -> bool:
        """Answer with a result that has no errors, and tell whether that was done: `at_once`."""
        if result.errors or not result.is_executed:
            return False
        try:
            body = result.json()
        except TypeError:
            # `result` tells the client.
            return False
        return self.at_once(200, self.media_type, body)

    async def results(self, results: list[Result]) -> None:
        """Answer with a list of results; its status is theirs if they have one in common."""
        pieces = [self._encoded(result) for result in results]
        statuses = {status_of(result, self.media_type) for result in results}
        waits = [wait for wait in map(_retry_after_s, results) if wait is not None]
        if waits:
            self.headers["retry-after"] = str(max(waits))
        status = statuses.pop() if len(statuses) == 1 else 200
        await self.body(status, self.media_type, b"[" + b",".join(pieces) + b"]")

    def _encoded(self, result: Result) -> bytes:
        try:
            return result.json()
        except TypeError as error:
            return Result(None, [request_failure(error, self.request_id)]).json()

    async def body(self, status: int, media_type: str | None, body: bytes) -> None:
        """Answer with a body that is there as a whole."""
        if media_type and self.at_once(status, media_type, body):
            return
        headers = {"content-type": f"{media_type}; charset=utf-8"} if media_type else {}
        await self.whole(status, headers, body)

    def at_once(self, status: int, media_type: str, body: bytes) -> bool:
        """Do as `body`, and tell whether that was done: not where something must be waited for."""
        if self.headers:
            return False
        cycle = cycle_of(self.send)
        if cycle is None:
            # Somebody between us and the server may have headers to add.
            return False
        self.is_started = cycle.answer(
            _head(status, media_type), self.request_id.encode("latin-1"), body
        )
        return self.is_started

    async def whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Answer with headers of the body's own."""
        if headers:
            headers["content-length"] = str(len(body))
        await self.send(self.head(status, headers))
        await self.send({"type": "http.response.body", "body": body})

    def head(self, status: int, more: dict[str, str]) -> Message:
        """Give the message that begins the answer; whoever asks for it sends it."""
        headers = {"x-request-id": self.request_id, **self.headers, **more}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        raw += [header for name, header in _ALWAYS.items() if name not in headers]
        self.is_started = True
        return {"type": "http.response.start", "status": status, "headers": raw}


async def tell(result: Result, media: Media, reply: Reply) -> None:
    """Answer with one result, as the client prefers it."""
    framing = framing_of(result, media)
    if framing is None or refuses_request(result):
        await reply.result(result)
        return
    try:
        body = whole(framing, result)
    except TypeError as error:
        body = whole(framing, Result.refused([request_failure(error, reply.request_id)]))
    await reply.whole(200, {**HEADERS, **framing.headers}, body)


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


def refuses_request(result: Result) -> bool:
    """Tell whether a result is a refusal HTTP has a status for, rather than GraphQL's own."""
    return not result.is_executed and status_of(result, JSON) != 200


def _retry_after_s(result: Result) -> int | None:
    waits = [
        error["extensions"]["retryAfter"]
        for error in result.errors
        if "retryAfter" in error.get("extensions", {})
    ]
    return max(1, math.ceil(max(waits))) if waits else None
