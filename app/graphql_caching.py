"""What browsers and proxies may keep of answers to GET."""

import hashlib

from starlette.datastructures import Headers

from app.graphql_reply import Reply
from resolvers.base import Context
from schema.execution import Result

PRIVATE = "private, no-store"
_VARY = "Accept, Authorization, Cookie, Origin"


def describe(result: Result, context: object, headers: Headers, reply: Reply, max_age: int) -> bool:
    """Say in the headers who may keep the answer to a query; tell whether the client has it still.

    What nobody's sign-in had a part in may be kept by everybody: `max_age` seconds, or, if that is
    0, as long as its ETag is asked for again each time. It says nothing of its cost, which is the
    client's own. Everything else is nobody's to keep.
    """
    reply.headers["vary"] = _VARY
    reply.headers["cache-control"] = PRIVATE
    is_public = (
        isinstance(context, Context)
        and not context.viewer.is_authenticated
        and not context.depends_on_client
        and "authorization" not in headers
        and result.is_executed
        and not result.errors
    )
    if not is_public:
        return False
    result.extensions = {k: v for k, v in (result.extensions or {}).items() if k != "cost"} or None
    # Weak, for a proxy may compress it.
    tag = f'W/"{hashlib.sha256(reply.media_type.encode() + result.json()).hexdigest()[:32]}"'
    reply.headers["etag"] = tag
    reply.headers["cache-control"] = f"public, max-age={max_age}" if max_age else "public, no-cache"
    known = headers.get("if-none-match", "")
    return known.strip() == "*" or tag.removeprefix("W/") in (
        part.strip().removeprefix("W/") for part in known.split(",")
    )
