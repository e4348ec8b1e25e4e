"""Snapshots of workspaces, and sandboxes that are stopped and started with theirs."""

import asyncio
import hashlib
import os
import secrets
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
    SandboxWorkspace,
)
from models.states import RunState, SandboxStatus
from sandbox.errors import SandboxError
from services.base import Viewer, work
from services.errors import UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import (
    changing,
    executions,
    files,
    housekeeping,
    keeping,
    lifecycle,
    quotas,
    rows,
    snapshots,
)
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, finished, ran

MIB = 1_048_576


def archives(server: Server) -> list[Path]:
    folder = keeping.folder(server.deps)
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
async def own(launch: Launch, tmp_path: Path) -> Server:
    """A server whose data lie in a directory of the test's own."""
    return await launch(data_dir=tmp_path / "data")


async def present(server: Server, sandbox_id: str) -> Sandbox:
    row = await rows.sandbox(server.deps, sandbox_id)
    assert row is not None
    return row


async def kept(server: Server, sandbox_id: str) -> str | None:
    async with server.deps.db.reading() as connection:
        found: str | None = await connection.scalar(
            select(SandboxWorkspace.snapshot_id).where(SandboxWorkspace.sandbox_id == sandbox_id)
        )
        return found


FILL = "mkdir -p a/b && echo one >a/b/f && ln -s f a/b/l && chmod 750 a && echo 한 >'n m'"
# A name that is no UTF-8.
FILL += " && echo odd >a/$(printf 'n\\377')"
LOOK = "cat a/b/l 'n m' a/$(printf 'n\\377') && stat -c '%a %F' a a/b/l"
SEEN = "one\n한\nodd\n750 directory\n777 symbolic link\n"


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
        pytest.param("docker", marks=pytest.mark.docker),
    ],
)
async def test_a_snapshot_makes_any_number_of_sandboxes_with_what_there_was(
    kind: str, launch: Launch, tmp_path: Path
) -> None:
    server = await launch(kind, data_dir=tmp_path / "data")
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await ran(server.deps, ada, box.id, FILL)

    taken = await snapshots.take(server.deps, ada, sandbox_id=box.id, name="first")

    (place,) = archives(server)
    assert (taken.name, taken.sandbox_id, taken.is_automatic) == ("first", box.id, False)
    assert (taken.path, taken.size_bytes) == (place.name, place.stat().st_size)
    assert taken.sha256 == hashlib.sha256(place.read_bytes()).hexdigest()
    assert place.parent.stat().st_mode & 0o777 == 0o700
    # What is done later is not in it.
    await ran(server.deps, ada, box.id, "rm -r a; echo later >later")
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)
    for _ in range(2):
        made = await lifecycle.create(server.deps, ada, snapshot_id=taken.id)
        assert made.restored_from == taken.id
        look = await ran(server.deps, ada, made.id, f"{LOOK}; ls")
        assert look.stdout == f"{SEEN}a\nn m\n"
        await lifecycle.delete(server.deps, ada, sandbox_id=made.id)

    await snapshots.delete(server.deps, ada, snapshot_id=taken.id)
    assert archives(server) == []
    with pytest.raises(UserError) as caught:
        await lifecycle.create(server.deps, ada, snapshot_id=taken.id)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.NOT_FOUND, ("snapshot_id",))


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
        started = await snapshots.start(own.deps, ada, sandbox_id=box.id)
        assert (started.id, started.status) == (box.id, SandboxStatus.RUNNING)
        assert started.expires_at is not None
        assert 0 < (started.expires_at - now()).total_seconds() <= 500
        # It is the sandbox's own again.
        assert await kept(own, box.id) is None
        assert archives(own) == []
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
async def test_one_that_cannot_be_kept_is_not_stopped_unless_its_time_is_over(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    box = await lifecycle.create(own.deps, ada, is_persistent=True)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device", "/secret/place")

    monkeypatch.setattr(keeping, "pack", refuse)
    with pytest.raises(UserError, match="could not be kept") as caught:
        await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    assert "secret" not in caught.value.message
    assert (await ran(own.deps, ada, box.id, "echo alive")).stdout == "alive\n"
    await node.stop(box.id, failure="It reached the end of its time.")
    ended = await present(own, box.id)
    assert ended.status is SandboxStatus.STOPPED
    assert ended.failure is not None
    assert ended.failure.startswith("It reached the end of its time. Its workspace could not be")


@pytest.mark.bubblewrap
@pytest.mark.parametrize("state", ["paused", "stopped", "foreign", "absent"])
async def test_only_of_ones_own_running_sandbox_a_snapshot_is_taken(
    own: Server, state: str
) -> None:
    ada, bob = await own.person("ada"), await own.person("bob")
    box = await lifecycle.create(own.deps, ada)
    if state in ("paused", "stopped"):
        verb = lifecycle.pause if state == "paused" else lifecycle.stop
        await verb(own.deps, ada, sandbox_id=box.id)
    who = bob if state == "foreign" else ada
    sandbox_id = "sbx_absent" if state == "absent" else box.id
    with pytest.raises(UserError) as caught:
        await snapshots.take(own.deps, who, sandbox_id=sandbox_id)
    is_hidden = state in ("foreign", "absent")
    assert caught.value.code is (UserErrorCode.NOT_FOUND if is_hidden else UserErrorCode.CONFLICT)
    assert archives(own) == []


@pytest.mark.bubblewrap
async def test_a_snapshot_of_another_is_as_one_that_is_not_there(own: Server) -> None:
    ada, bob = await own.person("ada"), await own.person("bob")
    box = await lifecycle.create(own.deps, ada)
    taken = await snapshots.take(own.deps, ada, sandbox_id=box.id)
    for verb in (
        lambda: snapshots.delete(own.deps, bob, snapshot_id=taken.id),
        lambda: lifecycle.create(own.deps, bob, snapshot_id=taken.id),
    ):
        with pytest.raises(UserError, match="There is no such snapshot") as caught:
            await verb()
        assert caught.value.code is UserErrorCode.NOT_FOUND
    assert len(archives(own)) == 1


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


@pytest.mark.redis
@pytest.mark.bubblewrap
async def test_a_snapshot_that_lies_elsewhere_makes_a_sandbox_there(
    launch: Launch, redis_url: str, tmp_path: Path
) -> None:
    prefix = f"test-{secrets.token_hex(4)}:"

    async def process(name: str) -> Server:
        bus = RedisBus(redis_url, name, prefix)
        await bus.start()
        return await launch(bus=bus, folder=name, data_dir=tmp_path / f"data-{name}")

    near, other = await process("near"), await process("other")
    ada = await other.person("ada")
    box = await lifecycle.create(other.deps, ada)
    await ran(other.deps, ada, box.id, FILL)
    taken = await snapshots.take(near.deps, ada, sandbox_id=box.id)
    assert (taken.node_id, archives(near)) == ("other", [])

    made = await lifecycle.create(near.deps, ada, snapshot_id=taken.id)
    assert made.node_id == "other"
    assert (await ran(near.deps, ada, made.id, LOOK)).stdout == SEEN
    await other.host.aclose()
    await other.deps.bus.aclose()
    with pytest.raises(UserError, match="on a server that is not running") as caught:
        await lifecycle.create(near.deps, ada, snapshot_id=taken.id)
    assert caught.value.code is UserErrorCode.UNAVAILABLE


@pytest.mark.bubblewrap
async def test_a_snapshot_that_is_given_up_leaves_nothing(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada: Viewer = await own.person("ada")
    box = await lifecycle.create(own.deps, ada)
    await files.write(own.deps, ada, sandbox_id=box.id, path="a", content="b")
    node = await own.host.node()
    begun, never = asyncio.Event(), asyncio.Event()
    store = keeping._store

    def slow(*arguments: Any) -> None:
        begun_loop.call_soon_threadsafe(begun.set)
        store(*arguments)

    begun_loop = asyncio.get_running_loop()
    monkeypatch.setattr(keeping, "_store", slow)

    async def endless(*_: Any, **__: Any) -> Any:
        yield b"x" * (2 * MIB)
        await never.wait()

    monkeypatch.setattr(node.client(box.id).files, "pack", endless)
    taking = asyncio.ensure_future(keeping.pack(own.deps, node.client(box.id), most=MIB))
    await asyncio.wait_for(begun.wait(), 60)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert taking.cancelled()
    assert archives(own) == []
