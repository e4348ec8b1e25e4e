"""The event stream of chat completions: bytes to chunks.

Every token of every answer passes here, so it is read by hand: the SDK's own path (an event object,
a JSON tree and a model a chunk) costs several times as much as all the rest of a token's way.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import orjson

# How long the end of a response may take to come, so that its connection can be used again.
_DRAIN_S = 0.1


class CutError(Exception):
    """The connection broke before the end of the stream."""


class ReportedError(Exception):
    """The server reports an error inside the stream; `error` is what it sent, true-like JSON."""

    def __init__(self, error: Any) -> None:
        super().__init__("an error inside the stream")
        self.error = error


class Response(Protocol):
    """An open HTTP response whose body was not read yet."""

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Give the decoded body as it comes."""

    async def aclose(self) -> None:
        """Close the body, and the connection if the body has not ended."""


class Events:
    """Splits bytes into the data of events, as the HTML standard says. Lines end in CR, LF or both.

    Comments and fields other than `data` are skipped, and so are events without data and one that
    the stream ends within.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._data: list[bytes] = []
        self._ended_in_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Give the data of the events that end in this piece of the stream."""
        if self._ended_in_cr and piece:
            self._ended_in_cr = False
            piece = piece.removeprefix(b"\n")
        self._parts.append(piece)
        if b"\n" not in piece and b"\r" not in piece:
            # Joined once the line ends, so that a long line costs no more than its length.
            return []
        lines = b"".join(self._parts).splitlines(keepends=True)
        self._parts.clear()
        if not lines[-1].endswith((b"\n", b"\r")):
            self._parts.append(lines.pop())
        self._ended_in_cr = piece.endswith(b"\r")
        events: list[bytes] = []
        for ended in lines:
            line = ended.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                if data := b"\n".join(self._data):
                    events.append(data)
                self._data.clear()
        return events


class ChunkStream:
    """The chunks of one completion. One task reads it; close it, also after its end."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self._pieces = aiter(response.aiter_bytes())
        self._events = Events()
        self._waiting: deque[bytes] = deque()
        self._has_ended = False

    async def next(self) -> dict[str, Any] | None:
        """Give the next chunk, None at the end. Comments are waited through.

        Raises CutError, ReportedError, and ValueError for what is no chunk.
        """
        while not self._waiting:
            if self._has_ended:
                return None
            try:
                piece = await anext(self._pieces, None)
            except Exception as error:  # Which library carries the bytes is the SDK's affair.
                raise CutError from error
            if piece is None:
                self._has_ended = True
            else:
                self._waiting.extend(self._events.feed(piece))
        data = self._waiting.popleft()
        if data.startswith(b"[DONE]"):
            self._waiting.clear()
            self._has_ended = True
            await self._drain()
            return None
        return _chunk(data)

    async def aclose(self) -> None:
        """Close the response: a server that still writes sees its client leave."""
        await self._response.aclose()

    async def _drain(self) -> None:
        """Read the response to its end: only then its connection serves another request."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._pieces:
                    pass
        except Exception:  # noqa: BLE001 - the answer is whole; a connection is made anew.
            return


def _chunk(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        # It refuses a character cut in two by \u escapes, which servers do send.
        try:
            chunk = json.loads(data.decode())
        except RecursionError as error:
            raise ValueError("a chunk is nested too deeply") from error
    if not isinstance(chunk, dict):
        raise ValueError("a chunk is no object")
    if reported := chunk.get("error"):
        raise ReportedError(reported)
    return chunk
