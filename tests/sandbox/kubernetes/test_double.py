"""The double itself: other programs take it for a cluster."""

import asyncio
import json
from pathlib import Path

import pytest

from sandbox import kubernetes_boot as boot
from sandbox import kubernetes_pod as pods
from sandbox.kubernetes_pod import KubernetesOptions
from tests.sandbox.conftest import Boxes
from tests.sandbox.kubernetes.conftest import options
from tests.servers import require
from tests.servers.kubernetes import NAMESPACE, Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


def test_the_double_serves_the_namespace_of_the_options() -> None:
    assert KubernetesOptions().namespace == NAMESPACE


async def test_kubectl_takes_the_double_for_a_cluster(
    cluster: Kubernetes, podded: Boxes, tmp_path: Path
) -> None:
    """Another client's view of the protocol; and a Pod waits for whoever attaches first."""
    program = (await asyncio.to_thread(require, "kubectl"))["NOOSPHERE_TEST_KUBECTL"]
    kubectl = (program, "--kubeconfig", str(cluster.kubeconfig), "--namespace", NAMESPACE)
    kubectl += ("--cache-dir", str(tmp_path / "cache"), "--request-timeout", "30s")

    async def run(*words: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *kubectl, *words, stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(40):
            out, _ = await process.communicate()
        assert process.returncode == 0
        return out

    spec = podded.spec(sandbox_id="by-kubectl")
    body = pods.manifest(spec, options(cluster), uid=pods.UID_BASE, creation="x")
    name = body["metadata"]["name"]
    path = tmp_path / "pod.json"
    path.write_text(json.dumps(body))
    await run("create", "--validate=false", "-f", str(path))
    await run("wait", "--for=jsonpath={.status.phase}=Running", "pod", name, "--timeout=20s")
    assert b"by-kubectl" in await run("get", "pods", "-L", pods.ID)
    attached = await asyncio.create_subprocess_exec(
        *kubectl, "attach", "--stdin", "--quiet", name,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert attached.stdin is not None
    assert attached.stdout is not None
    agent = b"import os; os.write(1, b'hello ' + os.read(0, 99))"
    async with asyncio.timeout(40):
        attached.stdin.write(boot.MAGIC)
        head = await attached.stdout.readexactly(len(boot.MAGIC) + 4)
        report = await attached.stdout.readexactly(int.from_bytes(head[-4:], "big"))
        assert b"Seccomp=2" in report
        attached.stdin.write(len(agent).to_bytes(4, "big") + agent + b"world")
        assert await attached.stdout.read() == b"hello world"
        assert await attached.wait() == 0
    await run("delete", "pod", name, "--grace-period=1")
    assert cluster.pods == {}
