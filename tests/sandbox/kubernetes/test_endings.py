"""Pods that end, whoever ended them."""

import asyncio
from contextlib import aclosing

import pytest

from sandbox import kubernetes as driver_module
from sandbox import kubernetes_pod as pods
from sandbox.base import DriverEventKind, SandboxState
from sandbox.client import Reason
from sandbox.errors import (
    ConflictError,
    NotFoundError,
    TimeoutError_,
)
from tests.sandbox.conftest import Box, Boxes
from tests.sandbox.kubernetes.conftest import UNTIL_ENDED, soon
from tests.servers.kubernetes import Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


async def test_a_lost_stream_ends_executions_and_not_the_sandbox(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    await box.client.files.write("kept", b"in the sandbox")
    execution = await box.start("tail -f /dev/null")
    cluster.cut_attached()
    assert (await execution.result()).reason is Reason.SANDBOX_LOST
    assert box.client.is_lost
    again = Box(podded.driver, await podded.driver.connect(box.id), await podded.client(box.id))
    assert await again.client.files.read("kept") == b"in the sandbox"
    _, out, _ = await again.run(UNTIL_ENDED)
    assert out == b"ended\n"


@pytest.mark.parametrize("reason", ["OOMKilled", "Error"])
async def test_a_container_that_ends_is_lost(
    cluster: Kubernetes, podded: Boxes, reason: str
) -> None:
    box = await podded.make()
    execution = await box.start("sleep 600")
    async with aclosing(podded.driver.events()) as events:
        cluster.end_container(pods.pod_name(box.id), reason=reason)
        assert (await execution.result()).reason is Reason.SANDBOX_LOST
        async with asyncio.timeout(20):
            kinds = [(await anext(events)).kind]
            if reason == "OOMKilled":
                kinds.append((await anext(events)).kind)
    assert kinds == [DriverEventKind.OOM, DriverEventKind.DIED][reason != "OOMKilled" :]
    (info,) = await podded.driver.list(podded.run_label)
    assert info.state is SandboxState.STOPPED
    with pytest.raises(NotFoundError):
        await podded.driver.connect(box.id)
    with pytest.raises(ConflictError):
        await podded.driver.open_channel(box.id)
    await podded.driver.remove(box.id)
    assert cluster.pods == {}


async def test_an_eviction_is_an_end(cluster: Kubernetes, podded: Boxes) -> None:
    box = await podded.make()
    async with aclosing(podded.driver.events()) as events:
        cluster.evict(pods.pod_name(box.id))
        async with asyncio.timeout(20):
            event = await anext(events)
    assert (event.kind, event.sandbox_id) == (DriverEventKind.DIED, box.id)
    await box.client.wait_lost()


async def test_removal_waits_until_the_node_has_ended_the_processes(
    cluster: Kubernetes, podded: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_S", 0.05)
    box, other = await podded.make(), await podded.make()
    await podded.driver.stop(other.id)
    with pytest.raises(NotFoundError):
        await podded.driver.stop(other.id)
    await podded.driver.remove(other.id)
    await podded.driver.remove("never-was")
    cluster.node_answers = False
    monkeypatch.setattr(driver_module, "REMOVE_TIMEOUT_S", 0.3)
    with pytest.raises(TimeoutError_, match="node did not end"):
        await podded.driver.remove(box.id)
    (info,) = await podded.driver.list(podded.run_label)
    assert (info.sandbox_id, info.state) == (box.id, SandboxState.STOPPED)
    del cluster.pods[pods.pod_name(box.id)]
    await podded.driver.remove(box.id)


async def test_a_cancelled_creation_leaves_nothing(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.holds_creation = asyncio.Event()
    making = asyncio.ensure_future(podded.make())
    await soon(cluster.created)
    making.cancel()
    cluster.holds_creation.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert cluster.pods == {}
    cluster.holds_start = asyncio.Event()
    cluster.created.clear()
    making = asyncio.ensure_future(podded.make())
    await soon(cluster.created)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    cluster.holds_start.set()
    assert cluster.pods == {}
    assert await podded.driver.list({}) == []


async def test_a_pod_of_somebody_else_is_left_alone(cluster: Kubernetes, podded: Boxes) -> None:
    box = await podded.make()
    pod = cluster.pods[pods.pod_name(box.id)]
    del pod["metadata"]["annotations"][pods.ID]
    with pytest.raises(NotFoundError):
        await podded.driver.connect(box.id)
    with pytest.raises(NotFoundError):
        await podded.driver.remove(box.id)
    assert "deletionTimestamp" not in pod["metadata"]
    pod["metadata"]["annotations"][pods.ID] = box.id
