"""What a driver of Kubernetes can do, depending on its cluster."""

from dataclasses import replace

import pytest

from sandbox import kubernetes_pod as pods
from sandbox.base import Enforcement
from sandbox.client import SandboxClient
from sandbox.errors import (
    NotFoundError,
    PolicyUnsupportedError,
    ResourceExhaustedError,
)
from sandbox.limits import Limits
from tests.sandbox.conftest import MIB, Box, Boxes
from tests.sandbox.kubernetes.conftest import driven
from tests.servers.kubernetes import Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


async def test_nothing_can_be_paused(podded: Boxes) -> None:
    box = await podded.make()
    with pytest.raises(PolicyUnsupportedError, match="cannot pause"):
        await podded.driver.pause(box.id)
    await podded.driver.resume(box.id)
    assert (await podded.driver.capabilities()).items["pause"] is Enforcement.UNAVAILABLE
    with pytest.raises(NotFoundError):
        await podded.driver.resume("never-was")


async def test_memory_and_cpu_change_where_the_cluster_can(
    cluster: Kubernetes, podded: Boxes
) -> None:
    limits = Limits(memory_bytes=1024 * MIB, disk_bytes=32 * MIB, pids=64)
    box = await podded.make(limits=limits)
    wanted = replace(limits, memory_bytes=2048 * MIB, cpu_millis=2000)
    assert await podded.driver.update(box.id, limits=wanted) == wanted
    container = cluster.pods[pods.pod_name(box.id)]["spec"]["containers"][0]
    assert container["resources"]["limits"]["cpu"] == "2000m"
    async with driven(cluster) as later:
        assert (await later.driver.connect(box.id)).limits == wanted
    cluster.room_bytes = 3 << 30
    with pytest.raises(ResourceExhaustedError, match="Infeasible"):
        await podded.driver.update(box.id, limits=replace(wanted, memory_bytes=4096 * MIB))
    assert container["resources"]["limits"]["memory"] == str(2048 * MIB)
    assert (await podded.driver.connect(box.id)).limits == wanted
    for change in ({"pids": 65}, {"disk_bytes": 64 * MIB}, {"inodes": 99}):
        with pytest.raises(PolicyUnsupportedError):
            await podded.driver.update(box.id, limits=replace(wanted, **change))


async def test_older_clusters_change_nothing(cluster: Kubernetes) -> None:
    cluster.version = {"major": "1", "minor": "32+", "gitVersion": "v1.32.4-eks"}
    async with driven(cluster) as boxes:
        box = await boxes.make()
        wanted = replace(box.handle.limits, cpu_millis=2000)
        with pytest.raises(PolicyUnsupportedError, match="cpu_millis"):
            await boxes.driver.update(box.id, limits=wanted)
        assert (await boxes.driver.connect(box.id)).limits == box.handle.limits


async def test_memory_is_measured_where_there_is_a_metrics_server(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    assert (await podded.driver.stats(box.id)).memory_bytes is None
    cluster.metrics = {"cpu": "1234567n", "memory": "5Mi"}
    usage = await podded.driver.stats(box.id)
    assert (usage.memory_bytes, usage.cpu_ms) == (5 * MIB, None)


async def test_capabilities_are_told(cluster: Kubernetes, podded: Boxes) -> None:
    found = await podded.driver.capabilities()
    items = found.items
    for item in ("isolation", "network", "syscalls", "uid", "memory", "cpu", "pids", "disk"):
        assert items[item] is Enforcement.ENFORCED, item
    for item in ("inodes", "pause", "network_bandwidth", "disk_image"):
        assert items[item] is Enforcement.UNAVAILABLE, item
    assert found.notes[0] == "Kubernetes v1.34.1"
    assert (podded.driver.survives_server, podded.driver.has_images) == (True, True)
    async with driven(cluster, runtime_class="gvisor") as boxes:
        # Its kernel accepts the limit of processes and does not heed it.
        assert (await boxes.driver.capabilities()).items["pids"] is Enforcement.UNAVAILABLE


async def test_clients_take_a_sandbox_over_from_each_other(podded: Boxes) -> None:
    box = await podded.make()
    channel = await podded.driver.open_channel(box.id)
    second = await SandboxClient.connect(channel)
    assert box.client.is_lost
    _, out, _ = await Box(podded.driver, box.handle, second).run("echo mine")
    assert out == b"mine\n"
    await second.aclose()
