"""What services need to know of the configuration. Filled by the process shell."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Limits and choices of the application; times in seconds, sizes in bytes."""

    data_dir: Path = Path("data")
    port: int = 8000
    # What links are signed with; the same on all servers that serve one another's links.
    link_secret: bytes = field(default=b"", repr=False)
    registration: str = "open"
    access_token_ttl_s: int = 3600
    refresh_token_ttl_s: int = 30 * 86400
    sign_in_attempts: int = 10
    sign_in_window_s: int = 300
    # Points of cost a minute; 0: no limit.
    points_per_minute: int = 500_000_000
    anonymous_points_per_minute: int = 50_000_000
    message_max_chars: int = 100_000
    answers_queued_max: int = 10
    answer_timeout_s: int = 300
    answer_tool_rounds: int = 6
    answer_max_output_tokens: int | None = None
    context_messages: int = 30
    context_chars: int = 60_000
    text_flush_ms: int = 40
    text_checkpoint_s: float = 3.0
    plan_max_steps: int = 100
    plan_parallel_steps: int = 8
    memories_per_user: int = 10_000
    sandbox_template_image: str = "noosphere-sandbox:latest"
    sandbox_ttl_s: int = 3600
    sandbox_max_ttl_s: int = 86_400
    sandboxes_per_user: int = 10
    # How long a caller waits for a change of a sandbox, which goes on then; below a request's time.
    change_wait_s: float = 20.0
    sandbox_runtime: str = ""
    sandbox_disk: str = "memory"
    sandbox_idle_timeout_s: int = 0
    sandbox_pause_max_s: int = 86_400
    sandbox_user_cpu_millis: int = 10_000
    sandbox_user_memory_bytes: int = 8192 * 1_048_576
    sandbox_user_disk_bytes: int = 8192 * 1_048_576
    # Names of templates, and how many sandboxes of each are kept ready.
    sandbox_pool: tuple[tuple[str, int], ...] = ()
    sandbox_pool_refills: int = 2
    sandbox_usage_interval_s: float = 5.0
    sandbox_usage_retention_s: int = 7 * 86400
    sandbox_removal_retention_s: int = 90 * 86400
    snapshots_per_user: int = 20
    snapshot_retention_s: int = 30 * 86400
    sandbox_network_allowed: bool = False
    # Ranges of addresses, none of the public Internet, that may be listed.
    sandbox_network_private: tuple[str, ...] = ()
    proxy_max_connections: int = 64
    port_link_ttl_s: int = 3600
    execution_timeout_s: int = 30
    execution_max_timeout_s: int = 3600
    execution_output_bytes: int = 1_048_576
    sandbox_cpu_millis: int = 1000
    sandbox_memory_bytes: int = 512 * 1_048_576
    sandbox_disk_bytes: int = 256 * 1_048_576
    sandbox_pids: int = 128
    sandbox_max_cpu_millis: int = 4000
    sandbox_max_memory_bytes: int = 4096 * 1_048_576
    sandbox_max_disk_bytes: int = 4096 * 1_048_576
    file_max_bytes: int = 10 * 1_048_576
    # Zero: as the disk of the sandbox has room.
    sandbox_upload_max_bytes: int = 0
    archive_max_bytes: int = 1024 * 1_048_576
    archive_max_entries: int = 50_000
    archive_max_ratio: int = 200
    clamav_url: str = ""
    # Whether files are refused, or else marked as not scanned, while ClamAV does not answer.
    clamav_required: bool = True
    scan_max_bytes: int = 64 * 1_048_576
    quarantine_retention_s: int = 30 * 86400
    kubernetes_namespace: str = "noosphere-sandboxes"
    kubernetes_context: str = ""
    kubernetes_runtime_class: str = ""
    kubernetes_seccomp_profile: str = "noosphere/sandbox.json"
    kubernetes_image_pull_secret: str = ""
    kubernetes_service_account: str = ""
    worker_concurrency: int = 100
    task_lease_s: float = 30.0
    event_retention_s: int = 7 * 86400
    event_retention_count: int = 10_000
