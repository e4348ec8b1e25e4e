"""What goes in and out of sandboxes, in the graph."""

import re
from typing import Any

import pytest

import schema
from resolvers.base import Context
from sandbox.proxy import Connection, Verdict
from schema.execution import Engine, Prepared
from services.accounts.sessions import Client
from services.base import Viewer
from services.sandboxes import links, network
from tests.services.sandboxes.conftest import Launch, Server

pytestmark = pytest.mark.bubblewrap
SECRET = b"s" * 32


@pytest.fixture
async def server(launch: Launch) -> Server:
    return await launch(sandbox_network_allowed=True, link_secret=SECRET, port=8123)


async def ask(server: Server, viewer: Viewer, document: str, **variables: Any) -> dict[str, Any]:
    engine = Engine(schema.build()._schema)
    prepared = engine.prepare(document, None, variables)
    assert isinstance(prepared, Prepared), prepared
    context = Context(server.deps, viewer, "test", Client("127.0.0.1", "tests"))
    answer = (await engine.execute(prepared, context)).payload()
    assert not answer.get("errors"), answer
    (value,) = answer["data"].values()
    return dict(value)


async def test_ports_are_opened_shared_and_closed(server: Server, ada: Viewer) -> None:
    made = await ask(server, ada, "mutation { sandboxCreate(input: {}) { sandbox { id } } }")
    box = made["sandbox"]["id"]
    opened = await ask(
        server,
        ada,
        """mutation($box: ID!) { sandboxPortOpen(input: {sandboxId: $box, port: 8080,
           description: "web"}) { port { id containerPort hostPort protocol description path }
           errors { code } } }""",
        box=box,
    )
    port = opened["port"]
    assert port == {
        "id": port["id"],
        "containerPort": 8080,
        "hostPort": 8123,
        "protocol": "TCP",
        "description": "web",
        "path": f"/sandboxes/{box}/ports/8080/",
    }
    share = """mutation($id: ID!, $input: SandboxPortShareInput) {
        sandboxPortShare(id: $id, input: $input) { path expiresAt port { id } errors { code path } }
    }"""
    shared = await ask(server, ada, share, id=port["id"])
    found = re.fullmatch(rf"/sandboxes/{box}/ports/8080/~([^/]+)/", shared["path"])
    assert found is not None
    link = links.verify(SECRET, found[1], port_id=port["id"])
    assert link is not None
    assert link.epoch == 0
    assert shared["port"] == {"id": port["id"]}
    again = await ask(server, ada, share, id=port["id"], input={"revokesEarlier": True})
    newer = links.verify(SECRET, again["path"].rstrip("/").rpartition("~")[2], port_id=port["id"])
    assert newer is not None
    assert newer.epoch == 1
    long = await ask(server, ada, share, id=port["id"], input={"seconds": 10**6})
    assert long["errors"][0]["code"] == "LIMIT"
    assert long["path"] is None
    closing = "mutation($id: ID!) { sandboxPortClose(id: $id) { port { id } errors { code } } }"
    assert (await ask(server, ada, closing, id=port["id"]))["port"] == {"id": port["id"]}
    seen = await ask(
        server, ada, "query($box: ID!) { sandbox(id: $box) { ports { id } } }", box=box
    )
    assert seen == {"ports": []}
    gone = await ask(server, ada, closing, id=port["id"])
    assert gone["errors"] == [{"code": "NOT_FOUND"}]


async def test_networks_are_chosen_changed_and_looked_into(server: Server, ada: Viewer) -> None:
    made = await ask(
        server,
        ada,
        """mutation { sandboxCreate(input: {
             security: {network: ALLOW_LIST, networkRules: [{host: "*.example.org"}]},
             resources: {networkBytesPerSecond: 100000}}) {
           sandbox { id resources { networkBytesPerSecond }
             security { network networkRules { host ports } } } errors { code path } } }""",
    )
    assert made["errors"] == []
    box = made["sandbox"]["id"]
    assert made["sandbox"]["resources"] == {"networkBytesPerSecond": 100000}
    assert made["sandbox"]["security"] == {
        "network": "ALLOW_LIST",
        "networkRules": [{"host": "*.example.org", "ports": [80, 443]}],
    }
    ways = network.of(await server.host.node())
    ways._recorder.note(box, Connection("a.test", 443, verdict=Verdict.DENIED))
    await ways.flush()
    seen = await ask(
        server,
        ada,
        """query($box: ID!) { sandbox(id: $box) { connections(first: 5) {
             nodes { host port verdict address rule bytesIn bytesOut closedAt } } } }""",
        box=box,
    )
    assert seen["connections"]["nodes"] == [
        {
            "host": "a.test",
            "port": 443,
            "verdict": "DENIED",
            "address": None,
            "rule": None,
            "bytesIn": 0,
            "bytesOut": 0,
            "closedAt": None,
        }
    ]
    change = """mutation($id: ID!, $input: SandboxUpdateInput!) {
        sandboxUpdate(id: $id, input: $input) { errors { code path }
          sandbox { security { network networkRules { host ports } } } } }"""
    rules = [{"host": "b.test", "ports": [22]}]
    changed = await ask(server, ada, change, id=box, input={"networkRules": rules})
    assert changed["sandbox"]["security"]["networkRules"] == rules
    none = await ask(server, ada, change, id=box, input={"network": "NONE"})
    assert none["sandbox"]["security"] == {"network": "NONE", "networkRules": []}
    assert ways._ways == {}
    bad = await ask(
        server,
        ada,
        change,
        id=box,
        input={"network": "ALLOW_LIST", "networkRules": [{"host": "127.0.0.1"}]},
    )
    (error,) = bad["errors"]
    assert error["code"] == "INVALID"
    assert error["path"][-2:] == ["networkRules", "0"]
