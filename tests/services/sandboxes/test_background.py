"""What runs in the background, and the processes inside: listed, killed, bounded."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState, SandboxStatus
from services.base import Viewer
from services.errors import UserError, UserErrorCode
from services.sandboxes import executions, interaction, lifecycle, output, processes
from services.sandboxes.interaction import Signal
from services.sandboxes.processes import Process, ProcessState
from tests.services.sandboxes.conftest import Launch, Server, finished, present, ran, recorded

# Said once it has begun, and again when it is told to end.
SERVICE = "(echo child; while [ ! -e stop ]; do sleep 0.02; done; echo bye) & echo main"


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


async def heard(server: Server, viewer: Viewer, row: SandboxExecution, lines: int) -> list[str]:
    """Follow an execution until it wrote so many lines."""
    text = ""
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(server.deps, viewer, row.id)) as items,
    ):
        async for item in items:
            assert isinstance(item, output.Chunk)
            text += item.text
            if text.count("\n") >= lines:
                return sorted(text.splitlines())
    raise AssertionError(text)


async def begin(server: Server, viewer: Viewer, box: Sandbox, **wish: Any) -> SandboxExecution:
    return await executions.execute(
        server.deps, viewer, sandbox_id=box.id, **{"is_background": True, **wish}
    )


@pytest.mark.bubblewrap
async def test_it_goes_on_after_its_command_until_its_last_process_ends(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    row = await begin(server, ada, box, command=SERVICE)
    assert (row.is_background, row.timeout_s) == (True, 0)
    assert await heard(server, ada, row, 2) == ["child", "main"]
    still = await recorded(server, row.id)
    # Its row tells of its first process before anything it wrote is heard.
    assert still.pid is not None
    gone = f"while kill -0 {still.pid} 2> /dev/null; do sleep 0.01; done"
    assert (await ran(server.deps, ada, box.id, gone)).exit_code == 0
    still = await recorded(server, row.id)
    assert still.status is RunState.RUNNING
    await ran(server.deps, ada, box.id, "touch stop")
    done = await finished(server.deps, ada, row.id)
    assert (done.status, done.exit_code) == (RunState.COMPLETED, 0)
    assert sorted((done.stdout or "").splitlines()) == ["bye", "child", "main"]


@pytest.mark.bubblewrap
async def test_its_processes_are_listed_and_killed(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    script = "sleep 987 & while ! grep -q '^sleep' /proc/$!/cmdline; do :; done; echo on; wait"
    row = await begin(server, ada, box, argv=["sh", "-c", script, "na me"])
    await heard(server, ada, row, 1)
    (sleeper,) = await named(server, box, "sleep")
    (shell,) = await named(server, box, "sh")
    assert shell.command == ["sh", "-c", script, "na me"]
    assert (sleeper.command, sleeper.parent_pid) == (["sleep", "987"], shell.pid)
    assert sleeper.execution_id == shell.execution_id == row.id
    assert sleeper.state is ProcessState.SLEEPING
    assert sleeper.memory_bytes > 0
    assert row.created_at.timestamp() - 60 < sleeper.started_at.timestamp()
    stored = await recorded(server, row.id)
    assert stored.pid == shell.pid
    again = await processes.kill(server.deps, ada, sandbox_id=box.id, pid=sleeper.pid)
    assert again.id == box.id
    done = await finished(server.deps, ada, row.id)
    assert done.reason is ExecutionReason.EXITED
    assert await named(server, box, "sleep") == []


async def named(server: Server, box: Sandbox, name: str) -> list[Process]:
    found = await processes.listing(server.deps, box)
    return [process for process in found if process.command[0] == name]


@pytest.mark.bubblewrap
async def test_a_signal_of_choice_reaches_one_process(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    trap = "trap 'echo usr; exit 0' USR1; echo on; while :; do sleep 0.05; done"
    row = await begin(server, ada, box, argv=["sh", "-c", trap])
    await heard(server, ada, row, 1)
    # Its child has its name, too, until it has become what it is to run.
    shell, *_ = await named(server, box, "sh")
    await processes.kill(server.deps, ada, sandbox_id=box.id, pid=shell.pid, signal=Signal.USR1)
    assert (await finished(server.deps, ada, row.id)).stdout == "on\nusr\n"


@pytest.mark.bubblewrap
async def test_what_cannot_be_killed_says_why(server: Server, ada: Viewer, box: Sandbox) -> None:
    bob = await server.person("bob")

    async def refused(viewer: Viewer, code: UserErrorCode, pid: int, match: str) -> UserError:
        with pytest.raises(UserError, match=match) as caught:
            await processes.kill(server.deps, viewer, sandbox_id=box.id, pid=pid)
        assert caught.value.code is code
        return caught.value

    for pid_ in (1, 999_999):
        error = await refused(ada, UserErrorCode.NOT_FOUND, pid_, "no process")
        assert error.path == ("pid",)
    for pid_ in (0, -1, 2**31 - 1):
        await refused(ada, UserErrorCode.INVALID, pid_, "not a process")
    await refused(bob, UserErrorCode.NOT_FOUND, 2, "no such sandbox")
    paused = await lifecycle.pause(server.deps, ada, sandbox_id=box.id)
    await refused(ada, UserErrorCode.CONFLICT, 2, "paused; resume it first")
    with pytest.raises(UserError, match="paused"):
        await processes.listing(server.deps, paused)
    stopped = await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    with pytest.raises(UserError, match="stopped"):
        await processes.listing(server.deps, stopped)


@pytest.mark.bubblewrap
async def test_it_ends_with_its_sandbox(server: Server, ada: Viewer, box: Sandbox) -> None:
    row = await begin(server, ada, box, command=SERVICE)
    await heard(server, ada, row, 2)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    done = await finished(server.deps, ada, row.id)
    assert (done.status, done.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    assert sorted((done.stdout or "").splitlines()) == ["child", "main"]


@pytest.mark.bubblewrap
async def test_it_is_canceled_and_timed_out_like_others(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    row = await begin(server, ada, box, command="setsid sleep 654 & echo on")
    await heard(server, ada, row, 1)
    await executions.cancel(server.deps, ada, execution_id=row.id)
    done = await finished(server.deps, ada, row.id)
    assert (done.status, done.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    late = await begin(server, ada, box, command="sleep 654 & echo on", timeout_s=1)
    assert late.timeout_s == 1
    timed_out = await finished(server.deps, ada, late.id)
    assert (timed_out.status, timed_out.stdout) == (RunState.TIMED_OUT, "on\n")
    assert await named(server, box, "sleep") == []


@pytest.mark.bubblewrap
async def test_it_counts_among_what_may_run_at_once(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "UNFINISHED_PER_SANDBOX", 2)
    first = await begin(server, ada, box, command=SERVICE)
    await begin(server, ada, box, command=SERVICE)
    # Their first processes have ended, and they have not.
    await heard(server, ada, first, 2)
    with pytest.raises(UserError, match="at most 2 may run at once") as caught:
        await begin(server, ada, box, command="true")
    assert caught.value.code is UserErrorCode.LIMIT


@pytest.mark.bubblewrap
async def test_a_lost_process_settles_it(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    row = await begin(server, ada, box, command=SERVICE)
    await heard(server, ada, row, 2)
    await server.crash()
    again = await launch()
    done = await recorded(again, row.id)
    assert (done.status, done.reason) == (RunState.FAILED, ExecutionReason.SANDBOX_LOST)
    found = await present(again, box.id)
    assert found.status is SandboxStatus.FAILED


async def test_both_drivers_have_terminals_and_background_work(
    any_kind: str, launch: Launch
) -> None:
    server = await launch(any_kind)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    sleeping = "sleep 987 & while ! grep -q '^sleep' /proc/$!/cmdline; do :; done; echo on"
    service = await begin(server, ada, box, command=sleeping)
    await heard(server, ada, service, 1)
    shell = await executions.execute(
        server.deps,
        ada,
        sandbox_id=box.id,
        argv=["sh", "-c", "read line; stty size; kill -s INT $$"],
        terminal=(24, 80),
        environment={"A": "b"},
    )
    await interaction.resize(server.deps, ada, execution_id=shell.id, rows=7, cols=9)
    found = await processes.listing(server.deps, box)
    assert {process.execution_id for process in found} == {service.id, shell.id}
    await interaction.write(server.deps, ada, execution_id=shell.id, data="go\n")
    done = await finished(server.deps, ada, shell.id)
    assert (done.stdout, done.signal) == ("go\r\n7 9\r\n", 2)
    (sleeper,) = await named(server, box, "sleep")
    assert sleeper.execution_id == service.id
    await processes.kill(server.deps, ada, sandbox_id=box.id, pid=sleeper.pid)
    ended = await finished(server.deps, ada, service.id)
    assert ended.reason is ExecutionReason.EXITED
