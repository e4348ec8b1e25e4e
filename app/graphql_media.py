"""Media types of GraphQL over HTTP: what clients send and what they accept."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from starlette.datastructures import Headers

from app.graphql_request import BadRequestError
from schema.execution import Form

JSON = "application/json"
RESPONSE_JSON = "application/graphql-response+json"
HTML = "text/html"
EVENT_STREAM = "text/event-stream"
MULTIPART = "multipart/mixed;subscriptionSpec=1.0"
"""Apollo's way to answer with more than one result."""
PIECES = {
    f"multipart/mixed;{Form.BY_PATH.value}": Form.BY_PATH,
    f"multipart/mixed;{Form.BY_ID.value}": Form.BY_ID,
    # Who names no form is urql mostly, which reads all of the older one, and half of the newer.
    "multipart/mixed": Form.BY_PATH,
}
"""Ways to answer with one result in pieces, those that are named first."""

_STREAMS = (EVENT_STREAM, MULTIPART)
_SPECS = {
    "subscriptionspec": {"1.0": MULTIPART},
    "deferspec": {"20220824": f"multipart/mixed;{Form.BY_PATH.value}"},
    "incrementalspec": {"v0.2": f"multipart/mixed;{Form.BY_ID.value}"},
}
"""Parameters of multipart/mixed by which clients tell what they mean by it."""


_PLAIN = (
    b"application/json",
    b"application/json; charset=utf-8",
    b"application/json;charset=utf-8",
)
"""What almost all clients send as the type of their JSON."""


def is_plain(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether `check_content` surely passes, and the request is no form."""
    return headers.get(b"content-type") in _PLAIN and b"content-encoding" not in headers


def check_content(headers: Headers) -> None:
    """Demand JSON. No page can send that to another site without the browser asking us first."""
    main, *parameters = (part.strip() for part in headers.get("content-type", "").split(";"))
    if main.lower() != JSON:
        raise BadRequestError(f"Send the header Content-Type: {JSON}.", status=415)
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        is_charset = name.strip().lower() == "charset"
        if is_charset and value.strip(' "').lower() not in ("utf-8", "utf8"):
            raise BadRequestError("The body must be UTF-8.", status=415)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequestError("Compressed bodies are not supported.", status=415)


@dataclass(frozen=True, slots=True)
class Media:
    """What a client accepts of what we can send.

    `single` answers with one result: a kind of JSON, a page, or None. `stream` answers with any
    number of them: EVENT_STREAM, MULTIPART or None. `prefers_stream` tells which of the two a
    single result goes by. `pieces` is how one result may come in pieces, or None.
    """

    single: str | None
    stream: str | None
    prefers_stream: bool
    pieces: Form | None = None


@lru_cache(maxsize=256)
def choose(accept: str, *, allows_html: bool) -> Media:
    """Read an Accept header.

    Wildcards and a missing header mean application/json. A stream is sent to those alone who name
    its type. A page wins only where it is named and preferred to the rest, as browsers do.
    """
    if not accept.strip():
        return Media(JSON, None, prefers_stream=False)
    ranges = dict(_media_range(part) for part in accept.split(",") if part.strip())
    wildcard = ranges.get("application/*", ranges.get("*/*", 0.0))
    # Insertion order breaks ties between types named by the client; JSON comes first otherwise.
    weights = {n: ranges[n] for n in ranges if n in (JSON, RESPONSE_JSON, *_STREAMS)}
    weights.setdefault(JSON, wildcard)
    best = max(weights, key=lambda name: weights[name])
    if allows_html and ranges.get(HTML, 0.0) > weights[best]:
        return Media(HTML, None, prefers_stream=False)
    stream = _best({name: weights[name] for name in weights if name in _STREAMS})
    single = _best({name: weights[name] for name in weights if name not in _STREAMS})
    pieces = _best({name: ranges[name] for name in PIECES if name in ranges})
    return Media(
        single,
        stream,
        prefers_stream=stream is not None and best == stream,
        pieces=None if pieces is None else PIECES[pieces],
    )


def _best(weights: dict[str, float]) -> str | None:
    best = max(weights, key=lambda name: weights[name], default=None)
    return best if best is not None and weights[best] > 0 else None


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weight = 1.0
    for parameter in parameters:
        key, _, value = (piece.strip() for piece in parameter.partition("="))
        if key == "q":
            try:
                weight = float(value)
            except ValueError:
                weight = 0.0
        elif name == "multipart/mixed" and key in _SPECS:
            # Of a way we do not know, nothing is sent.
            name = _SPECS[key].get(value.strip('"'), f"{name};{parameter}")
    return name, weight
