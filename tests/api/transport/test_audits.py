"""All audits of npm `graphql-http`, against uvicorn."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.api.clients import blocks
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


async def run_and_cut(server: Server, node_modules: Path, script: str, *arguments: str) -> Any:
    """Run a script; end every stream, as the end of a process does, when it says it saw enough."""

    async def cut() -> None:
        await until(lambda: "seen" in server.probe.mutations)
        for stream in tuple(server.http.single._streams.values()):
            stream.end()
        server.probe.gate.set()

    async with asyncio.TaskGroup() as group:
        cutting = group.create_task(cut())
        report = await run_node(node_modules, script, server.url, *arguments)
        cutting.cancel()
    return report


async def test_the_graphql_sse_client_runs_everything_over_a_single_connection(
    server: Server, node_modules: Path
) -> None:
    report = await run_and_cut(server, node_modules, "graphql_sse_client.mjs")
    (query,) = report["query"]["seen"]
    assert query["data"] == {"hello": "Hello, world!", "viewer": "Bearer ann"}
    assert report["mutation"]["seen"][0]["data"] == {"note": "from node"}
    assert server.probe.mutations == ["from node", "seen"]
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


BARE = """import { createClient } from 'graphql-sse';
const retry = async () => {};
export const connect = (_, url) =>
  createClient({ url, singleConnection: true, retry, fetchFn: (...given) => fetch(...given) });
"""


@pytest.mark.parametrize(
    ("module", "numbers", "error"),
    [
        # The library itself fails with the connection: had the stream ended well, it would go on
        # waiting for its operation.
        ("bare.js", [1, 2], "TypeError: terminated"),
        # Our code asks again.
        ("graphql-sse-single.js", [1, 2, 3, 4], None),
    ],
)
async def test_no_graphql_sse_client_waits_for_what_was_accepted_after_its_stream_ended(
    server: Server,
    node_modules: Path,
    tmp_path: Path,
    module: str,
    numbers: list[int],
    error: str | None,
) -> None:
    blocks.write(tmp_path)
    (tmp_path / "bare.js").write_text(BARE)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(node_modules / "node_modules")
    path = str(tmp_path / module)
    report = await run_and_cut(server, node_modules, "graphql_sse_window.mjs", path)
    assert report == {"numbers": numbers, "error": error}
