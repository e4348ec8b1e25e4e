"""The Kubernetes driver over a double that speaks the real protocol (tests/servers)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.kubernetes import KubernetesDriver
from sandbox.kubernetes_pod import KubernetesOptions
from tests.sandbox.conftest import Boxes
from tests.servers.kubernetes import Kubernetes

IMAGE = "sandbox:1"


UNTIL_ENDED = "while cat /proc/[0-9]*/comm 2>/dev/null | grep -qx tail; do :; done; echo ended"


def options(cluster: Kubernetes, **changes: Any) -> KubernetesOptions:
    values = {"kubeconfig": str(cluster.kubeconfig), "start_timeout_s": 30.0, **changes}
    return KubernetesOptions(**values)


@asynccontextmanager
async def driven(cluster: Kubernetes, **changes: Any) -> AsyncIterator[Boxes]:
    boxes = Boxes(KubernetesDriver(options(cluster, **changes)), IMAGE)
    try:
        await boxes.driver.start()
        yield boxes
    finally:
        await boxes.aclose()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with Kubernetes(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def podded(cluster: Kubernetes) -> AsyncIterator[Boxes]:
    async with driven(cluster) as boxes:
        yield boxes


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await event.wait()
