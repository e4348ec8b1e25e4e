"""Conversations, their messages, and what an answer was made from."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ForeignKey, Index, Numeric, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    Id,
    Json,
    LongText,
    Record,
    UtcDateTime,
    created_column,
    embedding_column,
    enum,
    id_column,
    updated_column,
)
from models.states import ConversationStatus, MessageRole, MessageStatus, RunState


class Conversation(Record):
    """A thread of messages between a user and the assistant."""

    __tablename__ = "conversations"
    prefix = "cnv"
    __table_args__ = (Index(None, "user_id", "updated_at", "id"), Record.__table_args__)

    id: Mapped[str] = id_column("cnv")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(String(200), default=None)
    status: Mapped[ConversationStatus] = mapped_column(
        enum(ConversationStatus), default=ConversationStatus.ACTIVE, index=True
    )
    meta: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json, default=None)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class Message(Record):
    """One message. An assistant's message is made PENDING and grows while it streams.

    While STREAMING, `content` is a checkpoint; the newest text is in the bus.
    """

    __tablename__ = "messages"
    prefix = "msg"
    __table_args__ = (
        Index(None, "conversation_id", "id"),
        UniqueConstraint("conversation_id", "idempotency_key"),
        Record.__table_args__,
    )

    id: Mapped[str] = id_column("msg")
    conversation_id: Mapped[str] = mapped_column(
        Id, ForeignKey("conversations.id", ondelete="CASCADE")
    )
    user_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("users.id", ondelete="SET NULL"), index=True, default=None
    )
    session_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("auth_sessions.id", ondelete="SET NULL"), default=None
    )
    reply_to_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("messages.id", ondelete="SET NULL"), index=True, default=None
    )
    role: Mapped[MessageRole] = mapped_column(enum(MessageRole), index=True)
    status: Mapped[MessageStatus] = mapped_column(
        enum(MessageStatus), default=MessageStatus.COMPLETED
    )
    content: Mapped[str] = mapped_column(LongText)
    idempotency_key: Mapped[str | None] = mapped_column(String(100), default=None)
    stop_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    error_code: Mapped[str | None] = mapped_column(String(50), default=None)
    error_message: Mapped[str | None] = mapped_column(Text, default=None)
    provider: Mapped[str | None] = mapped_column(String(50), default=None)
    model: Mapped[str | None] = mapped_column(String(100), default=None)
    input_tokens: Mapped[int | None] = mapped_column(default=None)
    output_tokens: Mapped[int | None] = mapped_column(default=None)
    cost_usd: Mapped[Decimal | None] = mapped_column(Numeric(12, 6), default=None)
    embedding: Mapped[bytes | None] = embedding_column()
    embedding_model: Mapped[str | None] = mapped_column(String(50), default=None)
    meta: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json, default=None)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class MessageToolCall(Record):
    """A tool the assistant called while writing a message.

    `round` counts the model's turns from 0; `text_offset` is the place in the message's text, in
    characters, where the call was made.
    """

    __tablename__ = "message_tool_calls"
    prefix = "mtc"
    __table_args__ = (UniqueConstraint("message_id", "round", "position"), Record.__table_args__)

    id: Mapped[str] = id_column("mtc")
    message_id: Mapped[str] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"))
    tool_execution_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("tool_executions.id", ondelete="SET NULL"), index=True, default=None
    )
    call_id: Mapped[str] = mapped_column(String(100))
    round: Mapped[int]
    position: Mapped[int]
    text_offset: Mapped[int]
    tool_name: Mapped[str] = mapped_column(String(100), index=True)
    arguments: Mapped[str] = mapped_column(LongText)
    status: Mapped[RunState] = mapped_column(enum(RunState), default=RunState.PENDING)
    result: Mapped[Any | None] = mapped_column(Json, default=None)
    created_at: Mapped[datetime] = created_column()
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class Context(Record):
    """What one answer was made from: the messages and memories given to the model."""

    __tablename__ = "contexts"
    prefix = "ctx"

    id: Mapped[str] = id_column("ctx")
    session_id: Mapped[str] = mapped_column(
        Id, ForeignKey("auth_sessions.id", ondelete="CASCADE"), index=True
    )
    message_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("messages.id", ondelete="CASCADE"), unique=True, default=None
    )
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
