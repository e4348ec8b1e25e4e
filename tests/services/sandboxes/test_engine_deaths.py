"""An engine that dies in between: a clear error each time, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import select

from models.sandboxes import Sandbox
from models.states import ExecutionReason, SandboxStatus
from sandbox.docker import DockerDriver
from services.base import Viewer
from services.errors import UserErrorCode
from services.sandboxes import executions, files, lifecycle, output, rows
from tests.servers.cut import Relay, relay
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.refusing import CONFLICT, held_by_driver, refusal

docker = pytest.mark.docker


@pytest.fixture
async def wire(docker_url: str) -> AsyncIterator[Relay]:
    async with relay(docker_url) as made:
        yield made


@pytest.fixture
async def behind(launch: Launch, wire: Relay, docker_image: str) -> Server:
    """A server whose engine can die."""
    return await launch(DockerDriver(url=wire.url), sandbox_template_image=docker_image)


async def left_after_restart(launch: Launch, behind: Server, docker_url: str, image: str) -> None:
    """Raise AssertionError if anything of dead sandboxes is left once a server has started anew."""
    await behind.crash()
    again = await launch(DockerDriver(url=docker_url), sandbox_template_image=image)
    living = {row.id for row in await living_rows(again)}
    assert await held_by_driver(again) == living
    assert await rows.unfinished(again.deps) == []
    for sandbox_id in living:
        await (await again.host.node()).stop(sandbox_id)
    assert await held_by_driver(again) == set()


async def living_rows(server: Server) -> list[Any]:
    async with server.deps.db.reading() as connection:
        found = await connection.execute(
            select(Sandbox.id).where(
                Sandbox.status.in_((SandboxStatus.RUNNING, SandboxStatus.PAUSED))
            )
        )
        return list(found)


DEATHS = {
    "create, unheard": (b"/containers/create", False),
    "create, answer lost": (b"/containers/create", True),
    "attach": (b"/attach", True),
    "start, unheard": (b"/start", False),
    "start, answer lost": (b"/start", True),
}


@docker
@pytest.mark.parametrize("moment", DEATHS)
async def test_an_engine_that_dies_during_creation(
    launch: Launch, behind: Server, wire: Relay, docker_url: str, docker_image: str, moment: str
) -> None:
    eve = await behind.person("eve")
    request, passes_on = DEATHS[moment]
    wire.cut_at(request, passes_on=passes_on)
    refused = await refusal(lifecycle.create(behind.deps, eve))
    assert wire.is_cut.is_set()
    assert [code for code, _ in refused] == [UserErrorCode.UNAVAILABLE]
    async with behind.deps.db.reading() as connection:
        row = (await connection.execute(select(Sandbox.__table__))).one()
    assert row.status is SandboxStatus.FAILED
    assert row.failure
    wire.mend()
    box = await lifecycle.create(behind.deps, eve)
    assert (await ran(behind.deps, eve, box.id, "echo again")).stdout == "again\n"
    await left_after_restart(launch, behind, docker_url, docker_image)


Verb = Callable[[Server, Viewer, Sandbox], Awaitable[object]]
VERBS: dict[str, tuple[bytes, Verb]] = {
    "pause": (b"/pause", lambda s, v, b: lifecycle.pause(s.deps, v, sandbox_id=b.id)),
    "stop": (b"/containers/", lambda s, v, b: lifecycle.stop(s.deps, v, sandbox_id=b.id)),
    "delete": (b"/containers/", lambda s, v, b: lifecycle.delete(s.deps, v, sandbox_id=b.id)),
}


@docker
@pytest.mark.parametrize("name", VERBS)
async def test_an_engine_that_dies_while_a_sandbox_changes(
    launch: Launch, behind: Server, wire: Relay, docker_url: str, docker_image: str, name: str
) -> None:
    eve = await behind.person("eve")
    box = await lifecycle.create(behind.deps, eve)
    request, verb = VERBS[name]
    wire.cut_at(request, passes_on=False)
    if name == "pause":
        codes = {code for code, _ in await refusal(verb(behind, eve, box))}
        assert codes <= {UserErrorCode.UNAVAILABLE, CONFLICT}
    else:
        # What ends may end without its engine.
        await verb(behind, eve, box)
    assert wire.is_cut.is_set()
    wire.mend()
    await left_after_restart(launch, behind, docker_url, docker_image)


@docker
async def test_an_engine_that_dies_under_an_execution_and_a_file(
    launch: Launch, behind: Server, wire: Relay, docker_url: str, docker_image: str
) -> None:
    deps, eve = behind.deps, await behind.person("eve")
    box = await lifecycle.create(deps, eve)
    made = await executions.execute(deps, eve, sandbox_id=box.id, command="echo on; sleep 600")
    async with asyncio.timeout(60), aclosing(output.follow(deps, eve, made.id)) as items:
        await anext(items)
        wire.cut()
        for verb in (
            files.read(deps, eve, sandbox_id=box.id, path="x"),
            files.write(deps, eve, sandbox_id=box.id, path="x", content="x"),
            executions.execute(deps, eve, sandbox_id=box.id, command="true"),
        ):
            codes = {code for code, _ in await refusal(verb)}
            assert codes <= {UserErrorCode.UNAVAILABLE, CONFLICT}
        # An engine that is away has ended nothing.
        row = await rows.execution(deps, made.id)
        assert row is not None
        assert row.reason is None
        wire.mend()
        await executions.cancel(deps, eve, execution_id=made.id)
        last = [item async for item in items][-1]
    assert isinstance(last, output.Exited)
    assert last.execution.reason is ExecutionReason.KILLED
    assert last.execution.stdout == "on\n"
    await left_after_restart(launch, behind, docker_url, docker_image)
