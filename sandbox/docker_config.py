"""The hardened container that a sandbox is, in the words of Docker's API."""

import json
import os
from pathlib import Path
from typing import Any

from sandbox import agent as wire
from sandbox import seccomp
from sandbox.base import LABEL_PREFIX, MIB, SandboxSpec
from sandbox.bubblewrap_command import INSIDE_ID, MASKED_FILES, MASKED_FOLDERS
from sandbox.records import UID_BASE, UID_COUNT

INSTALL = (
    "Install Docker (Debian, Ubuntu: apt install docker.io) and start it, let this user reach its"
    " socket, or name another engine."
)

ID_LABEL = LABEL_PREFIX + "sandbox"
LIMITS_LABEL = LABEL_PREFIX + "limits"
ENV_LABEL = LABEL_PREFIX + "env"
USER_LABEL = LABEL_PREFIX + "label."
SOURCE = Path(wire.__file__).read_text()
OOM_FILES = "/sys/fs/cgroup/memory/memory.oom_control,/sys/fs/cgroup/memory.events"


def labels(spec: SandboxSpec) -> dict[str, str]:
    limits = {name: getattr(spec.limits, name) for name in spec.limits.__dataclass_fields__}
    return {
        ID_LABEL: spec.sandbox_id,
        LIMITS_LABEL: json.dumps(limits),
        ENV_LABEL: json.dumps(dict(spec.policy.env)),
        **{USER_LABEL + name: value for name, value in spec.labels.items()},
    }


def container_name(sandbox_id: str) -> str:
    return f"noosphere-{sandbox_id}"


def config(spec: SandboxSpec, *, own_uid: bool) -> dict[str, Any]:
    """The body of containers/create."""
    # A user of its own: even a hole in the namespaces then opens on nobody else's things.
    uid = UID_BASE + int.from_bytes(os.urandom(4), "big") % UID_COUNT if own_uid else INSIDE_ID
    return {
        "Image": spec.image,
        "Entrypoint": ["python3", "-I", "-S", "-B", "-c", SOURCE, f"oom={OOM_FILES}"],
        "Cmd": [],
        "User": f"{uid}:{uid}",
        "WorkingDir": "/workspace",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
        "Hostname": "sandbox",
        "Labels": labels(spec),
        "OpenStdin": True,
        "StdinOnce": False,
        "Tty": False,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, uid),
    }


def _host_config(spec: SandboxSpec, uid: int) -> dict[str, Any]:
    limits = spec.limits
    common = f"nosuid,nodev,exec,nr_inodes={limits.inodes},uid={uid},gid={uid}"
    return {
        "NetworkMode": "none",
        "CgroupnsMode": "private",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(seccomp.oci_profile())}"],
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,
        "MemorySwappiness": 0,
        "PidsLimit": limits.pids,
        "NanoCpus": limits.cpu_millis * 1_000_000,
        "IpcMode": "private",
        "ShmSize": MIB,
        "Tmpfs": {
            "/tmp": f"size={limits.tmp_bytes},mode=1777,{common}",  # noqa: S108
            "/workspace": f"size={limits.disk_bytes},mode=0755,{common}",
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
