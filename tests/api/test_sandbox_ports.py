"""Ports of sandboxes at the server that does not host them: two processes over one Redis."""

import asyncio
import itertools
import json
import shlex
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.api import operations as op
from tests.api.test_many_processes import Redis
from tests.product import Client, Product
from tests.servers import require
from tests.services.sandboxes.ports.conftest import INSIDE

pytestmark = [
    pytest.mark.mysql,
    pytest.mark.redis,
    pytest.mark.bubblewrap,
    pytest.mark.timeout(300),
    # One cluster for all of them.
    pytest.mark.xdist_group("sandbox ports"),
]

_names = (f"porter{n}" for n in itertools.count())
CREATE = "mutation { sandboxCreate { sandbox { id status } errors { message } } }"
OPEN = """mutation ($input: SandboxPortOpenInput!) {
  sandboxPortOpen(input: $input) { port { id } errors { message } }
}"""
SHARE = """mutation ($id: ID!, $input: SandboxPortShareInput!) {
  sandboxPortShare(id: $id, input: $input) { path errors { message } }
}"""
CLOSE = "mutation ($id: ID!) { sandboxPortClose(id: $id) { errors { message } } }"
STOP = "mutation ($id: ID!) { sandboxStop(id: $id) { sandbox { status } errors { message } } }"


@dataclass
class Far:
    """A server inside a sandbox that `b` hosts, seen from `a`."""

    here: Client
    host: Client
    sandbox: str
    port: str

    @property
    def path(self) -> str:
        return f"/sandboxes/{self.sandbox}/ports/8080"

    async def ask(self, method: str, rest: str, **options: Any) -> httpx.Response:
        headers = self.here.headers | options.pop("headers", {})
        return await self.here.http.request(method, self.path + rest, headers=headers, **options)

    def socket(self, address: str, **headers: str) -> connect:
        return connect(address.replace("http", "ws", 1), additional_headers=headers, max_size=None)


async def run(client: Client, document: str, **variables: Any) -> dict[str, Any]:
    (payload,) = (await client.run(document, **variables)).values()
    assert payload["errors"] == [], payload
    return dict(payload)


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, mysql_module_url: str
) -> Iterator[tuple[Product, Product]]:
    """Two servers with directories of their own, that serve one another's links."""
    require("redis")
    redis, directory = Redis(), tmp_path_factory.mktemp("servers")
    redis.start()
    environment = {
        "NOOSPHERE_DATABASE_URL": mysql_module_url,
        "NOOSPHERE_REDIS_URL": redis.url,
        "NOOSPHERE_SANDBOX_DRIVER": "bubblewrap",
        "NOOSPHERE_SECRET_KEY": "known to both",
        "NOOSPHERE_WORKER_IN_SERVER": "false",
    }
    here, host = (
        Product(directory / name, NOOSPHERE_NODE_ID=name, **environment)
        for name in ("here", "host")
    )
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda product: product.start(within_s=200), (here, host)))
        yield here, host
    finally:
        here.close()
        host.close()
        redis.close()


@pytest.fixture
async def far(servers: tuple[Product, Product]) -> AsyncIterator[Far]:
    here = Client(servers[0].url)
    await here.register(next(_names))
    host = Client(servers[1].url, here.token)
    sandbox = (await run(host, CREATE))["sandbox"]["id"]
    port = (await run(host, OPEN, input={"sandboxId": sandbox, "port": 8080}))["port"]["id"]
    command = f"exec python3 -u -c {shlex.quote(INSIDE)}"
    wish = {"sandboxId": sandbox, "command": command, "timeoutSeconds": 600}
    execution = (await run(host, op.EXECUTE, input=wish))["execution"]["id"]
    async with host.subscribe(op.OUTPUT, id=execution) as events:
        while "ready" not in ((await events.next()) or {}).get("text", ""):
            pass
    yield Far(here, host, sandbox, port)
    await run(host, STOP, id=sandbox)
    await here.aclose()
    await host.aclose()


async def test_a_server_inside_is_reached_by_the_other_process(far: Far) -> None:
    body = bytes(range(256)) * 4096
    sent = await far.ask("POST", "/up?over=redis", content=body)
    told = sent.json()
    assert (sent.status_code, told["path"], told["length"]) == (
        200,
        "/up?over=redis",
        len(body),
    )
    fields = dict(told["headers"])
    assert fields["x-forwarded-prefix"] == far.path
    assert fields["x-forwarded-host"] == far.here.url.removeprefix("http://")
    assert fields["x-forwarded-proto"] == "http"
    assert "authorization" not in fields
    assert len((await far.ask("GET", "/big")).content) == 8_000_000
    many = await asyncio.gather(*(far.ask("GET", f"/at-once/{n}") for n in range(10)))
    assert [answer.json()["path"] for answer in many] == [f"/at-once/{n}" for n in range(10)]
    moved = await far.ask("GET", "/move", headers={"X-To": "http://localhost:8080/there?x"})
    assert moved.headers["location"] == f"{far.path}/there?x"
    closed = await far.here.http.get(
        far.path.replace("8080", "8081") + "/", headers=far.here.headers
    )
    assert closed.status_code == 404


async def test_a_socket_passes_both_processes_and_ends_with_its_way(far: Far) -> None:
    address = f"{far.here.url}{far.path}/ws"
    async with asyncio.timeout(60), far.socket(address, **far.here.headers) as socket:
        assert "authorization" not in dict(json.loads(await socket.recv()))
        for message in ("héllo", b"\0\xff", "x" * 900):
            await socket.send(message)
            assert await socket.recv() == message
        await run(far.here, CLOSE, id=far.port)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert (await far.ask("GET", "/")).status_code == 404


async def test_a_link_of_one_process_is_good_at_the_other(far: Far) -> None:
    shared = await run(far.host, SHARE, id=far.port, input={"seconds": 60})
    path = shared["path"]
    told = (await far.here.http.get(f"{path}deep", headers={"Authorization": "Basic eA=="})).json()
    assert told["path"] == "/deep"
    assert dict(told["headers"])["authorization"] == "Basic eA=="
    async with asyncio.timeout(60), far.socket(f"{far.here.url}{path}ws") as socket:
        await socket.recv()
        wish = {"seconds": 60, "revokesEarlier": True}
        last = await run(far.here, SHARE, id=far.port, input=wish)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert (await far.here.http.get(path)).status_code == 404
    assert (await far.host.http.get(last["path"])).status_code == 200


async def test_a_sandbox_that_has_ended_is_told_at_the_other_process(far: Far) -> None:
    assert (await far.ask("GET", "/")).status_code == 200
    async with far.here.http.stream("GET", f"{far.path}/hold", headers=far.here.headers) as answer:
        parts = answer.aiter_raw()
        assert await anext(parts) == b"hi"
        await run(far.host, STOP, id=far.sandbox)
        with pytest.raises(httpx.HTTPError):
            await anext(parts)
    assert (await far.ask("GET", "/")).status_code == 409
