"""Work to be done, and the log of what happened on each topic."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Index, String, Text, UniqueConstraint
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    BigId,
    Id,
    Json,
    Record,
    UtcDateTime,
    created_column,
    enum,
    id_column,
    now,
)

# `noun:id`, for example `conversation:cnv_…`.
TopicName = String(80).with_variant(
    mysql.VARCHAR(80, charset="ascii", collation="ascii_bin"), "mysql", "mariadb"
)


class TaskStatus(StrEnum):
    """Where a task stands. DEAD is the dead letter: it failed for the last time."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    DEAD = "DEAD"


class Task(Record):
    """Work that outlives the request that caused it.

    Tasks of one `lane` run one at a time, in order of their ids. A task with a `node_id` runs only
    there. A lease that runs out makes the task free again.
    """

    __tablename__ = "tasks"
    prefix = "tsk"
    __table_args__ = (
        Index(None, "priority", "status"),
        Index(None, "status", "run_at"),
        Index(None, "lane", "status", "id"),
        Record.__table_args__,
    )

    id: Mapped[str] = id_column("tsk")
    task_type: Mapped[str] = mapped_column(String(100), index=True)
    lane: Mapped[str | None] = mapped_column(Id, default=None)
    node_id: Mapped[str | None] = mapped_column(String(64), default=None)
    priority: Mapped[int] = mapped_column(default=0)
    status: Mapped[TaskStatus] = mapped_column(enum(TaskStatus), default=TaskStatus.PENDING)
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    result: Mapped[Any | None] = mapped_column(Json, default=None)
    error_message: Mapped[str | None] = mapped_column(Text, default=None)
    retry_count: Mapped[int] = mapped_column(default=0)
    max_retries: Mapped[int] = mapped_column(default=3)
    run_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    lease_owner: Mapped[str | None] = mapped_column(String(64), index=True, default=None)
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = created_column()
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Topic(Record):
    """The counter of a topic's events. Its row lock makes commit order the order of `seq`.

    `first_seq` is the oldest event still kept.
    """

    __tablename__ = "topics"

    id: Mapped[str] = mapped_column(TopicName, primary_key=True)
    epoch: Mapped[str] = mapped_column(String(12))
    seq: Mapped[int] = mapped_column(BigId, default=0)
    first_seq: Mapped[int] = mapped_column(BigId, default=1)


class Event(Record):
    """One event of a topic, numbered densely from 1. No foreign keys: kept and dropped by time."""

    __tablename__ = "event_store"
    __table_args__ = (UniqueConstraint("topic", "seq"), Record.__table_args__)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    topic: Mapped[str] = mapped_column(TopicName)
    seq: Mapped[int] = mapped_column(BigId)
    type: Mapped[str] = mapped_column(String(50))
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
