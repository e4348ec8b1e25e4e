"""Rows of sandboxes that ended long ago go, and what went is written down."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select

from models.base import now
from models.sandboxes import (
    Sandbox,
    SandboxExecution,
    SandboxFile,
    SandboxRemoval,
    SandboxWorkspace,
)
from models.states import RunState, SandboxStatus
from services import sandboxes
from services.base import Viewer, work
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server

pytestmark = pytest.mark.bubblewrap
LONG = timedelta(days=31)


async def box(
    server: Server,
    viewer: Viewer,
    status: SandboxStatus,
    stopped_at: datetime | None,
    *,
    created_at: datetime | None = None,
    snapshot_id: str | None = None,
) -> str:
    async with work(server.deps) as unit:
        made = Sandbox(
            user_id=viewer.id,
            status=status,
            driver="bubblewrap",
            node_id="elsewhere",
            image_name="none",
            stopped_at=stopped_at,
            created_at=created_at or now() - LONG,
        )
        unit.session.add(made)
        await unit.session.flush()
        unit.session.add(SandboxWorkspace(sandbox_id=made.id, snapshot_id=snapshot_id))
        unit.session.add(SandboxFile(sandbox_id=made.id, path="a"))
        return made.id


async def ids(server: Server, column: object) -> set[str]:
    async with server.deps.db.reading() as connection:
        return set(await connection.scalars(select(column)))  # type: ignore[call-overload]


@BOTH_DATABASES
async def test_what_ended_long_ago_goes_with_all_that_is_known_of_it(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    old = [
        await box(server, ada, SandboxStatus.STOPPED, now() - LONG),
        await box(server, ada, SandboxStatus.DELETED, now() - LONG),
        await box(server, ada, SandboxStatus.FAILED, None),
    ]
    kept = {
        await box(server, ada, SandboxStatus.STOPPED, now() - timedelta(days=29)),
        await box(server, ada, SandboxStatus.FAILED, None, created_at=now()),
        await box(server, ada, SandboxStatus.PAUSED, None),
        await box(server, ada, SandboxStatus.STOPPED, now() - LONG, snapshot_id="snp_1"),
    }

    assert await sandboxes.clean(server.deps) == {"executions": 0, "sandboxes": 3, "removals": 0}

    assert await ids(server, Sandbox.id) == kept
    assert await ids(server, SandboxWorkspace.sandbox_id) == kept
    assert await ids(server, SandboxFile.sandbox_id) == kept
    async with server.deps.db.reading() as connection:
        removed = (await connection.execute(select(SandboxRemoval.__table__))).all()
    assert {(row.kind, row.name, row.sandbox_id) for row in removed} == {
        ("sandbox", id_, id_) for id_ in old
    }
    assert {(row.node_id, row.reason) for row in removed} == {
        (server.deps.bus.node_id, "It ended more than 30 days ago.")
    }
    assert (await sandboxes.clean(server.deps))["sandboxes"] == 0


@BOTH_DATABASES
async def test_old_executions_are_counted_by_their_sandbox(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    ended = await box(server, ada, SandboxStatus.STOPPED, now())
    async with work(server.deps) as unit:
        unit.session.add_all(
            SandboxExecution(
                sandbox_id=ended,
                command="true",
                status=RunState.COMPLETED,
                completed_at=now() - age,
            )
            for age in (LONG, LONG, timedelta(days=1))
        )
    assert (await sandboxes.clean(server.deps))["executions"] == 2
    async with server.deps.db.reading() as connection:
        removed = (await connection.execute(select(SandboxRemoval.__table__))).all()
    assert [(row.kind, row.name, row.sandbox_id) for row in removed] == [
        ("execution", "2 executions", ended)
    ]
    assert len(await ids(server, SandboxExecution.id)) == 1


@BOTH_DATABASES
async def test_the_record_itself_is_kept_for_a_time(launch: Launch) -> None:
    server = await launch(sandbox_removal_retention_s=1000)
    async with work(server.deps) as unit:
        for age_s in (1001, 900):
            unit.session.add(
                SandboxRemoval(
                    node_id="n",
                    kind="container",
                    name=str(age_s),
                    reason="r",
                    removed_at=now() - timedelta(seconds=age_s),
                )
            )
    assert (await sandboxes.clean(server.deps))["removals"] == 1
    assert await ids(server, SandboxRemoval.name) == {"900"}
