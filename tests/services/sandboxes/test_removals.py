"""The record of cleaning up, as the graph shows it."""

import pytest

from schema.execution.engine import Engine
from services.access import READ_EVERYTHING
from services.sandboxes import lifecycle
from tests.services.sandboxes.conftest import Server
from tests.services.sandboxes.graph import ask


@pytest.mark.bubblewrap
async def test_administrators_see_what_was_cleared_away(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    root = await server.person("root", READ_EVERYTHING)
    box = await lifecycle.create(server.deps, ada)
    await (await server.host.node()).lose(box.id, "The sandbox ended unexpectedly.")
    document = "{ sandboxRemovals(first: 9) { nodes { kind name reason sandbox node } } }"
    seen = (await ask(engine, server, root, document))["sandboxRemovals"]["nodes"]
    assert seen == [
        {
            "kind": "sandbox",
            "name": box.id,
            "reason": "The sandbox ended unexpectedly.",
            "sandbox": box.id,
            "node": "local",
        }
    ]
    assert (await ask(engine, server, ada, document))["sandboxRemovals"]["nodes"] == []
