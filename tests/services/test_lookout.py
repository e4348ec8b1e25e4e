"""Many sign-ins looked at together: just those are told that stand otherwise than is known."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from sqlalchemy import delete, insert, select, update

from models.accounts import AuthSession, Permission, Role, RolePermission, User, UserRole
from models.base import now
from services.accounts import lookout, roles
from services.accounts.lookout import Known
from services.base import Deps, work
from tests.fixtures import Statements

PEOPLE = 60
"""As many with the same roles as are counted."""


def named(number: int) -> str:
    return f"{number:064}"


async def crowd(deps: Deps, *given: str, first: int = 0, people: int = PEOPLE) -> list[Known]:
    """Give the sign-ins of new people with these roles, as they stand."""
    async with work(deps) as unit:
        session = unit.session
        ids = {
            row.name: row.id
            for row in await session.scalars(select(Role).where(Role.name.in_(given)))
        }
        for number in range(first, first + people):
            name = f"p{number}"
            user = User(username=name, email=f"{name}@e.org", password_hash="-", display_name=name)
            session.add(user)
            await session.flush()
            session.add_all(UserRole(user_id=user.id, role_id=ids[role]) for role in given)
            session.add(
                AuthSession(
                    user_id=user.id,
                    token_hash=named(number),
                    expires_at=now() + timedelta(hours=1),
                )
            )
    permissions = frozenset[str]().union(*(roles.ROLES[role][1] for role in given))
    return [
        Known(named(number), frozenset(given), permissions)
        for number in range(first, first + people)
    ]


def user_of(number: int) -> object:
    return select(User.id).where(User.username == f"p{number}").scalar_subquery()


def role_of(name: str) -> object:
    return select(Role.id).where(Role.name == name).scalar_subquery()


STATEMENTS = {
    "revoked": lambda: (
        update(AuthSession).where(AuthSession.token_hash == named(7)).values(revoked_at=now())
    ),
    "renewed": lambda: (
        update(AuthSession).where(AuthSession.token_hash == named(7)).values(token_hash="new")
    ),
    "deleted": lambda: delete(AuthSession).where(AuthSession.token_hash == named(7)),
    "deactivated": lambda: update(User).where(User.username == "p7").values(is_active=False),
    "role taken": lambda: delete(UserRole).where(
        UserRole.user_id == user_of(7), UserRole.role_id == role_of("user")
    ),
    "role given": lambda: insert(UserRole).values(user_id=user_of(7), role_id=role_of("admin")),
    "role exchanged": lambda: (
        update(UserRole)
        .where(UserRole.user_id == user_of(7), UserRole.role_id == role_of("user"))
        .values(role_id=role_of("admin"))
    ),
}


@pytest.mark.parametrize("held", [("user",), ("user", "viewer")])
@pytest.mark.parametrize("people", [10, PEOPLE])
@pytest.mark.parametrize("change", STATEMENTS)
async def test_just_the_one_that_changed_is_told(
    deps: Deps, change: str, people: int, held: tuple[str, ...]
) -> None:
    known = await crowd(deps, *held, people=people)
    assert await lookout.changed_among(deps, known) == set()
    async with work(deps) as unit:
        await unit.session.execute(STATEMENTS[change]())
    assert await lookout.changed_among(deps, known) == {named(7)}


async def test_one_role_taken_here_and_one_given_there_do_not_make_up_for_each_other(
    deps: Deps,
) -> None:
    known = await crowd(deps, "user", "viewer")
    async with work(deps) as unit:
        await unit.session.execute(STATEMENTS["role taken"]())
        await unit.session.execute(
            insert(UserRole).values(user_id=user_of(8), role_id=role_of("admin"))
        )
    assert await lookout.changed_among(deps, known) == {named(7), named(8)}


@pytest.mark.parametrize("people", [10, PEOPLE])
async def test_who_holds_no_role_stands_until_one_is_given(deps: Deps, people: int) -> None:
    known = await crowd(deps, people=people)
    assert await lookout.changed_among(deps, known) == set()
    async with work(deps) as unit:
        await unit.session.execute(STATEMENTS["role given"]())
    assert await lookout.changed_among(deps, known) == {named(7)}


Change = Callable[[Deps], Awaitable[None]]


async def _take_permission(deps: Deps) -> None:
    permission = select(Permission.id).where(Permission.name == "plans:write").scalar_subquery()
    async with work(deps) as unit:
        await unit.session.execute(
            delete(RolePermission).where(
                RolePermission.role_id == role_of("user"),
                RolePermission.permission_id == permission,
            )
        )


async def _delete_role(deps: Deps) -> None:
    async with work(deps) as unit:
        await unit.session.execute(delete(Role).where(Role.name == "user"))


@pytest.mark.parametrize("change", [_take_permission, _delete_role])
async def test_a_role_that_carries_less_changes_all_who_hold_it(deps: Deps, change: Change) -> None:
    with_it = await crowd(deps, "user", "viewer", people=10)
    without = await crowd(deps, "viewer", first=10, people=10)
    await change(deps)
    changed = await lookout.changed_among(deps, with_it + without)
    assert changed == {one.token_hash for one in with_it}


async def test_a_crowd_costs_a_statement_for_every_five_hundred(
    deps: Deps, statements: Statements
) -> None:
    known = await crowd(deps, "user", people=501)
    few = await crowd(deps, "viewer", first=501, people=3)
    statements.sent.clear()
    assert await lookout.changed_among(deps, known + few) == set()
    # The roles, two parts of the many, and the few.
    assert len(statements.reads()) == len(statements.sent) == 4
    assert await lookout.changed_among(deps, []) == set()
