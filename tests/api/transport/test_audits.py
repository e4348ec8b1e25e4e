"""All audits of npm `graphql-http`, against uvicorn."""

import asyncio
from pathlib import Path

from tests.api.transport.conftest import Server, run_node, until


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


async def test_the_graphql_sse_client_runs_everything_over_a_single_connection(
    server: Server, node_modules: Path
) -> None:
    async def cut() -> None:
        await server.probe.paused.wait()
        # As at the end of a process: nothing is completed, and clients come back.
        for stream in tuple(server.http.single._streams.values()):
            stream.end()
        server.probe.gate.set()

    async with asyncio.TaskGroup() as group:
        cutting = group.create_task(cut())
        report = await run_node(node_modules, "graphql_sse_client.mjs", server.url)
        cutting.cancel()
    (query,) = report["query"]["seen"]
    assert query["data"] == {"hello": "Hello, world!", "viewer": "Bearer ann"}
    assert report["mutation"]["seen"][0]["data"] == {"note": "from node"}
    assert server.probe.mutations == ["from node"]
    assert [event["data"]["count"] for event in report["count"]["seen"]] == [1, 2, 3]
    assert report["left"]["seen"][0]["data"] == {"forever": 1}
    assert server.probe.open_streams == 0
    (absent,) = report["absent"]["seen"]
    assert absent["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    assert report["invalid"] == {"seen": [], "error": 400}
    assert [len(one["seen"]) for one in report["together"]] == [1, 2, 3, 4]
    # One reservation, one stream, and a request for each operation.
    assert report["requests"] == ["PUT", "GET", "POST", "POST", "POST", "POST"]
    assert report["resumed"] == [1, 2, 3, 4]
    await until(lambda: len(server.http.single) == 0)
    assert not server.http.streams.register.counts
