"""What a person's sandboxes may have in all, by the person's roles, and what they have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import func, literal, null, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from models.accounts import Role, User, UserRole
from models.sandboxes import Sandbox, SandboxResources, SandboxSnapshot
from services.base import Deps, Work
from services.errors import UserError, UserErrorCode, UserErrors
from services.options import Options
from services.sandboxes import rows

Reader = AsyncConnection | AsyncSession
# The most a role may be given: far beyond any machine, and safe to add up.
_MOST = {"count": 10_000, "cpu_millis": 10**7, "memory_bytes": 2**48, "disk_bytes": 2**48}
_WORDS = {
    "cpu_millis": "thousandths of a core",
    "memory_bytes": "bytes of memory",
    "disk_bytes": "bytes of disk, snapshots included",
}


@dataclass(frozen=True, slots=True)
class Quota:
    """Live sandboxes, and their CPU, memory and disk added up; snapshots count as disk."""

    count: int = 0
    cpu_millis: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What a person may have, and has. Compared and hashed by identity: a parent of fields."""

    limit: Quota
    used: Quota


NAMES = tuple(field.name for field in fields(Quota))


def configured(options: Options) -> Quota:
    """Give the quota of a person whose roles say nothing."""
    return Quota(
        options.sandboxes_per_user,
        options.sandbox_user_cpu_millis,
        options.sandbox_user_memory_bytes,
        options.sandbox_user_disk_bytes,
    )


def checked(given: Mapping[str, int | None]) -> dict[str, int] | None:
    """Give what a role shall say of quotas; None when it says nothing.

    Raises UserErrors INVALID below zero, LIMIT above what can be counted.
    """
    said = {name: given[name] for name in NAMES if given.get(name) is not None}
    errors = [
        UserError(
            UserErrorCode.INVALID if value < 0 else UserErrorCode.LIMIT,
            f"A quota must be between 0 and {_MOST[name]:,}; {value:,} is not.",
            ("sandbox_quota", name),
        )
        for name, value in said.items()
        if value is not None and not 0 <= value <= _MOST[name]
    ]
    if errors:
        raise UserErrors(errors)
    return {name: value for name, value in said.items() if value is not None} or None


async def standing(
    reader: Reader, options: Options, user_ids: Sequence[str], *, besides: str | None = None
) -> dict[str, Standing]:
    """Give what people may have, and have but for the sandbox `besides`, in one statement.

    Of each thing a person may have the most that one of the roles says; where none says anything
    it is as configured.
    """
    nothing = [literal(0)] * 4
    said = (
        select(UserRole.user_id, Role.sandbox_quota, *nothing)
        .join(Role, Role.id == UserRole.role_id)
        .where(UserRole.user_id.in_(user_ids))
    )
    boxes = (
        select(
            Sandbox.user_id,
            null(),
            func.count(),
            func.sum(SandboxResources.cpu_limit),
            func.sum(SandboxResources.memory_limit),
            func.sum(SandboxResources.disk_limit),
        )
        .outerjoin(SandboxResources, SandboxResources.sandbox_id == Sandbox.id)
        .where(
            Sandbox.user_id.in_(user_ids),
            Sandbox.status.in_(rows.LIVE),
            Sandbox.id != (besides or ""),
        )
        .group_by(Sandbox.user_id)
    )
    snapshots = (
        select(SandboxSnapshot.user_id, null(), *nothing[:3], func.sum(SandboxSnapshot.size_bytes))
        .where(SandboxSnapshot.user_id.in_(user_ids))
        .group_by(SandboxSnapshot.user_id)
    )
    quotas: dict[str, list[Mapping[str, int]]] = {user_id: [] for user_id in user_ids}
    sums = {user_id: [0, 0, 0, 0] for user_id in user_ids}
    found: Iterable[Any] = await reader.execute(union_all(said, boxes, snapshots))
    for user_id, quota, *values in found:
        quotas[user_id] += [quota] if quota else []
        # Sums come as decimals from MySQL.
        sums[user_id] = [a + int(b or 0) for a, b in zip(sums[user_id], values, strict=True)]
    default = configured(options)
    return {
        user_id: Standing(_most(default, quotas[user_id]), Quota(*sums[user_id]))
        for user_id in user_ids
    }


def _most(default: Quota, quotas: Iterable[Mapping[str, int]]) -> Quota:
    values = {
        name: max(
            (quota[name] for quota in quotas if name in quota), default=getattr(default, name)
        )
        for name in NAMES
    }
    return Quota(**values)


async def require(unit: Work, user_id: str, adding: Quota, *, besides: str | None = None) -> None:
    """Raise UserErrors QUOTA, one for each thing of which a person has no such room left.

    Locks the user's row, so that two creations at once count one after the other. With `besides`
    that sandbox is counted by `adding` alone.
    """
    await unit.lock(User, user_id)
    found = await standing(unit.session, unit.deps.options, [user_id], besides=besides)
    limit, held = found[user_id].limit, found[user_id].used
    errors: list[UserError] = []
    if adding.count and held.count + adding.count > limit.count:
        message = (
            f"You have {held.count} live sandboxes and may have {limit.count}; stop one first."
        )
        errors.append(UserError(UserErrorCode.QUOTA, message))
    for name, words in _WORDS.items():
        has, more, most = (getattr(quota, name) for quota in (held, adding, limit))
        if more and has + more > most:
            message = (
                f"Your sandboxes have {has:,} of {most:,} {words}; {more:,} more do not fit. "
                "Stop or delete one, or ask for less."
            )
            errors.append(UserError(UserErrorCode.QUOTA, message, ("resources", name)))
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]


async def of_users(deps: Deps, user_ids: Sequence[str]) -> dict[str, Standing]:
    """Give what people may have and have."""
    async with deps.db.reading() as connection:
        return await standing(connection, deps.options, user_ids)
