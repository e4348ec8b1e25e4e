"""Ways to sandboxes that break off: only what becomes of the sandbox itself ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from sqlalchemy import update

from models.sandboxes import Sandbox
from models.states import ExecutionReason, SandboxStatus
from sandbox.client import SandboxClient
from sandbox.docker import DockerDriver
from sandbox.kubernetes import KubernetesDriver
from sandbox.kubernetes_pod import KubernetesOptions, pod_name
from services.base import Viewer, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import (
    executions,
    files,
    hosting,
    interaction,
    lifecycle,
    mending,
    output,
    rows,
)
from services.sandboxes.node import Node
from tests.servers.cut import relay
from tests.servers.kubernetes import Kubernetes
from tests.services.sandboxes.conftest import Launch, Server, finished, present, ran, recorded


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with Kubernetes(tmp_path) as cluster:
        yield cluster


async def launched(launch: Launch, kubeconfig: Path) -> tuple[Server, Viewer, Sandbox]:
    driver = KubernetesDriver(KubernetesOptions(kubeconfig=str(kubeconfig)))
    server = await launch(driver, sandbox_template_image="sandbox:1")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await ran(server.deps, ada, box.id, "echo kept >f")
    return server, ada, box


async def client_of(server: Server, box: Sandbox) -> SandboxClient:
    client = (await server.host.node()).live[box.id].client
    assert client is not None
    return client


async def begun(server: Server, viewer: Viewer, box: Sandbox) -> str:
    """Begin something that does not end, and give its id when it runs."""
    made = await executions.execute(
        server.deps, viewer, sandbox_id=box.id, command="echo begun; sleep 900", timeout_s=900
    )
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(server.deps, viewer, made.id)) as items,
    ):
        await anext(items)
    return made.id


async def ended(server: Server, viewer: Viewer, execution_id: str) -> None:
    """End what was begun, as nothing else has."""
    await interaction.signal(
        server.deps, viewer, execution_id=execution_id, signal=interaction.Signal.TERM
    )
    done = await finished(server.deps, viewer, execution_id)
    assert (done.reason, done.signal, done.stdout) == (ExecutionReason.EXITED, 15, "begun\n")


def ending(node: Node) -> asyncio.Event:
    """Give what is set when a sandbox of a node is about to end, or is let go of."""
    told = asyncio.Event()
    node.on_ending.append(lambda _: told.set())
    return told


async def mended(server: Server, box: Sandbox, lost: SandboxClient) -> None:
    """Wait until another client serves a sandbox in place of a lost one."""
    node = await server.host.node()
    told = asyncio.Event()
    node.on_added.append(lambda _: told.set())
    async with asyncio.timeout(60):
        await lost.wait_lost()
        if node.live[box.id].client is lost:
            await told.wait()
        async with node.lock(box.id):
            assert node.live[box.id].client is not lost


async def goes_on(server: Server, viewer: Viewer, box: Sandbox) -> None:
    done = await ran(server.deps, viewer, box.id, "cat f; echo more >>f")
    assert (done.reason, done.stdout.splitlines()[0]) == (ExecutionReason.EXITED, "kept")
    row = await present(server, box.id)
    assert (row.status, row.failure) == (SandboxStatus.RUNNING, None)


@pytest.mark.bubblewrap
async def test_a_sandbox_goes_on_when_its_stream_is_cut(
    cluster: Kubernetes, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "MEND_S", 60.0)
    server, ada, box = await launched(launch, cluster.kubeconfig)
    running = await begun(server, ada, box)
    for _ in range(2):
        client = await client_of(server, box)
        cluster.cut_attached()
        async with asyncio.timeout(60):
            await client.wait_lost()
        # What is asked for while there is no way to it waits a moment for one.
        await goes_on(server, ada, box)
        assert await client_of(server, box) is not client
    # What ran in it goes on.
    await ended(server, ada, running)
    # Files are watched and written as before.
    await files.write(server.deps, ada, sandbox_id=box.id, path="g", content="new")
    assert (await ran(server.deps, ada, box.id, "cat g")).stdout == "new"
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)
    assert cluster.pods == {}


@pytest.mark.bubblewrap
async def test_cut_watches_of_a_cluster_end_no_sandbox(cluster: Kubernetes, launch: Launch) -> None:
    server, ada, box = await launched(launch, cluster.kubeconfig)
    running = await begun(server, ada, box)
    client = await client_of(server, box)
    for trouble in (
        cluster.cut_watches,
        cluster.compact,
        cluster.expire_watches,
        cluster.end_watches,
    ):
        trouble()
        await goes_on(server, ada, box)
    assert await client_of(server, box) is client
    row = await recorded(server, running)
    assert row.reason is None
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


@pytest.mark.bubblewrap
async def test_a_cluster_that_is_away_says_nothing_of_its_sandboxes(
    cluster: Kubernetes, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "LONGEST_DELAY_S", 0.2)
    monkeypatch.setattr(hosting, "MEND_S", 0.2)
    async with relay(f"tcp://127.0.0.1:{cluster.port}") as way:
        kubeconfig = tmp_path / "by-the-relay"
        config = cluster.kubeconfig.read_text()
        kubeconfig.write_text(config.replace(str(cluster.port), str(way.port)))
        server, ada, box = await launched(launch, kubeconfig)
        client = await client_of(server, box)
        tried, node = asyncio.Semaphore(0), await server.host.node()
        connect = node.driver.connect

        async def counted(sandbox_id: str) -> object:
            tried.release()
            return await connect(sandbox_id)

        monkeypatch.setattr(node.driver, "connect", counted)
        way.cut()
        async with asyncio.timeout(120):
            await client.wait_lost()
            # More often than an agent that does not answer would be asked.
            for _ in range(mending.TRIES + 2):
                await tried.acquire()
            with pytest.raises(UserError, match="does not answer at the moment") as caught:
                await executions.execute(server.deps, ada, sandbox_id=box.id, command="true")
            assert caught.value.code is UserErrorCode.UNAVAILABLE
            assert await rows.unfinished(server.deps) == []
            way.mend()
            await mended(server, box, client)
        await goes_on(server, ada, box)
        await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


@pytest.mark.bubblewrap
@pytest.mark.parametrize("trouble", ["end_container", "evict", "vanish"])
async def test_a_pod_that_has_ended_ends_its_sandbox(
    cluster: Kubernetes, launch: Launch, trouble: str
) -> None:
    server, ada, box = await launched(launch, cluster.kubeconfig)
    running = await begun(server, ada, box)
    node = await server.host.node()
    told = ending(node)
    getattr(cluster, trouble)(pod_name(box.id))
    if trouble == "vanish":
        cluster.cut_attached()
        cluster.cut_watches()
    async with asyncio.timeout(60):
        await told.wait()
        async with node.lock(box.id):
            row = await rows.sandbox(server.deps, box.id)
    assert row is not None
    assert row.status is SandboxStatus.FAILED
    assert row.failure in (
        "The sandbox ended unexpectedly.",
        "The sandbox ran out of memory and ended.",
    )
    assert (await finished(server.deps, ada, running)).reason is ExecutionReason.SANDBOX_LOST


@pytest.mark.bubblewrap
async def test_a_sandbox_that_another_node_took_over_is_left_to_it(
    cluster: Kubernetes, launch: Launch, tmp_path: Path
) -> None:
    server, _, box = await launched(launch, cluster.kubeconfig)
    node = await server.host.node()
    told, client = ending(node), await client_of(server, box)
    other = KubernetesDriver(KubernetesOptions(kubeconfig=str(cluster.kubeconfig)))
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == box.id).values(node_id="another")
        )
    try:
        await other.connect(box.id)
        async with SandboxClient(await other.open_channel(box.id)) as theirs:
            async with asyncio.timeout(60):
                await client.wait_lost()
                await told.wait()
                async with node.lock(box.id):
                    assert box.id not in node.live
            assert len(cluster.pods) == 1
            assert not theirs.is_lost
            assert await theirs.files.read("f") == b"kept\n"
    finally:
        await other.remove(box.id)
        await other.aclose()


@pytest.mark.docker
async def test_a_container_goes_on_when_its_engine_was_away(
    launch: Launch, docker_url: str, docker_image: str, tmp_path: Path
) -> None:
    async with relay(docker_url) as way:
        driver = DockerDriver(url=way.url)
        await driver.start()
        server = await launch(driver, sandbox_template_image=docker_image)
        ada = await server.person("ada")
        box = await lifecycle.create(server.deps, ada)
        frozen = await lifecycle.create(server.deps, ada)
        for one in (box, frozen):
            await ran(server.deps, ada, one.id, "echo kept >f")
        await lifecycle.pause(server.deps, ada, sandbox_id=frozen.id)
        running = await begun(server, ada, box)
        client = await client_of(server, box)
        way.cut()
        async with asyncio.timeout(60):
            await client.wait_lost()
            way.mend()
            await mended(server, box, client)
        await goes_on(server, ada, box)
        await ended(server, ada, running)
        resumed = await lifecycle.resume(server.deps, ada, sandbox_id=frozen.id)
        assert resumed.status is SandboxStatus.RUNNING
        await goes_on(server, ada, frozen)
        for one in (box, frozen):
            await lifecycle.delete(server.deps, ada, sandbox_id=one.id)
