"""What roles and people may spend a minute."""

import sqlalchemy as sa
from alembic import op

from migrations import columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rate_limit_configs",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("role_id", columns.ID, nullable=True),
        sa.Column("user_id", columns.ID, nullable=True),
        sa.Column("points_per_minute", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["role_id"],
            ["roles.id"],
            name=op.f("fk_rate_limit_configs_role_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_rate_limit_configs_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rate_limit_configs")),
        sa.UniqueConstraint("role_id", name=op.f("uq_rate_limit_configs_role_id")),
        sa.UniqueConstraint("user_id", name=op.f("uq_rate_limit_configs_user_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_rate_limit_configs_created_at"), "rate_limit_configs", ["created_at"], unique=False
    )


def downgrade() -> None:
    op.drop_table("rate_limit_configs")
