"""The hardened container that a sandbox is, in the words of Docker's API."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from sandbox import agent as wire
from sandbox import cgroups, seccomp
from sandbox.agent_file import TEXT_BOOT
from sandbox.base import LABEL_PREFIX, SandboxHandle, SandboxSpec
from sandbox.bubblewrap_command import INSIDE_ID, MASKED_FILES, MASKED_FOLDERS, SHM
from sandbox.limits import SHM_BYTES, SHM_INODES, Limits, files_bytes
from sandbox.policy import Policy
from sandbox.records import UID_BASE, UID_COUNT

INSTALL = (
    "Install Docker (Debian, Ubuntu: apt install docker.io) and start it, let this user reach its"
    " socket, or name another engine."
)

ID_LABEL = LABEL_PREFIX + "sandbox"
IMAGE_LABEL = LABEL_PREFIX + "image"
LIMITS_LABEL = LABEL_PREFIX + "limits"
POLICY_LABEL = LABEL_PREFIX + "policy"
UID_LABEL = LABEL_PREFIX + "uid"
OWN_KERNEL_LABEL = LABEL_PREFIX + "own-kernel"
USER_LABEL = LABEL_PREFIX + "label."
# Beside the users of bubblewrap's sandboxes, which the same machine may have.
DOCKER_UID_BASE = UID_BASE + UID_COUNT
LEAST_INODES = 16384  # So many and those of /tmp fit into the headroom of a small sandbox.
TMP = "/tmp"  # noqa: S108 - a filesystem of its own in each sandbox.
SOURCE = wire.source()
# Threads and processes that a kernel of its own may take on the host for each process inside, and
# for itself. It dies of this limit, which keeps the host from being filled and is no one's to use.
HOST_TASKS, HOST_TASKS_EACH = 1024, 32
OOM_FILES = "/sys/fs/cgroup/memory/memory.oom_control,/sys/fs/cgroup/memory.events"


def labels(spec: SandboxSpec, uid: int | None) -> dict[str, str]:
    """What a later server needs to know. The environment is not in it: labels are no secret."""
    limits = {each.name: getattr(spec.limits, each.name) for each in fields(Limits)}
    reserved = {} if uid is None else {UID_LABEL: str(uid)}
    return {
        ID_LABEL: spec.sandbox_id,
        IMAGE_LABEL: spec.image,
        LIMITS_LABEL: json.dumps(limits),
        POLICY_LABEL: json.dumps(spec.policy.to_json(with_env=False)),
        **reserved,
        **{USER_LABEL + name: value for name, value in spec.labels.items()},
    }


def user_labels(given: Mapping[str, str]) -> dict[str, str]:
    """The labels that the sandbox was created with, out of all of its container's."""
    return {
        name.removeprefix(USER_LABEL): value
        for name, value in given.items()
        if name.startswith(USER_LABEL)
    }


def container_name(sandbox_id: str) -> str:
    return f"noosphere-{sandbox_id}"


def random_uid() -> int:
    """A user for a sandbox; the driver sees to it that no other sandbox has it."""
    return DOCKER_UID_BASE + int.from_bytes(os.urandom(4), "big") % UID_COUNT


def config(
    spec: SandboxSpec,
    *,
    image: str,
    boot: Sequence[str] = (TEXT_BOOT, SOURCE),
    uid: int | None = None,
    runtime: str = "",
    has_own_kernel: bool = False,
) -> dict[str, Any]:
    """The body of containers/create. Without a `uid` of its own the sandbox is nobody.

    `boot` is what its Python runs to become the agent, and its first arguments.
    `has_own_kernel` tells of the runtime that the host's kernel does not see the processes inside.
    """
    # A user of its own: even a hole in the namespaces then opens on nobody else's things.
    user = INSIDE_ID if uid is None else uid
    options = [f"oom={OOM_FILES}", f"spares={wire.spares(spec.limits.pids)}"]
    host = host_config(spec, user) | ({"Runtime": runtime} if runtime else {})
    if has_own_kernel:
        host["PidsLimit"] = HOST_TASKS + HOST_TASKS_EACH * spec.limits.pids
    return {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-S", "-B", "-c", *boot, *options],
        "Cmd": [],
        "User": f"{user}:{user}",
        "WorkingDir": "/workspace",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
        "Hostname": "sandbox",
        "Labels": labels(spec, uid) | ({OWN_KERNEL_LABEL: "1"} if has_own_kernel else {}),
        "OpenStdin": True,
        "StdinOnce": False,
        "Tty": False,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def host_config(spec: SandboxSpec, uid: int = INSIDE_ID) -> dict[str, Any]:
    """Its part of containers/create: what the engine holds the container to."""
    limits = spec.limits
    common = f"nosuid,nodev,exec,uid={uid},gid={uid}"
    inodes = workspace_inodes(limits)
    return {
        "NetworkMode": "none",
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(seccomp.oci_profile())}"],
        **changeable(limits),
        **cpu_share(limits),
        "MemorySwappiness": 0,
        "IpcMode": "private",
        "Tmpfs": {
            TMP: f"size={limits.tmp_bytes},nr_inodes={limits.tmp_inodes},mode=1777,{common}",
            SHM: f"size={SHM_BYTES},nr_inodes={SHM_INODES},mode=1777,nosuid,nodev",
            "/workspace": f"size={limits.disk_bytes},nr_inodes={inodes},mode=0755,{common}",
        },
        "Ulimits": [
            {"Name": "nofile", "Soft": 1024, "Hard": 1024},
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "memlock", "Soft": 65536, "Hard": 65536},
        ],
        "LogConfig": {"Type": "none", "Config": {}},
        "Init": False,
        "MaskedPaths": [f"/proc/{name}" for name in (*MASKED_FILES, *MASKED_FOLDERS)]
        + ["/sys/firmware", "/sys/devices/virtual/powercap"],
        "ReadonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        "RestartPolicy": {"Name": "no"},
    }


def workspace_inodes(limits: Limits) -> int:
    """Files that the workspace takes, for good: more would keep memory from being lowered."""
    return min(limits.mounted_inodes(), max(LEAST_INODES, limits.disk_bytes // 8192))


def changeable(limits: Limits) -> dict[str, Any]:
    """What an engine changes in a running container, too."""
    return {
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "PidsLimit": limits.pids,
    }


def cpu_share(limits: Limits, host: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How much of each short period a container may run; `host` is how one was made that runs.

    Those that were made by the engine's own measure, whose periods are ten times as long, change by
    it: it takes no other for them.
    """
    if host is not None and host.get("NanoCpus"):
        return {"NanoCpus": limits.cpu_millis * 1_000_000}
    period, quota = cgroups.cpu_share(limits.cpu_millis)
    return {"CpuPeriod": period, "CpuQuota": quota}


def _cpu_millis(host: Mapping[str, Any]) -> int:
    if host.get("NanoCpus"):
        return int(host["NanoCpus"]) // 1_000_000
    period = host.get("CpuPeriod") or 0
    return round(1000 * host["CpuQuota"] / period) if period else 0


def limits_in_force(shown: Mapping[str, Any]) -> Limits:
    """The limits of a container as the engine holds it to them, whoever changed them last."""
    limits = Limits(**json.loads(shown["Config"]["Labels"][LIMITS_LABEL]))
    host = shown["HostConfig"]
    workspace = _options(host, "/workspace")
    counts_tasks = OWN_KERNEL_LABEL in shown["Config"]["Labels"]
    return replace(
        limits,
        memory_bytes=host.get("Memory") or limits.memory_bytes,
        pids=limits.pids if counts_tasks else host.get("PidsLimit") or limits.pids,
        cpu_millis=_cpu_millis(host) or limits.cpu_millis,
        disk_bytes=int(workspace.get("size", limits.disk_bytes)),
    )


def least_memory(host: Mapping[str, Any]) -> int:
    """Bytes that a container's files may take as memory; they were mounted once for all."""
    mounted = [_options(host, target) for target in ("/workspace", TMP)]
    sizes = sum(int(each.get("size", 0)) for each in mounted)
    return files_bytes(sizes, sum(int(each.get("nr_inodes", 0)) for each in mounted))


def _options(host: Mapping[str, Any], target: str) -> dict[str, str]:
    pairs = (each.partition("=") for each in (host.get("Tmpfs") or {}).get(target, "").split(","))
    return {name: value for name, _, value in pairs}


def handle(shown: Mapping[str, Any], driver: str) -> SandboxHandle:
    """The sandbox that a container is. Its environment is not known here: give it anew."""
    given = shown["Config"]["Labels"]
    return SandboxHandle(
        sandbox_id=given[ID_LABEL],
        driver=driver,
        image=given.get(IMAGE_LABEL, shown["Config"]["Image"]),
        limits=limits_in_force(shown),
        policy=Policy.from_json(json.loads(given.get(POLICY_LABEL, "{}"))),
        labels=user_labels(given),
        created_at=datetime.fromisoformat(shown["Created"][:19] + "+00:00"),
    )
