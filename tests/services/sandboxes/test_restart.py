"""What survives the loss of a process, and how the rest is settled."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from models.base import now
from models.sandboxes import Sandbox, SandboxRemoval
from models.states import ExecutionReason, RunState, SandboxStatus
from sandbox.base import SandboxSpec
from services.base import work
from services.errors import UserError, UserErrorCode
from services.events.local import LocalBus
from services.sandboxes import (
    executions,
    housekeeping,
    lifecycle,
    output,
    rows,
    sweeping,
)
from services.sandboxes.live import INSTALLATION_LABEL, installation
from services.sandboxes.node import EXPIRED, HOST_GONE
from tests.services.sandboxes.conftest import (
    BOTH_DATABASES,
    Launch,
    Server,
    collect,
    finished,
    first_chunk,
    present,
    ran,
    recorded,
)


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_after_a_crash_what_ran_is_lost_and_its_output_kept(launch: Launch) -> None:
    # Nothing was stored in the row yet: all there is, is in the log.
    server = await launch(text_checkpoint_s=600.0)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    done = await ran(server.deps, ada, box.id, "echo before")
    made = await executions.execute(
        server.deps,
        ada,
        sandbox_id=box.id,
        command="echo heard 한; echo oh >&2; sleep 600",
        timeout_s=900,
    )
    heard = await first_chunk(server, ada, made.id)
    async with asyncio.timeout(30), server.deps.bus.attach(rows.topic(made.id)) as tap:
        while (await server.deps.bus.read(rows.topic(made.id))).head < 2:
            await tap.get(1)
    await server.crash()

    again = await launch()
    row = await present(again, box.id)
    assert row.status is SandboxStatus.FAILED
    assert row.failure == "Its host is gone, and the sandbox with it."
    ended = await recorded(again, made.id)
    assert (ended.status, ended.reason) == (RunState.FAILED, ExecutionReason.SANDBOX_LOST)
    assert (ended.stdout, ended.stderr) == ("heard 한\n", "oh\n")
    assert await rows.execution(again.deps, done.id) == done
    # A reader goes on where it was, over the restart.
    rest = await collect(again.deps, ada, made.id, heard.cursor)
    assert [type(item) for item in rest] == [output.Chunk, output.Exited]
    refused = executions.execute(again.deps, ada, sandbox_id=box.id, command="true")
    with pytest.raises(UserError, match="has failed") as caught:
        await refused
    assert caught.value.code is UserErrorCode.CONFLICT
    assert (await lifecycle.create(again.deps, ada)).status is SandboxStatus.RUNNING


@pytest.mark.bubblewrap
async def test_what_a_row_has_stored_and_the_log_goes_on_with_is_joined(launch: Launch) -> None:
    server = await launch(text_checkpoint_s=0.01)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    command = "for i in $(seq 30); do echo $i; sleep 0.02; done; sleep 600"
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command=command, timeout_s=900
    )
    text = b""
    async with (
        asyncio.timeout(60),
        aclosing(output.follow(server.deps, ada, made.id)) as items,
    ):
        async for item in items:
            assert isinstance(item, output.Chunk)
            text += item.data
            if text.endswith(b"30\n"):
                break
    await server.crash()
    again = await launch()
    ended = await recorded(again, made.id)
    assert ended.stdout == "".join(f"{i}\n" for i in range(1, 31))
    assert ended.stdout_bytes == len(text)


@pytest.mark.bubblewrap
async def test_a_crash_before_it_began_settles_the_order(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)

    async def deaf(*_: object, **__: object) -> Mapping[str, Any]:
        return {}

    monkeypatch.setattr(server.host, "ask", deaf)
    made = await executions.execute(server.deps, ada, sandbox_id=box.id, command="true")
    await server.crash()
    again = await launch()
    ended = await recorded(again, made.id)
    assert (ended.status, ended.reason) == (RunState.FAILED, ExecutionReason.SANDBOX_LOST)


@pytest.mark.bubblewrap
async def test_stopping_the_server_settles_everything(launch: Launch) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command="echo one; sleep 600", timeout_s=900
    )
    await first_chunk(server, ada, made.id)
    await server.host.aclose()
    row = await present(server, box.id)
    assert (row.status, row.failure) == (SandboxStatus.STOPPED, "The server was stopped.")
    ended = await finished(server.deps, ada, made.id)
    assert (ended.status, ended.reason) == (RunState.FAILED, ExecutionReason.SANDBOX_LOST)
    assert ended.stdout == "one\n"
    with pytest.raises(UserError, match="stopping"):
        await lifecycle.create(server.deps, ada)
    await server.host.aclose()


@pytest.mark.bubblewrap
async def test_leftovers_nobody_knows_are_removed(launch: Launch, tmp_path: Path) -> None:
    server = await launch()
    node = await server.host.node()
    await node.driver.create(SandboxSpec("sbx_stray", "host"))
    records = tmp_path / "sandboxes" / "sandboxes"
    kept = (records / "sbx_stray.json").read_bytes()
    await server.crash()
    # As SIGKILL leaves it: the note of a sandbox whose process and server are gone.
    dead = kept.replace(b'"server_start": "', b'"server_start": "9')
    (records / "sbx_stray.json").write_bytes(dead)
    again = await launch()
    assert await (await again.host.node()).driver.list({}) == []
    assert await removed(again) == {("container", "sbx_stray", sweeping.AT_START)}


async def removed(server: Server) -> set[tuple[str, str, str]]:
    """What the record of cleaning up says."""
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(SandboxRemoval.kind, SandboxRemoval.name, SandboxRemoval.reason)
        )
        return {(kind, name, reason) for kind, name, reason in found}


async def another(launch: Launch, log: Path) -> Server:
    """Start a server of another node, over a log of the bus."""
    bus = LocalBus(log, "other-node")
    await bus.start()
    return await launch(bus=bus)


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_what_ends_without_being_asked_to_is_recorded(launch: Launch) -> None:
    server = await launch()
    ada, node = await server.person("ada"), await server.host.node()
    lost, killed, expired, stopped = [
        await lifecycle.create(server.deps, ada, timeout_s=500) for _ in range(4)
    ]
    await node.lose(killed.id, "The sandbox ended unexpectedly.")
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == expired.id).values(expires_at=now())
        )
    await housekeeping._expire(node)
    await lifecycle.stop(server.deps, ada, sandbox_id=stopped.id)
    await server.crash()
    again = await launch()
    assert await removed(again) == {
        ("sandbox", lost.id, HOST_GONE),
        ("sandbox", killed.id, "The sandbox ended unexpectedly."),
        ("sandbox", expired.id, EXPIRED),
    }


@pytest.mark.bubblewrap
async def test_without_a_driver_what_is_lost_is_recorded_too(launch: Launch) -> None:
    server = await launch()
    box = await lifecycle.create(server.deps, await server.person("ada"))
    await server.crash()
    again = await launch("off")
    assert await removed(again) == {("sandbox", box.id, HOST_GONE)}


@BOTH_DATABASES
@pytest.mark.bubblewrap
async def test_a_sandbox_of_a_node_that_is_gone_is_failed_by_whoever_asks(
    launch: Launch, tmp_path: Path
) -> None:
    first = await launch()
    ada = await first.person("ada")
    box = await lifecycle.create(first.deps, ada)
    made = await executions.execute(
        first.deps, ada, sandbox_id=box.id, command="echo one; sleep 600", timeout_s=900
    )
    await first_chunk(first, ada, made.id)
    await first.crash()
    # The same log file, so that this node reads what the other one wrote.
    second = await another(launch, tmp_path / "bus.sqlite")
    row = await present(second, box.id)
    assert (row.status, row.node_id) == (SandboxStatus.RUNNING, "local")
    with pytest.raises(UserError) as caught:
        await executions.execute(second.deps, ada, sandbox_id=box.id, command="true")
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    row = await present(second, box.id)
    assert (row.status, row.node_id) == (SandboxStatus.FAILED, "other-node")
    for execution in (await finished(second.deps, ada, made.id),):
        assert (execution.reason, execution.stdout) == (ExecutionReason.SANDBOX_LOST, "one\n")
    assert await rows.unfinished(second.deps, sandbox_id=box.id) == []


@pytest.mark.bubblewrap
async def test_what_a_dead_node_hosted_can_be_canceled_and_deleted(
    launch: Launch, tmp_path: Path
) -> None:
    first = await launch()
    ada = await first.person("ada")
    one, two = [await lifecycle.create(first.deps, ada) for _ in range(2)]
    made = await executions.execute(
        first.deps, ada, sandbox_id=one.id, command="sleep 600", timeout_s=900
    )
    await first.crash()
    second = await another(launch, tmp_path / "bus.sqlite")
    canceled = await executions.cancel(second.deps, ada, execution_id=made.id)
    assert (canceled.status, canceled.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    deleted = await lifecycle.delete(second.deps, ada, sandbox_id=two.id)
    assert deleted.status is SandboxStatus.DELETED


@pytest.mark.bubblewrap
async def test_dead_nodes_are_taken_over_when_found_dead_twice(
    launch: Launch, tmp_path: Path
) -> None:
    first = await launch()
    ada = await first.person("ada")
    box = await lifecycle.create(first.deps, ada)
    await first.crash()
    second = await another(launch, tmp_path / "other.sqlite")
    node = await second.host.node()
    suspects = await housekeeping._dead_nodes(node, set())
    row = await present(second, box.id)
    assert (suspects, row.status) == ({"local"}, SandboxStatus.RUNNING)
    await housekeeping._dead_nodes(node, suspects)
    row = await present(second, box.id)
    assert row.status is SandboxStatus.FAILED


@pytest.mark.docker
async def test_containers_nobody_knows_are_removed(launch: Launch) -> None:
    server = await launch("docker")
    node = await server.host.node()
    labels = {INSTALLATION_LABEL: installation(server.deps)}
    image = server.options.sandbox_template_image
    await node.driver.create(SandboxSpec("sbx_stray", image, labels=labels))
    foreign = SandboxSpec("sbx_foreign", image, labels={INSTALLATION_LABEL: "another"})
    await node.driver.create(foreign)
    await server.crash()
    again = await launch("docker")
    driver = (await again.host.node()).driver
    try:
        assert await driver.list(labels) == []
        assert len(await driver.list({INSTALLATION_LABEL: "another"})) == 1
    finally:
        await driver.remove("sbx_foreign")


@pytest.mark.bubblewrap
async def test_a_host_that_cannot_settle_at_once_tries_again(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    await server.crash()
    take_up, tries = housekeeping.take_up, []

    async def stumble(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) == 1:
            raise OSError("the database is away")
        await take_up(*arguments)

    monkeypatch.setattr(housekeeping, "take_up", stumble)
    again = await launch()
    await again.host.node()
    row = await present(again, box.id)
    assert (len(tries), row.status) == (2, SandboxStatus.FAILED)


@pytest.mark.bubblewrap
async def test_a_creation_nobody_was_told_of_ends_as_failed(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch()
    ada, node = await server.person("ada"), await server.host.node()

    async def busy(*_: object, **__: object) -> Mapping[str, Any]:
        raise UserError(UserErrorCode.UNAVAILABLE, "busy")

    with monkeypatch.context() as patch:
        patch.setattr(server.host, "ask", busy)
        with pytest.raises(UserError, match="busy"):
            await lifecycle.create(server.deps, ada)
    (young,) = await rows.living(server.deps)
    await housekeeping._reconcile(node)
    row = await present(server, young.id)
    assert row.status is SandboxStatus.CREATING
    async with work(server.deps) as unit:
        await unit.session.execute(update(Sandbox).values(created_at=now() - timedelta(hours=1)))
    async with node.lock(young.id):
        await housekeeping._reconcile(node)
        assert len(await rows.living(server.deps)) == 1
    await housekeeping._reconcile(node)
    row = await present(server, young.id)
    assert (row.status, row.failure) == (SandboxStatus.FAILED, "It was not created in time.")


@pytest.mark.bubblewrap
async def test_a_sandbox_whose_row_another_node_took_is_ended_here(launch: Launch) -> None:
    server = await launch()
    ada, node = await server.person("ada"), await server.host.node()
    box = await lifecycle.create(server.deps, ada)
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(Sandbox).values(node_id="other", status=SandboxStatus.FAILED, failure="taken")
        )
    await node.lose(box.id, "not to be written")
    row = await present(server, box.id)
    assert (row.node_id, row.failure) == ("other", "taken")
    kept = await lifecycle.create(server.deps, ada)
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == kept.id).values(node_id="other")
        )
    await housekeeping._reconcile(node)
    assert node.live == {}
    assert await node.driver.list({}) == []
