"""The hardened Pod that a sandbox is, and what can be read from one."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox import kubernetes_boot as boot
from sandbox import seccomp
from sandbox.base import SandboxHandle, SandboxSpec, SandboxState
from sandbox.errors import (
    DriverUnavailableError,
    NotFoundError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from sandbox.limits import MIB, Limits
from sandbox.policy import Policy

Pod = Mapping[str, Any]

DRIVER = "kubernetes"
CONTAINER = "sandbox"
PREFIX = "noosphere/"
ID = PREFIX + "sandbox"
LABELS = PREFIX + "labels"
LIMITS = PREFIX + "limits"
POLICY = PREFIX + "policy"
IMAGE = PREFIX + "image"
CREATION = PREFIX + "creation"
USER_LABEL = PREFIX + "label."
MANAGED = {"app.kubernetes.io/managed-by": "noosphere", "app.kubernetes.io/name": "sandbox"}

# Users of Pods; far from those that images and machines have, and wide, for they are drawn.
UID_BASE = 1_000_000_000
UID_COUNT = 1 << 30
NAMESPACED_UID = 65_532  # User namespaces of Pods have the first 65,536 users alone.
# What the container's log may take on its node: all that the agent sends passes through it.
LOG_BYTES = 1024 * MIB
SHM_BYTES = MIB
OOM_FILES = "/sys/fs/cgroup/memory/memory.oom_control,/sys/fs/cgroup/memory.events"
BOOT = Path(boot.__file__).read_text()

_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_PULLING = ("ErrImagePull",)  # Tried again by the node; the back-off says that it failed twice.
_NO_IMAGE = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_NOT_MADE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """Where and how Pods are made.

    `seccomp_profile` is the place of our profile below the kubelet's seccomp folder; without one
    the runtime's default profile is used, which only `accepts_default_seccomp` allows.
    `lifetime_s` is when the cluster itself ends a Pod that nobody ended.
    """

    namespace: str = "noosphere-sandboxes"
    kubeconfig: str | None = None  # None: the Pod's own account, else the usual file.
    context: str | None = None
    runtime_class: str = ""
    image_pull_secret: str = ""
    service_account: str = ""
    seccomp_profile: str = "noosphere/sandbox.json"
    accepts_default_seccomp: bool = False
    user_namespaces: bool = False
    node_selector: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 90.0
    lifetime_s: int = 30 * 86_400


# Names and labels.


def pod_name(sandbox_id: str) -> str:
    """A name that DNS allows; the digest keeps ids apart that differ in case alone."""
    readable = sandbox_id.lower().replace("_", "-").strip("-")[:40].rstrip("-")
    return f"noosphere-{readable or 'x'}-{_digest(sandbox_id)[:12]}"


def label_value(value: str) -> str:
    """The value where it is one that labels may have, else a digest that stands for it."""
    return value if _VALUE.fullmatch(value) else f"sha256-{_digest(value)[:48]}"


def selector(labels: Mapping[str, str]) -> str:
    """The label selector of all sandboxes with these labels."""
    return ",".join([ID, *(f"{key}={value}" for key, value in _user_labels(labels).items())])


def _user_labels(labels: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for key, value in labels.items():
        name = key if _VALUE.fullmatch(key) and len(key) <= 56 else _digest(key)[:48]
        found[USER_LABEL + name] = label_value(value)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# The manifest.


def manifest(
    spec: SandboxSpec, options: KubernetesOptions, *, uid: int, creation: str
) -> dict[str, Any]:
    """The Pod of a sandbox. `creation` tells this attempt from others with the same id."""
    image = spec.image
    if spec.image_digest and "@" not in image:
        image = f"{image}@{spec.image_digest}"
    body: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "hostname": "sandbox",
        # A resolver of its own, where nothing answers: the cluster's names are not for guests.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "terminationGracePeriodSeconds": 1,  # The agent ignores SIGTERM.
        "activeDeadlineSeconds": options.lifetime_s,
        "nodeSelector": {"kubernetes.io/os": "linux", **options.node_selector},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": uid,
            "fsGroup": uid,
            "seccompProfile": _seccomp(options),
        },
        "containers": [_container(spec, image)],
        "volumes": [
            {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": str(size)}}
            for name, _, size in _volumes(spec.limits)
        ],
    }
    if options.runtime_class:
        body["runtimeClassName"] = options.runtime_class
    if options.image_pull_secret:
        body["imagePullSecrets"] = [{"name": options.image_pull_secret}]
    if options.service_account:
        body["serviceAccountName"] = options.service_account
    if options.user_namespaces:
        body["hostUsers"] = False
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(spec.sandbox_id),
            "namespace": options.namespace,
            "labels": {
                **MANAGED,
                ID: label_value(spec.sandbox_id),
                **_user_labels(spec.labels),
            },
            "annotations": {
                ID: spec.sandbox_id,
                LABELS: json.dumps(dict(spec.labels)),
                LIMITS: json.dumps(asdict(spec.limits)),
                # Everybody who may look at Pods reads these: no environment, which has secrets.
                POLICY: json.dumps(spec.policy.to_json(with_env=False)),
                IMAGE: spec.image,
                CREATION: creation,
            },
        },
        "spec": body,
    }


def _container(spec: SandboxSpec, image: str) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-I", "-S", "-B", "-c", BOOT],
        "args": [f"oom={OOM_FILES}", f"nproc={spec.limits.pids}"],
        "workingDir": "/workspace",
        "stdin": True,
        "stdinOnce": False,  # Else the first server to let go would end the sandbox.
        "tty": False,
        "env": [
            {"name": "PATH", "value": "/usr/local/bin:/usr/bin:/bin"},
            {"name": "LANG", "value": "C.UTF-8"},
        ],
        "resources": resources(spec.limits),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": name, "mountPath": path} for name, path, _ in _volumes(spec.limits)
        ],
    }


def resources(limits: Limits) -> dict[str, dict[str, str]]:
    """Requests that are the limits: the Pod is of class Guaranteed, which swaps nothing."""
    amounts = {
        "cpu": f"{limits.cpu_millis}m",
        "memory": str(limits.memory_bytes),
        "ephemeral-storage": str(LOG_BYTES),
    }
    return {"requests": amounts, "limits": dict(amounts)}


def _volumes(limits: Limits) -> tuple[tuple[str, str, int], ...]:
    return (
        ("workspace", "/workspace", limits.disk_bytes),
        ("tmp", "/tmp", limits.tmp_bytes),  # noqa: S108 - inside the sandbox.
        ("shm", "/dev/shm", SHM_BYTES),  # noqa: S108
    )


def _seccomp(options: KubernetesOptions) -> dict[str, str]:
    if options.seccomp_profile:
        return {"type": "Localhost", "localhostProfile": options.seccomp_profile}
    return {"type": "RuntimeDefault"}


# What a Pod tells.


def uid_of(pod: Pod) -> int | None:
    context = pod["spec"].get("securityContext") or {}
    uid = context.get("runAsUser")
    return uid if isinstance(uid, int) else None


def annotations(pod: Pod) -> Mapping[str, str]:
    return pod["metadata"].get("annotations") or {}


def handle(pod: Pod) -> SandboxHandle:
    """The sandbox that a Pod is; without its environment, which is not written there.

    Raises NotFoundError for a Pod that is none.
    """
    notes = annotations(pod)
    try:
        return SandboxHandle(
            sandbox_id=notes[ID],
            driver=DRIVER,
            image=notes[IMAGE],
            limits=Limits(**json.loads(notes[LIMITS])),
            policy=Policy.from_json(json.loads(notes[POLICY])),
            labels=dict(json.loads(notes[LABELS])),
            created_at=created_at(pod),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise NotFoundError("There is no such sandbox.") from error


def created_at(pod: Pod) -> datetime:
    stamp = pod["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(stamp) if stamp else datetime.now(UTC)


def labels_of(pod: Pod) -> dict[str, str]:
    try:
        return dict(json.loads(annotations(pod).get(LABELS, "{}")))
    except ValueError:
        return {}


def container_status(pod: Pod) -> Mapping[str, Any]:
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status.get("name") == CONTAINER:
            return dict(status)
    return {}


def state(pod: Pod) -> SandboxState:
    """RUNNING while its container runs; Pods cannot be paused."""
    if pod["metadata"].get("deletionTimestamp"):
        return SandboxState.STOPPED
    is_running = "running" in (container_status(pod).get("state") or {})
    return SandboxState.RUNNING if is_running else SandboxState.STOPPED


def has_ended(pod: Pod) -> bool:
    """Whether the sandbox runs no more and never will.

    A Pod into which the cluster put a container of its own may live on without it.
    """
    if "terminated" in (container_status(pod).get("state") or {}):
        return True
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def out_of_memory(pod: Pod) -> bool:
    ended = (container_status(pod).get("state") or {}).get("terminated") or {}
    return ended.get("reason") == "OOMKilled"


def failure(pod: Pod) -> SandboxError | None:
    """Why a Pod will never run, or None while it may."""
    status = pod.get("status") or {}
    shown = container_status(pod).get("state") or {}
    waiting = shown.get("waiting") or {}
    reason, message = waiting.get("reason", ""), str(waiting.get("message", ""))[:500]
    if reason in _NO_IMAGE:
        return TemplateError("The cluster cannot pull the image.", engine=message)
    ended = shown.get("terminated") or {}
    if reason in _NOT_MADE or ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return _not_made(message or str(ended.get("message", ""))[:500])
    if pod["metadata"].get("deletionTimestamp"):
        return DriverUnavailableError("Somebody else removed the sandbox while it was made.")
    if has_ended(pod):
        why = status.get("message") or status.get("reason") or ended.get("message") or ""
        if out_of_memory(pod):
            return ResourceExhaustedError(
                "The sandbox ran out of memory while it started.", resource=Resource.SANDBOX
            )
        if status.get("reason") in ("Evicted", "OutOfcpu", "OutOfmemory", "OutOfpods"):
            return ResourceExhaustedError(
                "The cluster has no room for the sandbox.",
                resource=Resource.HOST,
                engine=str(why)[:500],
            )
        return TemplateError("The sandbox ended while it started.", engine=str(why)[:500])
    return None


def _not_made(message: str) -> SandboxError:
    if "seccomp" in message:
        return DriverUnavailableError(
            "The node lacks the seccomp profile; install deploy/kubernetes/seccomp.yaml.",
            engine=message,
        )
    if "python3" in message:
        return TemplateError("The image has no python3, which every template must have.")
    return TemplateError("The cluster cannot start the sandbox.", engine=message)


def standstill(pod: Pod) -> SandboxError | None:
    """Why a Pod did not start within its time, as far as the cluster tells; else None."""
    shown = container_status(pod).get("state") or {}
    waiting = shown.get("waiting") or {}
    if waiting.get("reason") in _PULLING:
        message = str(waiting.get("message", ""))[:500]
        return TemplateError("The cluster cannot pull the image.", engine=message)
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return ResourceExhaustedError(
                "The cluster has no room for the sandbox.",
                resource=Resource.HOST,
                engine=str(condition.get("message", ""))[:500],
            )
    return None


def seccomp_profile() -> dict[str, Any]:
    """The system call policy as container runtimes read it from a node's disk.

    They know no map of architectures, which is Docker's; without one their own counts.
    """
    return {key: value for key, value in seccomp.oci_profile().items() if key != "archMap"}
