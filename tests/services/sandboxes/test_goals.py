"""Changes of one sandbox that are asked for at once, and those that take long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from models.sandboxes import Sandbox, SandboxSnapshot
from models.states import SandboxExpiry, SandboxStatus
from models.system import Event
from sandbox.bubblewrap import BubblewrapDriver
from services import changes
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode
from services.sandboxes import (
    changing,
    executions,
    housekeeping,
    keeping,
    lifecycle,
    rows,
    snapshots,
    workspaces,
)
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran
from tests.services.sandboxes.test_surviving import Surviving

pytestmark = pytest.mark.bubblewrap
AT_ONCE = 6
Verb = Callable[..., Awaitable[Sandbox]]


class Gate:
    """Something at the far end that waits until it is let on."""

    def __init__(self) -> None:
        self.begun, self.opened = asyncio.Event(), asyncio.Event()
        self.calls = 0

    async def pass_(self) -> None:
        self.calls += 1
        self.begun.set()
        await self.opened.wait()


async def gated_creation(server: Server, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Let the driver make nothing until the gate is opened."""
    gate, driver = Gate(), (await server.host.node()).driver
    create = driver.create

    async def slow(spec: Any) -> Any:
        await gate.pass_()
        return await create(spec)

    monkeypatch.setattr(driver, "create", slow)
    return gate


async def gated_packing(server: Server, sandbox_id: str, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Let the agent send nothing but the first bytes of a workspace until the gate is opened."""
    gate, files = Gate(), (await server.host.node()).client(sandbox_id).files
    pack = files.pack

    async def slow(*args: Any, **more: Any) -> AsyncIterator[bytes]:
        await gate.pass_()
        async for chunk in pack(*args, **more):
            yield chunk

    monkeypatch.setattr(files, "pack", slow)
    return gate


async def stopped(server: Server, viewer: Viewer) -> Sandbox:
    """Make a sandbox whose workspace is kept, and stop it."""
    box = await lifecycle.create(server.deps, viewer, is_persistent=True)
    await ran(server.deps, viewer, box.id, "echo kept >f")
    return await lifecycle.stop(server.deps, viewer, sandbox_id=box.id)


async def at_once(verb: Verb, deps: Deps, viewer: Viewer, sandbox_id: str) -> list[Any]:
    async with asyncio.timeout(60):
        return await asyncio.gather(
            *(verb(deps, viewer, sandbox_id=sandbox_id) for _ in range(AT_ONCE)),
            return_exceptions=True,
        )


def statuses(answers: list[Any]) -> list[Any]:
    return [getattr(answer, "status", answer) for answer in answers]


async def told(server: Server, viewer: Viewer, sandbox_id: str) -> list[str]:
    """Give what the log of the viewer's things says of a sandbox."""
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(Event.payload).where(Event.topic == changes.topic(viewer.id)).order_by(Event.seq)
        )
        return [row.payload["change"] for row in found if row.payload["id"] == sandbox_id]


@BOTH_DATABASES
async def test_all_who_start_a_sandbox_at_once_are_given_it_running(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await stopped(server, ada)
    gate = await gated_creation(server, monkeypatch)
    gate.opened.set()
    answers = await at_once(snapshots.start, server.deps, ada, box.id)
    assert statuses(answers) == [SandboxStatus.RUNNING] * AT_ONCE
    assert gate.calls == 1
    assert (await ran(server.deps, ada, box.id, "cat f")).stdout == "kept\n"


async def test_who_starts_what_is_being_started_waits_for_it(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await stopped(server, ada)
    gate = await gated_creation(server, monkeypatch)
    async with asyncio.timeout(60):
        first = asyncio.ensure_future(snapshots.start(server.deps, ada, sandbox_id=box.id))
        await gate.begun.wait()
        others = asyncio.ensure_future(at_once(snapshots.start, server.deps, ada, box.id))
        # What has an end of its own is refused meanwhile, and says why.
        with pytest.raises(UserError, match="still being created") as caught:
            await executions.execute(server.deps, ada, sandbox_id=box.id, command="true")
        assert caught.value.code is UserErrorCode.CONFLICT
        assert not others.done()
        gate.opened.set()
        assert (await first).status is SandboxStatus.RUNNING
        assert statuses(await others) == [SandboxStatus.RUNNING] * AT_ONCE
    assert gate.calls == 1


async def test_who_waited_for_a_start_that_fails_is_told_why(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await stopped(server, ada)
    gate = await gated_creation(server, monkeypatch)
    client = keeping.unpack

    async def refuse(*_: Any) -> None:
        raise UserError(UserErrorCode.UNAVAILABLE, "The archive does not answer.")

    monkeypatch.setattr(keeping, "unpack", refuse)
    first = asyncio.ensure_future(snapshots.start(server.deps, ada, sandbox_id=box.id))
    async with asyncio.timeout(60):
        await gate.begun.wait()
        second = asyncio.ensure_future(snapshots.start(server.deps, ada, sandbox_id=box.id))
        gate.opened.set()
        answers: list[Any] = await asyncio.gather(first, second, return_exceptions=True)
    assert [str(answer) for answer in answers] == [
        "The archive does not answer.",
        "The sandbox could not be made. The archive does not answer.",
    ]
    assert answers[1].code is UserErrorCode.CONFLICT
    monkeypatch.setattr(keeping, "unpack", client)
    again = await snapshots.start(server.deps, ada, sandbox_id=box.id)
    assert again.status is SandboxStatus.RUNNING


async def test_all_who_pause_resume_or_stop_a_sandbox_at_once_succeed(
    server: Server, ada: Viewer
) -> None:
    box = await lifecycle.create(server.deps, ada, is_persistent=True)
    await ran(server.deps, ada, box.id, "echo kept >f")
    for verb, goal in (
        (lifecycle.pause, SandboxStatus.PAUSED),
        (lifecycle.resume, SandboxStatus.RUNNING),
        (lifecycle.stop, SandboxStatus.STOPPED),
    ):
        answers = await at_once(verb, server.deps, ada, box.id)
        assert statuses(answers) == [goal] * AT_ONCE
    async with server.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(SandboxSnapshot)) == 1


async def test_a_sandbox_that_is_being_stopped_takes_nothing_new(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps = server.deps
    box = await lifecycle.create(deps, ada, is_persistent=True)
    gate = await gated_packing(server, box.id, monkeypatch)
    async with asyncio.timeout(60):
        stopping = asyncio.ensure_future(lifecycle.stop(deps, ada, sandbox_id=box.id))
        await gate.begun.wait()
        contrary: list[Awaitable[Any]] = [
            snapshots.start(deps, ada, sandbox_id=box.id),
            snapshots.take(deps, ada, sandbox_id=box.id),
            lifecycle.pause(deps, ada, sandbox_id=box.id),
            lifecycle.resume(deps, ada, sandbox_id=box.id),
            lifecycle.extend(deps, ada, sandbox_id=box.id, seconds=1),
            executions.execute(deps, ada, sandbox_id=box.id, command="true"),
            changing.change(
                deps, ada, sandbox_id=box.id, changes={"on_expiry": SandboxExpiry.PAUSE}
            ),
        ]
        refused: list[Any] = await asyncio.gather(*contrary, return_exceptions=True)
        assert [(error.code, error.message) for error in refused] == [
            (
                UserErrorCode.CONFLICT,
                "The sandbox is being stopped; wait until it is STOPPED.",
            )
        ] * len(contrary)
        gate.opened.set()
        assert (await stopping).status is SandboxStatus.STOPPED
    assert (await snapshots.start(deps, ada, sandbox_id=box.id)).stop_requested_at is None


async def test_who_is_overtaken_by_another_request_is_told_so(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await stopped(server, ada)
    gate = await gated_creation(server, monkeypatch)
    ask = server.host.ask
    is_over = asyncio.Event()

    async def late(row: Any, operation: str, **more: Any) -> Any:
        found = await ask(row, operation, **more)
        if operation == "create":
            # The answer comes after the stop that another asked for.
            await is_over.wait()
        return found

    monkeypatch.setattr(server.host, "ask", late)
    async with asyncio.timeout(60):
        starting = asyncio.ensure_future(snapshots.start(server.deps, ada, sandbox_id=box.id))
        await gate.begun.wait()
        stopping = asyncio.ensure_future(lifecycle.stop(server.deps, ada, sandbox_id=box.id))
        gate.opened.set()
        assert (await stopping).status is SandboxStatus.STOPPED
        is_over.set()
        with pytest.raises(UserError, match="at the same time; it is STOPPED now") as caught:
            await starting
    assert caught.value.code is UserErrorCode.CONFLICT


async def test_a_stop_that_takes_long_says_so_and_tells_when_it_is_over(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(change_wait_s=0.3)
    ada = await server.person("ada")
    made = await lifecycle.create(server.deps, ada, is_persistent=True)
    await ran(server.deps, ada, made.id, "echo kept >f")
    gate = await gated_packing(server, made.id, monkeypatch)
    before = len(await told(server, ada, made.id))
    async with asyncio.timeout(60):
        answers = await at_once(lifecycle.stop, server.deps, ada, made.id)
        assert statuses(answers) == [SandboxStatus.RUNNING] * AT_ONCE
        assert {answer.stop_requested_at for answer in answers} != {None}
        # That it is about to end was told, once.
        assert (await told(server, ada, made.id))[before:] == ["UPDATED"]
        gate.opened.set()
        while (box := await lifecycle.stop(server.deps, ada, sandbox_id=made.id)).status.is_live:
            assert box.stop_requested_at is not None
    assert (box.status, box.failure, box.stop_requested_at) == (SandboxStatus.STOPPED, None, None)
    assert (await told(server, ada, made.id))[before:] == ["UPDATED", "UPDATED"]
    assert gate.calls == 1


async def test_a_start_that_takes_long_is_given_as_it_stands(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(change_wait_s=0.3)
    ada = await server.person("ada")
    gate = await gated_creation(server, monkeypatch)
    async with asyncio.timeout(60):
        made = await lifecycle.create(server.deps, ada, is_hasty=True)
        assert made.status is SandboxStatus.CREATING
        gate.opened.set()
        status = made.status
        while status is SandboxStatus.CREATING:
            status = (await snapshots.start(server.deps, ada, sandbox_id=made.id)).status
    assert status is SandboxStatus.RUNNING
    assert gate.calls == 1


async def test_packing_may_take_as_long_as_it_gets_on(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await lifecycle.create(server.deps, ada, is_persistent=True)
    node = await server.host.node()
    files, now = node.client(box.id).files, asyncio.get_running_loop().time
    pack, took = files.pack, 0.0

    async def slow(*args: Any, **more: Any) -> AsyncIterator[bytes]:
        nonlocal took
        began = now()
        async for chunk in pack(*args, **more):
            for at in range(0, len(chunk), 40):
                await asyncio.sleep(0.7)
                yield chunk[at : at + 40]
        took = now() - began

    monkeypatch.setattr(files, "pack", slow)
    monkeypatch.setattr(workspaces, "KEEP_S", 2.0)
    await ran(server.deps, ada, box.id, "head -c 150 /dev/urandom >f")
    ended = await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    assert (ended.status, ended.failure) == (SandboxStatus.STOPPED, None)
    assert took > workspaces.KEEP_S


async def test_housekeeping_waits_for_no_sandbox_that_takes_long(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await server.host.node()
    slow = await lifecycle.create(server.deps, ada, is_persistent=True, timeout_s=1)
    gate = await gated_packing(server, slow.id, monkeypatch)
    async with asyncio.timeout(60):
        await gate.begun.wait()
        quick = await lifecycle.create(server.deps, ada, timeout_s=1)
        while (row := await rows.sandbox(server.deps, quick.id)) and row.status.is_live:
            await housekeeping._expire(node)
        assert gate.calls == 1
        gate.opened.set()
        while (row := await rows.sandbox(server.deps, slow.id)) and row.status.is_live:
            await housekeeping._expire(node)
    assert row is not None
    assert (row.status, row.failure) == (SandboxStatus.STOPPED, "It reached the end of its time.")
    assert gate.calls == 1


async def test_a_stop_that_a_crash_broke_off_is_brought_to_its_end(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Surviving(state_dir=tmp_path / "surviving")
    try:
        server = await launch(driver)
        ada = await server.person("ada")
        box = await lifecycle.create(server.deps, ada, is_persistent=True)
        await ran(server.deps, ada, box.id, "echo kept >f")
        gate = await gated_packing(server, box.id, monkeypatch)
        stopping = asyncio.ensure_future(lifecycle.stop(server.deps, ada, sandbox_id=box.id))
        async with asyncio.timeout(60):
            await gate.begun.wait()
            stopping.cancel()
            await server.crash()
            again = await launch(driver)
            node = await again.host.node()
            while (row := await rows.sandbox(again.deps, box.id)) and row.status.is_live:
                await housekeeping._expire(node)
        assert row is not None
        assert (row.status, row.failure) == (SandboxStatus.STOPPED, None)
        await snapshots.start(again.deps, ada, sandbox_id=box.id)
        assert (await ran(again.deps, ada, box.id, "cat f")).stdout == "kept\n"
        await lifecycle.delete(again.deps, ada, sandbox_id=box.id)
    finally:
        await BubblewrapDriver.aclose(driver)
