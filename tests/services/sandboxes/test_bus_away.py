"""A bus that is away: what has ended waits for it, and sandboxes end in their rows all the same."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from models.sandboxes import Sandbox
from models.states import ExecutionReason, SandboxStatus
from sandbox.errors import DriverUnavailableError
from services.base import Viewer
from services.events.base import Bus, Json
from services.events.local import LocalBus
from services.sandboxes import creation, executions, housekeeping, lifecycle
from services.sandboxes.node import HOST_GONE
from tests.services.faulty_bus import FaultyBus
from tests.services.sandboxes.conftest import Launch, Server, finished, first_chunk, present, ran
from tests.services.sandboxes.test_surviving import Surviving, surviving

__all__ = ["surviving"]

WRITES = "echo begun; until [ -e go ]; do sleep 0.02; done; head -c 900000 /dev/zero; {}"


class RefusingBus(FaultyBus):
    """Tells that it refused to take what was written."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.refused = asyncio.Event()

    async def append(self, topic: str, data: Json) -> int:
        if self.is_away:
            self.refused.set()
        return await super().append(topic, data)


async def writing(
    launch: Launch, folder: Path, then: str
) -> tuple[Server, Viewer, Sandbox, FaultyBus, str]:
    """Have an execution write while the bus is away."""
    local = LocalBus(folder / "bus.sqlite")
    await local.start()
    bus = RefusingBus(local)
    server = await launch(bus=cast("Bus", bus))
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command=WRITES.format(then), timeout_s=900
    )
    await first_chunk(server, ada, made.id)
    client = (await server.host.node()).client(box.id)
    bus.is_away = True
    go = await client.execute("touch go", timeout_s=60, output_limit_bytes=1000)
    assert (await go.result()).exit_code == 0
    async with asyncio.timeout(60):
        await bus.refused.wait()
    return server, ada, box, bus, made.id


async def status(server: Server, box: Sandbox) -> tuple[SandboxStatus, str | None]:
    row = await present(server, box.id)
    return row.status, row.failure


def no_database(*_: Any, **__: Any) -> Any:
    raise OperationalError("UPDATE", {}, Exception("turned off by the test"))


@pytest.mark.bubblewrap
async def test_an_execution_that_ended_in_time_may_wait_for_the_bus(
    launch: Launch, tmp_path: Path
) -> None:
    server, ada, box, bus, execution_id = await writing(launch, tmp_path, "exit 7")
    node = await server.host.node()
    current = node.live[box.id].runs[execution_id]
    assert current.execution is not None
    async with asyncio.timeout(60):
        await current.execution.result()
    # Its time, and what it was given on top, is over.
    current.left_s = 0.0
    await housekeeping._overdue(node)
    assert await status(server, box) == (SandboxStatus.RUNNING, None)
    bus.mend()
    done = await finished(server.deps, ada, execution_id)
    assert (done.reason, done.exit_code) == (ExecutionReason.EXITED, 7)
    assert done.stdout_bytes == len("begun\n") + 900_000
    await ran(server.deps, ada, box.id, "true")


@pytest.mark.bubblewrap
@pytest.mark.parametrize("how", ["lose", "stop", "delete"])
async def test_a_sandbox_ends_in_its_row_although_the_bus_is_away(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # What it runs does not end in time.
    monkeypatch.setattr(creation, "SETTLE_S", 0.1)
    monkeypatch.setattr(creation, "KILL_S", 0.1)
    server, ada, box, bus, execution_id = await writing(launch, tmp_path, "sleep 900")
    node = await server.host.node()
    if how == "lose":
        await node.lose(box.id, "It had enough.")
        assert await status(server, box) == (SandboxStatus.FAILED, "It had enough.")
    elif how == "stop":
        await node.stop(box.id)
        assert await status(server, box) == (SandboxStatus.STOPPED, None)
    else:
        await node.delete(box.id)
        assert await status(server, box) == (SandboxStatus.DELETED, None)
    assert box.id not in node.live
    bus.mend()
    await housekeeping._repair(node)
    done = await finished(server.deps, ada, execution_id)
    assert done.reason in (ExecutionReason.SANDBOX_LOST, ExecutionReason.KILLED)


@pytest.mark.bubblewrap
async def test_a_row_whose_sandbox_was_ended_without_it_ends(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    node = await server.host.node()
    with monkeypatch.context() as patch:
        patch.setattr(node, "_set", no_database)
        with pytest.raises(OperationalError):
            await node.lose(box.id, "It had enough.")
    assert (await status(server, box))[0] is SandboxStatus.RUNNING
    await housekeeping._reconcile(node)
    assert await status(server, box) == (SandboxStatus.FAILED, HOST_GONE)


@pytest.mark.bubblewrap
async def test_a_row_whose_sandbox_nothing_serves_is_taken_up(
    launch: Launch, surviving: Surviving, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(surviving)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    node = await server.host.node()
    forgotten = node.live.pop(box.id)
    assert forgotten.client is not None
    forgotten.is_ending = True
    await forgotten.client.aclose()

    async def away() -> None:
        raise DriverUnavailableError("turned off by the test")

    with monkeypatch.context() as patch:
        patch.setattr(node.driver, "check", away)
        # Of the sandbox that says nothing.
        await housekeeping._reconcile(node)
        assert await status(server, box) == (SandboxStatus.RUNNING, None)
    await housekeeping._reconcile(node)
    assert box.id in node.live
    assert (await ran(server.deps, ada, box.id, "echo here")).stdout == "here\n"
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)
