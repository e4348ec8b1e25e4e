"""Reads documents in one thread of its own, so that dear ones delay neither the loop nor others."""

import asyncio
import re
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore

from graphql import GraphQLSchema

from schema.execution.documents import ParsedDocument, read_document
from schema.execution.errors import ErrorDict, request_failure
from schema.execution.limits import Limits
from services.errors import RequestError

_SMALL_TOKENS = 300
"""Tokens a document may have to be read on the event loop (a few milliseconds)."""

_SMALL_CHARS = 4000
"""Characters above which the tokens are not counted: that would take as long as it saves."""

_QUEUED = 32
"""Documents that may be read or wait to be; the thread reads the dearest in a fraction of 1 s."""

_TOKEN = re.compile(r"\w+|[^\s,\w]")


def is_small(query: str) -> bool:
    """Whether a document has few tokens. Words inside strings and comments count."""
    if len(query) <= _SMALL_TOKENS:
        return True
    return len(query) <= _SMALL_CHARS and len(_TOKEN.findall(query)) <= _SMALL_TOKENS


class Reader:
    """One thread that parses and validates; callers with the same text share its reading."""

    def __init__(self, schema: GraphQLSchema, limits: Limits, *, queued: int = _QUEUED) -> None:
        self._schema = schema
        self._limits = limits
        # The thread starts with the first document and ends with this object.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="graphql-documents")
        self._room = BoundedSemaphore(queued)
        self._reading: dict[str, Future[ParsedDocument | list[ErrorDict]]] = {}

    async def read(self, query: str) -> ParsedDocument | list[ErrorDict]:
        """Give the document or what is wrong with it; UNAVAILABLE when too many others wait.

        A cancelled caller leaves the reading to those who share it.
        """
        reading = self._reading.get(query)
        if reading is None:
            if not self._room.acquire(blocking=False):
                return [request_failure(_busy(), "unknown")]
            reading = self._thread.submit(read_document, query, self._schema, self._limits)
            reading.add_done_callback(lambda _: self._room.release())
            self._reading[query] = reading
        try:
            return await asyncio.shield(asyncio.wrap_future(reading))
        finally:
            self._forget()

    def _forget(self) -> None:
        for query in [query for query, reading in self._reading.items() if reading.done()]:
            del self._reading[query]


def _busy() -> RequestError:
    return RequestError("UNAVAILABLE", "Too many new documents at once: try again shortly.", 1)
