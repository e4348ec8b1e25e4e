"""Media types of GraphQL over HTTP: what clients send and what they accept."""

from functools import lru_cache

from starlette.datastructures import Headers

from app.graphql_request import BadRequestError

JSON = "application/json"
RESPONSE_JSON = "application/graphql-response+json"
HTML = "text/html"


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


@lru_cache(maxsize=256)
def negotiate(accept: str, *, allows_html: bool) -> str | None:
    """Give the media type to answer with, or None if the client accepts none of ours.

    Wildcards and a missing header mean application/json. A page wins only where it is named and
    preferred to JSON, as browsers do.
    """
    if not accept.strip():
        return JSON
    ranges = dict(_media_range(part) for part in accept.split(",") if part.strip())
    wildcard = ranges.get("application/*", ranges.get("*/*", 0.0))
    # Insertion order breaks ties between types named by the client; JSON comes first otherwise.
    weights = {name: ranges[name] for name in ranges if name in (JSON, RESPONSE_JSON)}
    weights.setdefault(JSON, wildcard)
    best = max(weights, key=lambda name: weights[name])
    if allows_html and ranges.get(HTML, 0.0) > weights[best]:
        return HTML
    return best if weights[best] > 0 else None


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
