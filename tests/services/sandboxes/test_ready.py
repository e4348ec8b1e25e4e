"""Sandboxes that were ready before they were asked for: the driver knows them by other names."""

import dataclasses

import pytest

from models.states import SandboxStatus
from sandbox.base import SandboxSpec
from sandbox.client import SandboxClient
from services.base import Viewer
from services.sandboxes import housekeeping, lifecycle
from services.sandboxes.live import Ready
from services.sandboxes.node import Node
from tests.services.sandboxes.conftest import Server, present, ran

pytestmark = pytest.mark.bubblewrap


class OneReady:
    """A pool of a single sandbox."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.asked: list[SandboxSpec] = []

    async def claim(self, spec: SandboxSpec) -> Ready | None:
        self.asked.append(spec)
        if len(self.asked) > 1:
            return None
        driver = self.node.driver
        await driver.create(dataclasses.replace(spec, sandbox_id="ready-1"))
        client = await SandboxClient.connect(await driver.open_channel("ready-1"), spec.policy.env)
        return Ready("ready-1", client, "kind")

    def holds(self, driver_id: str) -> bool:
        return False


async def names(node: Node) -> set[str]:
    return {info.sandbox_id for info in await node.driver.list({})}


async def test_what_was_ready_is_used_under_its_own_name_until_its_end(
    server: Server, ada: Viewer
) -> None:
    node = await server.host.node()
    pool = node.pool = OneReady(node)

    box = await lifecycle.create(server.deps, ada)
    assert (box.container_id, box.pool_key) == ("ready-1", "kind")
    assert await names(node) == {"ready-1"}
    assert (await ran(server.deps, ada, box.id, "echo $((6 * 7))")).stdout == "42\n"
    await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    assert (await ran(server.deps, ada, box.id, "echo again")).stdout == "again\n"

    await housekeeping.take_up(server.deps, node)
    assert await names(node) == {"ready-1"}
    stopped = await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    assert stopped.status is SandboxStatus.STOPPED
    assert await names(node) == set()
    assert [spec.sandbox_id for spec in pool.asked] == [box.id]


async def test_without_one_that_is_ready_a_new_one_is_made(server: Server, ada: Viewer) -> None:
    node = await server.host.node()
    pool = node.pool = OneReady(node)
    first, second = [await lifecycle.create(server.deps, ada) for _ in range(2)]

    assert (second.container_id, second.pool_key) == (second.id, None)
    assert await names(node) == {"ready-1", second.id}
    assert len(pool.asked) == 2
    await lifecycle.delete(server.deps, ada, sandbox_id=first.id)
    assert await names(node) == {second.id}


async def test_one_that_is_lost_fails_by_its_row(server: Server, ada: Viewer) -> None:
    node = await server.host.node()
    node.pool = OneReady(node)
    box = await lifecycle.create(server.deps, ada)
    node.note_oom("ready-1")

    await node.driver.remove("ready-1")
    async with node.lock(box.id):
        live = node.live.get(box.id)
    if live is not None and live.client is not None:
        await live.client.wait_lost()
    await node.lose(box.id, "late")

    row = await present(server, box.id)
    assert row.status is SandboxStatus.FAILED
    assert await names(node) == set()
