"""What was understood of a message: its tone, what it asks for, and the things it names."""

from datetime import datetime

from sqlalchemy import ForeignKey, Numeric, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Id, Record, created_column, enum, id_column
from models.states import SentimentLabel


class MessageSentiment(Record):
    """The tone of one message; `score` is in -1 (negative) … 1 (positive)."""

    __tablename__ = "message_sentiments"
    prefix = "snt"

    id: Mapped[str] = id_column("snt")
    message_id: Mapped[str] = mapped_column(
        Id, ForeignKey("messages.id", ondelete="CASCADE"), unique=True
    )
    score: Mapped[float] = mapped_column(Numeric(5, 4, asdecimal=False))
    label: Mapped[SentimentLabel] = mapped_column(enum(SentimentLabel), index=True)
    created_at: Mapped[datetime] = created_column()


class MessageIntent(Record):
    """One thing a message asks for or does; `confidence` is in 0…1."""

    __tablename__ = "message_intents"
    prefix = "int"
    __table_args__ = (UniqueConstraint("message_id", "name"), Record.__table_args__)

    id: Mapped[str] = id_column("int")
    message_id: Mapped[str] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100), index=True)
    confidence: Mapped[float] = mapped_column(Numeric(5, 4, asdecimal=False))
    created_at: Mapped[datetime] = created_column()


class MessageEntity(Record):
    """A thing named in a message: `value` is its text from `start_pos` up to `end_pos`.

    Positions count characters (code points) from 0. `name` is a narrower kind than `type`, such as
    `plan` for an ID or `quantity` for a NUMBER. A link may be longer than a short string holds.
    """

    __tablename__ = "message_entities"
    prefix = "ent"
    __table_args__ = (UniqueConstraint("message_id", "start_pos"), Record.__table_args__)

    id: Mapped[str] = id_column("ent")
    message_id: Mapped[str] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(100), index=True)
    value: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(50), index=True)
    start_pos: Mapped[int]
    end_pos: Mapped[int]
    created_at: Mapped[datetime] = created_column()
