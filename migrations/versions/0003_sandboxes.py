"""Sandboxes grow up: templates with versions, snapshots, connections, usage, findings, removals."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from migrations import columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _new_columns() -> dict[str, tuple[sa.Column[Any], ...]]:
    """Give the columns that tables there are get; new objects, for a table takes them for good."""
    return {
        "roles": (sa.Column("sandbox_quota", sa.JSON(), nullable=True),),
        "sandbox_templates": (
            sa.Column("image_digest", sa.String(length=100), nullable=True),
            sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
            sa.Column("python_version", sa.String(length=20), nullable=True),
            sa.Column("checked_at", columns.TIME, nullable=True),
        ),
        "sandboxes": (
            sa.Column("image_digest", sa.String(length=100), nullable=True),
            sa.Column("template_version", sa.Integer(), nullable=True),
            sa.Column("idle_timeout_s", sa.Integer(), nullable=True),
            sa.Column("is_persistent", sa.Boolean(), server_default=sa.text("0"), nullable=False),
            sa.Column("restored_from", columns.ID, nullable=True),
            sa.Column("pool_key", sa.String(length=64), nullable=True),
        ),
        "sandbox_workspaces": (
            sa.Column("inodes", sa.Integer(), server_default=sa.text("0"), nullable=False),
            sa.Column("snapshot_id", columns.ID, nullable=True),
        ),
        "sandbox_executions": (
            sa.Column("argv", sa.JSON(), nullable=True),
            sa.Column("is_background", sa.Boolean(), server_default=sa.text("0"), nullable=False),
            sa.Column("terminal_rows", sa.Integer(), nullable=True),
            sa.Column("terminal_cols", sa.Integer(), nullable=True),
            sa.Column("output_limit", sa.BigInteger(), nullable=True),
            sa.Column("pid", sa.Integer(), nullable=True),
            sa.Column("stdin_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
            sa.Column("is_interactive", sa.Boolean(), server_default=sa.text("0"), nullable=False),
            sa.Column("is_stdin_base64", sa.Boolean(), server_default=sa.text("0"), nullable=False),
        ),
        "sandbox_resources": (
            sa.Column(
                "inodes_limit", sa.Integer(), server_default=sa.text("65536"), nullable=False
            ),
        ),
        "sandbox_files": (
            sa.Column("scanned_at", columns.TIME, nullable=True),
            sa.Column("finding", sa.String(length=100), nullable=True),
        ),
        "sandbox_ports": (
            sa.Column("token_epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        ),
    }


# Table, column, name of its check, values; the first is that of the rows there are.
_NEW_STATES = (
    ("sandboxes", "on_expiry", "sandboxexpiry", ("stop", "pause")),
    ("sandbox_files", "verdict", "fileverdict", ("clean", "infected", "unscanned")),
)
_DEFAULTS = {"on_expiry": "stop", "verdict": "unscanned"}


def upgrade() -> None:
    for table, added in _new_columns().items():
        for column in added:
            op.add_column(table, column)
    for table, name, check, values in _NEW_STATES:
        _add_state(table, name, check, values)
    _create_tables()


def _add_state(table: str, name: str, check: str, values: tuple[str, ...]) -> None:
    """Add a column with a CHECK; SQLite takes the two only together, and Alembic has no word."""
    listed = ", ".join(f"'{value}'" for value in values)
    op.execute(
        f"ALTER TABLE {table} ADD COLUMN {name} VARCHAR(20) DEFAULT '{_DEFAULTS[name]}' NOT NULL "
        f"CONSTRAINT ck_{table}_{check} CHECK ({name} IN ({listed}))"
        if op.get_bind().dialect.name == "sqlite"
        else f"ALTER TABLE {table} ADD COLUMN {name} VARCHAR(20) NOT NULL "
        f"DEFAULT '{_DEFAULTS[name]}', "
        f"ADD CONSTRAINT ck_{table}_{check} CHECK ({name} IN ({listed}))"
    )


def _create_tables() -> None:
    op.create_table(
        "sandbox_template_versions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("template_id", columns.ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("image_digest", sa.String(length=100), nullable=True),
        sa.Column("python_version", sa.String(length=20), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["sandbox_templates.id"],
            name=op.f("fk_sandbox_template_versions_template_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_template_versions")),
        sa.UniqueConstraint(
            "template_id", "version", name=op.f("uq_sandbox_template_versions_template_id_version")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_template_versions_created_at"),
        "sandbox_template_versions",
        ["created_at"],
        unique=False,
    )
    op.create_table(
        "sandbox_snapshots",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=True),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=True),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("is_automatic", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("expires_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_snapshots_sandbox_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sandbox_snapshots_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_snapshots")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_snapshots_created_at"), "sandbox_snapshots", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_snapshots_expires_at"), "sandbox_snapshots", ["expires_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_snapshots_sandbox_id"), "sandbox_snapshots", ["sandbox_id"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_snapshots_user_id_id"),
        "sandbox_snapshots",
        ["user_id", "id"],
        unique=False,
    )
    op.create_table(
        "sandbox_connections",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column(
            "verdict",
            columns.enum("connectionverdict", "allowed", "denied", "failed"),
            nullable=False,
        ),
        sa.Column("rule", sa.String(length=255), nullable=True),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.Column("opened_at", columns.TIME, nullable=False),
        sa.Column("closed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_connections_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_connections")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_connections_opened_at"), "sandbox_connections", ["opened_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_connections_sandbox_id_id"),
        "sandbox_connections",
        ["sandbox_id", "id"],
        unique=False,
    )
    op.create_table(
        "sandbox_usage",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("at", columns.TIME, nullable=False),
        sa.Column("cpu_ms", sa.BigInteger(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("pids", sa.Integer(), nullable=True),
        sa.Column("disk_bytes", sa.BigInteger(), nullable=True),
        sa.Column("rx", sa.BigInteger(), nullable=True),
        sa.Column("tx", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_usage_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_usage")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_sandbox_usage_at"), "sandbox_usage", ["at"], unique=False)
    op.create_index(
        op.f("ix_sandbox_usage_sandbox_id_at"), "sandbox_usage", ["sandbox_id", "at"], unique=False
    )
    op.create_table(
        "sandbox_findings",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=True),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("engine", sa.String(length=20), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("quarantine_path", sa.String(length=255), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_findings_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sandbox_findings_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_findings")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_findings_created_at"), "sandbox_findings", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_findings_sandbox_id_id"),
        "sandbox_findings",
        ["sandbox_id", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_sandbox_findings_user_id"), "sandbox_findings", ["user_id"], unique=False
    )
    op.create_table(
        "sandbox_removals",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=True),
        sa.Column("reason", sa.String(length=255), nullable=False),
        sa.Column("removed_at", columns.TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_removals")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_removals_removed_at"), "sandbox_removals", ["removed_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_removals_sandbox_id"), "sandbox_removals", ["sandbox_id"], unique=False
    )


def downgrade() -> None:
    for table in (
        "sandbox_removals",
        "sandbox_findings",
        "sandbox_usage",
        "sandbox_connections",
        "sandbox_snapshots",
        "sandbox_template_versions",
    ):
        op.drop_table(table)
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for table, name, check, _ in _NEW_STATES:
        if not is_sqlite:
            op.drop_constraint(op.f(f"ck_{table}_{check}"), table, type_="check")
        op.drop_column(table, name)
    for table, added in _new_columns().items():
        for column in added:
            op.drop_column(table, column.name)
