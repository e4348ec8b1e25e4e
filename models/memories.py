"""What is remembered of a user, and how memories relate."""

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Index, Numeric, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    Id,
    Record,
    UtcDateTime,
    created_column,
    embedding_column,
    enum,
    id_column,
    now,
    updated_column,
)
from models.states import MemoryRelationType, MemoryType


class Memory(Record):
    """A fact kept about a user. A contradicted memory is closed (`valid_until`), never deleted.

    `importance` is in 0…1.
    """

    __tablename__ = "memories"
    prefix = "mem"
    __table_args__ = (
        Index(None, "user_id", "type"),
        Index(None, "user_id", "content_hash"),
        Record.__table_args__,
    )

    id: Mapped[str] = id_column("mem")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    type: Mapped[MemoryType] = mapped_column(enum(MemoryType))
    content: Mapped[str] = mapped_column(Text)
    content_hash: Mapped[str] = mapped_column(String(64))
    importance: Mapped[float] = mapped_column(
        Numeric(3, 2, asdecimal=False), default=0.5, index=True
    )
    access_count: Mapped[int] = mapped_column(default=0)
    last_accessed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None, index=True)
    embedding: Mapped[bytes | None] = embedding_column()
    embedding_model: Mapped[str | None] = mapped_column(String(50), default=None)
    source_message_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("messages.id", ondelete="SET NULL"), index=True, default=None
    )
    valid_from: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    valid_until: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    superseded_by_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("memories.id", ondelete="SET NULL"), index=True, default=None
    )
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class MemoryRelation(Record):
    """A link from one memory to another; `strength` is in 0…1."""

    __tablename__ = "memory_relations"
    prefix = "mrl"
    __table_args__ = (
        UniqueConstraint("source_memory_id", "target_memory_id", "relation_type"),
        Record.__table_args__,
    )

    id: Mapped[str] = id_column("mrl")
    source_memory_id: Mapped[str] = mapped_column(Id, ForeignKey("memories.id", ondelete="CASCADE"))
    target_memory_id: Mapped[str] = mapped_column(
        Id, ForeignKey("memories.id", ondelete="CASCADE"), index=True
    )
    relation_type: Mapped[MemoryRelationType] = mapped_column(enum(MemoryRelationType), index=True)
    strength: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[datetime] = created_column()
