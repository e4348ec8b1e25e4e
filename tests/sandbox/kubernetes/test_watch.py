"""The watch of Pods goes on whatever becomes of it."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from sandbox import kubernetes as driver_module
from sandbox import kubernetes_pod as pods
from sandbox.base import DriverEventKind
from tests.sandbox.conftest import Boxes
from tests.sandbox.kubernetes.conftest import driven, soon
from tests.servers.kubernetes import Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


async def trouble_cut(cluster: Kubernetes) -> None:
    cluster.cut_watches()


async def trouble_end(cluster: Kubernetes) -> None:
    cluster.bookmark()
    cluster.end_watches()


async def trouble_expired(cluster: Kubernetes) -> None:
    cluster.compact()
    cluster.expire_watches()


async def trouble_expired_status(cluster: Kubernetes) -> None:
    cluster.expires_by_status = True
    cluster.compact()
    cluster.cut_watches()


@pytest.mark.parametrize(
    "trouble", [trouble_cut, trouble_end, trouble_expired, trouble_expired_status]
)
async def test_the_watch_goes_on_after_trouble(
    cluster: Kubernetes, podded: Boxes, trouble: Any
) -> None:
    box = await podded.make()
    await soon(cluster.watching)
    cluster.watching.clear()
    async with aclosing(podded.driver.events()) as events:
        await trouble(cluster)
        await soon(cluster.watching)
        cluster.end_container(pods.pod_name(box.id))
        async with asyncio.timeout(20):
            found = [await anext(events), await anext(events)]
    assert [(event.kind, event.sandbox_id) for event in found] == [
        (DriverEventKind.OOM, box.id),
        (DriverEventKind.DIED, box.id),
    ]


async def test_a_bookmark_is_where_the_watch_goes_on(cluster: Kubernetes, podded: Boxes) -> None:
    await soon(cluster.watching)
    cluster.watching.clear()
    cluster.compact()  # What came before the bookmark is forgotten; the bookmark is not.
    cluster.bookmark()
    cluster.end_watches()
    await soon(cluster.watching)
    assert cluster.watches[-1] == str(cluster._revision)
    assert len(cluster.watches) == 2


async def test_what_vanished_while_nobody_watched_is_told(
    cluster: Kubernetes, podded: Boxes
) -> None:
    box = await podded.make()
    async with aclosing(podded.driver.events()) as events:
        cluster.vanish(pods.pod_name(box.id))
        cluster.cut_watches()
        async with asyncio.timeout(20):
            event = await anext(events)
    assert (event.kind, event.sandbox_id) == (DriverEventKind.DIED, box.id)


async def test_creation_succeeds_beside_a_watch_that_is_dead(
    cluster: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_S", 0.05)
    cluster.access.denied.add(("watch", "pods"))
    async with driven(cluster) as boxes:
        box = await boxes.make()
        _, out, _ = await box.run("echo hello")
        assert out == b"hello\n"
        await boxes.driver.remove(box.id)
    assert cluster.pods == {}
