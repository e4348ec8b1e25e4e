"""Sandboxes say since when they are asked to end."""

import sqlalchemy as sa
from alembic import op

from migrations import columns

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("stop_requested_at", columns.TIME, nullable=True))


def downgrade() -> None:
    op.drop_column("sandboxes", "stop_requested_at")
