"""Settings of sandboxes, of what runs in them, and of their drivers."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from app.config.values import MIB, ClamavUrl, PoolSizes, Ranges


class SandboxSettings(BaseSettings):
    """Where code runs, for how long and with how much; files and their scans; Kubernetes."""

    sandbox_driver: Literal["auto", "docker", "bubblewrap", "kubernetes", "off"] = Field(
        "auto",
        description="Where code runs: `auto`, `docker`, `bubblewrap`, `kubernetes` or `off`.",
    )
    sandbox_image: str = Field(
        "python:3.13-slim", min_length=1, description="Image of the default template for Docker."
    )
    docker_url: str = Field("", description="Docker engine; empty: DOCKER_HOST or its socket.")
    sandbox_runtime: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="Runtime of Docker's engine, such as `runsc`; empty: the engine's own.",
    )
    sandbox_disk: Literal["memory", "image"] = Field(
        "memory",
        description="What workspaces lie in: `memory`, or an `image` on disk (bubblewrap as root).",
    )
    sandbox_ttl: int = Field(3600, ge=1, description="Life of a sandbox unless asked otherwise.")
    sandbox_max_ttl: int = Field(86400, ge=1, description="Longest life of a sandbox.")
    sandbox_idle_timeout: int = Field(
        0, ge=0, description="Seconds without use after which a sandbox ends or pauses; 0: none."
    )
    sandbox_pause_max: int = Field(
        86400, ge=1, description="Longest a sandbox may be paused; then it is stopped."
    )
    sandboxes_per_user: int = Field(
        10, ge=1, description="Live sandboxes of one user, unless a role says otherwise."
    )
    sandbox_user_cpu_millis: int = Field(
        10_000,
        ge=50,
        description="CPU of a user's live sandboxes in all, in thousandths of a core.",
    )
    sandbox_user_memory: int = Field(
        8192 * MIB, ge=64 * MIB, description="Memory of a user's live sandboxes in all."
    )
    sandbox_user_disk: int = Field(
        8192 * MIB, ge=MIB, description="Disk of a user's live sandboxes and snapshots in all."
    )
    sandbox_pool: PoolSizes = Field(
        (), description="Sandboxes kept ready by template, such as `python=2`; empty: none."
    )
    sandbox_pool_refills: int = Field(
        2, ge=1, le=16, description="Sandboxes made for the pool at once."
    )
    sandbox_usage_interval: float = Field(
        5.0,
        ge=0.1,
        description="Seconds between two samples of a sandbox's use; 12 times that if none looks.",
    )
    sandbox_usage_retention: int = Field(
        7 * 86400, ge=60, description="Seconds samples of use are kept."
    )
    sandbox_removal_retention: int = Field(
        90 * 86400, ge=60, description="Seconds the record of what was cleared away is kept."
    )
    snapshots_per_user: int = Field(20, ge=0, description="Snapshots of workspaces of one user.")
    snapshot_retention: int = Field(
        30 * 86400, ge=60, description="Seconds the workspace of a stopped sandbox is kept."
    )
    sandbox_network_allowed: bool = Field(
        False, description="Whether a sandbox may be allowed to reach named hosts."
    )
    sandbox_network_private: Ranges = Field(
        (), description="Private ranges of addresses that sandboxes may be allowed to reach."
    )
    proxy_max_connections: int = Field(
        64, ge=1, description="Connections of one sandbox at once, to hosts it may reach."
    )
    port_link_ttl: int = Field(
        3600, ge=1, description="Longest life of a link to a sandbox's port."
    )
    execution_timeout: int = Field(30, ge=1, description="Time of an execution by default.")
    execution_max_timeout: int = Field(3600, ge=1, description="Longest time of an execution.")
    execution_output_bytes: int = Field(
        MIB, ge=1024, description="Output kept of each stream of an execution."
    )
    file_max_bytes: int = Field(10 * MIB, ge=1, description="Largest file through GraphQL.")
    sandbox_upload_max_bytes: int = Field(
        0, ge=0, description="Largest file uploaded over HTTP; 0: as the sandbox's disk has room."
    )
    archive_max_bytes: int = Field(1024 * MIB, ge=1, description="Most an archive may unpack to.")
    archive_max_entries: int = Field(50_000, ge=1, description="Most entries of an archive.")
    archive_max_ratio: int = Field(
        200, ge=1, description="Most an archive may unpack to, times its own size."
    )
    clamav_url: ClamavUrl = Field(
        "",
        description="ClamAV to ask about files as well, `tcp://host:3310` or `unix:///path`; "
        "empty: none.",
    )
    clamav_required: bool = Field(
        True,
        description="Whether files are refused while ClamAV does not answer; else they are marked "
        "as not scanned.",
    )
    scan_max_bytes: int = Field(64 * MIB, ge=1024, description="Largest file that is scanned.")
    quarantine_retention: int = Field(
        30 * 86400, ge=60, description="Seconds harmful files are kept in quarantine."
    )
    kubernetes_namespace: str = Field(
        "noosphere-sandboxes", min_length=1, description="Namespace sandboxes are made in."
    )
    kubernetes_context: str = Field(
        "", description="Context of the kubeconfig; empty: the current one, or the pod's own."
    )
    kubernetes_runtime_class: str = Field(
        "", description="RuntimeClass of sandboxes, such as `gvisor`; empty: the cluster's own."
    )
    kubernetes_seccomp_profile: str = Field(
        "noosphere/sandbox.json",
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_./-]{0,254}$",
        description="Place of the system call policy below the kubelets' folder for such; "
        "`runtime/default` accepts the container runtime's own instead.",
    )
    kubernetes_image_pull_secret: str = Field(
        "", description="Name of the secret that images are pulled with."
    )
    kubernetes_service_account: str = Field(
        "", description="ServiceAccount of sandboxes, whose token none of them sees."
    )
