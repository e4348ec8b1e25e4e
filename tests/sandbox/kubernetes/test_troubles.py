"""What keeps a Pod from starting, and what a cluster refuses, is told by name."""

from pathlib import Path

import pytest

from sandbox import kubernetes_pod as pods
from sandbox.errors import (
    DriverUnavailableError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from sandbox.kubernetes import KubernetesDriver
from sandbox.kubernetes_pod import KubernetesOptions
from tests.sandbox.conftest import Boxes
from tests.sandbox.kubernetes.conftest import driven, options
from tests.servers.kubernetes import Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


@pytest.mark.parametrize(
    ("oddity", "expected", "named"),
    [
        ({"StartError": 'exec: "python3": executable file not found'}, TemplateError, "python3"),
        (
            {"CreateContainerError": "cannot load seccomp profile /var/lib/kubelet/seccomp/x"},
            DriverUnavailableError,
            r"seccomp\.yaml",
        ),
        ({"CreateContainerError": "unable to apply cgroup"}, TemplateError, "cannot start"),
    ],
)
async def test_containers_that_cannot_start_are_refused(
    cluster: Kubernetes,
    podded: Boxes,
    oddity: dict[str, str],
    expected: type[SandboxError],
    named: str,
) -> None:
    cluster.oddities = oddity
    with pytest.raises(expected, match=named) as refused:
        await podded.make()
    assert "/var/lib" not in refused.value.message
    assert cluster.pods == {}


async def test_an_image_that_is_not_there_is_refused(cluster: Kubernetes, podded: Boxes) -> None:
    with pytest.raises(TemplateError, match="pull"):
        await podded.make(image="no-such-image")
    assert cluster.pods == {}
    with pytest.raises(TemplateError, match="no name"):
        await podded.make(image="no such image")


async def test_a_full_cluster_says_so(cluster: Kubernetes) -> None:
    cluster.is_full = True
    async with driven(cluster, start_timeout_s=0.3) as boxes:
        with pytest.raises(ResourceExhaustedError, match="Insufficient memory") as refused:
            await boxes.make()
        assert refused.value.resource is Resource.HOST
    assert cluster.pods == {}


async def test_a_quota_says_so(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.quota = {"pods": "1"}
    box = await podded.make()
    with pytest.raises(ResourceExhaustedError, match="exceeded quota") as refused:
        await podded.make()
    assert refused.value.resource is Resource.QUOTA
    assert list(cluster.pods) == [pods.pod_name(box.id)]


async def test_what_the_account_may_not_do_is_named(cluster: Kubernetes) -> None:
    async with driven(cluster) as boxes:
        await boxes.driver.check()  # With the roles of deploy/kubernetes it may.
        cluster.access.denied |= {("create", "pods/attach"), ("delete", "pods")}
        with pytest.raises(DriverUnavailableError, match="delete pods, create pods/attach"):
            await boxes.driver.check()
    cluster.access.denied = {("create", "pods")}
    async with driven(cluster) as boxes:
        with pytest.raises(DriverUnavailableError, match="may not create sandboxes"):
            await boxes.make()
    cluster.access.denied = {("watch", "pods"), ("list", "pods")}
    with pytest.raises(DriverUnavailableError, match=r"access\.yaml"):
        await KubernetesDriver(options(cluster)).start()


async def test_a_namespace_or_runtime_class_that_is_not_there_is_named(
    cluster: Kubernetes,
) -> None:
    async with driven(cluster, runtime_class="gvisor") as boxes:
        with pytest.raises(DriverUnavailableError, match="no RuntimeClass gvisor"):
            await boxes.driver.check()
        with pytest.raises(DriverUnavailableError, match="RuntimeClass"):
            await boxes.make()
    cluster.namespaces.clear()
    async with driven(cluster) as boxes:
        with pytest.raises(DriverUnavailableError, match=r"namespace\.yaml"):
            await boxes.make()


async def test_credentials_that_expire_are_loaded_anew(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.token = "second-token"
    cluster.write_kubeconfig()
    box = await podded.make()
    cluster.token = "third-token"
    cluster.write_kubeconfig()
    await podded.client(box.id)  # By a request for an upgrade this time.
    cluster.token = "fourth-token"
    with pytest.raises(DriverUnavailableError, match="credentials"):
        await podded.driver.list({})
    cluster.write_kubeconfig()
    assert len(await podded.driver.list({})) == 1


async def test_a_busy_server_is_asked_again(cluster: Kubernetes, podded: Boxes) -> None:
    cluster.busy = 2
    assert await podded.driver.list({}) == []
    cluster.busy = 100
    with pytest.raises(ResourceExhaustedError, match="busy"):
        await podded.driver.list({})
    cluster.busy = 0


async def test_a_cluster_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with Kubernetes(tmp_path) as cluster:
        driver = KubernetesDriver(options(cluster))
        await driver.start()
    try:
        with pytest.raises(DriverUnavailableError, match="does not answer"):
            await driver.list({})
        assert (await driver.capabilities()).unavailable
    finally:
        await driver.aclose()
    with pytest.raises(DriverUnavailableError, match="does not answer"):
        await KubernetesDriver(options(cluster)).start()


async def test_no_configuration_is_unavailable(tmp_path: Path) -> None:
    driver = KubernetesDriver(KubernetesOptions(kubeconfig=str(tmp_path / "none")))
    with pytest.raises(DriverUnavailableError, match="No Kubernetes cluster"):
        await driver.check()
    assert (await driver.capabilities()).unavailable
