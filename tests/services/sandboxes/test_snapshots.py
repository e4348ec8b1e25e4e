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
    workspaces,
)
from services.sandboxes.wishes import Resources
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


HOLES = "echo one >f; truncate -s 1T t"


@pytest.mark.bubblewrap
async def test_a_file_of_holes_delays_neither_a_stop_nor_a_deletion(own: Server) -> None:
    ada = await own.person("ada")
    node = await own.host.node()
    boxes = [await lifecycle.create(own.deps, ada, is_persistent=True) for _ in range(3)]
    stopped, expired, deleted = [box.id for box in boxes]
    await ran(own.deps, ada, stopped, "echo older >f")
    await lifecycle.stop(own.deps, ada, sandbox_id=stopped)
    await snapshots.start(own.deps, ada, sandbox_id=stopped)
    for sandbox_id in (stopped, expired, deleted):
        await ran(own.deps, ada, sandbox_id, HOLES)
    async with asyncio.timeout(60):
        await lifecycle.delete(own.deps, ada, sandbox_id=deleted)
        await lifecycle.stop(own.deps, ada, sandbox_id=stopped)
        await node.stop(expired, failure="It reached the end of its time.")
    for sandbox_id in (stopped, expired):
        row = await present(own, sandbox_id)
        assert row.status is SandboxStatus.STOPPED
        assert row.failure is not None
        assert "could not be kept: The files as far as t come to more than" in row.failure
        assert ("kept before is there still" in row.failure) is (sandbox_id == stopped)
    assert (await present(own, deleted)).status is SandboxStatus.DELETED
    assert len(archives(own)) == 1
    await snapshots.start(own.deps, ada, sandbox_id=stopped)
    assert (await ran(own.deps, ada, stopped, "cat f; ls")).stdout == "older\nf\n"


@pytest.mark.bubblewrap
async def test_a_snapshot_of_a_file_of_holes_is_refused(own: Server) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada)
    await ran(own.deps, ada, box.id, HOLES)
    with pytest.raises(UserError, match="holes in them counted") as caught:
        await snapshots.take(own.deps, ada, sandbox_id=box.id)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.LIMIT, ("sandbox_id",))
    assert archives(own) == []


def endless(monkeypatch: pytest.MonkeyPatch, client: Any) -> tuple[asyncio.Event, asyncio.Event]:
    """Let packing never end; gives when it has begun, and when it was ended."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def pack(*_: Any, **__: Any) -> Any:
        try:
            yield b"x"
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(client.files, "pack", pack)
    return begun, ended


@pytest.mark.bubblewrap
async def test_a_deletion_gives_up_what_is_being_kept(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada, is_persistent=True)
    begun, ended = endless(monkeypatch, (await own.host.node()).client(box.id))
    stopping = asyncio.ensure_future(lifecycle.stop(own.deps, ada, sandbox_id=box.id))
    async with asyncio.timeout(60):
        await begun.wait()
        await lifecycle.delete(own.deps, ada, sandbox_id=box.id)
        await asyncio.gather(stopping)
    assert ended.is_set()
    assert (await present(own, box.id)).status is SandboxStatus.DELETED
    assert archives(own) == []


@pytest.mark.bubblewrap
async def test_a_stop_waits_only_so_long_for_what_is_kept(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada, is_persistent=True)
    endless(monkeypatch, (await own.host.node()).client(box.id))
    monkeypatch.setattr(workspaces, "KEEP_S", 0.5)
    async with asyncio.timeout(60):
        stopped = await lifecycle.stop(own.deps, ada, sandbox_id=box.id)
    assert stopped.status is SandboxStatus.STOPPED
    assert stopped.failure is not None
    assert "could not be kept: it took longer than" in stopped.failure
    assert archives(own) == []


@pytest.mark.bubblewrap
async def test_a_server_that_stops_says_what_it_could_not_keep(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    slow, quick = [await lifecycle.create(own.deps, ada, is_persistent=True) for _ in range(2)]
    endless(monkeypatch, (await own.host.node()).client(slow.id))
    monkeypatch.setattr(workspaces, "_KEEP_ALL_S", 3.0)
    await own.host.aclose()
    row = await present(own, slow.id)
    assert row.failure is not None
    assert row.failure.startswith("The server was stopped. Its workspace could not be kept: it")
    assert (await present(own, quick.id)).failure == "The server was stopped."


@pytest.mark.bubblewrap
async def test_a_snapshot_whose_caller_goes_is_given_up(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada)
    client = (await own.host.node()).client(box.id)
    begun, ended = endless(monkeypatch, client)
    loop, close, closed = asyncio.get_running_loop(), keeping._close, asyncio.Event()

    def tell(*arguments: Any, **more: Any) -> None:
        close(*arguments, **more)
        loop.call_soon_threadsafe(closed.set)

    monkeypatch.setattr(keeping, "_close", tell)
    taking = asyncio.ensure_future(snapshots.take(own.deps, ada, sandbox_id=box.id))
    async with asyncio.timeout(60):
        await begun.wait()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await ended.wait()
        await closed.wait()
    assert taking.cancelled()
    assert archives(own) == []
    async with own.deps.db.reading() as connection:
        assert (await connection.scalars(select(SandboxSnapshot.id))).all() == []


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


@pytest.mark.bubblewrap
async def test_a_snapshot_that_does_not_fit_is_refused_by_name(own: Server) -> None:
    ada = await own.person("ada")
    box = await lifecycle.create(own.deps, ada)
    await ran(own.deps, ada, box.id, "head -c 20000000 /dev/zero >f")
    taken = await snapshots.take(own.deps, ada, sandbox_id=box.id)
    small = Resources(disk_bytes=10 * MIB)
    with pytest.raises(UserError, match=r"snapshot does not fit .* 10,485,760 bytes") as caught:
        await lifecycle.create(own.deps, ada, snapshot_id=taken.id, resources=small)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.LIMIT, ("snapshot_id",))


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
