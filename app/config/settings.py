"""All settings together, and what follows from them."""

import os
import secrets

from pydantic_settings import SettingsConfigDict

from app.config.answers import AnswerSettings
from app.config.requests import RequestSettings
from app.config.sandboxes import SandboxSettings
from app.config.serving import ServingSettings
from app.config.tasks import TaskSettings
from services.options import Options

PREFIX = "NOOSPHERE_"


# The last base's fields come first: this is the order in which they are documented, backwards.
class Settings(TaskSettings, SandboxSettings, AnswerSettings, RequestSettings, ServingSettings):
    """Everything that can be configured. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, env_ignore_empty=True
    )

    @property
    def database(self) -> str:
        """The URL of the database in use."""
        if self.database_url:
            return self.database_url
        return f"sqlite+aiosqlite:///{(self.data_dir / 'noosphere.sqlite3').resolve()}"

    @property
    def node(self) -> str:
        """The name of this process: constant for a single one, so that a restart knows its own."""
        if self.node_id:
            return self.node_id
        if not self.redis_url:
            return "local"
        return f"{os.uname().nodename[:24]}-{os.getpid()}-{secrets.token_hex(4)}"

    def options(self) -> Options:
        """Give what services need to know."""
        return Options(
            data_dir=self.data_dir,
            registration=self.registration,
            access_token_ttl_s=self.access_token_ttl,
            refresh_token_ttl_s=self.refresh_token_ttl,
            sign_in_attempts=self.sign_in_attempts,
            sign_in_window_s=self.sign_in_window,
            points_per_minute=self.points_per_minute,
            anonymous_points_per_minute=self.anonymous_points_per_minute,
            message_max_chars=self.message_max_chars,
            answers_queued_max=self.answers_queued_max,
            answer_timeout_s=self.answer_timeout,
            answer_tool_rounds=self.answer_tool_rounds,
            answer_max_output_tokens=self.llm_max_output_tokens,
            memories_per_user=self.memories_per_user,
            plan_parallel_steps=self.plan_parallel_steps,
            sandbox_template_image=self.sandbox_image,
            sandbox_ttl_s=self.sandbox_ttl,
            sandbox_max_ttl_s=self.sandbox_max_ttl,
            sandboxes_per_user=self.sandboxes_per_user,
            change_wait_s=min(20.0, self.request_timeout * 2 / 3),
            sandbox_runtime=self.sandbox_runtime,
            sandbox_disk=self.sandbox_disk,
            sandbox_idle_timeout_s=self.sandbox_idle_timeout,
            sandbox_pause_max_s=self.sandbox_pause_max,
            sandbox_user_cpu_millis=self.sandbox_user_cpu_millis,
            sandbox_user_memory_bytes=self.sandbox_user_memory,
            sandbox_user_disk_bytes=self.sandbox_user_disk,
            sandbox_pool=self.sandbox_pool,
            sandbox_pool_refills=self.sandbox_pool_refills,
            sandbox_usage_interval_s=self.sandbox_usage_interval,
            sandbox_usage_retention_s=self.sandbox_usage_retention,
            sandbox_removal_retention_s=self.sandbox_removal_retention,
            snapshots_per_user=self.snapshots_per_user,
            snapshot_retention_s=self.snapshot_retention,
            sandbox_network_allowed=self.sandbox_network_allowed,
            sandbox_network_private=self.sandbox_network_private,
            proxy_max_connections=self.proxy_max_connections,
            port_link_ttl_s=self.port_link_ttl,
            execution_timeout_s=self.execution_timeout,
            execution_max_timeout_s=self.execution_max_timeout,
            execution_output_bytes=self.execution_output_bytes,
            file_max_bytes=self.file_max_bytes,
            sandbox_upload_max_bytes=self.sandbox_upload_max_bytes,
            archive_max_bytes=self.archive_max_bytes,
            archive_max_entries=self.archive_max_entries,
            archive_max_ratio=self.archive_max_ratio,
            clamav_url=self.clamav_url,
            clamav_required=self.clamav_required,
            scan_max_bytes=self.scan_max_bytes,
            quarantine_retention_s=self.quarantine_retention,
            kubernetes_namespace=self.kubernetes_namespace,
            kubernetes_context=self.kubernetes_context,
            kubernetes_runtime_class=self.kubernetes_runtime_class,
            kubernetes_seccomp_profile=self.kubernetes_seccomp_profile,
            kubernetes_image_pull_secret=self.kubernetes_image_pull_secret,
            kubernetes_service_account=self.kubernetes_service_account,
            port=self.port,
            worker_concurrency=self.worker_concurrency,
            task_lease_s=self.task_lease,
            event_retention_s=self.event_retention,
        )
