"""What was understood of messages: sentiments, intents and entities."""

import sqlalchemy as sa
from alembic import op

from migrations import columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "message_sentiments",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("message_id", columns.ID, nullable=False),
        sa.Column("score", sa.Numeric(precision=5, scale=4, asdecimal=False), nullable=False),
        sa.Column(
            "label",
            columns.enum("sentimentlabel", "positive", "negative", "neutral", "mixed"),
            nullable=False,
        ),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_message_sentiments_message_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message_sentiments")),
        sa.UniqueConstraint("message_id", name=op.f("uq_message_sentiments_message_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_message_sentiments_created_at"),
        "message_sentiments",
        ["created_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_message_sentiments_label"), "message_sentiments", ["label"], unique=False
    )

    op.create_table(
        "message_intents",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("message_id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("confidence", sa.Numeric(precision=5, scale=4, asdecimal=False), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_message_intents_message_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message_intents")),
        sa.UniqueConstraint("message_id", "name", name=op.f("uq_message_intents_message_id_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_message_intents_created_at"), "message_intents", ["created_at"], unique=False
    )
    op.create_index(op.f("ix_message_intents_name"), "message_intents", ["name"], unique=False)

    op.create_table(
        "message_entities",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("message_id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("start_pos", sa.Integer(), nullable=False),
        sa.Column("end_pos", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_message_entities_message_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message_entities")),
        sa.UniqueConstraint(
            "message_id", "start_pos", name=op.f("uq_message_entities_message_id_start_pos")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_message_entities_created_at"), "message_entities", ["created_at"], unique=False
    )
    op.create_index(op.f("ix_message_entities_name"), "message_entities", ["name"], unique=False)
    op.create_index(op.f("ix_message_entities_type"), "message_entities", ["type"], unique=False)


def downgrade() -> None:
    # A table takes its indexes along; MySQL refuses to drop alone those that foreign keys need.
    for table in ("message_entities", "message_intents", "message_sentiments"):
        op.drop_table(table)
