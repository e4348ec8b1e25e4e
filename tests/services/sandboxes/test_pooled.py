"""Sandboxes of a server that come out of its pool."""

import asyncio

import pytest
from sqlalchemy import update

from models.sandboxes import SandboxTemplate
from models.states import SandboxStatus
from sandbox.base import SandboxSpec
from sandbox.limits import MIB
from services.base import work
from services.sandboxes import housekeeping, lifecycle, rows, templates, warming
from services.sandboxes.live import INSTALLATION_LABEL, POOL_LABEL, installation
from services.sandboxes.pool import WarmPool
from services.sandboxes.sweeping import Sweep
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.pooling import SMALL, WAIT_S, until


async def filled(server: Server) -> WarmPool:
    pool = (await server.host.node()).pool
    assert isinstance(pool, WarmPool)
    async with asyncio.timeout(WAIT_S):
        while pool.wanted == 0:
            await until(pool, lambda: pool.ready > 0)
        await pool.wait_filled()
    return pool


async def test_a_sandbox_of_the_default_template_comes_out_of_the_pool(
    launch: Launch, any_kind: str
) -> None:
    server = await launch(any_kind, sandbox_pool=(("python", 1),))
    ada = await server.person("ada")
    node = await server.host.node()
    if node.driver.has_images:
        await templates.pin_default(node)
    pool = await filled(server)

    box = await lifecycle.create(server.deps, ada)

    assert box.status is SandboxStatus.RUNNING
    assert box.container_id is not None
    assert box.container_id.startswith("pool-")
    assert box.pool_key is not None
    assert (await ran(server.deps, ada, box.id, "echo hi; id -u > /dev/null")).stdout == "hi\n"
    # The next one is being made; no look takes either for a leftover.
    sweep = Sweep(node)
    for _ in range(3):
        await sweep.look()
    await filled(server)
    assert (pool.stats.hits, pool.stats.made) == (1, 2)
    # On an engine there are those of other tests as well.
    ours = {INSTALLATION_LABEL: installation(server.deps)} if node.survives else {}
    assert len(await node.driver.list(ours)) == 2
    await housekeeping._reconcile(node)
    another = await lifecycle.create(server.deps, ada, resources=Resources(pids=50))
    assert another.container_id == another.id
    assert another.pool_key is None
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)
    left = {info.sandbox_id for info in await node.driver.list({})}
    assert box.container_id not in left
    assert another.id in left


async def test_the_pool_ends_with_the_server(launch: Launch, any_kind: str) -> None:
    server = await launch(any_kind, sandbox_pool=(("python", 1),))
    await filled(server)
    await server.host.aclose()
    await server.deps.bus.aclose()
    again = await launch(any_kind)
    node = await again.host.node()
    labels = {INSTALLATION_LABEL: installation(again.deps)} if node.survives else {}
    assert await node.driver.list(labels) == []


@pytest.mark.docker
async def test_the_pool_of_a_server_that_was_killed_is_cleared_away(launch: Launch) -> None:
    server = await launch("docker")
    node = await server.host.node()
    labels = {
        INSTALLATION_LABEL: installation(server.deps),
        POOL_LABEL: server.deps.bus.node_id,
    }
    image = server.options.sandbox_template_image
    await node.driver.create(SandboxSpec("pool-left", image, SMALL, labels=labels))
    await server.crash()
    again = await launch("docker")
    assert await (await again.host.node()).driver.list(labels) == []


@pytest.mark.bubblewrap
async def test_templates_that_are_gone_off_or_foreign_are_not_kept_ready(launch: Launch) -> None:
    server = await launch(sandbox_pool=(("python", 1), ("absent", 3), ("foreign", 2)))
    node = await server.host.node()
    async with work(server.deps) as unit:
        unit.session.add(SandboxTemplate(name="foreign", image_name="elsewhere", language="c"))
    assert [(kind.spec.image, kind.size) for kind in await warming.wanted(node)] == [("host", 1)]
    pool = await filled(server)
    async with work(server.deps) as unit:
        await unit.session.execute(update(SandboxTemplate).values(is_active=False))
    await pool.want(await warming.wanted(node))
    assert (pool.wanted, pool.ready) == (0, 0)
    assert await node.driver.list({}) == []


@pytest.mark.bubblewrap
async def test_limits_of_the_template_make_its_kind(launch: Launch) -> None:
    server = await launch(sandbox_pool=(("python", 1),))
    ada = await server.person("ada")
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(SandboxTemplate).values(
                resource_config={"memory_bytes": 128 * MIB, "pids": 20},
                security_config={"env_variables": {"GREETING": "hello"}},
            )
        )
    node = await server.host.node()
    pool = node.pool
    assert isinstance(pool, WarmPool)
    await pool.want(await warming.wanted(node))
    await filled(server)
    box = await lifecycle.create(server.deps, ada)
    assert box.container_id != box.id
    assert (await ran(server.deps, ada, box.id, 'echo "$GREETING"')).stdout == "hello\n"
    assert await rows.sandbox(server.deps, box.id) == box
