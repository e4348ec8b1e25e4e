"""A client that reads a response as it comes."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

EVENT_STREAM = "text/event-stream"
TOKEN = "x-graphql-event-stream-token"
MULTIPART = "multipart/mixed;boundary=graphql;subscriptionSpec=1.0"


class Body:
    """What has come of a response so far."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.seen = b""
        self._chunks = response.aiter_raw()

    async def until(self, end: bytes, *, count: int = 1) -> bytes:
        """Read until something has come `count` times; give all there was so far."""
        async with asyncio.timeout(60):
            while self.seen.count(end) < count:
                self.seen += await anext(self._chunks)
        return self.seen

    async def rest(self) -> bytes:
        """Read to the end of the response; give the whole of it."""
        async with asyncio.timeout(60):
            async for chunk in self._chunks:
                self.seen += chunk
        return self.seen

    async def until_broken(self) -> bytes:
        """Read until the connection breaks, before the response is whole; give what there was."""
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await self.rest()
        return self.seen


@asynccontextmanager
async def reading(
    url: str,
    query: str,
    *,
    accept: str = EVENT_STREAM,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    **params: Any,
) -> AsyncIterator[Body]:
    """Ask for a stream; the client leaves at the end of the block."""
    given = {"accept": accept, **(headers or {})}
    request: dict[str, Any] = {"query": query, **params}
    if method == "GET":
        if "variables" in request:
            request["variables"] = json.dumps(request["variables"])
        sent: dict[str, Any] = {"params": request}
    else:
        sent = {"json": request}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream(method, url, headers=given, **sent) as response,
    ):
        yield Body(response)


async def read(url: str, query: str, **options: Any) -> tuple[httpx.Response, bytes]:
    """Ask for a stream and read it to its end."""
    async with reading(url, query, **options) as body:
        return body.response, await body.rest()


def events(text: bytes) -> list[dict[str, str]]:
    """Read server-sent events as browsers do; comments and fields without data fall away.

    https://html.spec.whatwg.org/multipage/server-sent-events.html, interpreting an event stream.
    """
    found: list[dict[str, str]] = []
    last_id = ""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in re.split(r"\r\n|\n|\r", text.decode()):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append({"event": "message", **fields, "id": last_id, "data": "\n".join(data)})
            fields, data = {}, []
        elif name == "data":
            data.append(value)
        elif name == "id":
            last_id = value
        elif name == "event":
            fields["event"] = value
    return found


def answers(text: bytes) -> list[Any]:
    """Give the payloads of the `next` events, and the word `complete` where it came."""
    return [
        "complete" if event["event"] == "complete" else json.loads(event["data"])
        for event in events(text)
    ]


def parts(text: bytes) -> list[Any]:
    """Read a multipart body as Apollo Client does: a part counts once a boundary follows it."""
    *whole, rest = text.split(b"\r\n--graphql")
    bodies = [part.partition(b"\r\n\r\n")[2] for part in whole if part]
    return [json.loads(body) for body in bodies] + (["end"] if rest.startswith(b"--") else [])


@dataclass
class Single:
    """A reserved stream: its response, and the requests that go with it."""

    url: str
    client: httpx.AsyncClient
    token: str
    body: Body

    @property
    def headers(self) -> dict[str, str]:
        return {TOKEN: self.token}

    async def post(self, id_: Any, query: str, **params: Any) -> httpx.Response:
        """Run an operation under an id."""
        headers = {**self.headers, **params.pop("headers", {})}
        request = {"query": query, "extensions": {"operationId": id_}, **params}
        return await self.client.post(self.url, json=request, headers=headers)

    async def delete(self, id_: str) -> httpx.Response:
        """Stop an operation."""
        params = {"operationId": id_}
        return await self.client.delete(self.url, params=params, headers=self.headers)

    def told(self, id_: str) -> list[Any]:
        """Give what has come for an operation so far, and the word `complete` where it came."""
        seen = self.body.seen
        return told_of(id_, seen[: seen.rindex(b"\n\n") + 2])


def told_of(id_: str, text: bytes) -> list[Any]:
    """Give the payloads for one operation of a reserved stream."""
    found: list[Any] = []
    for event in events(text):
        data = json.loads(event["data"])
        if data["id"] == id_:
            found.append("complete" if event["event"] == "complete" else data["payload"])
    return found


@asynccontextmanager
async def reserved(url: str, headers: dict[str, str] | None = None) -> AsyncIterator[Single]:
    """Reserve a stream and open it; the client leaves at the end of the block."""
    async with httpx.AsyncClient(timeout=60, headers=headers) as client:
        reservation = await client.put(url)
        assert reservation.status_code == 201, reservation.text
        given = {"accept": EVENT_STREAM, TOKEN: reservation.text}
        async with client.stream("GET", url, headers=given) as response:
            yield Single(url, client, reservation.text, Body(response))


def deaf_request(port: int, query: str, *, accept: str = EVENT_STREAM) -> socket.socket:
    """Ask for a stream over a connection that takes next to nothing and is never read."""
    body = json.dumps({"query": query}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: t\r\nAccept: {accept}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection
