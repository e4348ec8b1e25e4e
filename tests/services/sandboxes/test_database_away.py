"""A database that is away while a sandbox is taken up or the way to it is mended: what runs stays.

It is away until whoever needed it was refused, and back then.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from sqlalchemy.exc import SQLAlchemyError

from models.database import Database
from models.states import ExecutionReason, RunState
from sandbox.client import SandboxClient
from services.base import Deps
from services.sandboxes import executions, housekeeping, lifecycle, mending, rows
from services.sandboxes.hosting import Hosting
from tests.servers.kubernetes import Kubernetes
from tests.services.faulty_database import FaultyDatabase
from tests.services.sandboxes.conftest import Launch, finished, first_chunk, ran, recorded
from tests.services.sandboxes.test_mending import (
    begun,
    client_of,
    cluster,
    ended,
    goes_on,
    launched,
    mended,
)
from tests.services.sandboxes.test_surviving import UNTIL_TOLD, Surviving, surviving

__all__ = ["cluster", "surviving"]

_Asks = Callable[..., Awaitable[Any]]


def over(deps: Deps) -> FaultyDatabase:
    """Put a fault before the database of a server."""
    faulty = FaultyDatabase(deps.db)
    deps.db = cast("Database", faulty)
    return faulty


def until_refused(asks: _Asks, faulty: list[FaultyDatabase], *, of: str | None = None) -> _Asks:
    """Give what asks the same, and has the database back as soon as it was refused."""

    async def asked(*arguments: Any, **options: Any) -> Any:
        try:
            return await asks(*arguments, **options)
        except SQLAlchemyError:
            if of is None or of in options:
                faulty[0].mend()
            raise

    return asked


@pytest.mark.bubblewrap
@pytest.mark.parametrize("when", ["before it is opened", "when it is open"])
async def test_a_way_is_mended_although_the_database_is_away(
    cluster: Kubernetes, launch: Launch, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    server, ada, box = await launched(launch, cluster.kubeconfig)
    node = await server.host.node()
    running = await begun(server, ada, box)
    client = await client_of(server, box)
    faulty = over(server.deps)
    if when == "when it is open":
        connect = node.connect

        async def opened(*arguments: Any) -> SandboxClient:
            client = await connect(*arguments)
            faulty.is_away = not faulty.refused
            return client

        monkeypatch.setattr(node, "connect", opened)
        refused = until_refused(rows.unfinished, [faulty], of="sandbox_id")
        monkeypatch.setattr(rows, "unfinished", refused)
    else:
        faulty.is_away = True
        monkeypatch.setattr(mending, "_is_ours", until_refused(mending._is_ours, [faulty]))
    cluster.cut_attached()
    await mended(server, box, client)
    assert faulty.refused
    assert not faulty.is_away
    await housekeeping._repair(node)
    # Another cut is mended as well: whoever serves it now is watched.
    client = await client_of(server, box)
    assert not client.kept
    cluster.cut_attached()
    await mended(server, box, client)
    await housekeeping._repair(node)
    await goes_on(server, ada, box)
    await ended(server, ada, running)
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)


@pytest.mark.bubblewrap
async def test_a_sandbox_is_taken_up_although_the_database_is_away(
    launch: Launch, surviving: Surviving, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await launch(surviving)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    made = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command=UNTIL_TOLD, timeout_s=900
    )
    await first_chunk(server, ada, made.id)
    await server.crash()
    connect, faults = Hosting.connect, list[FaultyDatabase]()

    async def opened(self: Hosting, *arguments: Any) -> SandboxClient:
        client = await connect(self, *arguments)
        if not faults:
            faults.append(over(self.deps))
            faults[0].is_away = True
        return client

    monkeypatch.setattr(Hosting, "connect", opened)
    refused = until_refused(rows.unfinished, faults, of="sandbox_id")
    monkeypatch.setattr(rows, "unfinished", refused)
    again = await launch(surviving)
    node = await again.host.node()
    assert faults[0].refused
    await housekeeping._repair(node)
    await ran(again.deps, ada, box.id, "touch go")
    done = await finished(again.deps, ada, made.id)
    assert (done.reason, done.exit_code) == (ExecutionReason.EXITED, 7)
    assert done.stdout == "one\ntwo\n"
    await lifecycle.delete(again.deps, ada, sandbox_id=box.id)


@pytest.mark.bubblewrap
async def test_what_is_kept_inside_is_not_settled_by_housekeeping(
    launch: Launch, surviving: Surviving
) -> None:
    server = await launch(surviving)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    running = await begun(server, ada, box)
    node, client = await server.host.node(), await client_of(server, box)
    current = node.live[box.id].runs.pop(running)
    assert current.execution is not None
    client.kept[current.name] = current.execution
    await housekeeping._repair(node)
    row = await recorded(server, running)
    assert row.status is RunState.RUNNING
    client.kept.clear()
    node.live[box.id].runs[running] = current
    await ended(server, ada, running)
    await lifecycle.delete(server.deps, ada, sandbox_id=box.id)
