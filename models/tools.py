"""Tools the assistant and plans can use, and each use of them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    Id,
    Json,
    Record,
    UtcDateTime,
    created_column,
    enum,
    id_column,
    updated_column,
)
from models.states import RunState, ToolEnvironment


class Tool(Record):
    """A tool: what it does, where it runs, and the JSON Schema of its arguments."""

    __tablename__ = "tools"
    prefix = "tol"

    id: Mapped[str] = id_column("tol")
    name: Mapped[str] = mapped_column(String(100), unique=True)
    description: Mapped[str | None] = mapped_column(Text, default=None)
    category: Mapped[str | None] = mapped_column(String(50), index=True, default=None)
    version: Mapped[str] = mapped_column(String(20), default="1.0.0")
    enabled: Mapped[bool] = mapped_column(default=True)
    exec_env: Mapped[ToolEnvironment] = mapped_column(
        enum(ToolEnvironment), default=ToolEnvironment.HOST, index=True
    )
    input_schema: Mapped[dict[str, Any]] = mapped_column(Json)
    timeout_s: Mapped[int] = mapped_column(default=30)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class ToolParameter(Record):
    """One parameter of a tool, as people read it."""

    __tablename__ = "tool_parameters"
    prefix = "tpr"
    __table_args__ = (UniqueConstraint("tool_id", "name"), Record.__table_args__)

    id: Mapped[str] = id_column("tpr")
    tool_id: Mapped[str] = mapped_column(Id, ForeignKey("tools.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100))
    description: Mapped[str | None] = mapped_column(Text, default=None)
    type: Mapped[str] = mapped_column(String(50))
    required: Mapped[bool] = mapped_column(default=False)
    default_value: Mapped[str | None] = mapped_column(String(255), default=None)


class ToolExecution(Record):
    """One use of a tool, from request to result."""

    __tablename__ = "tool_executions"
    prefix = "tex"

    id: Mapped[str] = id_column("tex")
    tool_id: Mapped[str] = mapped_column(Id, ForeignKey("tools.id"), index=True)
    user_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("users.id", ondelete="SET NULL"), index=True, default=None
    )
    sandbox_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("sandboxes.id", ondelete="SET NULL"), index=True, default=None
    )
    parameters: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    result: Mapped[Any | None] = mapped_column(Json, default=None)
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING, index=True)
    error_code: Mapped[str | None] = mapped_column(String(50), default=None)
    error_message: Mapped[str | None] = mapped_column(Text, default=None)
    created_at: Mapped[datetime] = created_column()
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
