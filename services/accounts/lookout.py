"""Whether sign-ins still stand as they are known, asked for very many at once.

Whoever has seen how a sign-in stands need not read it again to know that it stands so still. Those
with the same rights are counted: as many as are known must be there, by their tokens, unrevoked, of
active users who hold these roles and no others. Only where a count differs are they told apart.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.accounts import AuthSession, Permission, Role, RolePermission, User, UserRole
from models.statements import Reading
from services.base import Deps

_AT_ONCE = 500
# Fewer with the same rights are not worth a statement of their own.
_COUNTED_FROM = 50
# What a user without roles holds.
_NO_ROLE = ""


class Known(NamedTuple):
    """A sign-in as somebody knows it."""

    token_hash: str
    roles: frozenset[str]
    permissions: frozenset[str]


class _Rights(NamedTuple):
    role_id: str
    permissions: set[str]


def _standing(*columns: object) -> Reading:
    return Reading(
        select(*columns)  # type: ignore[call-overload] # However many there are.
        .select_from(AuthSession)
        .join(User, User.id == AuthSession.user_id)
        .outerjoin(UserRole, UserRole.user_id == AuthSession.user_id)
        .where(
            AuthSession.token_hash.in_(bindparam("hashes", expanding=True)),
            AuthSession.revoked_at.is_(None),
            User.is_active,
        )
    )


_role = func.coalesce(UserRole.role_id, _NO_ROLE)
_COUNTS = _standing(
    func.count(),
    func.count(case((_role.in_(bindparam("roles", expanding=True)), 1))),
)
_ROLES = _standing(AuthSession.token_hash, _role)
_RIGHTS = Reading(
    select(Role.id, Role.name, Permission.name)
    .outerjoin(RolePermission, RolePermission.role_id == Role.id)
    .outerjoin(Permission, Permission.id == RolePermission.permission_id)
)


async def changed_among(deps: Deps, known: Iterable[Known]) -> set[str]:
    """Give the token hashes of those that stand otherwise than is known, announced or not.

    They were revoked, renewed or deleted, or their users are inactive or have other rights by now.
    """
    alike: dict[tuple[frozenset[str], frozenset[str]], list[str]] = defaultdict(list)
    for token_hash, roles, permissions in known:
        alike[roles, permissions].append(token_hash)
    changed: set[str] = set()
    rest: dict[str, frozenset[str]] = {}
    async with deps.db.reading() as connection:
        rights = await _rights(connection)
        for (roles, permissions), hashes in alike.items():
            role_ids = _role_ids(rights, roles, permissions)
            if role_ids is None:
                changed.update(hashes)
            elif len(hashes) < _COUNTED_FROM:
                rest.update(dict.fromkeys(hashes, role_ids))
            else:
                for some in _parts(hashes):
                    if not await _stand(connection, some, role_ids):
                        rest.update(dict.fromkeys(some, role_ids))
        for some in _parts(list(rest)):
            changed |= await _others(connection, {one: rest[one] for one in some})
    return changed


def _parts(hashes: Sequence[str]) -> Iterable[Sequence[str]]:
    return (hashes[start : start + _AT_ONCE] for start in range(0, len(hashes), _AT_ONCE))


async def _rights(connection: AsyncConnection) -> dict[str, _Rights]:
    """Give every role's id and permissions, by its name."""
    found: dict[str, _Rights] = {}
    for role_id, role, permission in await _RIGHTS.rows(connection):
        rights = found.setdefault(role, _Rights(role_id, set()))
        if permission is not None:
            rights.permissions.add(permission)
    return found


def _role_ids(
    rights: Mapping[str, _Rights], roles: frozenset[str], permissions: frozenset[str]
) -> frozenset[str] | None:
    """Give the ids of roles that together carry just these permissions; None if they do not."""
    if not roles <= rights.keys():
        return None
    carried: set[str] = set().union(*(rights[role].permissions for role in roles))
    if carried != permissions:
        return None
    return frozenset(rights[role].role_id for role in roles) or frozenset((_NO_ROLE,))


async def _stand(
    connection: AsyncConnection, hashes: Sequence[str], role_ids: frozenset[str]
) -> bool:
    """Tell whether all these sign-ins stand, each with just these roles."""
    # Nobody holds a role twice: only all of them with all of the roles make as many as that, and
    # any other role makes more rows.
    wanted = len(hashes) * len(role_ids)
    (counts,) = await _COUNTS.rows(connection, hashes=hashes, roles=list(role_ids))
    return tuple(counts) == (wanted, wanted)


async def _others(connection: AsyncConnection, expected: Mapping[str, frozenset[str]]) -> set[str]:
    """Give those that do not stand, or not with just the roles expected."""
    found: dict[str, set[str]] = defaultdict(set)
    for token_hash, role_id in await _ROLES.rows(connection, hashes=list(expected)):
        found[token_hash].add(role_id)
    return {one for one, role_ids in expected.items() if found[one] != set(role_ids)}
