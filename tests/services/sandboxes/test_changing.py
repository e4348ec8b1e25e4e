"""Changing a live sandbox, with limits that hold at once; and removing what could not be."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import SandboxRemoval, SandboxResources
from models.states import ExecutionReason, SandboxExpiry, SandboxStatus
from models.system import Event
from sandbox.base import SandboxSpec
from sandbox.errors import PolicyUnsupportedError, SandboxError
from sandbox.limits import Limits
from sandbox.policy import NetworkRule
from services import changes as news
from services.base import Viewer
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import changing, lifecycle, quotas
from services.sandboxes.quotas import Quota
from services.sandboxes.sweeping import Sweep
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, present, ran

pytestmark = pytest.mark.bubblewrap
MIB = 1_048_576
HUNGRY = "python3 -c 'data = b\"x\" * (200 << 20); print(len(data))'"
SMALL = Resources(memory_bytes=400 * MIB, disk_bytes=8 * MIB)


async def limits(server: Server, sandbox_id: str) -> tuple[int, ...]:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(
                SandboxResources.cpu_limit,
                SandboxResources.memory_limit,
                SandboxResources.disk_limit,
                SandboxResources.pids_limit,
            ).where(SandboxResources.sandbox_id == sandbox_id)
        )
        return tuple(found.one())


async def test_less_memory_holds_for_what_runs_next(server: Server, ada: Viewer) -> None:
    box = await lifecycle.create(server.deps, ada, resources=SMALL)
    assert (await ran(server.deps, ada, box.id, HUNGRY)).stdout == f"{200 << 20}\n"

    wish = Resources(memory_bytes=128 * MIB, cpu_millis=500, pids=16)
    changed = await changing.change(
        server.deps, ada, sandbox_id=box.id, changes={"resources": wish}
    )

    assert changed.status is SandboxStatus.RUNNING
    assert await limits(server, box.id) == (500, 128 * MIB, 8 * MIB, 16)
    starved = await ran(server.deps, ada, box.id, HUNGRY)
    assert starved.reason is ExecutionReason.OOM_KILLED
    held = await quotas.of_users(server.deps, [ada.id])
    assert held[ada.id].used == Quota(1, 500, 128 * MIB, 8 * MIB)

    grown = {"resources": Resources(memory_bytes=400 * MIB)}
    await changing.change(server.deps, ada, sandbox_id=box.id, changes=grown)
    assert (await ran(server.deps, ada, box.id, HUNGRY)).stdout == f"{200 << 20}\n"
    assert await limits(server, box.id) == (500, 400 * MIB, 8 * MIB, 16)


@pytest.mark.parametrize(
    ("wish", "code", "name"),
    [
        (Resources(cpu_millis=10), UserErrorCode.INVALID, "cpu_millis"),
        (Resources(pids=10_000), UserErrorCode.LIMIT, "pids"),
        (Resources(memory_bytes=2**40), UserErrorCode.LIMIT, "memory_bytes"),
        (Resources(memory_bytes=96 * MIB), UserErrorCode.INVALID, "disk_bytes"),
        (Resources(disk_bytes=390 * MIB), UserErrorCode.INVALID, "disk_bytes"),
        (Resources(memory_bytes=600 * MIB), UserErrorCode.QUOTA, "memory_bytes"),
        (
            Resources(network_bytes_per_second=1),
            UserErrorCode.INVALID,
            "network_bytes_per_second",
        ),
    ],
)
async def test_limits_that_cannot_be_change_nothing(
    launch: Launch, wish: Resources, code: UserErrorCode, name: str
) -> None:
    server = await launch(sandbox_user_memory_bytes=500 * MIB)
    ada = await server.person("ada")
    start = Resources(memory_bytes=400 * MIB, disk_bytes=100 * MIB)
    box = await lifecycle.create(server.deps, ada, resources=start)
    before = await limits(server, box.id)
    with pytest.raises((UserError, UserErrors)) as caught:
        await changing.change(
            server.deps,
            ada,
            sandbox_id=box.id,
            changes={"resources": wish, "on_expiry": SandboxExpiry.PAUSE},
        )
    errors = caught.value.errors if isinstance(caught.value, UserErrors) else [caught.value]
    assert [(error.code, error.path) for error in errors] == [(code, ("resources", name))]
    assert await limits(server, box.id) == before
    assert (await present(server, box.id)).on_expiry is SandboxExpiry.STOP


async def test_what_the_driver_refuses_is_not_in_the_row(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada, resources=SMALL)
    before = await limits(server, box.id)
    node = await server.host.node()
    reserved: list[tuple[int, ...]] = []

    async def refuse(sandbox_id: str, *, limits: Limits) -> Limits:
        reserved.append(await globals()["limits"](server, sandbox_id))
        raise PolicyUnsupportedError("A running sandbox cannot change this here.")

    monkeypatch.setattr(node.driver, "update", refuse)
    wish = Resources(memory_bytes=450 * MIB, cpu_millis=500)
    with pytest.raises(UserError, match="cannot change this"):
        await changing.change(server.deps, ada, sandbox_id=box.id, changes={"resources": wish})
    # While it was tried, what it would grow to was taken already, and nothing was given back.
    assert reserved == [(before[0], 450 * MIB, *before[2:])]
    assert await limits(server, box.id) == before


async def test_only_its_owner_changes_a_sandbox_and_only_while_it_lives(
    server: Server, ada: Viewer
) -> None:
    box = await lifecycle.create(server.deps, ada)
    bob = await server.person("bob", "everything:manage")
    changes = {"on_expiry": SandboxExpiry.PAUSE}
    with pytest.raises(UserError) as caught:
        await changing.change(server.deps, bob, sandbox_id=box.id, changes=changes)
    assert caught.value.code is UserErrorCode.NOT_FOUND
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    with pytest.raises(UserError, match="this one is STOPPED") as caught:
        await changing.change(server.deps, ada, sandbox_id=box.id, changes=changes)
    assert caught.value.code is UserErrorCode.CONFLICT


@BOTH_DATABASES
async def removed(server: Server) -> list[tuple[str, str, str]]:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxRemoval.kind, SandboxRemoval.name, SandboxRemoval.reason)
        )
        return [tuple(row) for row in found]


@BOTH_DATABASES
async def test_what_could_not_be_removed_is_removed_later_and_recorded(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada = await server.person("ada")
    node = await server.host.node()
    gone, kept = [await lifecycle.create(server.deps, ada) for _ in range(2)]
    remove = node.driver.remove

    async def refuse(_: str) -> None:
        raise SandboxError("The engine does not answer.")

    monkeypatch.setattr(node.driver, "remove", refuse)
    await lifecycle.stop(server.deps, ada, sandbox_id=gone.id)
    assert (await present(server, gone.id)).status is SandboxStatus.STOPPED
    assert node.is_untidy
    sweep = Sweep(node)
    await sweep.look()
    await sweep.look()
    assert {info.sandbox_id for info in await node.driver.list({})} == {gone.id, kept.id}
    assert node.is_untidy

    monkeypatch.setattr(node.driver, "remove", remove)
    await sweep.look()
    assert {info.sandbox_id for info in await node.driver.list({})} == {kept.id}
    assert not node.is_untidy
    assert await removed(server) == [
        ("container", gone.id, "No sandbox of this installation is in it.")
    ]
    await sweep.look()
    assert len(await removed(server)) == 1


async def test_one_look_alone_removes_nothing(server: Server) -> None:
    node = await server.host.node()
    await node.driver.create(SandboxSpec("sbx_stray", "host"))
    sweep = Sweep(node)
    await sweep.look()
    assert {info.sandbox_id for info in await node.driver.list({})} == {"sbx_stray"}
    assert node.is_untidy
    await sweep.look()
    assert await node.driver.list({}) == []


async def test_an_engine_that_is_away_does_not_end_housekeeping(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await server.host.node()
    asked = asyncio.Event()

    async def away(_: Any) -> Any:
        asked.set()
        raise SandboxError("The engine does not answer.")

    monkeypatch.setattr(node.driver, "list", away)
    await Sweep(node).look()
    assert asked.is_set()
    assert await removed(server) == []


async def told(server: Server, viewer: Viewer, sandbox_id: str) -> list[str]:
    """Give what the log of the viewer's things says of a sandbox."""
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(Event.payload).where(Event.topic == news.topic(viewer.id)).order_by(Event.seq)
        )
        return [row.payload["change"] for row in found if row.payload["id"] == sandbox_id]


@BOTH_DATABASES
async def test_other_limits_and_another_network_are_told_to_who_follows(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(sandbox_network_allowed=True)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada, resources=SMALL)
    before = len(await told(server, ada, box.id))

    async def changes_to(**values: Any) -> int:
        nonlocal before
        await changing.change(server.deps, ada, sandbox_id=box.id, changes=values)
        found = await told(server, ada, box.id)
        assert set(found[before:]) <= {"UPDATED"}
        count, before = len(found) - before, len(found)
        return count

    assert await changes_to(resources=Resources(pids=16)) == 1
    # As it is already.
    assert await changes_to(resources=Resources(pids=16)) == 0
    rules = [NetworkRule("example.org", (443,))]
    assert await changes_to(network="allow_list", network_rules=rules) == 1
    assert await changes_to(network_rules=[]) == 1
    # What is changed together is told as one, as far as it happens at once.
    assert await changes_to(network="none", on_expiry=SandboxExpiry.PAUSE) == 1
    node = await server.host.node()

    async def refuse(sandbox_id: str, *, limits: Limits) -> Limits:
        raise PolicyUnsupportedError("A running sandbox cannot change this here.")

    monkeypatch.setattr(node.driver, "update", refuse)
    with pytest.raises(UserError, match="cannot change this"):
        await changes_to(resources=Resources(pids=32))
    assert len(await told(server, ada, box.id)) == before
