"""All audits of npm `graphql-http`, against uvicorn."""

from pathlib import Path

from tests.api.transport.conftest import Server, run_node


async def test_every_audit_of_graphql_http_passes(server: Server, node_modules: Path) -> None:
    verdicts = await run_node(node_modules, "audit.mjs", server.url)
    assert [verdict for verdict in verdicts if verdict["status"] != "ok"] == []
    assert len(verdicts) == 61


async def test_the_graphql_ws_client_runs_queries_mutations_and_streams(
    server: Server, node_modules: Path
) -> None:
    report = await run_node(node_modules, "graphql_ws_client.mjs", server.ws_url)
    (query,) = report["query"]["seen"]
    assert query["data"] == {"hello": "Hello, world!", "viewer": "ann"}
    assert query["extensions"]["requestId"]
    assert report["mutation"]["seen"][0]["data"] == {"note": "from node"}
    assert server.probe.mutations == ["from node"]
    counted = report["count"]["seen"]
    assert [event["data"]["count"] for event in counted] == [1, 2, 3]
    assert [event["extensions"]["event"] for event in counted] == [1, 2, 3]
    assert report["left"]["seen"][0]["data"] == {"forever": 1}
    assert server.probe.open_streams == 0
    assert report["invalid"]["error"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    assert [len(one["seen"]) for one in report["together"]] == [1, 2, 3, 4]
    assert set(report["closes"]) == {1000}
