"""What becomes of a sandbox by itself: when its time is over, and when nobody uses it."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from models.base import now
from models.states import SandboxExpiry, SandboxStatus
from sandbox.errors import PolicyUnsupportedError
from services.base import Viewer
from services.errors import UserError, UserErrorCode
from services.sandboxes import changing, executions, files, housekeeping, lifecycle
from services.sandboxes.node import Node
from tests.services.sandboxes.conftest import Launch, Server, present, put, ran

pytestmark = pytest.mark.bubblewrap


async def test_one_nobody_uses_ends_and_one_in_use_does_not(launch: Launch) -> None:
    server = await launch(sandbox_idle_timeout_s=300)
    ada = await server.person("ada")
    node = await server.host.node()
    idle, busy, read, own = [
        await lifecycle.create(server.deps, ada, idle_timeout_s=seconds)
        for seconds in (None, None, None, 3000)
    ]
    assert [box.idle_timeout_s for box in (idle, busy, read, own)] == [300, 300, 300, 3000]
    await files.write(server.deps, ada, sandbox_id=read.id, path="a", content="b")
    run = await executions.execute(server.deps, ada, sandbox_id=busy.id, command="sleep 600")
    long_ago = now() - timedelta(seconds=301)
    for box in (idle, busy, read, own):
        await put(server, box.id, last_active_at=long_ago)
        node.live[box.id].used_at = node.live[box.id].told_use_at = long_ago
    await files.read(server.deps, ada, sandbox_id=read.id, path="a")

    await housekeeping._note_use(node)
    await housekeeping._rest(node)

    ended = await present(server, idle.id)
    assert ended.status is SandboxStatus.STOPPED
    assert ended.failure == "It was not used for 300 seconds."
    for box in (busy, read, own):
        row = await present(server, box.id)
        assert row.status is SandboxStatus.RUNNING
        assert row.last_active_at is not None
        # Reading is use, and so is running.
        assert (row.last_active_at > long_ago) == (box is not own)
    await executions.cancel(server.deps, ada, execution_id=run.id)


async def test_one_that_shall_be_paused_when_idle_goes_on_when_resumed(
    server: Server, ada: Viewer
) -> None:
    node = await server.host.node()
    box = await lifecycle.create(server.deps, ada, idle_timeout_s=60, on_expiry=SandboxExpiry.PAUSE)
    long_ago = now() - timedelta(seconds=61)
    await put(server, box.id, last_active_at=long_ago)
    node.live[box.id].used_at = long_ago
    await housekeeping._rest(node)
    assert (await present(server, box.id)).status is SandboxStatus.PAUSED

    await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    await housekeeping._rest(node)
    assert (await present(server, box.id)).status is SandboxStatus.RUNNING
    changed = await changing.change(
        server.deps, ada, sandbox_id=box.id, changes={"idle_timeout_s": None}
    )
    assert changed.idle_timeout_s is None
    await put(server, box.id, last_active_at=long_ago)
    node.live[box.id].used_at = long_ago
    await housekeeping._rest(node)
    assert (await present(server, box.id)).status is SandboxStatus.RUNNING


async def test_one_whose_time_is_over_can_be_paused_and_extended(
    server: Server, ada: Viewer
) -> None:
    node = await server.host.node()
    box = await lifecycle.create(server.deps, ada, on_expiry=SandboxExpiry.PAUSE)
    await files.write(server.deps, ada, sandbox_id=box.id, path="a", content="kept")
    await put(server, box.id, expires_at=now() - timedelta(seconds=5))

    await housekeeping._expire(node)
    paused = await present(server, box.id)
    assert (paused.status, paused.failure) == (SandboxStatus.PAUSED, None)
    await housekeeping._expire(node)
    assert (await present(server, box.id)).status is SandboxStatus.PAUSED
    with pytest.raises(UserError, match="no time left; extend it first") as caught:
        await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    assert caught.value.code is UserErrorCode.CONFLICT

    await lifecycle.extend(server.deps, ada, sandbox_id=box.id, seconds=600)
    resumed = await lifecycle.resume(server.deps, ada, sandbox_id=box.id)
    assert resumed.status is SandboxStatus.RUNNING
    assert resumed.expires_at is not None
    left_s = (resumed.expires_at - now()).total_seconds()
    assert 0 < left_s <= 600
    assert await files.read(server.deps, ada, sandbox_id=box.id, path="a") == b"kept"


@pytest.mark.parametrize("what", list(SandboxExpiry))
async def test_one_that_is_extended_at_the_last_moment_goes_on(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch, what: SandboxExpiry
) -> None:
    box = await lifecycle.create(server.deps, ada, on_expiry=what)
    each = housekeeping._each

    async def extended(node: Node, due: Iterable[str], action: Any) -> None:
        if box.id in due:
            await lifecycle.extend(server.deps, ada, sandbox_id=box.id, seconds=600)
        await each(node, due, action)

    monkeypatch.setattr(housekeeping, "_each", extended)
    await put(server, box.id, expires_at=now() - timedelta(seconds=5))
    await housekeeping._expire(await server.host.node())
    row = await present(server, box.id)
    assert (row.status, row.stop_requested_at) == (SandboxStatus.RUNNING, None)
    assert (await ran(server.deps, ada, box.id, "echo on")).stdout == "on\n"


async def test_one_that_cannot_be_paused_ends_with_its_time(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await server.host.node()

    async def refuse(_: str) -> None:
        raise PolicyUnsupportedError("Nothing here can be frozen.")

    monkeypatch.setattr(node.driver, "pause", refuse)
    box = await lifecycle.create(server.deps, ada, on_expiry=SandboxExpiry.PAUSE)
    await put(server, box.id, expires_at=now() - timedelta(seconds=5))
    await housekeeping._expire(node)
    ended = await present(server, box.id)
    assert (ended.status, ended.failure) == (
        SandboxStatus.STOPPED,
        "It reached the end of its time.",
    )


async def test_what_is_paused_for_too_long_ends(launch: Launch) -> None:
    server = await launch(sandbox_pause_max_s=1000)
    ada = await server.person("ada")
    node = await server.host.node()
    old, young = [await lifecycle.create(server.deps, ada) for _ in range(2)]
    for box, seconds in ((old, 1001), (young, 900)):
        await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
        await put(server, box.id, paused_at=now() - timedelta(seconds=seconds))
    await housekeeping._expire(node)
    ended = await present(server, old.id)
    assert ended.status is SandboxStatus.STOPPED
    assert ended.failure == "It was paused for longer than sandboxes may be."
    assert (await present(server, young.id)).status is SandboxStatus.PAUSED
    assert {info.sandbox_id for info in await node.driver.list({})} == {young.id}


# Clearing away.
