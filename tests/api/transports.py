"""The ways a client can hold a subscription: each is a class that opens one connection.

A transport gives the events of one subscription, each as the value of its only root field. The
iteration ends when the server completes the subscription. Whatever else ends the connection, or
keeps it from being opened, is one of `BROKEN`: a client comes back with its last cursor.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

# How long a server may take for one step of a connection, or between two events.
PATIENCE_S = 120.0
T = TypeVar("T")
Events = AsyncGenerator[dict[str, Any], None]


class RefusedError(Exception):
    """The server is there and asks to try again later."""


BROKEN = (WebSocketException, httpx.TransportError, OSError, EOFError, RefusedError)


@dataclass(frozen=True)
class Subscription:
    """What is followed, by whom, and from where on."""

    query: str
    variables: Mapping[str, Any]
    token: str | None
    after: str | None


class Transport(Protocol):
    """Opens one connection for one subscription; leaving the context leaves the server."""

    def open(self, url: str, wanted: Subscription) -> AbstractAsyncContextManager[Events]:
        """Subscribe at the server `url`."""


class WebSocket:
    """graphql-transport-ws. `is_rude` ends connections without a word, as a lost network does."""

    def __init__(self, *, is_rude: bool = False) -> None:
        self.is_rude = is_rude

    @asynccontextmanager
    async def open(self, url: str, wanted: Subscription) -> AsyncIterator[Events]:
        """Open a socket with one subscription."""
        headers = {"Authorization": f"Bearer {wanted.token}"} if wanted.token else None
        payload = {
            "query": wanted.query,
            "variables": {**wanted.variables, "after": wanted.after},
        }
        socket = await connect(
            url.replace("http", "ws") + "/graphql",
            subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
            compression=None,
            max_size=None,
            open_timeout=30,
            close_timeout=5,
        )
        try:
            await socket.send(json.dumps({"type": "connection_init", "payload": headers}))
            acknowledged = json.loads(await in_time(socket.recv()))
            assert acknowledged["type"] == "connection_ack", acknowledged
            await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}))
            yield self._events(socket)
            if not self.is_rude:
                await socket.close()
        finally:
            # Whoever is cancelled, even while saying goodbye, leaves nothing open.
            socket.transport.abort()

    async def _events(self, socket: Any) -> Events:
        while True:
            message = json.loads(await in_time(socket.recv()))
            if message["type"] == "ping":
                await socket.send(json.dumps({"type": "pong"}))
            elif message["type"] == "complete":
                return
            elif message["type"] == "error":
                raise refusal(message["payload"])
            elif message["type"] == "next":
                yield event_of(message["payload"])


class ServerSentEvents:
    """Server-sent events that resume by `Last-Event-ID`, as an EventSource does."""

    @asynccontextmanager
    async def open(self, url: str, wanted: Subscription) -> AsyncIterator[Events]:
        """Open a response with one subscription."""
        headers = {"accept": "text/event-stream"}
        if wanted.after is not None:
            headers["last-event-id"] = wanted.after
        async with _streaming(url, wanted, headers, wanted.variables) as response:
            yield self._events(response)

    async def _events(self, response: httpx.Response) -> Events:
        fields: dict[str, str] = {}
        async with aclosing(response.aiter_lines()) as lines:
            while (line := await in_time(anext(lines, None))) is not None:
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                    continue
                if fields.get("event") == "complete":
                    return
                if fields.get("event") == "next":
                    event = event_of(json.loads(fields["data"]))
                    assert fields["id"] == event["cursor"]
                    yield event
                fields = {}
        raise EOFError("the response ended before the subscription")


class Multipart:
    """The multipart responses of Apollo's clients."""

    @asynccontextmanager
    async def open(self, url: str, wanted: Subscription) -> AsyncIterator[Events]:
        """Open a response with one subscription."""
        headers = {"accept": "multipart/mixed;subscriptionSpec=1.0, application/json"}
        variables = {**wanted.variables, "after": wanted.after}
        async with _streaming(url, wanted, headers, variables) as response:
            yield self._events(response)

    async def _events(self, response: httpx.Response) -> Events:
        rest = b""
        async with aclosing(response.aiter_bytes()) as pieces:
            while (piece := await in_time(anext(pieces, None))) is not None:
                *parts, rest = (rest + piece).split(b"\r\n--graphql")
                for part in parts:
                    body = json.loads(part.partition(b"\r\n\r\n")[2] or b"{}")
                    if body.get("errors"):
                        raise refusal(body["errors"])
                    if "payload" in body:
                        yield event_of(body["payload"])
                if rest.startswith(b"--"):
                    return
        raise EOFError("the response ended before the subscription")


@asynccontextmanager
async def _streaming(
    url: str, wanted: Subscription, headers: dict[str, str], variables: Mapping[str, Any]
) -> AsyncIterator[httpx.Response]:
    if wanted.token:
        headers["authorization"] = f"Bearer {wanted.token}"
    body = {"query": wanted.query, "variables": variables}
    async with (
        # Loading certificates takes longer than all the rest, and nothing here is encrypted.
        httpx.AsyncClient(timeout=PATIENCE_S, verify=False) as client,  # noqa: S501
        client.stream("POST", f"{url}/graphql", json=body, headers=headers) as response,
    ):
        if response.status_code == 503:
            raise RefusedError((await response.aread()).decode())
        assert response.status_code == 200, (await response.aread()).decode()
        yield response


async def in_time(answer: Awaitable[T]) -> T:
    """Wait for what a server has to say: its silence is a bug, not a broken connection."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await answer
    except TimeoutError as error:
        raise AssertionError(f"the server said nothing for {PATIENCE_S:g} s") from error


def event_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Give the event of one result."""
    if payload.get("errors"):
        raise refusal(payload["errors"])
    (event,) = payload["data"].values()
    return dict(event)


def refusal(errors: list[dict[str, Any]]) -> Exception:
    """Give what ended a subscription: a part of the server that is away, or a bug."""
    codes = {error.get("extensions", {}).get("code") for error in errors}
    return RefusedError(str(errors)) if codes == {"UNAVAILABLE"} else AssertionError(errors)


POLITE = WebSocket()
TRANSPORTS: Mapping[str, Transport] = {
    "websocket": POLITE,
    "websocket-cut": WebSocket(is_rude=True),
    "server-sent-events": ServerSentEvents(),
    "multipart": Multipart(),
}
