"""The Kubernetes driver's parts that need no cluster."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sandbox import kubernetes_boot as boot
from sandbox import kubernetes_checks as checks
from sandbox import kubernetes_pod as pods
from sandbox.base import SandboxSpec
from sandbox.errors import (
    DriverUnavailableError,
    InvalidArgumentError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from sandbox.kubernetes_api import StatusError, translate
from sandbox.kubernetes_cluster import is_image_name, quantity
from sandbox.kubernetes_pod import KubernetesOptions
from sandbox.limits import Limits
from sandbox.policy import Policy
from tests.servers import kubernetes_rules as rules
from tests.servers.kubelet import expand
from tests.servers.kubernetes import DIGEST

_IDS = some.text(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=64
)
FOUND = {
    "python": "3.11",
    "Uid": "1000000007",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "cgroup.memory": str(512 << 20),
    "cgroup.cpu": "100000 100000",
    "cpus": "8",
    "size./workspace": str(256 << 20),
    "size./tmp": str(64 << 20),
    "root.readonly": "1",
    "token": "0",
    "network": "0",
}


# The first program of a Pod.


def test_the_first_program_is_python_3_8_of_the_standard_library() -> None:
    tree = ast.parse(pods.BOOT, feature_version=(3, 8))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


def test_the_first_program_passes_through_the_expansion_of_commands() -> None:
    assert "$" not in pods.BOOT
    assert expand(pods.BOOT, {"PATH": "elsewhere"}) == pods.BOOT
    assert len(pods.BOOT.encode()) < 120 * 1024


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"", b"The channel ended"),
        (b"\0" * 300_000, b"does not speak this protocol"),
        (boot.MAGIC + b"\xff\xff\xff\xff", b"larger than any agent"),
        (boot.MAGIC + b"\0\0\0\x09only", b"The channel ended"),
    ],
)
def test_the_first_program_ends_where_no_agent_comes(
    sent: bytes, complaint: bytes, tmp_path: Path
) -> None:
    # It measures /workspace, which this machine need not have.
    program = pods.BOOT.replace("/workspace", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        input=sent,
        capture_output=True,
        timeout=30,
        env={},
        check=False,
    )
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_first_program_becomes_what_it_is_sent(tmp_path: Path) -> None:
    agent = b"import os, sys\nos.write(1, repr((sys.argv[1:], dict(os.environ))).encode())"
    behind = b"print('not read')"
    agent += b"\nos.write(1, os.read(0, 99))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", pods.BOOT.replace("/workspace", str(tmp_path)), "a=b"],
        input=boot.MAGIC + len(agent).to_bytes(4, "big") + agent + behind,
        capture_output=True,
        timeout=30,
        env={"KUBERNETES_SERVICE_HOST": "", "SECRET": "x"},
        check=True,
    )
    assert done.stdout.startswith(boot.MAGIC)
    size = int.from_bytes(done.stdout[8:12], "big")
    found = checks.parse(done.stdout[12 : 12 + size])
    assert found["Uid"] == str(os.geteuid())
    assert found["network"] == "0"
    said = done.stdout[12 + size :]
    assert said.startswith(b"(['a=b'], {")
    assert b"SECRET" not in said
    assert said.endswith(behind)


# What a Pod found.


def test_a_pod_as_it_was_asked_for_has_no_fault() -> None:
    assert checks.broken(FOUND, Limits(), KubernetesOptions(), uid=1_000_000_007) == {}


@pytest.mark.parametrize(
    ("changes", "item"),
    [
        ({"Uid": "0"}, "uid"),
        ({"CapEff": "00000000a80425fb"}, "isolation"),
        ({"CapBnd": "0000000000000001"}, "isolation"),
        ({"NoNewPrivs": "0"}, "isolation"),
        ({"root.readonly": "0"}, "isolation"),
        ({"token": "1"}, "isolation"),
        ({"Seccomp": "0"}, "syscalls"),
        ({"network": "1"}, "network"),
        ({"cgroup.memory": "max"}, "memory"),
        ({"cgroup.memory": "9223372036854771712"}, "memory"),
        ({"cgroup.memory": str(1 << 30)}, "memory"),
        ({"cgroup.cpu": "max 100000"}, "cpu"),
        ({"cgroup.cpu": "-1"}, "cpu"),
        ({"cgroup.cpu": "200000 100000"}, "cpu"),
        ({"size./workspace": str(8 << 30)}, "disk"),
        ({"size./tmp": str(8 << 30)}, "disk"),
    ],
)
def test_what_a_cluster_left_out_is_found(changes: dict[str, str], item: str) -> None:
    options = KubernetesOptions()
    found = checks.broken({**FOUND, **changes}, Limits(), options, uid=1_000_000_007)
    assert list(found) == [item]
    spec = SandboxSpec("x", "image", demanded=frozenset({item}))
    with pytest.raises(PolicyUnsupportedError, match=item):
        checks.refuse(found, spec)


def test_a_fault_in_what_nobody_asked_for_is_told_and_not_refused() -> None:
    faults = {"cpu": "its limit is max"}
    checks.refuse(faults, SandboxSpec("x", "image"))
    found = checks.capabilities(
        KubernetesOptions(), is_closed=True, faults=faults, can_resize=True, version="v1.34.0"
    )
    assert found.items["cpu"] == "UNAVAILABLE"
    assert "cpu: not enforced, its limit is max" in found.notes


def test_what_cannot_be_seen_is_not_held_against_a_pod() -> None:
    unseen = {**FOUND, "Seccomp": "0", "cgroup.memory": "", "cgroup.cpu": ""}
    options = KubernetesOptions(runtime_class="gvisor")
    assert checks.broken(unseen, Limits(), options, uid=1_000_000_007) == {}
    # A whole CPU given away instead of counted.
    given = {**FOUND, "cgroup.cpu": "max 100000", "cpus": "1"}
    assert checks.broken(given, Limits(), KubernetesOptions(), uid=1_000_000_007) == {}


def test_an_old_python_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"3\.7"):
        checks.broken({**FOUND, "python": "3.7"}, Limits(), KubernetesOptions(), uid=1)
    with pytest.raises(TemplateError):
        checks.parse(b"\xff\xfe")


# The manifest.


@given(_IDS, some.dictionaries(some.text(max_size=99), some.text(max_size=99), max_size=4))
def test_any_sandbox_is_a_valid_pod(sandbox_id: str, labels: dict[str, str]) -> None:
    spec = SandboxSpec(sandbox_id, "image", labels=labels)
    for options in (
        KubernetesOptions(),
        KubernetesOptions(seccomp_profile="", user_namespaces=True, runtime_class="gvisor"),
    ):
        pod = pods.manifest(spec, options, uid=pods.UID_BASE + pods.UID_COUNT - 1, creation="x")
        rules.check_fields("V1Pod", pod)
        rules.check_pod(pod)
        rules.check_security(pod)
        handle = pods.handle(pod)
        assert (handle.sandbox_id, handle.labels) == (sandbox_id, labels)
        assert handle.limits == spec.limits
        assert rules.selected(pod["metadata"]["labels"], pods.selector(labels))


@given(_IDS, _IDS)
def test_pods_of_different_sandboxes_have_different_names(one: str, two: str) -> None:
    assert (pods.pod_name(one) == pods.pod_name(two)) == (one == two)


def test_the_rules_of_the_double_have_teeth() -> None:
    spec = SandboxSpec("x", "image")
    good = pods.manifest(spec, KubernetesOptions(), uid=pods.UID_BASE, creation="x")
    for path, value, check in (
        ("spec.containers.0.tmpfs", {}, "fields"),
        ("spec.containers.0.stdin", "yes", "fields"),
        ("spec.volumes.0.emptyDir.size", 1, "fields"),
        ("spec.dnsConfig", {}, "pod"),
        ("spec.securityContext.runAsUser", 2**31, "pod"),
        ("metadata.name", "Upper", "pod"),
        ("spec.hostPID", True, "security"),
        ("spec.containers.0.securityContext.capabilities", {}, "security"),
        ("spec.securityContext.seccompProfile", {"type": "Unconfined"}, "security"),
    ):
        pod = json.loads(json.dumps(good))
        *parents, last = path.split(".")
        thing = pod
        for part in parents:
            thing = thing[int(part)] if part.isdigit() else thing[part]
        thing[last] = value
        with pytest.raises(rules.Refusal):
            {
                "fields": lambda pod: rules.check_fields("V1Pod", pod),
                "pod": rules.check_pod,
                "security": rules.check_security,
            }[check](pod)


def test_a_pinned_image_is_asked_for_by_its_digest() -> None:
    spec = SandboxSpec("x", "registry:5000/one:2", image_digest=DIGEST)
    pod = pods.manifest(spec, KubernetesOptions(), uid=1, creation="x")
    assert pod["spec"]["containers"][0]["image"] == f"registry:5000/one:2@{DIGEST}"
    pinned = replace(spec, image=f"one@{DIGEST}")
    pod = pods.manifest(pinned, KubernetesOptions(), uid=1, creation="x")
    assert pod["spec"]["containers"][0]["image"] == f"one@{DIGEST}"


def test_secrets_are_not_in_the_pod() -> None:
    spec = SandboxSpec("x", "image", policy=Policy(env={"TOKEN": "hidden-word"}))
    pod = pods.manifest(spec, KubernetesOptions(), uid=1, creation="x")
    assert "hidden-word" not in json.dumps(pod)


@pytest.mark.parametrize(
    ("image", "is_name"),
    [
        ("python:3.13-slim", True),
        ("registry.example:5000/team/one:2", True),
        (f"one@{DIGEST}", True),
        ("", False),
        ("one two", False),
        ("one;two", False),
        ("/one", False),
        ("one@sha256:12", False),
        ("x" * 600, False),
    ],
)
def test_names_of_images(image: str, is_name: bool) -> None:
    assert is_image_name(image) is is_name


# Errors and amounts.


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (401, "Unauthorized", DriverUnavailableError),
        (403, "pods is forbidden: cannot create", DriverUnavailableError),
        (403, 'violates PodSecurity "restricted:latest"', PolicyUnsupportedError),
        (403, "exceeded quota: sandboxes", ResourceExhaustedError),
        (403, "maximum memory usage per Container is 1Gi", ResourceExhaustedError),
        (422, 'Pod "x" is invalid: spec.containers[0].image', InvalidArgumentError),
        (400, 'strict decoding error: unknown field "spec.hostUsers"', InvalidArgumentError),
        (429, "too many requests", ResourceExhaustedError),
        (500, "etcdserver: leader changed in /var/lib/etcd", DriverUnavailableError),
    ],
)
def test_errors_of_a_cluster_in_our_words(
    status: int, message: str, expected: type[SandboxError]
) -> None:
    error = translate(StatusError(status, "", message), "create sandboxes")
    assert type(error) is expected
    assert "/var/lib" not in error.message
    if isinstance(error, ResourceExhaustedError) and status == 403:
        assert error.resource is Resource.QUOTA


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0", 0),
        ("123", 123),
        ("5Ki", 5120),
        ("2Mi", 2 << 20),
        ("1Gi", 1 << 30),
        ("7M", 7_000_000),
        ("-1", 0),
        ("1.5Gi", 0),
        ("many", 0),
    ],
)
def test_amounts(text: str, bytes_: int) -> None:
    assert quantity(text) == bytes_
