"""Servers inside sandboxes, reached over HTTP and WebSocket: by owners and by links."""

import asyncio
import contextlib
import json
import shlex
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app import auth
from app import sandbox_port_http as bridge
from app.graphql_outlet import WebSocketProtocol
from app.sandbox_port_headers import Place, location, set_cookie
from app.sandbox_ports import SandboxPorts
from models.base import now
from models.sandboxes import Sandbox, SandboxPort
from services.accounts import roles, sessions
from services.base import work
from services.errors import UserError, UserErrorCode
from services.sandboxes import executions, lifecycle, links, ports, relay
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


async def test_owners_reach_a_server_inside(site: Site) -> None:
    told = await site.told(
        "GET",
        "/a%20b/%2e%2e/c?x=1&y=%00",
        headers={
            **site.signed_in,
            "Cookie": "noosphere_token=secret; other=2; sandbox-port-8080.mine=3",
            "Referer": "http://elsewhere/secret",
            "Origin": site.origin,
            "X-Custom": "kept",
            "X-Hop": "dropped",
            "Connection": "X-Hop",
        },
    )
    assert told["path"] == "/a%20b/%2e%2e/c?x=1&y=%00"
    fields = told["fields"]
    assert fields["cookie"] == "mine=3"
    assert fields["host"] == "localhost:8080"
    assert fields["origin"] == "http://localhost:8080"
    assert fields["x-custom"] == "kept"
    assert fields["x-forwarded-prefix"] == site.path
    assert not {"authorization", "referer", "x-hop"} & fields.keys()
    assert site.ada.token not in json.dumps(told)
    body = bytes(range(256)) * 4096
    sent = await site.told("POST", "/up", content=body)
    assert (sent["method"], sent["length"]) == ("POST", len(body))

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    streamed = await site.told("PUT", "/up", content=parts())
    assert (streamed["length"], streamed["digest"]) == (len(body), sent["digest"])
    assert len((await site.ask("GET", "/big")).content) == 8_000_000
    head = await site.ask("HEAD", "/x")
    assert (head.status_code, head.content) == (200, b"")
    assert (await site.ask("GET", "/open")).text == "until the end"


async def test_a_server_inside_may_sign_its_visitors_in_itself(wrapped: Site) -> None:
    deps, ada, http = wrapped.server.deps, wrapped.ada, wrapped.http
    link = (await ports.share(deps, ada.viewer, port_id=wrapped.port.id)).path
    eve = await sign_up(deps, "eve")
    page = {"Cookie": f"noosphere_token={ada.token}", "Origin": wrapped.origin}
    ours = [f"Bearer {ada.token}", f"bearer  {eve.token}"]
    theirs = ["Basic YWRhOmVuaWdtYQ==", f"Bearer {'x' * 43}", "Bearer a.b.c", "Digest x"]
    for given in theirs:
        for path, more in ((link, {}), (f"{wrapped.path}/", page)):
            answer = await http.get(path, headers={**more, "Authorization": given})
            told = dict(answer.json()["headers"])
            assert told["authorization"] == given
            assert ada.token not in answer.text
        # Without a cookie or a link it is us that it must sign in to.
        assert (await wrapped.ask("GET", "/", headers={"Authorization": given})).status_code == 401
    for given in ours:
        answer = await http.get(link, headers={"Authorization": given})
        assert (answer.status_code, "authorization" in dict(answer.json()["headers"])) == (
            200,
            False,
        )
    answer = await wrapped.ask("GET", "/", headers={**page, "Authorization": ours[0]})
    assert "authorization" not in dict(answer.json()["headers"])
    # A sign-in of ours that is another's is no help of the cookie.
    answer = await wrapped.ask("GET", "/", headers={**page, "Authorization": ours[1]})
    assert answer.status_code == 404
    # What the server inside asks for comes out where it can be answered.
    asked = await http.get(f"{link}headers")
    assert asked.headers["www-authenticate"] == "Basic"
    async with (
        asyncio.timeout(60),
        wrapped.socket("ws", link, headers={"Authorization": theirs[0]}) as socket,
    ):
        assert dict(json.loads(await socket.recv()))["authorization"] == theirs[0]


async def test_messages_pass_both_ways(site: Site) -> None:
    async with asyncio.timeout(60), site.socket(subprotocols=["chat"]) as socket:
        assert socket.subprotocol == "chat"
        fields = dict(json.loads(await socket.recv()))
        assert "authorization" not in fields
        await socket.send("héllo")
        assert await socket.recv() == "héllo"
        await socket.send(b"\0\xff")
        assert await socket.recv() == b"\0\xff"
        await socket.close(4000)
    await site.printed("closed 4000")
    async with asyncio.timeout(60), site.socket() as socket:
        await socket.recv()
        await socket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4321


async def test_nothing_of_an_answer_speaks_for_the_whole_site(wrapped: Site) -> None:
    answer = await wrapped.ask("GET", "/headers")
    cookies = answer.headers.get_list("set-cookie")
    assert cookies == [
        f"sandbox-port-8080.a=1; HttpOnly; Path={wrapped.path}/x",
        f"sandbox-port-8080.noosphere_token=evil; Path={wrapped.path}/",
    ]
    policies = answer.headers.get_list("content-security-policy")
    assert policies[0].startswith("default-src")
    assert policies[1].startswith("sandbox ")
    assert "same-origin" not in policies[1]
    assert "top-navigation" not in policies[1]
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == '"x"'
    gone = ("clear-site-data", "x-accel-redirect", "strict-transport-security")
    for name in (*gone, "service-worker-allowed", "www-authenticate"):
        assert name not in answer.headers
    moved = await wrapped.ask("GET", "/move", headers={**wrapped.signed_in, "X-To": "/there"})
    assert moved.headers["location"] == f"{wrapped.path}/there"
    bare = await wrapped.ask("GET", "?x=1")
    assert (bare.status_code, bare.headers["location"]) == (308, f"{wrapped.path}/?x=1")


PLACE = Place("/p", "/p/~t", 8080, "https", "site.test", "::1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a?b#c", "/p/~t/a?b#c"),
        ("a", "a"),
        ("http://localhost:8080/a", "/p/~t/a"),
        ("http://127.0.0.1:8080", "/p/~t/"),
        ("https://site.test/a", "/p/~t/a"),
        ("http://localhost:9/a", "http://localhost:9/a"),
        ("//elsewhere.test/a", "//elsewhere.test/a"),
        ("https://elsewhere.test/a", "https://elsewhere.test/a"),
        ("/p/~t/a", "/p/~t/a"),
        ("http://localhost:8080//elsewhere.test/", "/p/~t//elsewhere.test/"),
        ("http://[", "/p/~t/"),
    ],
)
def test_redirects_stay_where_they_belong(value: str, expected: str) -> None:
    assert location(value, PLACE) == expected


def test_cookies_are_a_ports_own() -> None:
    assert set_cookie("a=b=c; path=relative; SameSite=None; Secure; Partitioned", PLACE) == (
        "sandbox-port-8080.a=b=c; SameSite=None; Secure; Path=/p/"
    )
    assert set_cookie("nothing", PLACE) is None
    assert set_cookie("__Host-a=1; Path=/", PLACE) == "sandbox-port-8080.__Host-a=1; Path=/p/"


async def test_foreign_ports_are_as_absent_ones(wrapped: Site) -> None:
    deps = wrapped.server.deps
    eve = await sign_up(deps, "eve")
    theirs = {"Authorization": f"Bearer {eve.token}"}
    absent = f"/sandboxes/{wrapped.box.id[:-4]}zzzz/ports/8080/"
    other = f"/sandboxes/{wrapped.box.id}/ports/8081/"
    answers = [
        await wrapped.ask("GET", "/", headers=theirs),
        await wrapped.http.get(absent, headers=theirs),
        await wrapped.http.get(absent, headers=wrapped.signed_in),
        await wrapped.http.get(other, headers=wrapped.signed_in),
        await wrapped.http.get(f"/sandboxes/{wrapped.box.id}/ports/99999/", headers=theirs),
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (404, '{"error": {"code": "NOT_FOUND", "message": "There is no such port."}}')
    }
    nobody = await wrapped.ask("GET", "/", headers={})
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"] == "Bearer"
    cookie = {"Cookie": f"noosphere_token={wrapped.ada.token}"}
    assert (await wrapped.ask("GET", "/", headers=cookie)).status_code == 403
    page = {**cookie, "Origin": wrapped.origin}
    told = await wrapped.told("GET", "/", headers=page)
    assert wrapped.ada.token not in json.dumps(told)
    # A page of the sandbox itself has no origin, and nothing of its visitor's.
    inner = {**cookie, "Origin": "null", "Sec-Fetch-Site": "cross-site"}
    assert (await wrapped.ask("GET", "/", headers=inner)).status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket(headers=theirs):
            pass
    assert refused.value.response.status_code == 404
    for verb in (ports.close, ports.share):
        with pytest.raises(UserError) as denied:
            await verb(deps, eve.viewer, port_id=wrapped.port.id)
        assert denied.value.code is UserErrorCode.NOT_FOUND
    with pytest.raises(UserError) as denied:
        await ports.open(deps, eve.viewer, sandbox_id=wrapped.box.id, port=1)
    assert denied.value.code is UserErrorCode.NOT_FOUND


async def test_links_let_anybody_in_until_they_are_void(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    shared = await ports.share(deps, ada, port_id=wrapped.port.id, seconds=60)
    other = await ports.share(deps, ada, port_id=wrapped.port.id)
    assert shared.expires_at <= now() + timedelta(seconds=60)
    told = (await wrapped.http.get(f"{shared.path}deep?x=1", headers={"Authorization": "x"})).json()
    assert told["path"] == "/deep?x=1"
    fields = dict(told["headers"])
    assert fields["x-forwarded-prefix"] == shared.path.rstrip("/")
    assert fields["authorization"] == "x"
    moved = await wrapped.http.get(f"{shared.path}move", headers={"X-To": "/there"})
    assert moved.headers["location"] == f"{shared.path}there"
    token = shared.path.rstrip("/").rpartition("~")[2]
    for bad in (token[:-1] + ("A" if token[-1] != "A" else "B"), "1" + token, token + "A"):
        answer = await wrapped.http.get(shared.path.replace(token, bad))
        assert answer.status_code in (401, 404)
    async with asyncio.timeout(60), wrapped.socket("ws", other.path, headers={}) as socket:
        await socket.recv()
        async with wrapped.socket() as own:
            await own.recv()
            last = await ports.share(deps, ada, port_id=wrapped.port.id, revokes_earlier=True)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            await own.send("still here")
            assert await own.recv() == "still here"
    for void in (shared, other):
        assert (await wrapped.http.get(void.path)).status_code == 404
    assert (await wrapped.http.get(last.path)).status_code == 200
    await ports.close(deps, ada, port_id=wrapped.port.id)
    assert (await wrapped.http.get(last.path)).status_code == 404
    again = await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8080)
    assert again.id != wrapped.port.id
    # What was given before is void although the port is open again.
    assert (await wrapped.http.get(last.path)).status_code == 404


async def test_links_expire_and_what_came_by_them_ends(wrapped: Site) -> None:
    deps, port = wrapped.server.deps, wrapped.port
    secret = deps.options.link_secret
    past = links.sign(secret, port_id=port.id, expires_at=now() - timedelta(seconds=5), epoch=0)
    answer = await wrapped.http.get(f"{wrapped.path}/~{past}/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    soon = links.sign(secret, port_id=port.id, expires_at=now() + timedelta(seconds=3), epoch=0)
    path = f"{wrapped.path}/~{soon}/"
    async with asyncio.timeout(60), wrapped.socket("ws", path, headers={}) as held:
        await held.recv()
        with pytest.raises(ConnectionClosed):
            await held.recv()
    for seconds, code in ((0, UserErrorCode.INVALID), (3601, UserErrorCode.LIMIT)):
        with pytest.raises(UserError) as refused:
            await ports.share(deps, wrapped.ada.viewer, port_id=port.id, seconds=seconds)
        assert refused.value.code is code


def test_tokens_are_of_one_port_and_secret() -> None:
    at = now().replace(microsecond=0)
    token = links.sign(b"a", port_id="spt_1", expires_at=at, epoch=3)
    assert links.is_token(token)
    assert links.verify(b"a", token, port_id="spt_1") == links.Link(at, 3)
    assert links.verify(b"b", token, port_id="spt_1") is None
    assert links.verify(b"a", token, port_id="spt_2") is None
    later = f"{int(at.timestamp()) + 1:x}{token[token.index('.') :]}"
    assert links.verify(b"a", later, port_id="spt_1") is None
    with pytest.raises(RuntimeError):
        links.sign(b"", port_id="spt_1", expires_at=at, epoch=0)


async def test_connections_end_with_the_sign_in_and_with_the_port(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada
    async with asyncio.timeout(60), wrapped.socket() as socket:
        await socket.recv()
        assert ada.viewer.session_id is not None
        async with wrapped.http.stream(
            "GET", f"{wrapped.path}/hold", headers=wrapped.signed_in
        ) as answer:
            chunks = answer.aiter_raw()
            assert await anext(chunks) == b"hi"
            await sessions.revoke(deps, ada.viewer, session_id=ada.viewer.session_id)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)
    await wrapped.printed("left")


async def test_what_goes_wrong_inside_is_told(
    wrapped: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8081)
    nothing = await wrapped.http.get(
        f"/sandboxes/{wrapped.box.id}/ports/8081/", headers=wrapped.signed_in
    )
    assert nothing.status_code == 502
    assert "Nothing listens" in nothing.text
    assert (await wrapped.ask("GET", "/junk")).status_code == 502
    assert (await wrapped.ask("POST", "/early", content=b"x" * 3_000_000)).status_code == 413
    with pytest.raises(httpx.RemoteProtocolError):
        await wrapped.ask("GET", "/cut")
    monkeypatch.setattr(bridge, "HEAD_S", 0.2)
    assert (await wrapped.ask("GET", "/silent")).status_code == 504
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket(headers={**wrapped.signed_in, "X-Refuse": "1"}):
            pass
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket("/"):
            pass
    assert refused.value.response.status_code == 502
    assert (await wrapped.ask("TRACE", "/")).status_code == 404
    monkeypatch.setattr(ports, "CONNECTIONS_PER_SANDBOX", 0)
    full = await wrapped.ask("GET", "/")
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    await lifecycle.pause(deps, ada, sandbox_id=wrapped.box.id)
    assert (await wrapped.ask("GET", "/")).status_code == 409
    await lifecycle.stop(deps, ada, sandbox_id=wrapped.box.id)
    assert (await wrapped.ask("GET", "/")).status_code == 409


async def test_a_client_that_leaves_is_noticed_inside(wrapped: Site) -> None:
    async with wrapped.http.stream(
        "GET", f"{wrapped.path}/hold", headers=wrapped.signed_in
    ) as answer:
        assert await anext(answer.aiter_raw()) == b"hi"
    await wrapped.printed("left")
    socket: ClientConnection
    async with wrapped.socket() as socket:
        await socket.recv()
        socket.transport.abort()
    await wrapped.printed("closed 1")


async def test_a_sandbox_of_another_node_is_reached_over_the_bus(
    wrapped: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "open", relay.open_remote)
    body = bytes(range(256)) * 2048
    sent = await wrapped.told("POST", "/up?over=bus", content=body)
    assert (sent["path"], sent["length"]) == ("/up?over=bus", len(body))
    assert len((await wrapped.ask("GET", "/big")).content) == 8_000_000
    async with asyncio.timeout(60), wrapped.socket() as socket:
        await socket.recv()
        await socket.send("over the bus")
        assert await socket.recv() == "over the bus"


async def test_a_client_that_does_not_read_stalls_the_server_inside(wrapped: Site) -> None:
    port = int(wrapped.origin.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    request = f"GET {wrapped.path}/flood HTTP/1.1\r\nHost: x\r\n"
    writer.write(f"{request}Authorization: Bearer {wrapped.ada.token}\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await wrapped.printed("stalled")
    writer.transport.abort()


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 4\r\nContent-Length: 60",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: 4\r\nX: y\rTransfer-Encoding: chunked",
        "Content-Length: +4",
    ],
)
async def test_requests_are_not_smuggled_past_the_sign_in(wrapped: Site, lengths: str) -> None:
    port = int(wrapped.origin.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {wrapped.path}/up HTTP/1.1\r\nHost: x\r\n{lengths}\r\n"
    head += f"Authorization: Bearer {wrapped.ada.token}\r\n\r\n"
    second = f"GET {wrapped.path}/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(f"{head}0\r\n\r\n{second}".encode())
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/smuggled" not in answer


async def test_a_sandbox_has_few_open_ports(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    for port in (0, 65536):
        with pytest.raises(UserError) as refused:
            await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=port)
        assert refused.value.code is UserErrorCode.INVALID
    for port in range(1, ports.PORTS_PER_SANDBOX):
        await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=port)
    same = await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8080)
    assert same.id == wrapped.port.id
    with pytest.raises(UserError) as refused:
        await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=9999)
    assert refused.value.code is UserErrorCode.LIMIT
