"""People, what they may do, and their sign-ins."""

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import (
    Id,
    Json,
    Record,
    UtcDateTime,
    created_column,
    id_column,
    now,
    updated_column,
)


class User(Record):
    """A person with an account."""

    __tablename__ = "users"
    prefix = "usr"

    id: Mapped[str] = id_column("usr")
    username: Mapped[str] = mapped_column(String(100), unique=True)
    email: Mapped[str] = mapped_column(String(255), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255), info={"heavy": True})
    display_name: Mapped[str] = mapped_column(String(100))
    is_active: Mapped[bool] = mapped_column(default=True, index=True)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()


class Role(Record):
    """A named set of permissions.

    `sandbox_quota` says what its holders' live sandboxes may have in all, by `count`, `cpu_millis`,
    `memory_bytes` and `disk_bytes`; what it leaves out is as configured.
    """

    __tablename__ = "roles"
    prefix = "rol"

    id: Mapped[str] = id_column("rol")
    name: Mapped[str] = mapped_column(String(50), unique=True)
    description: Mapped[str | None] = mapped_column(Text, default=None)
    sandbox_quota: Mapped[dict[str, int] | None] = mapped_column(Json, default=None)


class Permission(Record):
    """One thing a role may do, named `domain:action`."""

    __tablename__ = "permissions"
    prefix = "prm"

    id: Mapped[str] = id_column("prm")
    name: Mapped[str] = mapped_column(String(100), unique=True)
    description: Mapped[str | None] = mapped_column(Text, default=None)


class UserRole(Record):
    """A role given to a user."""

    __tablename__ = "user_roles"
    prefix = "uro"
    __table_args__ = (UniqueConstraint("user_id", "role_id"), Record.__table_args__)

    id: Mapped[str] = id_column("uro")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"))
    role_id: Mapped[str] = mapped_column(Id, ForeignKey("roles.id", ondelete="CASCADE"), index=True)
    assigned_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class RolePermission(Record):
    """A permission that belongs to a role."""

    __tablename__ = "role_permissions"
    prefix = "rpm"
    __table_args__ = (UniqueConstraint("role_id", "permission_id"), Record.__table_args__)

    id: Mapped[str] = id_column("rpm")
    role_id: Mapped[str] = mapped_column(Id, ForeignKey("roles.id", ondelete="CASCADE"))
    permission_id: Mapped[str] = mapped_column(
        Id, ForeignKey("permissions.id", ondelete="CASCADE"), index=True
    )
    assigned_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class AuthSession(Record):
    """One sign-in: a short access token now, renewed through single-use refresh tokens.

    The session is the family of its refresh tokens: when a used one comes back, it is revoked.
    """

    __tablename__ = "auth_sessions"
    prefix = "ses"

    id: Mapped[str] = id_column("ses")
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True, info={"heavy": True})
    ip_address: Mapped[str | None] = mapped_column(String(45), default=None)
    user_agent: Mapped[str | None] = mapped_column(String(255), default=None)
    created_at: Mapped[datetime] = created_column()
    last_active_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    revoked_reason: Mapped[str | None] = mapped_column(String(50), default=None)


class AuthRefreshToken(Record):
    """A refresh token of a session, used at most once."""

    __tablename__ = "auth_refresh_tokens"
    prefix = "rft"

    id: Mapped[str] = id_column("rft")
    session_id: Mapped[str] = mapped_column(
        Id, ForeignKey("auth_sessions.id", ondelete="CASCADE"), index=True
    )
    token_hash: Mapped[str] = mapped_column(String(64), unique=True, info={"heavy": True})
    created_at: Mapped[datetime] = created_column()
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class RateLimitConfig(Record):
    """How many points of cost a minute a user, or each holder of a role, may spend.

    Either `role_id` or `user_id` is set.
    """

    __tablename__ = "rate_limit_configs"
    prefix = "rlc"

    id: Mapped[str] = id_column("rlc")
    role_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("roles.id", ondelete="CASCADE"), unique=True, default=None
    )
    user_id: Mapped[str | None] = mapped_column(
        Id, ForeignKey("users.id", ondelete="CASCADE"), unique=True, default=None
    )
    points_per_minute: Mapped[int] = mapped_column()
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = updated_column()
