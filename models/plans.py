"""Plans: steps that depend on each other, and their executions."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
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
from models.states import RunState


class Plan(Record):
    """A goal cut into steps. `status` and its times are those of the newest execution."""

    __tablename__ = "plans"
    prefix = "pln"
    __table_args__ = (Index(None, "user_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("pln")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str | None] = mapped_column(Text, default=None)
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING, index=True)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class PlanStep(Record):
    """One step: a call of `tool` with `arguments`, or, without a tool, a prompt (its description).

    `status`, its times and `execution_details` are those of the newest execution.
    """

    __tablename__ = "plan_steps"
    prefix = "pst"
    __table_args__ = (UniqueConstraint("plan_id", "order_index"), Record.__table_args__)

    id: Mapped[str] = id_column("pst")
    plan_id: Mapped[str] = mapped_column(Id, ForeignKey("plans.id", ondelete="CASCADE"))
    order_index: Mapped[int]
    description: Mapped[str] = mapped_column(Text)
    tool_name: Mapped[str | None] = mapped_column(String(100), default=None)
    arguments: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING, index=True)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    execution_details: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)


class PlanStepDependency(Record):
    """An edge of a plan's graph: `step_id` waits for `depends_on_id`."""

    __tablename__ = "plan_step_dependencies"
    prefix = "psd"
    __table_args__ = (UniqueConstraint("step_id", "depends_on_id"), Record.__table_args__)

    id: Mapped[str] = id_column("psd")
    step_id: Mapped[str] = mapped_column(Id, ForeignKey("plan_steps.id", ondelete="CASCADE"))
    depends_on_id: Mapped[str] = mapped_column(
        Id, ForeignKey("plan_steps.id", ondelete="CASCADE"), index=True
    )


class PlanExecution(Record):
    """One run of a plan."""

    __tablename__ = "plan_executions"
    prefix = "pex"
    __table_args__ = (Index(None, "plan_id", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("pex")
    plan_id: Mapped[str] = mapped_column(Id, ForeignKey("plans.id", ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"), index=True)
    session_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("auth_sessions.id", ondelete="SET NULL"), default=None
    )
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING, index=True)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    result: Mapped[dict[str, Any] | None] = mapped_column(Json, default=None)
    error_details: Mapped[str | None] = mapped_column(Text, default=None)


class PlanStepExecution(Record):
    """One step in one execution. `attempt` counts from 1 and grows when a restart repeats it."""

    __tablename__ = "plan_step_executions"
    prefix = "pse"
    __table_args__ = (UniqueConstraint("execution_id", "step_id"), Record.__table_args__)

    id: Mapped[str] = id_column("pse")
    execution_id: Mapped[str] = mapped_column(
        Id, ForeignKey("plan_executions.id", ondelete="CASCADE")
    )
    step_id: Mapped[str] = mapped_column(
        Id, ForeignKey("plan_steps.id", ondelete="CASCADE"), index=True
    )
    tool_execution_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("tool_executions.id", ondelete="SET NULL"), index=True, default=None
    )
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    output: Mapped[str | None] = mapped_column(LongText, default=None)
    result: Mapped[Any | None] = mapped_column(Json, default=None)
    error_code: Mapped[str | None] = mapped_column(String(50), default=None)
    error_message: Mapped[str | None] = mapped_column(Text, default=None)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
