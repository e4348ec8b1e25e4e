"""The product as a process of its own, as a user starts it, and a small client for it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from websockets.asyncio.client import connect

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """Give a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Product:
    """One `serve` (or `worker`) process over a data directory; may be killed and started again."""

    def __init__(self, data_dir: Path, *, command: str = "serve", **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}-{command}-{self.port}.log"
        self._command = command
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("NOOSPHERE_")},
            "NOOSPHERE_DATA_DIR": str(data_dir),
            "NOOSPHERE_HOST": "127.0.0.1",
            "NOOSPHERE_PORT": str(self.port),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, within_s: float = 60.0) -> "Product":
        """Start and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", self._command],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + within_s
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self._command} did not start:\n{self.output()[-4000:]}")
            time.sleep(0.05)
        return self

    def _is_ready(self) -> bool:
        if self._command != "serve":
            return "is ready" in self.output()
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def output(self) -> str:
        """Give what the process wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, *, within_s: float = 30.0) -> int:
        """Ask it to stop, and give its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    @contextmanager
    def started(self, *, within_s: float = 60.0) -> Iterator["Product"]:
        """Start it, and make sure it is gone in the end."""
        try:
            yield self.start(within_s=within_s)
        finally:
            self.close()

    def close(self) -> None:
        """Make sure it is gone."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()


class Client:
    """A person's client: queries over HTTP, subscriptions over graphql-transport-ws."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.token = token
        self.http = httpx.AsyncClient(base_url=url, timeout=60)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close connections."""
        await self.http.aclose()

    @property
    def headers(self) -> dict[str, str]:
        """The sign-in as headers."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def raw(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send an operation and give the whole answer."""
        answer = await self.http.post(
            "/graphql", json={"query": query, "variables": variables}, headers=self.headers
        )
        return dict(answer.json())

    async def run(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send an operation that must have no top-level errors and give its data."""
        answer = await self.raw(query, **variables)
        assert "errors" not in answer, answer["errors"]
        return dict(answer["data"])

    async def register(self, name: str) -> dict[str, Any]:
        """Open an account, sign in with it, and give the payload."""
        data = await self.run(
            """mutation($input: UserRegisterInput!) { userRegister(input: $input) {
                 session { id token refreshToken expiresAt } user { id username roles { name } }
                 errors { code message path } } }""",
            input={"username": name, "email": f"{name}@example.org", "password": "correct horse"},
        )
        payload = dict(data["userRegister"])
        assert payload["errors"] == [], payload
        self.token = payload["session"]["token"]
        return payload

    @asynccontextmanager
    async def subscribe(self, query: str, **variables: Any) -> AsyncIterator["Events"]:
        """Open a socket with one subscription."""
        address = self.url.replace("http", "ws") + "/graphql"
        async with connect(
            address, subprotocols=["graphql-transport-ws"], max_size=None, open_timeout=30
        ) as socket_:
            await socket_.send(
                json.dumps({"type": "connection_init", "payload": self.headers or None})
            )
            acknowledged = json.loads(await asyncio.wait_for(socket_.recv(), 30))
            assert acknowledged["type"] == "connection_ack", acknowledged
            payload = {"query": query, "variables": variables}
            await socket_.send(json.dumps({"id": "1", "type": "subscribe", "payload": payload}))
            yield Events(socket_)


class Events:
    """The events of one subscription."""

    def __init__(self, socket_: Any) -> None:
        self.socket = socket_
        self.seen: list[dict[str, Any]] = []

    async def next(self, within_s: float = 60.0) -> dict[str, Any] | None:
        """Give the next event's only field, or None when the subscription has completed."""
        async with asyncio.timeout(within_s):
            while True:
                message = json.loads(await self.socket.recv())
                if message["type"] == "ping":
                    await self.socket.send(json.dumps({"type": "pong"}))
                elif message["type"] == "complete":
                    return None
                elif message["type"] == "error":
                    raise AssertionError(message["payload"])
                elif message["type"] == "next":
                    assert "errors" not in message["payload"], message["payload"]
                    (event,) = message["payload"]["data"].values()
                    self.seen.append(event)
                    return dict(event)

    async def until(self, kind: str, *, count: int = 1, within_s: float = 60.0) -> dict[str, Any]:
        """Read until the `count`-th event of a kind and give it."""
        while True:
            event = await self.next(within_s)
            assert event is not None, f"completed before {kind}: {self.seen}"
            count -= event["__typename"] == kind
            if count == 0:
                return event

    async def rest(self, within_s: float = 60.0) -> list[dict[str, Any]]:
        """Read until the subscription completes."""
        while await self.next(within_s) is not None:
            pass
        return self.seen


def errors_of(payload: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give code and dotted path of a payload's errors."""
    return [(error["code"], ".".join(error["path"])) for error in payload["errors"]]
