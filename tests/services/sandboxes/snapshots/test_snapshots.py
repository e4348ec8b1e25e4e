"""Snapshots of workspaces make sandboxes, here and elsewhere."""

import asyncio
import hashlib
import secrets
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import (
    SandboxSnapshot,
)
from services.base import Viewer
from services.errors import UserError, UserErrorCode
from services.events.redis import RedisBus
from services.sandboxes import (
    files,
    keeping,
    lifecycle,
    snapshots,
)
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.snapshots.conftest import FILL, LOOK, MIB, SEEN, archives, endless


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
