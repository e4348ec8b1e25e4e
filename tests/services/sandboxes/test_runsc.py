"""Sandboxes of a server whose Docker engine runs them by gVisor's runtime."""

import asyncio
import ipaddress
from collections.abc import Sequence

import pytest

from models.states import ExecutionReason, SandboxStatus
from sandbox import proxy as proxies
from sandbox.addresses import Address
from sandbox.policy import NetworkRule
from sandbox.proxy import Streams
from services.errors import UserError, UserErrorCode
from services.sandboxes import executions, files, lifecycle, snapshots
from services.sandboxes.wishes import Resources, Security
from tests.servers import require
from tests.services.sandboxes.conftest import Launch, finished, first_chunk, present, ran

pytestmark = pytest.mark.runsc


@pytest.fixture(scope="module")
def docker_url() -> str:
    """The engine that knows the runtime, in place of the one that all others share."""
    return require("runsc")["NOOSPHERE_TEST_RUNSC_URL"]


@pytest.fixture(scope="module")
def docker_image() -> str:
    return require("runsc")["NOOSPHERE_TEST_RUNSC_IMAGE"]


async def test_sandboxes_outlive_the_server_and_a_snapshot_outlives_them(launch: Launch) -> None:
    server = await launch("docker", sandbox_runtime="runsc")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    frozen = await lifecycle.create(server.deps, ada)
    made = await executions.execute(
        server.deps,
        ada,
        sandbox_id=box.id,
        command="echo one; until [ -e go ]; do sleep 0.02; done; echo two; exit 7",
        timeout_s=900,
    )
    await first_chunk(server, ada, made.id)
    await files.write(server.deps, ada, sandbox_id=box.id, path="kept", content="kept\n")
    await lifecycle.pause(server.deps, ada, sandbox_id=frozen.id)
    await server.crash()

    again = await launch("docker", sandbox_runtime="runsc")
    assert (await present(again, box.id)).status is SandboxStatus.RUNNING
    assert (await ran(again.deps, ada, box.id, "cat kept; touch go")).stdout == "kept\n"
    ended = await finished(again.deps, ada, made.id)
    assert (ended.reason, ended.exit_code) == (ExecutionReason.EXITED, 7)
    assert ended.stdout == "one\ntwo\n"
    await lifecycle.resume(again.deps, ada, sandbox_id=frozen.id)
    assert (await ran(again.deps, ada, frozen.id, "echo warm")).stdout == "warm\n"

    taken = await snapshots.take(again.deps, ada, sandbox_id=box.id, name="first")
    for one in (box, frozen):
        await lifecycle.delete(again.deps, ada, sandbox_id=one.id)
    restored = await lifecycle.create(again.deps, ada, snapshot_id=taken.id)
    assert (await ran(again.deps, ada, restored.id, "cat kept")).stdout == "kept\n"
    await lifecycle.delete(again.deps, ada, sandbox_id=restored.id)


async def test_programs_reach_what_is_allowed_by_the_proxy_alone(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    async def resolve(name: str) -> Sequence[Address]:
        return [ipaddress.ip_address("93.184.215.14")]

    async def connect(address: Address, port: int) -> Streams:
        reached.append(f"{address}:{port}")
        host, at = outside.sockets[0].getsockname()
        return await asyncio.open_connection(host, at)

    monkeypatch.setattr(proxies, "resolve", resolve)
    monkeypatch.setattr(proxies, "connect", connect)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as outside:
        server = await launch("docker", sandbox_runtime="runsc", sandbox_network_allowed=True)
        ada = await server.person("ada")
        wish = Security(network="ALLOW_LIST", rules=(NetworkRule("example.org"),))
        box = await lifecycle.create(server.deps, ada, security=wish)
        program = (
            "import urllib.request, urllib.error\n"
            "for url in ('http://example.org/', 'http://169.254.169.254/'):\n"
            " try: print(urllib.request.urlopen(url, timeout=30).read().decode())\n"
            " except urllib.error.HTTPError as error: print(error.code)\n"
        )
        done = await ran(server.deps, ada, box.id, f"python3 -c {program!r}".replace("\\n", "\n"))
        assert done.stdout == "hello\n403\n", done.stderr
        assert reached == ["93.184.215.14:80"]
        await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


async def test_what_it_cannot_do_the_user_is_told(launch: Launch) -> None:
    server = await launch("docker", sandbox_runtime="runsc")
    ada = await server.person("ada")
    with pytest.raises(UserError, match="cannot enforce pids") as caught:
        await lifecycle.create(server.deps, ada, resources=Resources(pids=32))
    assert caught.value.code is UserErrorCode.INVALID
    box = await lifecycle.create(server.deps, ada)
    bomb = "python3 -c 'x = []\nwhile True: x.append(bytes(1 << 22))'"
    ended = await ran(server.deps, ada, box.id, bomb)
    assert ended.exit_code != 0
    if ended.reason is ExecutionReason.SANDBOX_LOST:
        # Some versions lose all of the sandbox, and not the program alone.
        async with asyncio.timeout(60):
            while (  # noqa: ASYNC110 - the row is all there is to look at.
                lost := await present(server, box.id)
            ).status is SandboxStatus.RUNNING:
                await asyncio.sleep(0.02)
        assert lost.failure == "The sandbox ran out of memory and ended."
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


async def test_a_runtime_that_runs_nothing_is_named_to_whoever_wants_a_sandbox(
    launch: Launch,
) -> None:
    server = await launch("docker", sandbox_runtime="runsc-broken")
    ada = await server.person("ada")
    with pytest.raises(UserError, match="runsc-broken runs no sandboxes here") as caught:
        await lifecycle.create(server.deps, ada)
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    assert (await server.host.check()).startswith("off: ")
