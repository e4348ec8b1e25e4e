"""Roles and the permissions they carry."""

from typing import Any

from sqlalchemy import delete, or_, select, true
from sqlalchemy.sql.elements import ColumnElement

from models.accounts import Permission, Role, RolePermission, User, UserRole
from services import access
from services.base import Deps, Viewer, Work, work
from services.contention import repeatable
from services.errors import UserError, UserErrorCode
from services.sandboxes import quotas
from services.text import clean

PERMISSIONS = {
    "accounts:manage": "Change other people's accounts and roles.",
    "conversations:write": "Create conversations and send messages.",
    "memories:write": "Create and change memories.",
    "plans:write": "Create plans.",
    "plans:execute": "Run plans.",
    "sandboxes:write": "Create and change sandboxes.",
    "sandboxes:execute": "Run commands in sandboxes.",
    "tools:manage": "Enable and disable tools.",
    "templates:manage": "Change sandbox templates.",
    access.READ_EVERYTHING: "See everybody's rows.",
    "everything:manage": "Stop, cancel and delete what others made.",
}
ROLES_MAX = 100
DESCRIPTION_CHARS = 1000
_USER = {name for name in PERMISSIONS if name.endswith((":write", ":execute"))}
ROLES: dict[str, tuple[str, set[str]]] = {
    "admin": ("Runs this server: sees everything and manages people.", set(PERMISSIONS)),
    "user": ("Uses everything for their own work.", _USER),
    "viewer": ("Looks at their own things without changing them.", set()),
}


@access.rule(Role)
def _roles(viewer: Viewer) -> ColumnElement[bool]:
    return true()


@access.rule(Permission)
def _permissions(viewer: Viewer) -> ColumnElement[bool]:
    return true()


@access.rule(UserRole)
def _user_roles(viewer: Viewer) -> ColumnElement[bool]:
    return UserRole.user_id == viewer.user_id


@access.rule(RolePermission)
def _role_permissions(viewer: Viewer) -> ColumnElement[bool]:
    return true()


async def seed(unit: Work) -> None:
    """Add the built-in roles and permissions that are missing, and leave the rest alone."""
    session = unit.session
    permissions = {p.name: p for p in await session.scalars(select(Permission))}
    for name, description in PERMISSIONS.items():
        if name not in permissions:
            permissions[name] = Permission(name=name, description=description)
            session.add(permissions[name])
    roles = {role.name: role for role in await session.scalars(select(Role))}
    await session.flush()
    for name, (description, granted) in ROLES.items():
        if name in roles:
            continue
        role = Role(name=name, description=description)
        session.add(role)
        await session.flush()
        session.add_all(
            RolePermission(role_id=role.id, permission_id=permissions[p].id)
            for p in sorted(granted)
        )


async def grant(unit: Work, user_id: str, names: list[str]) -> None:
    """Give a user exactly these roles. Raises UserError INVALID for an unknown name."""
    session = unit.session
    found = {role.name: role.id for role in await session.scalars(select(Role))}
    unknown = next((name for name in names if name not in found), None)
    if unknown is not None:
        raise UserError(
            UserErrorCode.INVALID,
            f"There is no role {unknown[:50]!r}; there are {', '.join(sorted(found))}.",
            ("roles",),
        )
    await session.execute(delete(UserRole).where(UserRole.user_id == user_id))
    session.add_all(UserRole(user_id=user_id, role_id=found[name]) for name in sorted(set(names)))


async def admin_exists(unit: Work, *, besides: str | None = None) -> bool:
    """Tell whether an active administrator exists (besides the user `besides`)."""
    found = await unit.session.scalar(
        select(User.id)
        .join(UserRole, UserRole.user_id == User.id)
        .join(Role, Role.id == UserRole.role_id)
        .where(
            Role.name == "admin",
            User.is_active,
            or_(true() if besides is None else User.id != besides),
        )
        .limit(1)
    )
    return found is not None


@repeatable
async def assign(deps: Deps, viewer: Viewer, *, user_id: str, roles: list[str]) -> User:
    """Give a user exactly these roles.

    Raises UserError FORBIDDEN without `accounts:manage`, NOT_FOUND for an unknown user, INVALID for
    an unknown role, LIMIT for more than 100, CONFLICT when no administrator would be left.
    """
    viewer.require("accounts:manage")
    if len(roles) > ROLES_MAX:
        raise UserError(UserErrorCode.LIMIT, f"Give at most {ROLES_MAX} roles at once.", ("roles",))
    async with work(deps) as unit:
        # Two administrators must not take the role from each other at the same moment.
        await unit.session.execute(select(Role.id).where(Role.name == "admin").with_for_update())
        user = await unit.lock(User, user_id)
        if user is None:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such user.", ("user_id",))
        if "admin" not in roles and not await admin_exists(unit, besides=user_id):
            raise UserError(
                UserErrorCode.CONFLICT,
                "This is the last administrator; make somebody else one first.",
                ("roles",),
            )
        await grant(unit, user_id, roles)
        unit.signal(f"viewer:{user_id}", {"changed": "roles"})
        return user.frozen()


@repeatable
async def update(deps: Deps, viewer: Viewer, *, role_id: str, changes: dict[str, Any]) -> Role:
    """Change `description` (None takes it away) or `sandbox_quota` of a role.

    A quota says by name what the holders' live sandboxes may have in all; what it leaves out, or
    says None of, is as configured. Raises UserError FORBIDDEN without `accounts:manage`, NOT_FOUND,
    INVALID and LIMIT.
    """
    viewer.require("accounts:manage")
    async with work(deps) as unit:
        role = await unit.lock(Role, role_id)
        if role is None:
            raise UserError(UserErrorCode.NOT_FOUND, "There is no such role.", ("id",))
        if "description" in changes:
            text = changes["description"]
            role.description = (
                None if text is None else clean(text, "description", max_chars=DESCRIPTION_CHARS)
            )
        if "sandbox_quota" in changes:
            role.sandbox_quota = quotas.checked(changes["sandbox_quota"] or {})
        await unit.session.flush()
        return role.frozen()
