"""Sandboxes: isolated places where code runs."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
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
from models.states import ExecutionReason, PortProtocol, RunState, SandboxStatus


class SandboxTemplate(Record):
    """What a sandbox is made from: an image, and default limits and policy."""

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
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class Sandbox(Record):
    """One sandbox, hosted by one node.

    `container_id` is the driver's name for it. The clock of `expires_at` stands while it is paused.
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


class SandboxWorkspace(Record):
    """The writable directory of a sandbox; `root_path` is the path inside."""

    __tablename__ = "sandbox_workspaces"
    prefix = "swk"

    id: Mapped[str] = id_column("swk")
    sandbox_id: Mapped[str] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="CASCADE"), index=True
    )
    root_path: Mapped[str] = mapped_column(String(255), default="/workspace")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = created_column()
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, onupdate=now)


class SandboxExecution(Record):
    """One command run in a sandbox.

    `stdout` and `stderr` hold the text kept (bytes that are not UTF-8 replaced), up to the output
    limit; `stdout_bytes` and `stderr_bytes` count what the command wrote.
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
    """The index of a file written through the API: path inside the workspace, hash and size."""

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
    created_at: Mapped[datetime] = created_column()
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class SandboxPort(Record):
    """A port of a server inside a sandbox that is reachable from outside."""

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
    created_at: Mapped[datetime] = created_column()
