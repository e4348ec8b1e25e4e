"""What becomes of sandboxes is told, whoever brings it about; that they are used is not."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from sandbox.errors import Resource, ResourceExhaustedError
from services import changes
from services.base import Viewer
from services.errors import UserError
from services.sandboxes import files, housekeeping, lifecycle, rows
from tests.services.sandboxes.conftest import Launch, Server, present, ran
from tests.witness import Witness

pytestmark = pytest.mark.bubblewrap


async def refused(verb: Awaitable[object]) -> None:
    with pytest.raises(UserError):
        await verb


async def told(witness: Witness, sandbox_id: str) -> list[str]:
    """Give what was told since last asked, all of it of one sandbox."""
    found = await witness.told()
    assert {(event, id_) for _, event, id_, _ in found} <= {("SandboxChanged", sandbox_id)}
    return [change for *_, change in found]


async def test_verbs_tell_what_they_do(server: Server, ada: Viewer) -> None:
    deps, witness = server.deps, await Witness(server.deps).install()
    box = await lifecycle.create(deps, ada)
    assert await told(witness, box.id) == ["CREATED", "UPDATED"], "asked for, then running"

    await ran(deps, ada, box.id, "echo hello > file")
    await files.write(deps, ada, sandbox_id=box.id, path="other", content="hello")
    assert await told(witness, box.id) == [], "being used is no change"

    await lifecycle.extend(deps, ada, sandbox_id=box.id, seconds=60)
    assert await told(witness, box.id) == ["UPDATED"]
    for verb in (lifecycle.pause, lifecycle.resume, lifecycle.stop):
        await verb(deps, ada, sandbox_id=box.id)
        assert await told(witness, box.id) == ["UPDATED"], verb.__name__
        if verb is not lifecycle.stop:
            await verb(deps, ada, sandbox_id=box.id)
            assert await told(witness, box.id) == [], f"{verb.__name__} again"
    await lifecycle.delete(deps, ada, sandbox_id=box.id)
    assert await told(witness, box.id) == ["DELETED"]
    await lifecycle.delete(deps, ada, sandbox_id=box.id)
    assert await told(witness, box.id) == []

    box = await lifecycle.create(deps, ada)
    await lifecycle.delete(deps, ada, sandbox_id=box.id)
    assert await told(witness, box.id) == ["CREATED", "UPDATED", "DELETED"], "while it lived"


async def test_code_of_the_assistant_makes_sandboxes_that_are_told(
    server: Server, ada: Viewer
) -> None:
    witness = await Witness(server.deps).install()
    done = await server.host.run_code(ada, code="print(1)")
    assert await told(witness, done.sandbox_id) == ["CREATED", "UPDATED"]
    again = await server.host.run_code(ada, code="print(2)")
    assert again.sandbox_id == done.sandbox_id
    assert await witness.told() == []


async def test_ends_that_nobody_asked_for_are_told(
    server: Server, ada: Viewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps, witness = server.deps, await Witness(server.deps).install()
    node = await server.host.node()
    for how in ("expired", "lost", "abandoned"):
        box = await lifecycle.create(deps, ada, timeout_s=1 if how == "expired" else None)
        topic = changes.topic(ada.id)
        async with asyncio.timeout(60), deps.bus.attach(topic) as tap:
            if how == "lost":
                await node.driver.stop(box.id)
            elif how == "abandoned":
                await node.lose(box.id, "given up")
            while (row := await rows.sandbox(deps, box.id)) is None or row.status.is_live:
                await tap.get(1)
        async with node.lock(box.id):
            # It runs, it ends; what expired is asked to stop before that.
            times = 3 if how == "expired" else 2
            assert await told(witness, box.id) == ["CREATED", *["UPDATED"] * times], how

    async def full(_spec: object) -> None:
        raise ResourceExhaustedError("No room.", resource=Resource.HOST, engine="none")

    monkeypatch.setattr(node.driver, "create", full)
    await refused(lifecycle.create(deps, ada))
    assert [change for *_, change in await witness.told()] == ["CREATED", "UPDATED"], "failed"


async def test_what_a_dead_host_leaves_is_told_by_whoever_settles_it(
    launch: Launch, tmp_path: Path
) -> None:
    server = await launch()
    ada = await server.person("ada")
    witness = await Witness(server.deps).install()
    box = await lifecycle.create(server.deps, ada)
    row = await present(server, box.id)
    assert await told(witness, box.id) == ["CREATED", "UPDATED"]
    await server.crash()

    again = await launch("off")
    witness_again = await Witness(again.deps).install()
    witness_again._last = witness._last
    assert await told(witness_again, box.id) == ["UPDATED"], "its host came back without it"
    # Taken over once, it is taken over no more.
    await housekeeping.take_over(again.deps, None, row)
    assert await witness_again.told() == []


async def test_a_sandbox_taken_over_is_told_once(server: Server, ada: Viewer) -> None:
    deps, witness = server.deps, await Witness(server.deps).install()
    box = await lifecycle.create(deps, ada)
    row = await rows.sandbox(deps, box.id)
    assert row is not None
    assert await told(witness, box.id) == ["CREATED", "UPDATED"]
    # By a process that has no driver: where it is hosted is nobody's news, that it failed is.
    await housekeeping.take_over(deps, None, row)
    assert await told(witness, box.id) == ["UPDATED"]
