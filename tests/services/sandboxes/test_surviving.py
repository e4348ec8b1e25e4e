"""Sandboxes that outlive their server, with what runs in them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from models.base import now
from models.sandboxes import SandboxExecution
from models.states import ExecutionReason, SandboxStatus
from sandbox.base import SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from services.base import work
from services.events.local import LocalBus
from services.events.store import Retention
from services.sandboxes import executions, lifecycle, output, recording, rows, settling
from services.sandboxes.live import INSTALLATION_LABEL, installation
from services.sandboxes.wishes import Security
from tests.services.sandboxes.conftest import Launch, Server, finished, first_chunk, present, ran


class Surviving(BubblewrapDriver):
    """bubblewrap behaving as Docker does: its sandboxes outlive the server object."""

    name = "docker"
    survives_server = True

    async def check(self) -> None:
        await self.start()

    async def create(self, spec: SandboxSpec) -> Any:
        return await super().create(
            SandboxSpec(spec.sandbox_id, "host", spec.limits, spec.policy, spec.labels)
        )

    async def aclose(self) -> None:
        """Keep everything."""


@pytest.fixture
async def surviving(tmp_path: Path) -> AsyncIterator[Surviving]:
    driver = Surviving(state_dir=tmp_path / "surviving")
    try:
        yield driver
    finally:
        await BubblewrapDriver.aclose(driver)


UNTIL_TOLD = "echo one; until [ -e go ]; do sleep 0.02; done; echo two; exit 7"


async def _survive(server: Server, launch: Launch, kind: str | BubblewrapDriver) -> None:
    ada = await server.person("ada")
    secret = Security(env_variables={"SECRET": "of the first"})
    box = await lifecycle.create(server.deps, ada, security=secret)
    frozen = await lifecycle.create(server.deps, ada, security=secret)
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command=UNTIL_TOLD, timeout_s=900
    )
    await first_chunk(server, ada, made.id)
    await ran(server.deps, ada, box.id, "echo kept > file")
    await ran(server.deps, ada, frozen.id, "echo cold > file")
    await lifecycle.pause(server.deps, ada, sandbox_id=frozen.id)
    await server.crash()

    again = await launch(kind)
    row = await present(again, box.id)
    assert row.status is SandboxStatus.RUNNING
    assert (await ran(again.deps, ada, box.id, "cat file; echo go > go")).stdout == "kept\n"
    ended = await finished(again.deps, ada, made.id)
    assert (ended.reason, ended.exit_code) == (ExecutionReason.EXITED, 7)
    assert (ended.stdout, ended.stderr) == ("one\ntwo\n", "")
    await lifecycle.resume(again.deps, ada, sandbox_id=frozen.id)
    assert (await ran(again.deps, ada, frozen.id, "cat file")).stdout == "cold\n"
    for one in (box, frozen):
        assert (await ran(again.deps, ada, one.id, "echo $SECRET")).stdout == "of the first\n"
    for one in (box, frozen):
        await lifecycle.delete(again.deps, ada, sandbox_id=one.id)
    node = await again.host.node()
    labels = {INSTALLATION_LABEL: installation(again.deps)}
    assert await node.driver.list(labels) == []


@pytest.mark.bubblewrap
async def test_a_sandbox_that_survived_is_taken_up_again(
    launch: Launch, surviving: Surviving
) -> None:
    await _survive(await launch(surviving), launch, surviving)


@pytest.mark.bubblewrap
async def test_what_nobody_wants_any_more_ends_when_it_is_found_again(
    launch: Launch, surviving: Surviving
) -> None:
    server = await launch(surviving)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    asked, settled, bound = [
        await executions.execute(
            server.deps,
            ada,
            sandbox_id=box.id,
            command="echo $$; sleep 600",
            timeout_s=900,
            is_bound=is_bound,
        )
        for is_bound in (False, False, True)
    ]
    pids = []
    for made in (asked, settled, bound):
        heard = await first_chunk(server, ada, made.id)
        assert isinstance(heard, output.Chunk)
        pids.append(heard.text.strip())
    # As others do who find no host that answers.
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(SandboxExecution)
            .where(SandboxExecution.id == asked.id)
            .values(cancel_requested_at=now())
        )
    await settling.settle(server.deps, settled.id, settling.CANCELED)
    await server.crash()
    again = await launch(surviving)
    ended = {made.id: await finished(again.deps, ada, made.id) for made in (asked, settled, bound)}
    assert ended[asked.id].reason is ended[settled.id].reason is ExecutionReason.KILLED
    # Whoever waited for it is gone with the process.
    assert ended[bound.id].reason is ExecutionReason.SANDBOX_LOST
    assert [ended[made.id].stdout for made in (asked, settled, bound)] == [f"{p}\n" for p in pids]
    for pid in pids:
        await ran(again.deps, ada, box.id, f"until ! kill -0 {pid}; do sleep 0.01; done")
    await lifecycle.delete(again.deps, ada, sandbox_id=box.id)


# Both streams, what each repeats and how often.
STREAMED = (("out", 500), ("error", 100))
HALVES = """
import os, time
for n in range(200):
    if n == 100:
        open("half", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
    os.write(1, b"out %d\\n" % n * 500)
    os.write(2, b"error %d\\n" % n * 100)
"""


@pytest.mark.bubblewrap
async def test_after_a_trimmed_log_each_stream_goes_on_at_its_byte(
    launch: Launch, surviving: Surviving, tmp_path: Path
) -> None:
    async def bus() -> LocalBus:
        made = LocalBus(tmp_path / "trimmed.sqlite", retention=Retention(max_bytes=100_000))
        await made.start()
        return made

    # Nothing is stored in the row before the end.
    server = await launch(surviving, bus=await bus(), text_checkpoint_s=600.0)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, argv=["python3", "-c", HALVES], timeout_s=900
    )
    topic = rows.topic(made.id)
    await ran(server.deps, ada, box.id, "until [ -e half ]; do sleep 0.01; done")
    async with asyncio.timeout(60), server.deps.bus.attach(topic) as tap:
        while (await server.deps.bus.read(topic)).is_complete:
            await tap.get(1)
    await server.crash()
    again = await launch(surviving, bus=await bus(), text_checkpoint_s=600.0)
    await ran(again.deps, ada, box.id, "touch go")
    ended = await finished(again.deps, ada, made.id)
    assert (ended.exit_code, ended.is_truncated) == (0, True)
    whole = {
        stream: "".join(f"{word} {n}\n" * times for n in range(200))
        for stream, (word, times) in zip(recording.STREAMS, STREAMED, strict=True)
    }
    assert [ended.stdout_bytes, ended.stderr_bytes] == [len(text) for text in whole.values()]
    ends = dict.fromkeys(whole, "")
    for entry in [news.data for news in (await again.deps.bus.read(topic)).entries]:
        assert whole[entry["stream"]][entry["own"] :].startswith(entry["text"])
        ends[entry["stream"]] = entry["text"]
    assert all(text.endswith(ends[stream]) for stream, text in whole.items())
    await lifecycle.delete(again.deps, ada, sandbox_id=box.id)


@pytest.mark.docker
async def test_containers_are_taken_up_again(launch: Launch) -> None:
    await _survive(await launch("docker"), launch, "docker")
