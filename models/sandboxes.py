"""Sandboxes: isolated places where code runs."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    Id,
    Json,
    LongText,
    Record,
    UtcDateTime,
    created_column,
    enum,
    id_column,
    now,
    updated_column,
)
from models.states import (
    ConnectionVerdict,
    ExecutionReason,
    FileVerdict,
    PortProtocol,
    RunState,
    SandboxExpiry,
    SandboxStatus,
)

# Of columns that came later: SQLite adds one to rows there are only with a default of its own.
_NO = text("0")


class SandboxTemplate(Record):
    """What a sandbox is made from: an image, and default limits and policy.

    `version` counts up whenever the name of the image comes to mean another digest.
    """

    __tablename__ = "sandbox_templates"
    prefix = "stp"

    id: Mapped[str] = id_column("stp")
    name: Mapped[str] = mapped_column(String(100), unique=True)
    description: Mapped[str | None] = mapped_column(Text, default=None)
    language: Mapped[str] = mapped_column(String(20), default="python")
    image_name: Mapped[str] = mapped_column(String(255))
    image_tag: Mapped[str] = mapped_column(String(50), default="latest")
    config: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    resource_config: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    security_config: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    is_active: Mapped[bool] = mapped_column(default=True, index=True)
    image_digest: Mapped[str | None] = mapped_column(String(100), default=None)
    version: Mapped[int] = mapped_column(default=1, server_default=text("1"))
    python_version: Mapped[str | None] = mapped_column(String(20), default=None)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class SandboxTemplateVersion(Record):
    """What a template stood for at some time: the digest of its image, and the Python within."""

    __tablename__ = "sandbox_template_versions"
    prefix = "stv"
    __table_args__ = (UniqueConstraint("template_id", "version"), Record.__table_args__)

    id: Mapped[str] = id_column("stv")
    template_id: Mapped[str] = mapped_column(
        Id, ForeignKey("sandbox_templates.id", ondelete="CASCADE")
    )
    version: Mapped[int]
    image_digest: Mapped[str | None] = mapped_column(String(100), default=None)
    python_version: Mapped[str | None] = mapped_column(String(20), default=None)
    created_at: Mapped[datetime] = created_column()


class Sandbox(Record):
    """One sandbox, hosted by one node.

    `container_id` is the driver's name for it. The clock of `expires_at` stands while it is paused.
    `restored_from` is the snapshot its workspace began as. From `stop_requested_at` on it is about
    to end, and takes nothing new.
    """

    __tablename__ = "sandboxes"
    prefix = "sbx"
    __table_args__ = (Index(None, "user_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("sbx")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    template_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("sandbox_templates.id", ondelete="SET NULL"), index=True, default=None
    )
    conversation_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("conversations.id", ondelete="SET NULL"), index=True, default=None
    )
    status: Mapped[SandboxStatus] = mapped_column(
        enum(SandboxStatus), default=SandboxStatus.CREATING, index=True
    )
    driver: Mapped[str] = mapped_column(String(20))
    node_id: Mapped[str] = mapped_column(String(64), index=True)
    container_id: Mapped[str | None] = mapped_column(String(64), index=True, default=None)
    image_name: Mapped[str] = mapped_column(String(255))
    image_tag: Mapped[str] = mapped_column(String(50), default="latest")
    config: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    failure: Mapped[str | None] = mapped_column(Text, default=None)
    created_at: Mapped[datetime] = created_column()
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    last_active_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    paused_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    stopped_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None, index=True)
    image_digest: Mapped[str | None] = mapped_column(String(100), default=None)
    template_version: Mapped[int | None] = mapped_column(default=None)
    idle_timeout_s: Mapped[int | None] = mapped_column(default=None)
    on_expiry: Mapped[SandboxExpiry] = mapped_column(
        enum(SandboxExpiry), default=SandboxExpiry.STOP, server_default=text("'stop'")
    )
    is_persistent: Mapped[bool] = mapped_column(default=False, server_default=_NO)
    restored_from: Mapped[str | None] = mapped_column(Id, default=None)
    pool_key: Mapped[str | None] = mapped_column(String(64), default=None)
    stop_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class SandboxWorkspace(Record):
    """The writable directory of a sandbox; `root_path` is the path inside.

    `snapshot_id` is where its content lies as it was when a persistent sandbox was last stopped.
    """

    __tablename__ = "sandbox_workspaces"
    prefix = "swk"

    id: Mapped[str] = id_column("swk")
    sandbox_id: Mapped[str] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="CASCADE"), index=True
    )
    root_path: Mapped[str] = mapped_column(String(255), default="/workspace")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    inodes: Mapped[int] = mapped_column(default=0, server_default=_NO)
    snapshot_id: Mapped[str | None] = mapped_column(Id, default=None)
    created_at: Mapped[datetime] = created_column()
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)


class SandboxExecution(Record):
    """One command run in a sandbox.

    `stdout` and `stderr` hold the text kept (bytes that are not UTF-8 replaced), up to the output
    limit; `stdout_bytes` and `stderr_bytes` count what the command wrote, `stdin_bytes` what it
    was sent. `argv` is the command as a list, where it was given so. `is_interactive` says that
    its input stays open, `is_stdin_base64` that `stdin` is no text. With `timeout_s` 0 it may run
    as long as its sandbox.
    """

    __tablename__ = "sandbox_executions"
    prefix = "sbe"
    __table_args__ = (Index(None, "sandbox_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("sbe")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("users.id", ondelete="SET NULL"), index=True, default=None
    )
    command: Mapped[str] = mapped_column(LongText)
    working_dir: Mapped[str | None] = mapped_column(String(255), default=None)
    stdin: Mapped[str | None] = mapped_column(LongText, default=None, info={"heavy": True})
    environment: Mapped[dict[str, str] | None] = mapped_column(Json, default=None)
    timeout_s: Mapped[int] = mapped_column(default=30)
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING, index=True)
    reason: Mapped[ExecutionReason | None] = mapped_column(enum(ExecutionReason), default=None)
    exit_code: Mapped[int | None] = mapped_column(default=None)
    signal: Mapped[int | None] = mapped_column(default=None)
    stdout: Mapped[str | None] = mapped_column(LongText, default=None)
    stderr: Mapped[str | None] = mapped_column(LongText, default=None)
    stdout_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    stderr_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    is_truncated: Mapped[bool] = mapped_column(default=False)
    resource_usage: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    argv: Mapped[list[str] | None] = mapped_column(Json, default=None)
    is_background: Mapped[bool] = mapped_column(default=False, server_default=_NO)
    terminal_rows: Mapped[int | None] = mapped_column(default=None)
    terminal_cols: Mapped[int | None] = mapped_column(default=None)
    output_limit: Mapped[int | None] = mapped_column(BigInteger, default=None)
    pid: Mapped[int | None] = mapped_column(default=None)
    stdin_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default=_NO)
    is_interactive: Mapped[bool] = mapped_column(default=False, server_default=_NO)
    is_stdin_base64: Mapped[bool] = mapped_column(default=False, server_default=_NO)
    created_at: Mapped[datetime] = created_column()
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None, index=True)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class SandboxResources(Record):
    """The limits of a sandbox: CPU in thousandths of a core, the rest in bytes and seconds."""

    __tablename__ = "sandbox_resources"
    prefix = "srs"

    id: Mapped[str] = id_column("srs")
    sandbox_id: Mapped[str] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="CASCADE"), unique=True
    )
    cpu_limit: Mapped[int]
    memory_limit: Mapped[int] = mapped_column(BigInteger)
    disk_limit: Mapped[int] = mapped_column(BigInteger)
    network_limit: Mapped[int | None] = mapped_column(BigInteger, default=None)
    pids_limit: Mapped[int]
    timeout_s: Mapped[int]
    inodes_limit: Mapped[int] = mapped_column(default=65536, server_default=text("65536"))
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class SandboxSecurityPolicy(Record):
    """What code in a sandbox may reach."""

    __tablename__ = "sandbox_security_policies"
    prefix = "ssp"

    id: Mapped[str] = id_column("ssp")
    sandbox_id: Mapped[str] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="CASCADE"), unique=True
    )
    network_policy: Mapped[dict[str, Any]] = mapped_column(Json)
    syscall_policy: Mapped[dict[str, Any]] = mapped_column(Json)
    mount_policy: Mapped[dict[str, Any]] = mapped_column(Json)
    env_variables: Mapped[dict[str, str]] = mapped_column(Json)
    capabilities: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class SandboxFile(Record):
    """The index of a file: path inside the workspace, hash and size, and what a scan found."""

    __tablename__ = "sandbox_files"
    prefix = "sfl"
    __table_args__ = (UniqueConstraint("sandbox_id", "path"), Record.__table_args__)

    id: Mapped[str] = id_column("sfl")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    path: Mapped[str] = mapped_column(String(255))
    content_hash: Mapped[str | None] = mapped_column(String(64), index=True, default=None)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    mime_type: Mapped[str | None] = mapped_column(String(100), default=None)
    is_directory: Mapped[bool] = mapped_column(default=False)
    scanned_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    verdict: Mapped[FileVerdict] = mapped_column(
        enum(FileVerdict), default=FileVerdict.UNSCANNED, server_default=text("'unscanned'")
    )
    finding: Mapped[str | None] = mapped_column(String(100), default=None)
    created_at: Mapped[datetime] = created_column()
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class SandboxPort(Record):
    """A port of a server inside a sandbox that is reachable from outside.

    `host_port` is the port this server itself listens on: nothing else is opened on the host.
    Raising `token_epoch` revokes the links that were given out.
    """

    __tablename__ = "sandbox_ports"
    prefix = "spt"
    __table_args__ = (
        UniqueConstraint("sandbox_id", "container_port", "protocol"),
        Record.__table_args__,
    )

    id: Mapped[str] = id_column("spt")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    container_port: Mapped[int]
    host_port: Mapped[int]
    protocol: Mapped[PortProtocol] = mapped_column(enum(PortProtocol), default=PortProtocol.TCP)
    description: Mapped[str | None] = mapped_column(String(255), default=None)
    token_epoch: Mapped[int] = mapped_column(default=0, server_default=_NO)
    created_at: Mapped[datetime] = created_column()


class SandboxSnapshot(Record):
    """The content of a workspace at some time: an archive of `size_bytes` on the server's disk.

    `path` is relative to the directory of snapshots. One with `is_automatic` was taken when a
    persistent sandbox stopped, and goes when a newer one is.
    """

    __tablename__ = "sandbox_snapshots"
    prefix = "snp"
    __table_args__ = (Index(None, "user_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("snp")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    sandbox_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="SET NULL"), index=True, default=None
    )
    node_id: Mapped[str] = mapped_column(String(64))
    name: Mapped[str | None] = mapped_column(String(100), default=None)
    path: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    content_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64))
    entries: Mapped[int] = mapped_column(default=0)
    is_automatic: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = created_column()
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None, index=True)


class SandboxConnection(Record):
    """A connection code in a sandbox asked for, and what became of it."""

    __tablename__ = "sandbox_connections"
    prefix = "scn"
    __table_args__ = (Index(None, "sandbox_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("scn")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    host: Mapped[str] = mapped_column(String(255))
    address: Mapped[str | None] = mapped_column(String(45), default=None)
    port: Mapped[int]
    verdict: Mapped[ConnectionVerdict] = mapped_column(enum(ConnectionVerdict))
    rule: Mapped[str | None] = mapped_column(String(255), default=None)
    bytes_in: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_out: Mapped[int] = mapped_column(BigInteger, default=0)
    opened_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class SandboxUsage(Record):
    """What a sandbox used up to some time, as its cgroup counts; None where nothing counts it."""

    __tablename__ = "sandbox_usage"
    prefix = "sus"
    __table_args__ = (Index(None, "sandbox_id", "at"), Record.__table_args__)

    id: Mapped[str] = id_column("sus")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    cpu_ms: Mapped[int | None] = mapped_column(BigInteger, default=None)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)
    pids: Mapped[int | None] = mapped_column(default=None)
    disk_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)
    rx: Mapped[int | None] = mapped_column(BigInteger, default=None)
    tx: Mapped[int | None] = mapped_column(BigInteger, default=None)


class SandboxFinding(Record):
    """A file that a scan took for harmful, and where its bytes are kept from everybody."""

    __tablename__ = "sandbox_findings"
    prefix = "sfd"
    __table_args__ = (Index(None, "sandbox_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("sfd")
    sandbox_id: Mapped[str] = mapped_column(Id, ForeignKey("sandboxes.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("users.id", ondelete="SET NULL"), index=True, default=None
    )
    path: Mapped[str] = mapped_column(String(255))
    rule: Mapped[str] = mapped_column(String(100))
    engine: Mapped[str] = mapped_column(String(20))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    quarantine_path: Mapped[str | None] = mapped_column(String(255), default=None)
    created_at: Mapped[datetime] = created_column()


class SandboxRemoval(Record):
    """Something that was cleared away, and why: the record of cleaning up."""

    __tablename__ = "sandbox_removals"
    prefix = "srm"

    id: Mapped[str] = id_column("srm")
    node_id: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(255))
    sandbox_id: Mapped[str | None] = mapped_column(Id, index=True, default=None)
    reason: Mapped[str] = mapped_column(String(255))
    removed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
