"""Pods are what was asked for, and are refused where they are not."""

import asyncio
from typing import Any

import pytest

from sandbox import kubernetes_pod as pods
from sandbox.base import Enforcement
from sandbox.errors import (
    PolicyUnsupportedError,
)
from sandbox.limits import Limits
from sandbox.policy import Policy
from tests.sandbox.conftest import MIB, Boxes
from tests.sandbox.kubernetes.conftest import IMAGE, driven
from tests.servers.kubernetes import DIGEST, MANIFESTS, Kubernetes

pytestmark = pytest.mark.bubblewrap  # In which the double's containers run.


async def test_the_pod_is_hardened(cluster: Kubernetes, podded: Boxes) -> None:
    limits = Limits(cpu_millis=1500, memory_bytes=256 * MIB, disk_bytes=32 * MIB, pids=40)
    box = await podded.make(limits=limits, policy=Policy(env={"SECRET": "hidden word"}))
    pod = cluster.pods[pods.pod_name(box.id)]
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    assert (spec["restartPolicy"], spec["automountServiceAccountToken"]) == ("Never", False)
    assert not any((spec["hostNetwork"], spec["hostPID"], spec["hostIPC"]))
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {
        "type": "Localhost",
        "localhostProfile": "noosphere/sandbox.json",
    }
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["memory"] == str(256 * MIB)
    assert container["resources"]["limits"]["cpu"] == "1500m"
    sizes = {
        volume["name"]: (volume["emptyDir"]["medium"], int(volume["emptyDir"]["sizeLimit"]))
        for volume in spec["volumes"]
    }
    assert sizes == {
        "workspace": ("Memory", 32 * MIB),
        "tmp": ("Memory", 32 * MIB),
        "shm": ("Memory", MIB),
    }
    assert 0 < spec["activeDeadlineSeconds"] <= 60 * 86400
    assert (container["stdin"], container["stdinOnce"], container["tty"]) == (True, False, False)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "hidden word" not in str(pod)
    # And as it is seen from inside.
    _, out, _ = await box.run(
        "df -B1 --output=size /workspace /tmp | tail -n +2; cat /proc/self/status; env; id -u"
    )
    assert out.split()[:2] == [str(32 * MIB).encode()] * 2
    assert b"CapEff:\t0000000000000000" in out
    assert b"NoNewPrivs:\t1" in out
    assert b"KUBERNETES" not in out
    assert out.split()[-1] == str(spec["securityContext"]["runAsUser"]).encode()


async def test_what_pods_cannot_ask_for_is_limited_all_the_same(podded: Boxes) -> None:
    box = await podded.make()
    program = (
        "import resource as r\n"
        "for name in ('NOFILE', 'CORE', 'MEMLOCK', 'MSGQUEUE', 'SIGPENDING', 'NPROC'):\n"
        "    print(*r.getrlimit(getattr(r, 'RLIMIT_' + name)))"
    )
    _, out, _ = await box.python(program)
    most = (1024, 0, 65536, 65536, 1024, 64)
    found = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert all(soft == hard <= limit for (soft, hard), limit in zip(found, most, strict=True))
    # RLIM_INFINITY is told as -1.
    assert min(min(pair) for pair in found) >= 0


async def test_options_reach_the_pod(cluster: Kubernetes) -> None:
    cluster.apply(MANIFESTS / "runtime-class.yaml")
    changes = {
        "runtime_class": "gvisor",
        "image_pull_secret": "registry",
        "service_account": "guests",
        "user_namespaces": True,
        "node_selector": {"pool": "guests"},
    }
    async with driven(cluster, **changes) as boxes:
        await boxes.driver.check()
        box = await boxes.make(image_digest=DIGEST)
        spec = cluster.pods[pods.pod_name(box.id)]["spec"]
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["serviceAccountName"] == "guests"
        assert spec["hostUsers"] is False
        assert spec["securityContext"]["runAsUser"] < 65536  # All that such a namespace has.
        assert spec["nodeSelector"]["pool"] == "guests"
        assert spec["containers"][0]["image"] == f"{IMAGE}@{DIGEST}"
        assert box.handle.image == IMAGE


async def test_every_sandbox_has_a_user_of_its_own(cluster: Kubernetes, podded: Boxes) -> None:
    await asyncio.gather(*(podded.make() for _ in range(4)))
    users = {pod["spec"]["securityContext"]["runAsUser"] for pod in cluster.pods.values()}
    assert len(users) == 4
    assert min(users) >= pods.UID_BASE
    assert max(users) < 2**31


async def test_the_digest_of_an_image_is_known_once_it_ran(podded: Boxes) -> None:
    assert await podded.driver.image_digest(IMAGE) is None
    await podded.make()
    assert await podded.driver.image_digest(IMAGE) == DIGEST
    assert await podded.driver.image_digest(f"other@{DIGEST}") == DIGEST


# What the cluster does not hold is found before any user code runs.


@pytest.mark.parametrize(
    ("wrong", "demanded", "named"),
    [
        ({"uid": 4711}, frozenset({"uid"}), "user 4711"),
        ({"size": 512 * MIB}, frozenset({"disk"}), "/tmp has"),
        ({"seccomp": False}, frozenset[str](), "no filter of system calls"),
    ],
)
async def test_a_pod_that_is_not_what_was_asked_for_is_refused(
    cluster: Kubernetes, podded: Boxes, wrong: dict[str, Any], demanded: frozenset[str], named: str
) -> None:
    cluster.oddities = wrong
    with pytest.raises(PolicyUnsupportedError, match=named):
        await podded.make(demanded=demanded)
    assert cluster.pods == {}
    items = (await podded.driver.capabilities()).items
    assert Enforcement.UNAVAILABLE in (items["uid"], items["disk"], items["syscalls"])


async def test_a_network_that_heeds_no_policy_is_refused(
    cluster: Kubernetes, podded: Boxes
) -> None:
    cluster.network_is_open = True
    with pytest.raises(PolicyUnsupportedError, match="API server can be reached"):
        await podded.make()
    assert cluster.pods == {}
    assert (await podded.driver.capabilities()).items["network"] is Enforcement.UNAVAILABLE


async def test_without_a_network_policy_nothing_is_made(cluster: Kubernetes) -> None:
    cluster.policies.clear()
    async with driven(cluster) as boxes:
        with pytest.raises(PolicyUnsupportedError, match="network"):
            await boxes.make()
        found = await boxes.driver.capabilities()
        assert found.items["network"] is Enforcement.UNAVAILABLE
        assert any("network-policy.yaml" in note for note in found.notes)
    assert "POST" not in "".join(cluster.log)


async def test_a_network_policy_that_cannot_be_seen_counts_as_none(cluster: Kubernetes) -> None:
    cluster.access.denied.add(("list", "networkpolicies"))
    async with driven(cluster) as boxes:
        found = await boxes.driver.capabilities()
        assert found.items["network"] is Enforcement.UNAVAILABLE
        assert any("unknown" in note for note in found.notes)
        with pytest.raises(PolicyUnsupportedError, match="network"):
            await boxes.make()


async def test_the_default_profile_is_refused_unless_accepted(cluster: Kubernetes) -> None:
    async with driven(cluster, seccomp_profile="") as boxes:
        with pytest.raises(PolicyUnsupportedError, match="syscalls"):
            await boxes.make()
    async with driven(cluster, seccomp_profile="", accepts_default_seccomp=True) as boxes:
        box = await boxes.make()
        context = cluster.pods[pods.pod_name(box.id)]["spec"]["securityContext"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


async def test_what_is_asked_for_and_cannot_be_held_is_refused(podded: Boxes) -> None:
    for changes in (
        {"demanded": frozenset({"inodes"})},
        {"disk": "image"},
        {"limits": Limits(network_bytes_per_s=1000)},
    ):
        with pytest.raises(PolicyUnsupportedError):
            await podded.make(**changes)
    assert await podded.driver.list({}) == []
