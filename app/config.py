"""The configuration: environment variables `NOOSPHERE_*`, and OpenTelemetry's own for tracing.

This is the only module that reads the environment.
"""

import difflib
import importlib.util
import ipaddress
import os
import re
import secrets
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.errors import ConfigurationError
from models.database import SUPPORTED_DRIVERS
from services.options import Options

PREFIX = "NOOSPHERE_"
MIB = 1_048_576


def _database_url(value: str) -> str:
    if not value:
        return value
    try:
        driver = make_url(value).drivername
    except ArgumentError as error:
        raise ValueError(
            "expected a URL such as mysql+aiomysql://user:password@host:3306/name"
        ) from error
    if driver not in SUPPORTED_DRIVERS:
        raise ValueError(f"expected a URL that begins with {', '.join(SUPPORTED_DRIVERS)}")
    module = driver.partition("+")[2]
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"the driver is not installed; `pip install {module}` does that")
    return value


def _redis_url(value: str) -> str:
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected a URL such as redis://host:6379/0")
    return value


def _http_url(value: str) -> str:
    if value and not value.startswith(("http://", "https://")):
        raise ValueError("expected a URL such as https://host/v1")
    return value


def _clamav_url(value: str) -> str:
    if value and not re.fullmatch(r"tcp://[^/]+:\d{1,5}|unix:///.+", value):
        raise ValueError("expected a URL such as tcp://host:3310 or unix:///run/clamav/clamd.ctl")
    return value


Commas = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything that can be configured. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="ignore", frozen=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Path = Field(Path("data"), description="Where the embedded database and logs live.")
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "", description="Database; empty: SQLite in the data directory."
    )
    database_pool_size: int = Field(10, ge=1, le=500, description="Connections kept open.")
    database_max_overflow: int = Field(
        10, ge=0, le=500, description="Connections opened beyond the pool under load."
    )
    database_pool_timeout: float = Field(
        30.0, gt=0, le=600, description="Seconds to wait for a connection."
    )
    database_pool_recycle: int = Field(
        1800, ge=1, description="Seconds after which a connection is replaced."
    )
    migrate_on_start: bool = Field(
        True, description="Whether `serve` and `worker` bring the database up to date."
    )
    redis_url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "", description="Redis for more than one process; empty: the in-process bus."
    )
    node_id: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]{0,48}$",
        description="Name of this process among others; empty: made up (`local` without Redis).",
    )
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Secret for signed links; empty: made once and kept in the data directory.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`json` lines, `text` for people; `auto`: text on a terminal."
    )
    slow_operation: float = Field(
        1.0,
        ge=0,
        description="Seconds from which on an operation is logged as slow, with its plan; 0: none.",
    )
    cors_origins: Commas = Field(
        (), description="Origins of frontends on other hosts, comma-separated, or `*`."
    )
    trusted_proxies: str = Field(
        "127.0.0.1",
        description="Addresses of proxies whose X-Forwarded-* headers are believed, or `*`.",
    )
    graphiql: bool = Field(True, description="Whether GraphiQL is served at /graphql.")
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token that /metrics asks for; empty: none."
    )
    shutdown_timeout: float = Field(
        10.0, ge=0, le=600, description="Seconds to finish open work when stopping."
    )

    registration: Literal["open", "closed"] = Field(
        "open", description="Whether anybody may open an account."
    )
    access_token_ttl: int = Field(3600, ge=1, description="Life of an access token.")
    refresh_token_ttl: int = Field(30 * 86400, ge=1, description="Life of a refresh token.")
    sign_in_attempts: int = Field(
        10, ge=1, description="Sign-in attempts for one login within the window."
    )
    sign_in_window: int = Field(300, ge=1, description="Seconds of the sign-in window.")

    max_body_bytes: int = Field(2 * MIB, ge=1024, description="Largest request body.")
    max_query_depth: int = Field(15, ge=1, description="Deepest nesting of a query.")
    max_query_aliases: int = Field(50, ge=0, description="Most aliases in a query.")
    max_query_tokens: int = Field(5000, ge=10, description="Most tokens in a document.")
    max_query_objects: int = Field(
        50_000, ge=100, description="Most objects a query may ask for, by its page sizes."
    )
    max_variable_values: int = Field(
        10_000,
        ge=100,
        le=100_000,
        description="Most values among a request's variables, those in lists and maps included.",
    )
    compile_queries: bool = Field(
        True, description="Run queries by compiled plans; off: all on graphql-core."
    )
    max_batch: int = Field(
        10, ge=0, le=100, description="Most operations in one HTTP request; 0: no lists of them."
    )
    trusted_documents: str = Field(
        "",
        description="Manifest of documents that clients may name (`documentId`): Apollo's, or a "
        "map of ids to texts; empty: none.",
    )
    trusted_documents_only: bool = Field(
        False,
        description="Whether only documents of the manifest are run, except for administrators.",
    )
    persisted_queries: bool = Field(
        True,
        description="Whether clients may register documents by their hash; never with "
        "TRUSTED_DOCUMENTS_ONLY.",
    )
    public_max_age: int = Field(
        0,
        ge=0,
        description="Seconds that answers to anonymous GETs may be kept unasked; 0: ask each time.",
    )
    points_per_minute: int = Field(
        500_000_000,
        ge=0,
        le=2_000_000_000,
        description="Points of cost a user may spend a minute, unless `rateLimitConfigSet` said "
        "otherwise; 0: no limit.",
    )
    anonymous_points_per_minute: int = Field(
        50_000_000,
        ge=0,
        le=2_000_000_000,
        description="Points of cost an address may spend a minute where nobody is signed in; 0: "
        "no limit.",
    )
    request_timeout: float = Field(30.0, gt=0, description="Longest a query or mutation may take.")
    max_sockets_per_viewer: int = Field(
        2000, ge=1, description="Open WebSockets and HTTP streams of one user."
    )
    max_sockets_per_address: int = Field(
        1000, ge=1, description="The same of one client address, where nobody is signed in."
    )
    max_operations_per_socket: int = Field(
        100, ge=1, description="Operations on one WebSocket or reserved stream."
    )

    message_max_chars: int = Field(100_000, ge=1, description="Longest message.")
    answers_queued_max: int = Field(
        10, ge=1, description="Messages of a conversation that may wait for an answer."
    )
    answer_timeout: int = Field(300, ge=1, description="Longest an answer may take.")
    answer_tool_rounds: int = Field(
        6, ge=0, le=50, description="Turns with tool calls within one answer."
    )
    memories_per_user: int = Field(10_000, ge=1, description="Memories a user may have.")
    plan_parallel_steps: int = Field(8, ge=1, le=100, description="Steps of a plan run at once.")

    llm_base_url: Annotated[str, AfterValidator(_http_url)] = Field(
        "", description="OpenAI-compatible service; empty: the embedded assistant."
    )
    llm_api_key: SecretStr = Field(SecretStr(""), description="Its API key.")
    llm_model: str = Field("", description="The model to ask for; needed with LLM_BASE_URL.")
    llm_connect_timeout: float = Field(10.0, gt=0, description="Seconds to connect.")
    llm_first_chunk_timeout: float = Field(
        120.0, gt=0, description="Seconds until a model begins to answer."
    )
    llm_chunk_timeout: float = Field(60.0, gt=0, description="Seconds between two chunks.")
    llm_max_retries: int = Field(3, ge=0, le=20, description="Retries before the first token.")
    llm_max_output_tokens: int | None = Field(
        None, ge=1, description="Longest answer in tokens; empty: the service decides."
    )
    llm_input_price: Decimal | None = Field(
        None, ge=0, description="US dollars per million tokens read, for cost."
    )
    llm_output_price: Decimal | None = Field(
        None, ge=0, description="US dollars per million tokens written, for cost."
    )
    embedded_word_delay_ms: int = Field(
        15, ge=0, le=1000, description="Pause between words of the embedded assistant."
    )

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
    sandbox_pool: Annotated[tuple[tuple[str, int], ...], NoDecode] = Field(
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
    sandbox_network_private: Commas = Field(
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
    clamav_url: Annotated[str, AfterValidator(_clamav_url)] = Field(
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

    worker_concurrency: int = Field(100, ge=1, le=1000, description="Tasks run at once.")
    worker_in_server: bool = Field(True, description="Whether `serve` runs tasks as well.")
    task_lease: float = Field(30.0, ge=1, description="Seconds a task is leased for.")
    event_retention: int = Field(
        7 * 86400, ge=60, description="Seconds the events of a topic are kept for resuming."
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        for origin in value:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ValueError("expected origins such as https://app.example.org, or *")
        return value

    @field_validator("sandbox_network_private", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.split(",") if part.strip())
        try:
            return tuple(str(ipaddress.ip_network(part)) for part in value)
        except ValueError as error:
            raise ValueError("expected ranges of addresses such as 10.1.0.0/16") from error

    @field_validator("sandbox_pool", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found: dict[str, int] = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            name, _, size = part.partition("=")
            if not name.strip() or not size.strip().isdecimal() or not 1 <= int(size) <= 100:
                raise ValueError("expected templates with 1 to 100 sandboxes each, as in python=2")
            found[name.strip()] = int(size)
        return tuple(found.items())

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


def unknown() -> list[str]:
    """Give a sentence for each variable that looks like ours, and means nothing here."""
    known = [name.upper() for name in Settings.model_fields]
    told = []
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean {PREFIX}{near[0]}?" if near else ""
            told.append(f"{variable} is not known{hint}")
    return told


def load(**overrides: Any) -> Settings:
    """Read the configuration. Raises ConfigurationError with one line naming each bad variable."""
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from error
    if settings.trusted_documents_only and not settings.trusted_documents:
        raise ConfigurationError(
            f"{PREFIX}TRUSTED_DOCUMENTS is empty: expected the path of a manifest, because "
            f"{PREFIX}TRUSTED_DOCUMENTS_ONLY is set"
        )
    has_provider = settings.llm_base_url or settings.llm_api_key.get_secret_value()
    if has_provider and not settings.llm_model:
        raise ConfigurationError(
            f"{PREFIX}LLM_MODEL is empty: expected the name of a model, "
            f"because {PREFIX}LLM_BASE_URL or {PREFIX}LLM_API_KEY is set"
        )
    return settings


@dataclass(frozen=True, slots=True)
class Traces:
    """Where spans go, and the most that may wait to go there."""

    endpoint: str
    max_waiting: int


def traces() -> Traces | None:
    """Give what OpenTelemetry's own variables say of tracing; None if they ask for none.

    What remains (headers, certificates, sampling, attributes of the resource) the library reads by
    itself. Raises ConfigurationError.
    """

    def given(*names: str) -> str:
        return next((value for name in names if (value := os.environ.get(name, "").strip())), "")

    endpoint = given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    exporter = given("OTEL_TRACES_EXPORTER") or ("otlp" if endpoint else "none")
    if given("OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return None
    if exporter != "otlp":
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER={exporter} is not usable, expected otlp")
    protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not usable, expected http/protobuf"
        )
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is not usable, expected a URL such as http://host:4318"
        )
    waiting = given("OTEL_BSP_MAX_QUEUE_SIZE") or "2048"
    if not waiting.isdecimal() or int(waiting) < 1:
        raise ConfigurationError(
            f"OTEL_BSP_MAX_QUEUE_SIZE={waiting} is not usable, expected a number from 1 on"
        )
    return Traces(endpoint or "http://localhost:4318", int(waiting))


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        field = Settings.model_fields.get(name)
        shown = "…" if field is not None and field.annotation is SecretStr else repr(item["input"])
        expected = item["msg"].removeprefix("Value error, ")
        if not expected.startswith("expected"):
            expected = f"expected: {expected[0].lower()}{expected[1:]}"
        parts.append(f"{PREFIX}{name.upper()}={shown[:80]} is not usable, {expected}")
    return "; ".join(parts).replace("\n", " ")
