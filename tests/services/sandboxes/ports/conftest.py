"""A site with a server inside a sandbox, and people who reach for it."""

import asyncio
import contextlib
import shlex
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from websockets.asyncio.client import connect

from app import auth
from app.graphql_outlet import WebSocketProtocol
from app.sandbox_ports import SandboxPorts
from models.sandboxes import Sandbox, SandboxPort
from services.accounts import roles
from services.base import work
from services.sandboxes import executions, lifecycle, ports
from tests.api.people import sign_up
from tests.fixtures import Person
from tests.services.sandboxes.conftest import Launch, Server

INSIDE = r"""
import base64, hashlib, json, socket, struct, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args): pass

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while True:
                size = int(self.rfile.readline(), 16)
                data += self.rfile.read(size)
                self.rfile.readline()
                if not size: return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do(self):
        path = self.path.partition("?")[0]
        if path == "/ws": return self.socket()
        if path == "/early":
            return self.answer(b"no", 413)
        if path == "/silent":
            return self.rfile.read()
        if path == "/junk":
            return self.wfile.write(b"\0\1junk\r\n\r\n")
        if path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            self.close_connection = True
            return
        if path == "/open":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
            self.close_connection = True
            return
        if path == "/hold":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
            self.wfile.flush()
            self.rfile.read(1)
            print("left", flush=True)
            self.close_connection = True
            return
        if path == "/flood":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.connection.settimeout(2)
            sent = 0
            try:
                while sent < 1 << 28: sent += self.connection.send(b"x" * 65536)
            except OSError: pass
            print("stalled" if sent < 1 << 27 else "endless", flush=True)
            self.close_connection = True
            return
        if path == "/big":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n")
            for _ in range(80): self.wfile.write(b"x" * 100000)
            return
        more = []
        if path == "/headers":
            more = [
                ("Set-Cookie", "a=1; Path=/x; Domain=example.org; HttpOnly"),
                ("Set-Cookie", "noosphere_token=evil"),
                ("Clear-Site-Data", '"*"'), ("X-Accel-Redirect", "/internal"),
                ("Strict-Transport-Security", "max-age=1"), ("Service-Worker-Allowed", "/"),
                ("WWW-Authenticate", "Basic"), ("Cache-Control", "public, max-age=999"),
                ("Content-Security-Policy", "default-src 'self'"), ("ETag", '"x"'),
            ]
        if path == "/move":
            return self.answer(b"", 302, [("Location", self.headers["X-To"])])
        body = self.body()
        told = {
            "method": self.command, "path": self.path, "length": len(body),
            "digest": hashlib.sha256(body).hexdigest(),
            "headers": [[k.lower(), v] for k, v in self.headers.items()],
        }
        self.answer(json.dumps(told).encode(), 200, more)

    def answer(self, data, status, more=()):
        self.send_response(status)
        for name, value in more: self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(data)

    def socket(self):
        if self.headers.get("X-Refuse"): return self.answer(b"no", 403)
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"),
                            ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        if self.headers.get("Sec-WebSocket-Protocol"):
            self.send_header("Sec-WebSocket-Protocol", "chat")
        self.end_headers()
        self.send(1, json.dumps([[k.lower(), v] for k, v in self.headers.items()]).encode())
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                print("cut", flush=True)
                break
            kind, size = head[0] & 15, head[1] & 127
            if size == 126: size = struct.unpack(">H", self.rfile.read(2))[0]
            if size == 127: size = struct.unpack(">Q", self.rfile.read(8))[0]
            mask = self.rfile.read(4)
            data = self.rfile.read(size)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(data)) if size < 1000 else data
            if kind == 8:
                print("closed", struct.unpack(">H", data[:2])[0] if data else 0, flush=True)
                self.send(8, data)
                break
            if data == b"bye":
                self.send(8, struct.pack(">H", 4321))
                continue
            self.send(kind, data)
        self.close_connection = True

    def send(self, kind, data):
        size = len(data)
        head = bytes([128 | kind]) + (
            bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size) if size < 65536
            else b"\x7f" + struct.pack(">Q", size))
        self.wfile.write(head + data)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = do_PATCH = do

server = ThreadingHTTPServer(("127.0.0.1", 8080), Handler)
server.daemon_threads = True
print("ready", flush=True)
server.serve_forever()
"""


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Site:
    """A server of ours with a sandbox in which a server runs."""

    server: Server
    origin: str
    ada: Person
    box: Sandbox
    port: SandboxPort
    execution_id: str
    http: httpx.AsyncClient

    @property
    def path(self) -> str:
        return f"/sandboxes/{self.box.id}/ports/8080"

    @property
    def signed_in(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.ada.token}"}

    async def ask(self, method: str, rest: str, **options: Any) -> httpx.Response:
        options.setdefault("headers", self.signed_in)
        return await self.http.request(method, f"{self.path}{rest}", **options)

    async def told(self, method: str, rest: str, **options: Any) -> dict[str, Any]:
        """What the server inside says that it was asked."""
        answer = await self.ask(method, rest, **options)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        told["fields"] = dict(told["headers"])
        return dict(told)

    def socket(self, rest: str = "/ws", path: str = "", **options: Any) -> connect:
        headers = options.pop("headers", self.signed_in)
        address = self.origin.replace("http", "ws") + (path or self.path) + rest
        return connect(address, additional_headers=headers, max_size=None, **options)

    async def printed(self, word: str) -> None:
        """Wait until the server inside has printed a word."""
        async with asyncio.timeout(30):
            while True:
                row = await executions_row(self)
                if word in (row or ""):
                    return
                await asyncio.sleep(0.02)


async def executions_row(site: Site) -> str | None:
    from services.sandboxes import rows

    row = await rows.execution(site.server.deps, site.execution_id)
    return row.stdout if row is not None else None


@contextlib.asynccontextmanager
async def site_on(launch: Launch, kind: str, **options: Any) -> AsyncIterator[Site]:
    server = await launch(kind, link_secret=b"s" * 32, **options)
    deps = server.deps
    async with work(deps) as unit:
        await roles.seed(unit)
    ada = await sign_up(deps, "ada")
    box = await lifecycle.create(deps, ada.viewer)
    port = await ports.open(deps, ada.viewer, sandbox_id=box.id, port=8080)
    app = Starlette(routes=SandboxPorts(lambda: deps).routes())
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off", ws=WebSocketProtocol, ws_ping_interval=None
    )
    running = _Uvicorn(config)
    serving = asyncio.create_task(running.serve())
    async with asyncio.timeout(30):
        await running.listening.wait()
    origin = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    command = f"exec python3 -u -c {shlex.quote(INSIDE)}"
    execution = await executions.execute(
        deps, ada.viewer, sandbox_id=box.id, command=command, timeout_s=600
    )
    async with httpx.AsyncClient(base_url=origin, timeout=60) as http:
        site = Site(server, origin, ada, box, port, execution.id, http)
        await site.printed("ready")
        yield site
    running.should_exit = True
    await serving
    await auth.watches(deps).aclose()


@pytest.fixture
async def site(launch: Launch, any_kind: str) -> AsyncIterator[Site]:
    async with site_on(launch, any_kind) as made:
        yield made


@pytest.fixture
async def wrapped(launch: Launch) -> AsyncIterator[Site]:
    """On bubblewrap alone."""
    async with site_on(launch, "bubblewrap") as made:
        yield made
