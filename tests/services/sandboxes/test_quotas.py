"""What a person's sandboxes may have in all: by their roles, else as configured."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from models.accounts import Role, UserRole
from models.sandboxes import Sandbox, SandboxSnapshot
from models.states import SandboxStatus
from services.base import Viewer, work
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import lifecycle, quotas
from services.sandboxes.quotas import Quota
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server

pytestmark = pytest.mark.bubblewrap
MIB = 1_048_576


async def give(server: Server, viewer: Viewer, name: str, quota: dict[str, int] | None) -> None:
    """Give somebody a role that says something of quotas."""
    async with work(server.deps) as unit:
        role = Role(name=name, sandbox_quota=quota)
        unit.session.add(role)
        await unit.session.flush()
        unit.session.add(UserRole(user_id=viewer.id, role_id=role.id))


async def standing(server: Server, viewer: Viewer) -> quotas.Standing:
    return (await quotas.of_users(server.deps, [viewer.id]))[viewer.id]


async def refused(server: Server, viewer: Viewer, **wish: Any) -> list[UserError]:
    """Ask for a sandbox that must not be made; gives the errors."""
    before = await count(server)
    with pytest.raises((UserError, UserErrors)) as caught:
        await lifecycle.create(server.deps, viewer, resources=Resources(**wish))
    assert await count(server) == before
    error = caught.value
    return list(error.errors) if isinstance(error, UserErrors) else [error]


async def count(server: Server) -> int:
    async with server.deps.db.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(Sandbox)) or 0


@BOTH_DATABASES
async def test_what_lives_is_counted_and_what_has_ended_is_not(launch: Launch) -> None:
    server = await launch(
        sandbox_user_cpu_millis=3000,
        sandbox_user_memory_bytes=1024 * MIB,
        sandbox_user_disk_bytes=100 * MIB,
        sandboxes_per_user=5,
    )
    ada, bob = await server.person("ada"), await server.person("bob")
    limit = Quota(5, 3000, 1024 * MIB, 100 * MIB)
    assert (await standing(server, ada)).limit == limit
    assert (await standing(server, ada)).used == Quota()

    wish = {"cpu_millis": 1500, "memory_bytes": 300 * MIB, "disk_bytes": 40 * MIB}
    first = await lifecycle.create(server.deps, ada, resources=Resources(**wish))
    second = await lifecycle.create(server.deps, ada, resources=Resources(**wish))
    await lifecycle.pause(server.deps, ada, sandbox_id=second.id)
    assert (await standing(server, ada)).used == Quota(2, 3000, 600 * MIB, 80 * MIB)
    assert (await standing(server, bob)).used == Quota()

    (error,) = await refused(server, ada, **{**wish, "disk_bytes": 10 * MIB})
    assert error.code is UserErrorCode.QUOTA
    assert error.path == ("resources", "cpu_millis")
    assert "3,000 of 3,000 thousandths of a core; 1,500 more" in error.message
    errors = await refused(server, ada, cpu_millis=50, memory_bytes=500 * MIB, disk_bytes=30 * MIB)
    assert {error.path[-1] for error in errors} == {"cpu_millis", "memory_bytes", "disk_bytes"}

    await lifecycle.stop(server.deps, ada, sandbox_id=first.id)
    assert (await standing(server, ada)).used == Quota(1, 1500, 300 * MIB, 40 * MIB)
    third = await lifecycle.create(server.deps, ada, resources=Resources(**wish))
    assert third.status is SandboxStatus.RUNNING


@BOTH_DATABASES
async def test_of_each_thing_the_most_that_a_role_says_holds(launch: Launch) -> None:
    server = await launch(sandboxes_per_user=2)
    ada = await server.person("ada")
    configured = quotas.configured(server.options)
    await give(server, ada, "plain", None)
    assert (await standing(server, ada)).limit == configured

    await give(server, ada, "narrow", {"count": 1, "memory_bytes": 700 * MIB})
    limit = (await standing(server, ada)).limit
    # A role may say less than the configuration.
    assert limit == Quota(1, configured.cpu_millis, 700 * MIB, configured.disk_bytes)
    await lifecycle.create(server.deps, ada)
    (error,) = await refused(server, ada, memory_bytes=96 * MIB, disk_bytes=MIB)
    assert (error.code, error.path) == (UserErrorCode.QUOTA, ())
    assert error.message == "You have 1 live sandboxes and may have 1; stop one first."

    await give(server, ada, "wide", {"count": 3, "cpu_millis": 100_000})
    limit = (await standing(server, ada)).limit
    assert limit == Quota(3, 100_000, 700 * MIB, configured.disk_bytes)
    (error,) = await refused(server, ada)
    assert error.path == ("resources", "memory_bytes")


async def test_a_role_may_allow_none(server: Server, ada: Viewer) -> None:
    await give(server, ada, "none", {"count": 0})
    (error,) = await refused(server, ada)
    assert error.code is UserErrorCode.QUOTA


@BOTH_DATABASES
async def test_snapshots_count_as_disk(launch: Launch) -> None:
    server = await launch(sandbox_user_disk_bytes=300 * MIB)
    ada, bob = await server.person("ada"), await server.person("bob")
    async with work(server.deps) as unit:
        unit.session.add(
            SandboxSnapshot(
                user_id=ada.id, node_id="n", path="p", sha256="0" * 64, size_bytes=200 * MIB
            )
        )
    assert (await standing(server, ada)).used == Quota(disk_bytes=200 * MIB)
    (error,) = await refused(server, ada, disk_bytes=101 * MIB)
    assert error.path == ("resources", "disk_bytes")
    assert "snapshots included" in error.message
    await lifecycle.create(server.deps, ada, resources=Resources(disk_bytes=100 * MIB))
    await lifecycle.create(server.deps, bob, resources=Resources(disk_bytes=101 * MIB))


@BOTH_DATABASES
async def test_two_at_once_do_not_both_get_the_last_of_it(launch: Launch) -> None:
    server = await launch(sandbox_user_memory_bytes=600 * MIB)
    ada = await server.person("ada")
    results = await asyncio.gather(
        *(
            lifecycle.create(server.deps, ada, resources=Resources(memory_bytes=512 * MIB))
            for _ in range(4)
        ),
        return_exceptions=True,
    )
    made = [result for result in results if not isinstance(result, BaseException)]
    refusals = [result for result in results if isinstance(result, UserError)]
    assert (len(made), len(refusals)) == (1, 3)
    assert {error.code for error in refusals} == {UserErrorCode.QUOTA}
    assert (await standing(server, ada)).used.memory_bytes == 512 * MIB


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"count": -1}, UserErrorCode.INVALID),
        ({"cpu_millis": 10**9}, UserErrorCode.LIMIT),
        ({"memory_bytes": 2**60}, UserErrorCode.LIMIT),
        ({"disk_bytes": -(2**40)}, UserErrorCode.INVALID),
    ],
)
def test_a_quota_that_cannot_be_is_refused(given: dict[str, int], code: UserErrorCode) -> None:
    with pytest.raises(UserErrors) as caught:
        quotas.checked(given)
    (error,) = caught.value.errors
    assert (error.code, error.path) == (code, ("sandbox_quota", *given))


def test_what_a_quota_leaves_out_is_not_said() -> None:
    assert quotas.checked({"count": 0, "cpu_millis": None}) == {"count": 0}
    assert quotas.checked({"cpu_millis": None}) is None
    assert quotas.checked({}) is None
