"""The files of deploy/kubernetes, and what the driver says without a cluster."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sandbox import kubernetes_checks as checks
from sandbox import kubernetes_pod as pods
from sandbox.kubernetes_pod import KubernetesOptions
from sandbox.select import choose, report
from tests.servers import kubernetes_rules as rules
from tests.servers.kubernetes import MANIFESTS


def manifests() -> list[dict[str, Any]]:
    return [
        thing
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for thing in yaml.safe_load_all(path.read_text())
    ]


# NetworkPolicies.


CLOSED = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize(
    ("specs", "is_closed"),
    [
        ([CLOSED], True),
        ([], False),
        ([{**CLOSED, "policyTypes": ["Ingress"]}], False),
        ([{**CLOSED, "policyTypes": ["Ingress"]}, {**CLOSED, "policyTypes": ["Egress"]}], True),
        ([{**CLOSED, "egress": [{"to": [{}]}]}], False),
        ([CLOSED, {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}], False),
        ([{**CLOSED, "podSelector": {"matchLabels": {"app": "other"}}}], False),
        ([{**CLOSED, "podSelector": {"matchLabels": pods.MANAGED}}], True),
        (
            [
                {
                    **CLOSED,
                    "podSelector": {"matchExpressions": [{"key": pods.ID, "operator": "Exists"}]},
                }
            ],
            True,
        ),
        (
            [
                CLOSED,
                {
                    "podSelector": {"matchLabels": {"app": "other"}},
                    "policyTypes": ["Egress"],
                    "egress": [{}],
                },
            ],
            True,
        ),
    ],
)
def test_a_namespace_is_closed_when_every_way_is(
    specs: list[dict[str, Any]], is_closed: bool
) -> None:
    assert checks.denies_all({"items": [{"spec": spec} for spec in specs]}) is is_closed


# The files to install.


def test_the_manifests_are_what_the_api_knows() -> None:
    found = manifests()
    kinds = {
        "Namespace": "V1Namespace",
        "ServiceAccount": "V1ServiceAccount",
        "Role": "V1Role",
        "RoleBinding": "V1RoleBinding",
        "ClusterRole": "V1ClusterRole",
        "ClusterRoleBinding": "V1ClusterRoleBinding",
        "NetworkPolicy": "V1NetworkPolicy",
        "ResourceQuota": "V1ResourceQuota",
        "RuntimeClass": "V1RuntimeClass",
        "DaemonSet": "V1DaemonSet",
    }
    assert {thing["kind"] for thing in found} == {*kinds, "Kustomization"}
    for thing in found:
        if thing["kind"] in kinds:
            rules.check_fields(kinds[thing["kind"]], thing)


def test_the_namespace_of_sandboxes_is_closed_and_restricted() -> None:
    by_kind = {
        (thing["kind"], thing["metadata"]["name"]): thing
        for thing in manifests()[:]
        if "metadata" in thing
    }
    namespace = by_kind["Namespace", KubernetesOptions().namespace]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = [thing for thing in by_kind.values() if thing["kind"] == "NetworkPolicy"]
    assert {policy["metadata"]["namespace"] for policy in policies} == {
        KubernetesOptions().namespace
    }
    assert checks.denies_all({"items": policies})
    for thing in by_kind.values():
        for rule in thing.get("rules", ()):
            assert "*" not in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
            assert "secrets" not in rule["resources"]


def test_the_profile_to_install_is_the_policy() -> None:
    path = MANIFESTS / "seccomp-profile.json"
    assert json.loads(path.read_text()) == pods.seccomp_profile(), (
        f"Write {path.name} anew: json.dumps(sandbox.kubernetes_pod.seccomp_profile(), indent=1)"
    )
    kustomization = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    assert generated["files"] == [f"sandbox.json={path.name}"]
    named = set(kustomization["resources"])
    assert named <= {path.name for path in MANIFESTS.iterdir()}
    assert KubernetesOptions().seccomp_profile == "noosphere/sandbox.json"


# Choosing.


async def test_without_its_client_kubernetes_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("sandbox.kubernetes")]:
        if name not in ("sandbox.kubernetes_pod", "sandbox.kubernetes_boot"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio", None)
    monkeypatch.setitem(sys.modules, "kubernetes_asyncio.client", None)
    driver, why = await choose("kubernetes", docker_image="x", docker_url=None, state_dir=tmp_path)
    assert driver is None
    assert "pip install 'kubernetes-asyncio" in why
    *_, found = sorted(
        await report(
            docker_url=f"unix://{tmp_path}/none",
            state_dir=tmp_path,
            kubernetes=KubernetesOptions(),
        ),
        key=lambda found: found.driver == "kubernetes",
    )
    assert "pip install" in (found.unavailable or "")


async def test_a_cluster_is_taken_only_by_name(tmp_path: Path) -> None:
    options = KubernetesOptions(kubeconfig=str(tmp_path / "none"))
    driver, why = await choose(
        "kubernetes", docker_image="x", docker_url=None, state_dir=tmp_path, kubernetes=options
    )
    assert driver is None
    assert "No Kubernetes cluster is configured" in why
