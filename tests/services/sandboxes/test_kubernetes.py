"""Sandboxes of a cluster, through the services: the third driver needs nothing of its own there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from models.states import ExecutionReason, RunState, SandboxStatus
from sandbox.base import SandboxSpec
from sandbox.kubernetes import KubernetesDriver
from sandbox.kubernetes_pod import KubernetesOptions
from services.errors import UserError, UserErrorCode
from services.options import Options
from services.sandboxes import executions, lifecycle, output
from services.sandboxes.clusters import kubernetes_options
from services.sandboxes.live import INSTALLATION_LABEL, installation
from services.sandboxes.wishes import Security
from tests.servers.kubernetes import Kubernetes
from tests.services.sandboxes.conftest import Launch, finished, present, ran

pytestmark = pytest.mark.bubblewrap


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Kubernetes]:
    async with Kubernetes(tmp_path) as cluster:
        yield cluster


def driver(cluster: Kubernetes) -> KubernetesDriver:
    return KubernetesDriver(KubernetesOptions(kubeconfig=str(cluster.kubeconfig)))


async def test_a_sandbox_of_a_cluster_lives_through_a_crash_of_the_server(
    cluster: Kubernetes, launch: Launch
) -> None:
    server = await launch(driver(cluster), sandbox_template_image="sandbox:1")
    ada = await server.person("ada")
    box = await lifecycle.create(
        server.deps, ada, security=Security(env_variables={"WORD": "kept"})
    )
    done = await ran(server.deps, ada, box.id, "echo $WORD; echo file > /workspace/f")
    assert (done.stdout, done.reason) == ("kept\n", ExecutionReason.EXITED)
    running = await executions.execute(
        server.deps,
        ada,
        sandbox_id=box.id,
        command="echo begun; until [ -e /workspace/go ]; do sleep 0.02; done; echo ended",
        timeout_s=600,
    )
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(server.deps, ada, running.id)) as items,
    ):
        await anext(items)  # Else it would begin after the crash.
    await server.crash()
    assert len(cluster.pods) == 1

    again = await launch(driver(cluster), sandbox_template_image="sandbox:1")
    row = await present(again, box.id)
    assert (row.status, row.driver) == (SandboxStatus.RUNNING, "kubernetes")
    # The environment is not in the cluster, and is there all the same.
    done = await ran(again.deps, ada, box.id, "echo $WORD; cat /workspace/f; touch /workspace/go")
    ended = await finished(again.deps, ada, running.id)
    assert (ended.status, ended.stdout) == (RunState.COMPLETED, "begun\nended\n")
    assert done.stdout == "kept\nfile\n"
    await lifecycle.stop(again.deps, ada, sandbox_id=box.id)
    assert cluster.pods == {}


async def test_what_a_cluster_refuses_reaches_the_user_in_words(
    cluster: Kubernetes, launch: Launch
) -> None:
    server = await launch(driver(cluster), sandbox_template_image="sandbox:1")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    with pytest.raises(UserError, match="cannot pause") as refused:
        await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    assert refused.value.code is UserErrorCode.INVALID
    cluster.quota = {"pods": "1"}
    with pytest.raises(UserError, match="quota") as refused:
        await lifecycle.create(server.deps, ada)
    assert refused.value.code is UserErrorCode.LIMIT
    cluster.quota = {}
    cluster.network_is_open = True
    with pytest.raises(UserError, match="API server can be reached") as refused:
        await lifecycle.create(server.deps, ada)
    assert refused.value.code is UserErrorCode.INVALID
    done = await ran(server.deps, ada, box.id, "echo still here")
    assert done.stdout == "still here\n"


async def test_pods_that_no_row_speaks_of_are_removed_at_the_next_start(
    cluster: Kubernetes, launch: Launch
) -> None:
    server = await launch(driver(cluster), sandbox_template_image="sandbox:1")
    ada = await server.person("ada")
    kept = await lifecycle.create(server.deps, ada)
    labels = {INSTALLATION_LABEL: installation(server.deps)}
    first = driver(cluster)
    try:
        await first.create(SandboxSpec("left", "sandbox:1", labels=labels))
        await first.create(SandboxSpec("foreign", "sandbox:1", labels={"installation": "other"}))
    finally:
        await first.aclose()
    await server.crash()
    assert len(cluster.pods) == 3
    again = await launch(driver(cluster), sandbox_template_image="sandbox:1")
    found = await again.host._node.driver.list({})  # type: ignore[union-attr]
    assert {info.sandbox_id for info in found} == {kept.id, "foreign"}


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("noosphere/sandbox.json", ("noosphere/sandbox.json", False)),
        ("runtime/default", ("", True)),
    ],
)
def test_the_configuration_reaches_the_driver(profile: str, expected: tuple[str, bool]) -> None:
    options = kubernetes_options(
        Options(
            kubernetes_namespace="guests",
            kubernetes_context="",
            kubernetes_runtime_class="gvisor",
            kubernetes_image_pull_secret="secret",
            kubernetes_service_account="account",
            kubernetes_seccomp_profile=profile,
        )
    )
    assert (options.seccomp_profile, options.accepts_default_seccomp) == expected
    assert (options.namespace, options.context, options.runtime_class) == ("guests", None, "gvisor")
    assert (options.image_pull_secret, options.service_account) == ("secret", "account")
