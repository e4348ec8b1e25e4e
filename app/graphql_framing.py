"""How answers are written into one response: as server-sent events, or in parts.

Server-sent events follow the distinct connections mode of graphql-sse (its PROTOCOL.md), parts the
multipart protocol of Apollo's router, and pieces of one answer the incremental delivery over HTTP.
"""

import random
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from app.graphql_media import EVENT_STREAM, MULTIPART, Media
from schema.execution import ErrorDict, Form, Result, encode


class Answer(Protocol):
    """One answer of a stream, such as a Result."""

    cursor: str | None
    errors: list[ErrorDict]

    @property
    def is_executed(self) -> bool:
        """Whether this is an event; if not, it tells why the stream failed, and is its last."""

    def json(self) -> bytes:
        """Give the payload, which many readers share."""


class Answers(Protocol):
    """The answers of one operation; closing them closes their source."""

    def __aiter__(self) -> AsyncIterator[Answer]:
        """Give them in order."""

    async def aclose(self) -> None:
        """Stop."""


class Framing(Protocol):
    """How answers are written into one response."""

    name: str
    headers: Mapping[str, str]
    idle: bytes
    end: bytes
    breaks_off: bool
    """Whether a response that is ended before its time breaks off instead of being whole."""

    def begin(self) -> bytes:
        """Give what comes first."""

    def event(self, answer: Answer) -> bytes:
        """Give an answer."""

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give why nothing follows, which `end` must follow."""


def _part(body: bytes, boundary: bytes = b"graphql") -> bytes:
    return b"\r\ncontent-type: application/json\r\n\r\n%b\r\n--%b" % (body, boundary)


class EventStream:
    """Server-sent events: `next` with the cursor as their id, and `complete`."""

    name = "sse"
    headers: Mapping[str, str] = {"content-type": f"{EVENT_STREAM}; charset=utf-8"}
    idle = b":\n\n"
    end = b"event: complete\ndata:\n\n"
    breaks_off = False

    def begin(self) -> bytes:
        """Tell how long to wait before coming back: not the same time for all after a restart."""
        return b"retry: %d\n\n" % random.randint(1000, 3000)  # noqa: S311

    def event(self, answer: Answer) -> bytes:
        """Give an answer. JSON as we write it has no line breaks, and neither do cursors."""
        if answer.cursor is None:
            return b"event: next\ndata: %b\n\n" % answer.json()
        return b"event: next\nid: %b\ndata: %b\n\n" % (answer.cursor.encode(), answer.json())

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give the errors as an answer, for the protocol has no other word for them."""
        return b"event: next\ndata: %b\n\n" % encode({"errors": errors})


class Parts:
    """A multipart response. A boundary follows each part at once: clients wait for it."""

    name = "multipart"
    headers: Mapping[str, str] = {
        "content-type": 'multipart/mixed; boundary="graphql"; subscriptionSpec=1.0'
    }
    idle = _part(b"{}")
    end = b"--\r\n"
    breaks_off = False

    def begin(self) -> bytes:
        """Give the first boundary."""
        return b"\r\n--graphql"

    def event(self, answer: Answer) -> bytes:
        """Give an answer."""
        return _part(b'{"payload":%b}' % answer.json())

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give errors that are the transport's, not an answer's."""
        return _part(encode({"payload": None, "errors": errors}))


class PieceParts:
    """A multipart response with the pieces of one answer, each a part as it is."""

    name = "multipart"
    idle = _part(b'{"hasNext":true}', b"-")
    end = b"--\r\n"
    breaks_off = False

    def __init__(self, form: Form) -> None:
        self.headers: Mapping[str, str] = {
            "content-type": f'multipart/mixed; boundary="-"; {form.value}'
        }

    def begin(self) -> bytes:
        """Give the first boundary."""
        return b"\r\n---"

    def event(self, answer: Answer) -> bytes:
        """Give a piece."""
        return _part(answer.json(), b"-")

    def failure(self, errors: list[ErrorDict]) -> bytes:
        """Give errors after which no piece comes."""
        return _part(encode({"errors": errors, "hasNext": False}), b"-")


PIECES: Mapping[Form, Framing] = {form: PieceParts(form) for form in Form}
"""By the form a client asks for."""

FRAMINGS: Mapping[str, Framing] = {EVENT_STREAM: EventStream(), MULTIPART: Parts()}
"""By the media type a client asks for."""

HEADERS: Mapping[str, str] = {
    "cache-control": "no-cache, no-store, no-transform",
    # Proxies of the nginx kind would keep events until they have enough of them.
    "x-accel-buffering": "no",
}


def framing_of(result: Result, media: Media) -> Framing | None:
    """Give how one result is sent as a stream; None if it is sent as JSON.

    Server-sent events carry GraphQL's own refusals too, for an EventSource sees no other body.
    """
    if media.stream is not None and media.prefers_stream:
        if media.stream == EVENT_STREAM or (media.single is None and result.is_executed):
            return FRAMINGS[media.stream]
        return None
    if media.pieces is not None and media.single is None and result.is_executed:
        return PIECES[media.pieces]
    return None


def whole(framing: Framing, result: Result) -> bytes:
    """Give the body of a stream with one answer. Raises TypeError for what has no JSON form."""
    answer = framing.event(result) if result.is_executed else framing.failure(result.errors)
    return framing.begin() + answer + framing.end
