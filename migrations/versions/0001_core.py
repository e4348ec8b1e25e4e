"""Accounts, conversations, tools, plans, memories, sandboxes, tasks and events."""

import sqlalchemy as sa
from alembic import op

from migrations import columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:  # noqa: PLR0915 - one table after the other.
    op.create_table(
        "event_store",
        sa.Column("id", columns.BIG_ID, autoincrement=True, nullable=False),
        sa.Column("topic", columns.TOPIC, nullable=False),
        sa.Column("seq", columns.BIG_ID, nullable=False),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("recorded_at", columns.TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event_store")),
        sa.UniqueConstraint("topic", "seq", name=op.f("uq_event_store_topic_seq")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_event_store_recorded_at"), "event_store", ["recorded_at"], unique=False
    )

    op.create_table(
        "permissions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_permissions")),
        sa.UniqueConstraint("name", name=op.f("uq_permissions_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "roles",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=50), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roles")),
        sa.UniqueConstraint("name", name=op.f("uq_roles_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "sandbox_templates",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("language", sa.String(length=20), nullable=False),
        sa.Column("image_name", sa.String(length=255), nullable=False),
        sa.Column("image_tag", sa.String(length=50), nullable=False),
        sa.Column("config", sa.JSON(), nullable=True),
        sa.Column("resource_config", sa.JSON(), nullable=True),
        sa.Column("security_config", sa.JSON(), nullable=True),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_templates")),
        sa.UniqueConstraint("name", name=op.f("uq_sandbox_templates_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_templates_created_at"), "sandbox_templates", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_templates_is_active"), "sandbox_templates", ["is_active"], unique=False
    )

    op.create_table(
        "tasks",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("task_type", sa.String(length=100), nullable=False),
        sa.Column("lane", columns.ID, nullable=True),
        sa.Column("node_id", sa.String(length=64), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            columns.enum(
                "taskstatus", "pending", "running", "completed", "failed", "canceled", "dead"
            ),
            nullable=False,
        ),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("run_at", columns.TIME, nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("leased_until", columns.TIME, nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_tasks_created_at"), "tasks", ["created_at"], unique=False)
    op.create_index(
        op.f("ix_tasks_lane_status_id"), "tasks", ["lane", "status", "id"], unique=False
    )
    op.create_index(op.f("ix_tasks_lease_owner"), "tasks", ["lease_owner"], unique=False)
    op.create_index(op.f("ix_tasks_priority_status"), "tasks", ["priority", "status"], unique=False)
    op.create_index(op.f("ix_tasks_status_run_at"), "tasks", ["status", "run_at"], unique=False)
    op.create_index(op.f("ix_tasks_task_type"), "tasks", ["task_type"], unique=False)

    op.create_table(
        "tools",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("category", sa.String(length=50), nullable=True),
        sa.Column("version", sa.String(length=20), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column(
            "exec_env", columns.enum("toolenvironment", "host", "sandbox", "both"), nullable=False
        ),
        sa.Column("input_schema", sa.JSON(), nullable=False),
        sa.Column("timeout_s", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tools")),
        sa.UniqueConstraint("name", name=op.f("uq_tools_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_tools_category"), "tools", ["category"], unique=False)
    op.create_index(op.f("ix_tools_created_at"), "tools", ["created_at"], unique=False)
    op.create_index(op.f("ix_tools_exec_env"), "tools", ["exec_env"], unique=False)

    op.create_table(
        "topics",
        sa.Column("id", columns.TOPIC, nullable=False),
        sa.Column("epoch", sa.String(length=12), nullable=False),
        sa.Column("seq", columns.BIG_ID, nullable=False),
        sa.Column("first_seq", columns.BIG_ID, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_topics")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "users",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("username", sa.String(length=100), nullable=False),
        sa.Column("email", sa.String(length=255), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.Column("display_name", sa.String(length=100), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("last_login_at", columns.TIME, nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_users_created_at"), "users", ["created_at"], unique=False)
    op.create_index(op.f("ix_users_is_active"), "users", ["is_active"], unique=False)

    op.create_table(
        "auth_sessions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("ip_address", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=255), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("last_active_at", columns.TIME, nullable=False),
        sa.Column("expires_at", columns.TIME, nullable=False),
        sa.Column("revoked_at", columns.TIME, nullable=True),
        sa.Column("revoked_reason", sa.String(length=50), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_auth_sessions_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auth_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_auth_sessions_token_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_auth_sessions_created_at"), "auth_sessions", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_auth_sessions_expires_at"), "auth_sessions", ["expires_at"], unique=False
    )
    op.create_index(op.f("ix_auth_sessions_user_id"), "auth_sessions", ["user_id"], unique=False)

    op.create_table(
        "conversations",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("title", sa.String(length=200), nullable=True),
        sa.Column(
            "status",
            columns.enum("conversationstatus", "active", "archived", "deleted"),
            nullable=False,
        ),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_conversations_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_conversations_created_at"), "conversations", ["created_at"], unique=False
    )
    op.create_index(op.f("ix_conversations_status"), "conversations", ["status"], unique=False)
    op.create_index(
        op.f("ix_conversations_user_id_updated_at_id"),
        "conversations",
        ["user_id", "updated_at", "id"],
        unique=False,
    )

    op.create_table(
        "plans",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_plans_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_plans_created_at"), "plans", ["created_at"], unique=False)
    op.create_index(op.f("ix_plans_status"), "plans", ["status"], unique=False)
    op.create_index(op.f("ix_plans_user_id_id"), "plans", ["user_id", "id"], unique=False)

    op.create_table(
        "role_permissions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("role_id", columns.ID, nullable=False),
        sa.Column("permission_id", columns.ID, nullable=False),
        sa.Column("assigned_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["permission_id"],
            ["permissions.id"],
            name=op.f("fk_role_permissions_permission_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["role_id"], ["roles.id"], name=op.f("fk_role_permissions_role_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_permissions")),
        sa.UniqueConstraint(
            "role_id", "permission_id", name=op.f("uq_role_permissions_role_id_permission_id")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_role_permissions_permission_id"),
        "role_permissions",
        ["permission_id"],
        unique=False,
    )

    op.create_table(
        "tool_parameters",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("tool_id", columns.ID, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("type", sa.String(length=50), nullable=False),
        sa.Column("required", sa.Boolean(), nullable=False),
        sa.Column("default_value", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(
            ["tool_id"], ["tools.id"], name=op.f("fk_tool_parameters_tool_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tool_parameters")),
        sa.UniqueConstraint("tool_id", "name", name=op.f("uq_tool_parameters_tool_id_name")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_table(
        "user_roles",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("role_id", columns.ID, nullable=False),
        sa.Column("assigned_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["role_id"], ["roles.id"], name=op.f("fk_user_roles_role_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_user_roles_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_roles")),
        sa.UniqueConstraint("user_id", "role_id", name=op.f("uq_user_roles_user_id_role_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_user_roles_role_id"), "user_roles", ["role_id"], unique=False)

    op.create_table(
        "auth_refresh_tokens",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("session_id", columns.ID, nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("expires_at", columns.TIME, nullable=False),
        sa.Column("used_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["auth_sessions.id"],
            name=op.f("fk_auth_refresh_tokens_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auth_refresh_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_auth_refresh_tokens_token_hash")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_auth_refresh_tokens_created_at"),
        "auth_refresh_tokens",
        ["created_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_auth_refresh_tokens_expires_at"),
        "auth_refresh_tokens",
        ["expires_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_auth_refresh_tokens_session_id"),
        "auth_refresh_tokens",
        ["session_id"],
        unique=False,
    )

    op.create_table(
        "messages",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("conversation_id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=True),
        sa.Column("session_id", columns.ID, nullable=True),
        sa.Column("reply_to_id", columns.ID, nullable=True),
        sa.Column(
            "role",
            columns.enum("messagerole", "user", "assistant", "system", "tool"),
            nullable=False,
        ),
        sa.Column(
            "status",
            columns.enum("messagestatus", "pending", "streaming", "completed", "failed", "stopped"),
            nullable=False,
        ),
        sa.Column("content", columns.LONG_TEXT, nullable=False),
        sa.Column("idempotency_key", sa.String(length=100), nullable=True),
        sa.Column("stop_requested_at", columns.TIME, nullable=True),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("provider", sa.String(length=50), nullable=True),
        sa.Column("model", sa.String(length=100), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Numeric(precision=12, scale=6), nullable=True),
        sa.Column("embedding", columns.BLOB, nullable=True),
        sa.Column("embedding_model", sa.String(length=50), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_messages_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["reply_to_id"],
            ["messages.id"],
            name=op.f("fk_messages_reply_to_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["auth_sessions.id"],
            name=op.f("fk_messages_session_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_messages_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint(
            "conversation_id",
            "idempotency_key",
            name=op.f("uq_messages_conversation_id_idempotency_key"),
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_messages_conversation_id_id"), "messages", ["conversation_id", "id"], unique=False
    )
    op.create_index(op.f("ix_messages_created_at"), "messages", ["created_at"], unique=False)
    op.create_index(op.f("ix_messages_reply_to_id"), "messages", ["reply_to_id"], unique=False)
    op.create_index(op.f("ix_messages_role"), "messages", ["role"], unique=False)
    op.create_index(op.f("ix_messages_user_id"), "messages", ["user_id"], unique=False)

    op.create_table(
        "plan_executions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("plan_id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("session_id", columns.ID, nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("started_at", columns.TIME, nullable=False),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.Column("cancel_requested_at", columns.TIME, nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error_details", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_plan_executions_plan_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["auth_sessions.id"],
            name=op.f("fk_plan_executions_session_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_plan_executions_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_executions")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_plan_executions_plan_id_id"), "plan_executions", ["plan_id", "id"], unique=False
    )
    op.create_index(
        op.f("ix_plan_executions_started_at"), "plan_executions", ["started_at"], unique=False
    )
    op.create_index(op.f("ix_plan_executions_status"), "plan_executions", ["status"], unique=False)
    op.create_index(
        op.f("ix_plan_executions_user_id"), "plan_executions", ["user_id"], unique=False
    )

    op.create_table(
        "plan_steps",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("plan_id", columns.ID, nullable=False),
        sa.Column("order_index", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tool_name", sa.String(length=100), nullable=True),
        sa.Column("arguments", sa.JSON(), nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.Column("execution_details", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["plan_id"], ["plans.id"], name=op.f("fk_plan_steps_plan_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_steps")),
        sa.UniqueConstraint(
            "plan_id", "order_index", name=op.f("uq_plan_steps_plan_id_order_index")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_plan_steps_status"), "plan_steps", ["status"], unique=False)

    op.create_table(
        "sandboxes",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column("template_id", columns.ID, nullable=True),
        sa.Column("conversation_id", columns.ID, nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "sandboxstatus", "creating", "running", "paused", "stopped", "failed", "deleted"
            ),
            nullable=False,
        ),
        sa.Column("driver", sa.String(length=20), nullable=False),
        sa.Column("node_id", sa.String(length=64), nullable=False),
        sa.Column("container_id", sa.String(length=64), nullable=True),
        sa.Column("image_name", sa.String(length=255), nullable=False),
        sa.Column("image_tag", sa.String(length=50), nullable=False),
        sa.Column("config", sa.JSON(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("last_active_at", columns.TIME, nullable=True),
        sa.Column("paused_at", columns.TIME, nullable=True),
        sa.Column("stopped_at", columns.TIME, nullable=True),
        sa.Column("expires_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_sandboxes_conversation_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["template_id"],
            ["sandbox_templates.id"],
            name=op.f("fk_sandboxes_template_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sandboxes_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandboxes")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_sandboxes_container_id"), "sandboxes", ["container_id"], unique=False)
    op.create_index(
        op.f("ix_sandboxes_conversation_id"), "sandboxes", ["conversation_id"], unique=False
    )
    op.create_index(op.f("ix_sandboxes_created_at"), "sandboxes", ["created_at"], unique=False)
    op.create_index(op.f("ix_sandboxes_expires_at"), "sandboxes", ["expires_at"], unique=False)
    op.create_index(op.f("ix_sandboxes_node_id"), "sandboxes", ["node_id"], unique=False)
    op.create_index(op.f("ix_sandboxes_status"), "sandboxes", ["status"], unique=False)
    op.create_index(op.f("ix_sandboxes_template_id"), "sandboxes", ["template_id"], unique=False)
    op.create_index(op.f("ix_sandboxes_user_id_id"), "sandboxes", ["user_id", "id"], unique=False)

    op.create_table(
        "contexts",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("session_id", columns.ID, nullable=False),
        sa.Column("message_id", columns.ID, nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["message_id"], ["messages.id"], name=op.f("fk_contexts_message_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["auth_sessions.id"],
            name=op.f("fk_contexts_session_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contexts")),
        sa.UniqueConstraint("message_id", name=op.f("uq_contexts_message_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_contexts_created_at"), "contexts", ["created_at"], unique=False)
    op.create_index(op.f("ix_contexts_session_id"), "contexts", ["session_id"], unique=False)

    op.create_table(
        "memories",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=False),
        sa.Column(
            "type",
            columns.enum("memorytype", "episodic", "semantic", "procedural", "preference"),
            nullable=False,
        ),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("importance", sa.Numeric(precision=3, scale=2, asdecimal=False), nullable=False),
        sa.Column("access_count", sa.Integer(), nullable=False),
        sa.Column("last_accessed_at", columns.TIME, nullable=True),
        sa.Column("embedding", columns.BLOB, nullable=True),
        sa.Column("embedding_model", sa.String(length=50), nullable=True),
        sa.Column("source_message_id", columns.ID, nullable=True),
        sa.Column("valid_from", columns.TIME, nullable=False),
        sa.Column("valid_until", columns.TIME, nullable=True),
        sa.Column("superseded_by_id", columns.ID, nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["source_message_id"],
            ["messages.id"],
            name=op.f("fk_memories_source_message_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["superseded_by_id"],
            ["memories.id"],
            name=op.f("fk_memories_superseded_by_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_memories_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_memories")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(op.f("ix_memories_created_at"), "memories", ["created_at"], unique=False)
    op.create_index(op.f("ix_memories_importance"), "memories", ["importance"], unique=False)
    op.create_index(
        op.f("ix_memories_last_accessed_at"), "memories", ["last_accessed_at"], unique=False
    )
    op.create_index(
        op.f("ix_memories_source_message_id"), "memories", ["source_message_id"], unique=False
    )
    op.create_index(
        op.f("ix_memories_superseded_by_id"), "memories", ["superseded_by_id"], unique=False
    )
    op.create_index(
        op.f("ix_memories_user_id_content_hash"),
        "memories",
        ["user_id", "content_hash"],
        unique=False,
    )
    op.create_index(op.f("ix_memories_user_id_type"), "memories", ["user_id", "type"], unique=False)

    op.create_table(
        "plan_step_dependencies",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("step_id", columns.ID, nullable=False),
        sa.Column("depends_on_id", columns.ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["depends_on_id"],
            ["plan_steps.id"],
            name=op.f("fk_plan_step_dependencies_depends_on_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["step_id"],
            ["plan_steps.id"],
            name=op.f("fk_plan_step_dependencies_step_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_step_dependencies")),
        sa.UniqueConstraint(
            "step_id", "depends_on_id", name=op.f("uq_plan_step_dependencies_step_id_depends_on_id")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_plan_step_dependencies_depends_on_id"),
        "plan_step_dependencies",
        ["depends_on_id"],
        unique=False,
    )

    op.create_table(
        "sandbox_executions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=True),
        sa.Column("command", columns.LONG_TEXT, nullable=False),
        sa.Column("working_dir", sa.String(length=255), nullable=True),
        sa.Column("stdin", columns.LONG_TEXT, nullable=True),
        sa.Column("environment", sa.JSON(), nullable=True),
        sa.Column("timeout_s", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column(
            "reason",
            columns.enum(
                "executionreason",
                "exited",
                "timed_out",
                "oom_killed",
                "output_limit",
                "killed",
                "sandbox_lost",
            ),
            nullable=True,
        ),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("stdout", columns.LONG_TEXT, nullable=True),
        sa.Column("stderr", columns.LONG_TEXT, nullable=True),
        sa.Column("stdout_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stderr_bytes", sa.BigInteger(), nullable=False),
        sa.Column("is_truncated", sa.Boolean(), nullable=False),
        sa.Column("resource_usage", sa.JSON(), nullable=True),
        sa.Column("cancel_requested_at", columns.TIME, nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_executions_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_sandbox_executions_user_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_executions")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_executions_created_at"), "sandbox_executions", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_executions_sandbox_id_id"),
        "sandbox_executions",
        ["sandbox_id", "id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_sandbox_executions_started_at"), "sandbox_executions", ["started_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_executions_status"), "sandbox_executions", ["status"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_executions_user_id"), "sandbox_executions", ["user_id"], unique=False
    )

    op.create_table(
        "sandbox_files",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mime_type", sa.String(length=100), nullable=True),
        sa.Column("is_directory", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("modified_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_files_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_files")),
        sa.UniqueConstraint("sandbox_id", "path", name=op.f("uq_sandbox_files_sandbox_id_path")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_files_content_hash"), "sandbox_files", ["content_hash"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_files_created_at"), "sandbox_files", ["created_at"], unique=False
    )

    op.create_table(
        "sandbox_ports",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("container_port", sa.Integer(), nullable=False),
        sa.Column("host_port", sa.Integer(), nullable=False),
        sa.Column("protocol", columns.enum("portprotocol", "tcp", "udp"), nullable=False),
        sa.Column("description", sa.String(length=255), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_ports_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_ports")),
        sa.UniqueConstraint(
            "sandbox_id",
            "container_port",
            "protocol",
            name=op.f("uq_sandbox_ports_sandbox_id_container_port_protocol"),
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_ports_created_at"), "sandbox_ports", ["created_at"], unique=False
    )

    op.create_table(
        "sandbox_resources",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("cpu_limit", sa.Integer(), nullable=False),
        sa.Column("memory_limit", sa.BigInteger(), nullable=False),
        sa.Column("disk_limit", sa.BigInteger(), nullable=False),
        sa.Column("network_limit", sa.BigInteger(), nullable=True),
        sa.Column("pids_limit", sa.Integer(), nullable=False),
        sa.Column("timeout_s", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_resources_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_resources")),
        sa.UniqueConstraint("sandbox_id", name=op.f("uq_sandbox_resources_sandbox_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_resources_created_at"), "sandbox_resources", ["created_at"], unique=False
    )

    op.create_table(
        "sandbox_security_policies",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("network_policy", sa.JSON(), nullable=False),
        sa.Column("syscall_policy", sa.JSON(), nullable=False),
        sa.Column("mount_policy", sa.JSON(), nullable=False),
        sa.Column("env_variables", sa.JSON(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("updated_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_security_policies_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_security_policies")),
        sa.UniqueConstraint("sandbox_id", name=op.f("uq_sandbox_security_policies_sandbox_id")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_security_policies_created_at"),
        "sandbox_security_policies",
        ["created_at"],
        unique=False,
    )

    op.create_table(
        "sandbox_workspaces",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("sandbox_id", columns.ID, nullable=False),
        sa.Column("root_path", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("modified_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_sandbox_workspaces_sandbox_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sandbox_workspaces")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_sandbox_workspaces_created_at"), "sandbox_workspaces", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_sandbox_workspaces_sandbox_id"), "sandbox_workspaces", ["sandbox_id"], unique=False
    )

    op.create_table(
        "tool_executions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("tool_id", columns.ID, nullable=False),
        sa.Column("user_id", columns.ID, nullable=True),
        sa.Column("sandbox_id", columns.ID, nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["sandbox_id"],
            ["sandboxes.id"],
            name=op.f("fk_tool_executions_sandbox_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(["tool_id"], ["tools.id"], name=op.f("fk_tool_executions_tool_id")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_tool_executions_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tool_executions")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_tool_executions_created_at"), "tool_executions", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_tool_executions_sandbox_id"), "tool_executions", ["sandbox_id"], unique=False
    )
    op.create_index(op.f("ix_tool_executions_status"), "tool_executions", ["status"], unique=False)
    op.create_index(
        op.f("ix_tool_executions_tool_id"), "tool_executions", ["tool_id"], unique=False
    )
    op.create_index(
        op.f("ix_tool_executions_user_id"), "tool_executions", ["user_id"], unique=False
    )

    op.create_table(
        "memory_relations",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("source_memory_id", columns.ID, nullable=False),
        sa.Column("target_memory_id", columns.ID, nullable=False),
        sa.Column(
            "relation_type",
            columns.enum("memoryrelationtype", "supersedes", "related"),
            nullable=False,
        ),
        sa.Column("strength", sa.Float(), nullable=False),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["source_memory_id"],
            ["memories.id"],
            name=op.f("fk_memory_relations_source_memory_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["target_memory_id"],
            ["memories.id"],
            name=op.f("fk_memory_relations_target_memory_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_memory_relations")),
        sa.UniqueConstraint(
            "source_memory_id",
            "target_memory_id",
            "relation_type",
            name=op.f("uq_memory_relations_source_memory_id_target_memory_id_relation_type"),
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_memory_relations_created_at"), "memory_relations", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_memory_relations_relation_type"),
        "memory_relations",
        ["relation_type"],
        unique=False,
    )
    op.create_index(
        op.f("ix_memory_relations_target_memory_id"),
        "memory_relations",
        ["target_memory_id"],
        unique=False,
    )

    op.create_table(
        "message_tool_calls",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("message_id", columns.ID, nullable=False),
        sa.Column("tool_execution_id", columns.ID, nullable=True),
        sa.Column("call_id", sa.String(length=100), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("text_offset", sa.Integer(), nullable=False),
        sa.Column("tool_name", sa.String(length=100), nullable=False),
        sa.Column("arguments", columns.LONG_TEXT, nullable=False),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("created_at", columns.TIME, nullable=False),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["message_id"],
            ["messages.id"],
            name=op.f("fk_message_tool_calls_message_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tool_execution_id"],
            ["tool_executions.id"],
            name=op.f("fk_message_tool_calls_tool_execution_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message_tool_calls")),
        sa.UniqueConstraint(
            "message_id",
            "round",
            "position",
            name=op.f("uq_message_tool_calls_message_id_round_position"),
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_message_tool_calls_created_at"), "message_tool_calls", ["created_at"], unique=False
    )
    op.create_index(
        op.f("ix_message_tool_calls_tool_execution_id"),
        "message_tool_calls",
        ["tool_execution_id"],
        unique=False,
    )
    op.create_index(
        op.f("ix_message_tool_calls_tool_name"), "message_tool_calls", ["tool_name"], unique=False
    )

    op.create_table(
        "plan_step_executions",
        sa.Column("id", columns.ID, nullable=False),
        sa.Column("execution_id", columns.ID, nullable=False),
        sa.Column("step_id", columns.ID, nullable=False),
        sa.Column("tool_execution_id", columns.ID, nullable=True),
        sa.Column(
            "status",
            columns.enum(
                "runstate",
                "pending",
                "running",
                "completed",
                "failed",
                "canceled",
                "timed_out",
                "skipped",
            ),
            nullable=False,
        ),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("output", columns.LONG_TEXT, nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("started_at", columns.TIME, nullable=True),
        sa.Column("completed_at", columns.TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["plan_executions.id"],
            name=op.f("fk_plan_step_executions_execution_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["step_id"],
            ["plan_steps.id"],
            name=op.f("fk_plan_step_executions_step_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tool_execution_id"],
            ["tool_executions.id"],
            name=op.f("fk_plan_step_executions_tool_execution_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_step_executions")),
        sa.UniqueConstraint(
            "execution_id", "step_id", name=op.f("uq_plan_step_executions_execution_id_step_id")
        ),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    op.create_index(
        op.f("ix_plan_step_executions_step_id"), "plan_step_executions", ["step_id"], unique=False
    )
    op.create_index(
        op.f("ix_plan_step_executions_tool_execution_id"),
        "plan_step_executions",
        ["tool_execution_id"],
        unique=False,
    )


def downgrade() -> None:
    # A table takes its indexes along; MySQL refuses to drop alone those that foreign keys need.
    for table in (
        "plan_step_executions",
        "message_tool_calls",
        "memory_relations",
        "tool_executions",
        "sandbox_workspaces",
        "sandbox_security_policies",
        "sandbox_resources",
        "sandbox_ports",
        "sandbox_files",
        "sandbox_executions",
        "plan_step_dependencies",
        "memories",
        "contexts",
        "sandboxes",
        "plan_steps",
        "plan_executions",
        "messages",
        "auth_refresh_tokens",
        "user_roles",
        "tool_parameters",
        "role_permissions",
        "plans",
        "conversations",
        "auth_sessions",
        "users",
        "topics",
        "tools",
        "tasks",
        "sandbox_templates",
        "roles",
        "permissions",
        "event_store",
    ):
        op.drop_table(table)
