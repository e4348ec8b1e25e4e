"""Sandboxes that are stopped and started keep their workspaces."""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from models.base import now
from models.sandboxes import (
    Sandbox,
    SandboxRemoval,
    SandboxSnapshot,
)
from models.states import RunState, SandboxStatus
from sandbox.errors import SandboxError
from services.base import work
from services.errors import UserError, UserErrorCode
from services.sandboxes import (
    changing,
    executions,
    housekeeping,
    keeping,
    lifecycle,
    quotas,
    snapshots,
)
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, finished, present, ran
from tests.services.sandboxes.snapshots.conftest import (
    FILL,
    LOOK,
    MIB,
    SEEN,
    archives,
    kept,
)


@pytest.mark.bubblewrap
async def test_a_persistent_sandbox_goes_on_where_it_was_stopped(own: Server) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada, is_persistent=True, timeout_s=500)
    await ran(own.deps, ada, box.id, FILL)
    run = await executions.execute(own.deps, ada, sandbox_id=box.id, command="sleep 600")

    stopped = await lifecycle.stop(own.deps, ada, sandbox_id=box.id)

    assert (stopped.status, stopped.failure) == (SandboxStatus.STOPPED, None)
    assert (await finished(own.deps, ada, run.id)).status is RunState.CANCELED
    snapshot_id = await kept(own, box.id)
    assert snapshot_id is not None
    found = await keeping.find(own.deps, snapshot_id)
    assert found is not None
    assert found.is_automatic
    assert found.expires_at is not None
    held = (await quotas.of_users(own.deps, [ada.id]))[ada.id].used
    assert (held.count, held.disk_bytes) == (0, found.size_bytes)

    for _ in range(2):
        before = await kept(own, box.id)
        started = await snapshots.start(own.deps, ada, sandbox_id=box.id)
        assert (started.id, started.status) == (box.id, SandboxStatus.RUNNING)
        assert started.expires_at is not None
        assert 0 < (started.expires_at - now()).total_seconds() <= 500
        # It stays until there is a newer one.
        assert await kept(own, box.id) == before
        assert [place.name for place in archives(own)] == [f"{before}.tar.gz"]
        assert (await ran(own.deps, ada, box.id, LOOK)).stdout == SEEN
        assert (await snapshots.start(own.deps, ada, sandbox_id=box.id)).id == box.id
        await lifecycle.stop(own.deps, ada, sandbox_id=box.id)

    await lifecycle.delete(own.deps, ada, sandbox_id=box.id)
    assert archives(own) == []
    assert await kept(own, box.id) is None


@pytest.mark.bubblewrap
async def test_one_that_is_paused_or_expires_is_kept_as_well(own: Server) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    paused, expired = [await lifecycle.create(own.deps, ada, is_persistent=True) for _ in range(2)]
    for box in (paused, expired):
        await ran(own.deps, ada, box.id, FILL)
    await lifecycle.pause(own.deps, ada, sandbox_id=paused.id)
    await lifecycle.stop(own.deps, ada, sandbox_id=paused.id)
    async with work(own.deps) as unit:
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == expired.id).values(expires_at=now())
        )
    await housekeeping._expire(node)
    assert (await present(own, expired.id)).status is SandboxStatus.STOPPED
    for box in (paused, expired):
        await snapshots.start(own.deps, ada, sandbox_id=box.id)
        assert (await ran(own.deps, ada, box.id, LOOK)).stdout == SEEN


@pytest.mark.bubblewrap
async def test_workspaces_outlive_the_server(launch: Launch, tmp_path: Path) -> None:
    server = await launch(data_dir=tmp_path / "data")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada, is_persistent=True)
    await ran(server.deps, ada, box.id, FILL)
    await server.host.aclose()
    assert (await present(server, box.id)).status is SandboxStatus.STOPPED
    await server.deps.bus.aclose()

    again = await launch(data_dir=tmp_path / "data")
    await snapshots.start(again.deps, ada, sandbox_id=box.id)
    assert (await ran(again.deps, ada, box.id, LOOK)).stdout == SEEN


@pytest.mark.bubblewrap
async def test_only_one_that_was_kept_can_be_started(own: Server) -> None:
    ada, bob = await own.person("ada"), await own.person("bob")
    box = await lifecycle.create(own.deps, ada)
    await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    with pytest.raises(UserError, match="this one is STOPPED") as caught:
        await snapshots.start(own.deps, ada, sandbox_id=box.id)
    assert caught.value.code is UserErrorCode.CONFLICT

    later = await lifecycle.create(own.deps, ada)
    await changing.change(own.deps, ada, sandbox_id=later.id, changes={"is_persistent": True})
    await lifecycle.stop(own.deps, ada, sandbox_id=later.id)
    with pytest.raises(UserError) as caught:
        await snapshots.start(own.deps, bob, sandbox_id=later.id)
    assert caught.value.code is UserErrorCode.NOT_FOUND
    started = await snapshots.start(own.deps, ada, sandbox_id=later.id)
    assert started.status is SandboxStatus.RUNNING


@pytest.mark.bubblewrap
async def test_a_start_that_fails_can_be_tried_again(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    box = await lifecycle.create(own.deps, ada, is_persistent=True)
    await ran(own.deps, ada, box.id, FILL)
    await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    create = node.driver.create

    async def refuse(_: Any) -> Any:
        raise SandboxError("The engine does not answer.")

    monkeypatch.setattr(node.driver, "create", refuse)
    with pytest.raises(UserError, match="does not answer"):
        await snapshots.start(own.deps, ada, sandbox_id=box.id)
    assert (await present(own, box.id)).status is SandboxStatus.FAILED
    assert len(archives(own)) == 1
    monkeypatch.setattr(node.driver, "create", create)
    await snapshots.start(own.deps, ada, sandbox_id=box.id)
    assert (await ran(own.deps, ada, box.id, LOOK)).stdout == SEEN


@pytest.mark.bubblewrap
async def test_a_start_counts_against_the_quota(launch: Launch, tmp_path: Path) -> None:
    server = await launch(data_dir=tmp_path / "data", sandboxes_per_user=1)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada, is_persistent=True)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await lifecycle.create(server.deps, ada)
    with pytest.raises(UserError) as caught:
        await snapshots.start(server.deps, ada, sandbox_id=box.id)
    assert caught.value.code is UserErrorCode.QUOTA
    assert (await present(server, box.id)).status is SandboxStatus.STOPPED


@pytest.mark.bubblewrap
async def test_without_room_nothing_is_kept_and_nothing_left_behind(
    launch: Launch, tmp_path: Path
) -> None:
    server = await launch(
        data_dir=tmp_path / "data", sandbox_user_disk_bytes=257 * MIB, snapshots_per_user=1
    )
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await ran(server.deps, ada, box.id, "head -c 3000000 /dev/urandom >big")
    with pytest.raises(UserError) as caught:
        await snapshots.take(server.deps, ada, sandbox_id=box.id)
    assert caught.value.code is UserErrorCode.LIMIT
    assert archives(server) == []
    await ran(server.deps, ada, box.id, "rm big")
    await snapshots.take(server.deps, ada, sandbox_id=box.id)
    with pytest.raises(UserError, match="1 snapshots and may have 1") as caught:
        await snapshots.take(server.deps, ada, sandbox_id=box.id)
    assert caught.value.code is UserErrorCode.QUOTA
    assert len(archives(server)) == 1


@pytest.mark.bubblewrap
async def test_one_that_cannot_be_kept_ends_and_says_so(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    box = await lifecycle.create(own.deps, ada, is_persistent=True)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(keeping, "pack", refuse)
    stopped = await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    lost = "Its workspace could not be kept: the server's own disk did not take it."
    assert (stopped.status, stopped.failure) == (SandboxStatus.STOPPED, lost)
    with pytest.raises(UserError, match="nothing of it was kept"):
        await snapshots.start(own.deps, ada, sandbox_id=box.id)
    other = await lifecycle.create(own.deps, ada, is_persistent=True)
    await node.stop(other.id, failure="It reached the end of its time.")
    ended = await present(own, other.id)
    assert (ended.status, ended.failure) == (
        SandboxStatus.STOPPED,
        f"It reached the end of its time. {lost}",
    )


@pytest.mark.bubblewrap
async def test_what_was_kept_last_outlives_a_crash(launch: Launch, tmp_path: Path) -> None:
    server = await launch(data_dir=tmp_path / "data")
    ada = await server.person("ada")
    box, young = [await lifecycle.create(server.deps, ada, is_persistent=True) for _ in range(2)]
    await ran(server.deps, ada, box.id, FILL)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await snapshots.start(server.deps, ada, sandbox_id=box.id)
    await ran(server.deps, ada, box.id, "echo newer >newer")
    await server.crash()

    again = await launch(data_dir=tmp_path / "data")
    assert (await present(again, box.id)).status is SandboxStatus.FAILED
    started = await snapshots.start(again.deps, ada, sandbox_id=box.id)
    assert (started.status, started.failure) == (SandboxStatus.RUNNING, None)
    assert (await ran(again.deps, ada, box.id, f"{LOOK}; ls newer")).stdout == SEEN
    with pytest.raises(UserError, match="this one is FAILED, and nothing of it was kept"):
        await snapshots.start(again.deps, ada, sandbox_id=young.id)


@pytest.mark.bubblewrap
async def test_one_that_ends_by_itself_goes_on_as_it_was_kept(own: Server) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    box = await lifecycle.create(own.deps, ada, is_persistent=True)
    await ran(own.deps, ada, box.id, FILL)
    await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    await snapshots.start(own.deps, ada, sandbox_id=box.id)
    await node.lose(box.id, "The sandbox ran out of memory and ended.")
    await snapshots.start(own.deps, ada, sandbox_id=box.id)
    assert (await ran(own.deps, ada, box.id, LOOK)).stdout == SEEN


@pytest.mark.bubblewrap
async def test_one_that_is_persistent_no_more_keeps_nothing(own: Server) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada, is_persistent=True)
    await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    await snapshots.start(own.deps, ada, sandbox_id=box.id)
    await changing.change(own.deps, ada, sandbox_id=box.id, changes={"is_persistent": False})
    await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    assert (await kept(own, box.id), archives(own)) == (None, [])


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_what_was_kept_of_one_that_lives_again_stays(launch: Launch, tmp_path: Path) -> None:
    server = await launch(data_dir=tmp_path / "data")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada, is_persistent=True)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await snapshots.start(server.deps, ada, sandbox_id=box.id)
    kept_id = await kept(server, box.id)
    async with work(server.deps) as unit:
        await unit.session.execute(update(SandboxSnapshot).values(expires_at=now()))
    assert await keeping.tidy(server.deps) == 0
    found = await keeping.find(server.deps, kept_id or "")
    assert found is not None
    assert found.expires_at is not None
    assert found.expires_at > now()


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_what_was_kept_long_enough_goes_and_strays_too(
    launch: Launch, tmp_path: Path
) -> None:
    server = await launch(data_dir=tmp_path / "data")
    ada = await server.person("ada")
    old, young = [await lifecycle.create(server.deps, ada, is_persistent=True) for _ in range(2)]
    for box in (old, young):
        await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    gone_id = await kept(server, old.id)
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(SandboxSnapshot)
            .where(SandboxSnapshot.id == gone_id)
            .values(expires_at=now() - timedelta(seconds=1))
        )
    folder = keeping.folder(server.deps)
    (folder / "stray.tar").write_bytes(b"x")
    (folder / "being-written.tar").write_bytes(b"x")
    long_ago = time.time() - 7200
    for place in archives(server):
        if place.name != "being-written.tar":
            os.utime(place, (long_ago, long_ago))

    assert await keeping.tidy(server.deps) == 2

    young_id = await kept(server, young.id)
    assert {place.name for place in archives(server)} == {"being-written.tar", f"{young_id}.tar.gz"}
    assert await kept(server, old.id) is None
    async with server.deps.db.reading() as connection:
        removed = set(await connection.scalars(select(SandboxRemoval.name)))
    assert removed == {gone_id, "stray.tar"}
    assert await keeping.tidy(server.deps) == 0
