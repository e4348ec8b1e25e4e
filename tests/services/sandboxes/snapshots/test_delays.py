"""Nothing that is being kept delays those who stop or delete."""

import asyncio

import pytest

from models.states import SandboxStatus
from services.errors import UserError, UserErrorCode
from services.sandboxes import (
    lifecycle,
    snapshots,
    workspaces,
)
from tests.services.sandboxes.conftest import Server, present, ran
from tests.services.sandboxes.snapshots.conftest import HOLES, archives, endless


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
