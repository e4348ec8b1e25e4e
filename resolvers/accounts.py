"""Computed fields of users, roles and sign-ins."""

from collections.abc import Sequence

from models.accounts import AuthSession, Permission, Role, RolePermission, User, UserRole
from models.base import now
from resolvers.base import Info, Order, Page, PageArgs, reads


async def me(info: Info) -> User | None:
    """Give the signed-in user, or None."""
    rows = await info.context.load.one(User, User.id, [info.context.viewer.user_id])
    return rows[0]


@reads()
async def roles(users: Sequence[User], info: Info) -> list[list[Role]]:
    """Roles of users, by name."""
    return await info.context.load.through(
        Role, UserRole.user_id, UserRole.role_id, [user.id for user in users], order_by=Role.name
    )


@reads()
async def permissions(roles: Sequence[Role], info: Info) -> list[list[str]]:
    """Names of the permissions of roles, sorted."""
    granted = await info.context.load.through(
        Permission,
        RolePermission.role_id,
        RolePermission.permission_id,
        [role.id for role in roles],
        order_by=Permission.name,
    )
    return [[permission.name for permission in group] for group in granted]


@reads()
async def sessions(users: Sequence[User], info: Info, page: PageArgs) -> list[Page[AuthSession]]:
    """Open sign-ins of users, the newest first; only one's own are visible."""
    return await info.context.load.page(
        AuthSession,
        AuthSession.user_id,
        [user.id for user in users],
        page,
        order=Order(is_descending=True),
        where=[AuthSession.revoked_at.is_(None)],
    )


@reads()
async def is_current(sessions: Sequence[AuthSession], info: Info) -> list[bool]:
    """Whether the request came with this sign-in."""
    return [session.id == info.context.viewer.session_id for session in sessions]


@reads("expires_at")
async def is_expired(sessions: Sequence[AuthSession], info: Info) -> list[bool]:
    """Whether the access token has run out (a refresh token may still renew it)."""
    return [session.expires_at <= now() for session in sessions]


async def users(info: Info, page: PageArgs) -> Page[User]:
    """Accounts, the newest first: all for an administrator, else only one's own."""
    return await info.context.load.list(User, page, order=Order(is_descending=True))


async def all_roles(info: Info) -> Sequence[Role]:
    """The roles of this server."""
    return await info.context.load.rows(Role, limit=100)
