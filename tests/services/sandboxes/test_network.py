"""Sandboxes that may reach named hosts: what they reach, live changes, and the record."""

import asyncio
import ipaddress
import json
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from models.base import row_columns, rows_of
from models.sandboxes import Sandbox, SandboxConnection
from models.states import ConnectionVerdict, SandboxStatus
from sandbox import proxy as proxies
from sandbox.addresses import Address
from sandbox.policy import NetworkRule
from sandbox.proxy import Connection, Streams, Verdict
from services.base import Viewer
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import changing, connections, executions, lifecycle, network
from services.sandboxes.wishes import Resources, Security
from tests.services.sandboxes.conftest import Launch, Server, collect, finished, ran

PUBLIC = "93.184.215.14"
ORG = NetworkRule("example.org")
FETCH = (
    "python3 -c 'import sys, urllib.request, urllib.error\n"
    "try: print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())\n"
    "except urllib.error.HTTPError as e: print(e.code)\n"
    "except OSError as e: print(e)' "
)
# Connects through the proxy, says so, and tells when the connection ends.
HOLD = (
    "python3 -uc 'import socket, sys\n"
    's = socket.create_connection(("127.0.0.1", 3128))\n'
    's.sendall(b"CONNECT example.org:443 HTTP/1.1\\r\\n\\r\\n")\n'
    'print(s.recv(100).split(b"\\r")[0].decode())\n'
    "try: print(len(s.recv(100)))\n"
    'except OSError: print("reset")\''
)


@dataclass
class Outside:
    """The world outside: names, and one server that is reached at PUBLIC."""

    names: dict[str, list[str]] = field(default_factory=lambda: {"example.org": [PUBLIC]})
    port: int = 0
    reached: list[tuple[str, int]] = field(default_factory=list)

    async def resolve(self, name: str) -> Sequence[Address]:
        return [ipaddress.ip_address(text) for text in self.names[name]]

    async def connect(self, address: Address, port: int) -> Streams:
        self.reached.append((str(address), port))
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def outside(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outside]:
    made = Outside()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            await writer.drain()
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    monkeypatch.setattr(proxies, "resolve", made.resolve)
    monkeypatch.setattr(proxies, "connect", made.connect)
    yield made
    server.close()


@pytest.fixture
async def server(launch: Launch, any_kind: str, outside: Outside) -> Server:
    return await launch(any_kind, sandbox_network_allowed=True)


async def make(server: Server, viewer: Viewer, *rules: NetworkRule) -> Sandbox:
    wish = Security(network="ALLOW_LIST", rules=rules or (ORG,))
    return await lifecycle.create(server.deps, viewer, security=wish)


async def written(
    server: Server, until: Callable[[list[SandboxConnection]], bool] = bool
) -> list[SandboxConnection]:
    """The record, once it is as expected."""
    node = await server.host.node()
    async with asyncio.timeout(30):
        while True:
            await network.of(node).flush()
            async with server.deps.db.reading() as connection:
                found = await connection.execute(
                    select(*row_columns(SandboxConnection)).order_by(SandboxConnection.id)
                )
                rows = rows_of(SandboxConnection, found)
            if until(rows):
                return rows
            await asyncio.sleep(0.01)


async def change(server: Server, viewer: Viewer, box: Sandbox, **changes: object) -> None:
    await changing.change(server.deps, viewer, sandbox_id=box.id, changes=changes)


async def fetch(server: Server, viewer: Viewer, box: Sandbox, url: str) -> str:
    done = await ran(server.deps, viewer, box.id, f"{FETCH} {url}")
    return (done.stdout or "").strip()


async def test_programs_reach_what_is_allowed_and_all_is_recorded(
    server: Server, ada: Viewer, outside: Outside
) -> None:
    box = await make(server, ada)
    assert await fetch(server, ada, box, "http://example.org/") == "hello"
    assert await fetch(server, ada, box, "http://127.0.0.1:1/") != "hello"
    assert await fetch(server, ada, box, "http://169.254.169.254/") == "403"
    assert outside.reached == [(PUBLIC, 80)]
    allowed, denied = await written(
        server, lambda rows: len(rows) == 2 and all(row.closed_at for row in rows)
    )
    assert (allowed.host, allowed.address, allowed.port) == ("example.org", PUBLIC, 80)
    assert (allowed.verdict, allowed.rule) == (ConnectionVerdict.ALLOWED, "example.org")
    assert allowed.bytes_in == len("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert allowed.bytes_out > 0
    assert allowed.closed_at is not None
    assert allowed.closed_at >= allowed.opened_at
    assert (denied.host, denied.verdict, denied.rule, denied.bytes_in) == (
        "169.254.169.254",
        ConnectionVerdict.DENIED,
        None,
        0,
    )


async def test_nothing_but_the_proxy_is_reached(
    server: Server, ada: Viewer, outside: Outside
) -> None:
    box = await make(server, ada)
    # Not by another way than the proxy, whatever the variables say.
    bare = f"env -u http_proxy -u HTTP_PROXY {FETCH} http://{PUBLIC}/"
    done = await ran(server.deps, ada, box.id, bare)
    assert "nreachable" in (done.stdout or "")
    assert outside.reached == []


ATTEMPTS = [
    "CONNECT 127.0.0.1:{port} HTTP/1.1",
    "CONNECT 2130706433:{port} HTTP/1.1",
    "CONNECT 0x7f000001:{port} HTTP/1.1",
    "CONNECT 0177.0.0.1:{port} HTTP/1.1",
    "CONNECT 127.1:{port} HTTP/1.1",
    "CONNECT [::1]:{port} HTTP/1.1",
    "CONNECT [::ffff:127.0.0.1]:{port} HTTP/1.1",
    "CONNECT [::ffff:7f00:1]:{port} HTTP/1.1",
    "CONNECT [64:ff9b::7f00:1]:{port} HTTP/1.1",
    "CONNECT localhost:{port} HTTP/1.1",
    "CONNECT rebinds.test:443 HTTP/1.1",
    "CONNECT example.org@127.0.0.1:{port} HTTP/1.1",
    "CONNECT 127.0.0.1:{port}@example.org:443 HTTP/1.1",
    "GET http://127.0.0.1:{port}/ HTTP/1.1",
    "GET http://example.org@127.0.0.1:{port}/ HTTP/1.1",
    "GET http://127.0.0.1:{port}\\@example.org/ HTTP/1.1",
    "GET http://169.254.169.254/latest/meta-data/ HTTP/1.1",
    "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}",
    "GET http://example.org/ HTTP/1.1\r\nA: b\nHost: 127.0.0.1:{port}",
    "POST http://example.org/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
    "GET http://example.org/ HTTP/1.1\r\nA: " + "b" * 40000,
]
ATTACK = """
import json, socket, sys
for text in json.loads(sys.stdin.read()):
    s = socket.create_connection(("127.0.0.1", 3128), 60)
    try:
        s.sendall(text.encode() + bytes([13, 10, 13, 10]))
        print(s.recv(4096).split(b" ")[1].decode())
    except OSError: print("reset")
    s.close()
"""


async def test_attempts_to_get_elsewhere_get_nowhere(
    server: Server, ada: Viewer, outside: Outside
) -> None:
    box = await make(server, ada, ORG, NetworkRule("rebinds.test"))
    outside.names["rebinds.test"] = ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254"]
    attempts = json.dumps([text.replace("{port}", str(outside.port)) for text in ATTEMPTS])
    command = f"python3 -c {shlex.quote(ATTACK)}"
    done = await ran(server.deps, ada, box.id, command, stdin=attempts)
    outcomes = (done.stdout or "").split()
    assert len(outcomes) == len(ATTEMPTS), done.stderr
    assert set(outcomes) <= {"400", "403", "431", "reset"}
    assert outside.reached == []
    # And whoever asks for what is allowed gets it all the same.
    assert await fetch(server, ada, box, "http://example.org/") == "hello"


async def test_rules_change_while_a_sandbox_runs(
    server: Server, ada: Viewer, outside: Outside
) -> None:
    box = await make(server, ada)
    held = await executions.execute(server.deps, ada, sandbox_id=box.id, command=HOLD)
    await written(server, lambda rows: len(rows) == 1)
    await change(server, ada, box, network_rules=[NetworkRule("other.test")])
    done = await finished(server.deps, ada, held.id)
    assert (done.stdout or "").splitlines()[0] == "HTTP/1.1 200 Connection established"
    assert (done.stdout or "").splitlines()[1] in ("reset", "0")
    assert await fetch(server, ada, box, "http://example.org/") == "403"
    await change(server, ada, box, network="none")
    assert "nreachable" in await fetch(server, ada, box, f"http://{PUBLIC}/")
    refused = await ran(server.deps, ada, box.id, HOLD)
    assert "ConnectionRefusedError" in (refused.stderr or "")
    await change(server, ada, box, network="allow_list", network_rules=[ORG])
    assert await fetch(server, ada, box, "http://example.org/") == "hello"


async def test_a_paused_sandbox_changes_and_goes_on(
    server: Server, ada: Viewer, outside: Outside
) -> None:
    box = await lifecycle.create(server.deps, ada)
    await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    await change(server, ada, box, network="allow_list", network_rules=[ORG])
    resumed = await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    assert resumed.status is SandboxStatus.RUNNING
    assert await fetch(server, ada, box, "http://example.org/") == "hello"


@pytest.mark.docker
async def test_the_way_out_is_there_again_after_a_restart(launch: Launch, outside: Outside) -> None:
    first = await launch("docker", sandbox_network_allowed=True)
    ada = await first.person("ada")
    box = await make(first, ada)
    held = await executions.execute(first.deps, ada, sandbox_id=box.id, command=HOLD)
    await written(first, lambda rows: len(rows) == 1)
    await first.crash()
    second = await launch("docker", sandbox_network_allowed=True)
    await collect(second.deps, ada, held.id)
    assert await fetch(second, ada, box, "http://example.org/") == "hello"
    rows = await written(second, lambda rows: len(rows) == 2 and all(row.closed_at for row in rows))
    assert [row.port for row in rows] == [443, 80]


@pytest.mark.bubblewrap
async def test_a_persons_own_proxy_is_left_alone(launch: Launch, outside: Outside) -> None:
    server = await launch(sandbox_network_allowed=True)
    ada = await server.person("ada")
    wish = Security(network="ALLOW_LIST", rules=(ORG,), env_variables={"http_proxy": "mine"})
    box = await lifecycle.create(server.deps, ada, security=wish)
    show = "echo $http_proxy $https_proxy"
    done = await ran(server.deps, ada, box.id, show)
    assert done.stdout == "mine http://127.0.0.1:3128\n"
    await change(server, ada, box, network="none")
    assert (await ran(server.deps, ada, box.id, show)).stdout == "mine\n"


@pytest.mark.bubblewrap
async def test_bandwidth_is_limited_and_changes(launch: Launch, outside: Outside) -> None:
    server = await launch(sandbox_network_allowed=True)
    ada = await server.person("ada")
    box = await lifecycle.create(
        server.deps,
        ada,
        security=Security(network="allow_list", rules=(ORG,)),
        resources=Resources(network_bytes_per_second=50_000),
    )
    ways = network.of(await server.host.node())._ways
    assert ways[box.id].proxy.bandwidth.bytes_per_s == 50_000
    await change(server, ada, box, resources=Resources(network_bytes_per_second=9_000))
    assert ways[box.id].proxy.bandwidth.bytes_per_s == 9_000
    await change(server, ada, box, network_rules=[])
    assert ways[box.id].proxy.bandwidth.bytes_per_s == 9_000
    with pytest.raises(UserErrors) as caught:
        await change(server, ada, box, resources=Resources(network_bytes_per_second=1))
    assert caught.value.errors[0].path == ("resources", "network_bytes_per_second")
    assert ways[box.id].proxy.bandwidth.bytes_per_s == 9_000


@pytest.mark.bubblewrap
async def test_the_way_out_ends_with_the_sandbox(launch: Launch, outside: Outside) -> None:
    server = await launch(sandbox_network_allowed=True)
    ada = await server.person("ada")
    box = await make(server, ada)
    held = await executions.execute(server.deps, ada, sandbox_id=box.id, command=HOLD)
    await written(server, lambda rows: len(rows) == 1)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await collect(server.deps, ada, held.id)
    await written(server, lambda rows: all(row.closed_at for row in rows))
    assert network.of(await server.host.node())._ways == {}


@pytest.mark.bubblewrap
async def test_only_the_newest_connections_are_kept(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "KEPT_PER_SANDBOX", 5)
    server = await launch(sandbox_network_allowed=True)
    box = await make(server, await server.person("ada"))
    recorder = network.of(await server.host.node())._recorder
    for port in range(1, 41):
        recorder.note(box.id, Connection("a.test", port, verdict=Verdict.DENIED))
        if port % 3 == 0:
            await recorder.flush()
    rows = await written(server, lambda rows: len(rows) == 5)
    assert [row.port for row in rows] == [36, 37, 38, 39, 40]


@pytest.mark.bubblewrap
async def test_a_network_is_refused_where_the_operator_lets_nobody_have_one(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    with pytest.raises(UserErrors) as caught:
        await make(server, ada)
    assert [error.path for error in caught.value.errors] == [("security", "network")]
    assert network.of(await server.host.node())._ways == {}


@pytest.mark.bubblewrap
async def test_rules_that_the_operator_does_not_let_are_refused(launch: Launch) -> None:
    server = await launch(sandbox_network_allowed=True, sandbox_network_private=("10.1.0.0/16",))
    ada = await server.person("ada")
    rules = [NetworkRule(host) for host in ("10.1.2.3", "10.2.0.1", "a b", "::1")]
    rules += [NetworkRule("a.test", ()), NetworkRule("a.test", (0,))]
    with pytest.raises(UserErrors) as caught:
        await make(server, ada, *rules)
    places = sorted((error.code, error.path[-1]) for error in caught.value.errors)
    assert places == [(UserErrorCode.INVALID, str(at)) for at in (1, 2, 3, 4, 5)]
    box = await make(server, ada, rules[0])
    with pytest.raises(UserErrors):
        await change(server, ada, box, network_rules=[rules[1]])
    many = [NetworkRule(f"{n}.test") for n in range(201)]
    with pytest.raises(UserErrors) as caught:
        await change(server, ada, box, network_rules=many)
    assert caught.value.errors[0].code is UserErrorCode.LIMIT
    ways = network.of(await server.host.node())._ways
    held = ways[box.id].proxy._rules
    assert held.for_address(ipaddress.ip_address("10.1.2.3"), 80, is_own=False) == rules[0]
    eve = await server.person("eve")
    with pytest.raises(UserError) as denied:
        await change(server, eve, box, network="none")
    assert denied.value.code is UserErrorCode.NOT_FOUND
    assert box.id in ways
