"""The guide to sandboxes, block after block, as it is written."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from graphql import OperationDefinitionNode, parse

from tests.product import ROOT, Client, Product

pytestmark = [pytest.mark.bubblewrap, pytest.mark.timeout(300)]
GUIDE = (ROOT / "docs" / "sandboxes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
# What answers call things, and what the guide calls their ids.
NAMES = {"sandbox": "box", "execution": "run", "port": "port", "snapshot": "snapshot"}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    server = Product(
        tmp_path / "data",
        NOOSPHERE_SANDBOX_DRIVER="bubblewrap",
        NOOSPHERE_SANDBOX_NETWORK_ALLOWED="true",
    )
    with server.started(within_s=200):
        async with Client(server.url) as made:
            await made.register("reader")
            yield made


class Reader:
    """Somebody who does what the guide says, and keeps the ids that are answered."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client, self._folder = client, folder
        self.known: dict[str, str] = {}
        self.answers: dict[str, Any] = {}

    async def graphql(self, code: str) -> None:
        (operation,) = parse(code).definitions
        assert isinstance(operation, OperationDefinitionNode)
        assert operation.name is not None
        names = [each.variable.name.value for each in operation.variable_definitions or ()]
        variables = {name: self.known[name] for name in names}
        if operation.operation.value == "subscription":
            self.answers[operation.name.value] = await self._follow(code, variables)
            return
        (answer,) = (await self._client.run(code, **variables)).values()
        async with asyncio.timeout(60):
            # A program that was just asked for may be about to begin.
            while operation.name.value == "Processes" and "http.server" not in str(answer):
                (answer,) = (await self._client.run(code, **variables)).values()
        if operation.operation.value == "mutation":
            assert answer["errors"] == [], (code, answer)
            self._learn(answer)
        self.answers[operation.name.value] = answer

    async def _follow(self, code: str, variables: Mapping[str, str]) -> list[dict[str, Any]]:
        """Give all events of what has an end, else the first."""
        async with self._client.subscribe(code, **variables) as events:
            if "sandboxExecutionOutput" in code:
                return await events.rest()
            first = await events.next()
            assert first is not None
            return [first]

    def _learn(self, answer: Mapping[str, Any]) -> None:
        for name, known_as in NAMES.items():
            id_ = (answer.get(name) or {}).get("id")
            if id_ is not None:
                self.known[known_as] = id_
        if answer.get("path"):
            self.known["link"] = answer["path"]

    async def sh(self, code: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", code.replace("localhost:8000", self._client.url)),
            cwd=self._folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "TOKEN": self._client.token or "",
                "BOX": self.known["box"],
                "LINK": self.known.get("link", ""),
            },
        )
        async with asyncio.timeout(120):
            out, err = await process.communicate()
        assert process.returncode == 0, (code, out.decode(), err.decode())
        return out.decode()


async def test_every_block_of_the_guide_runs_as_it_stands(client: Client, tmp_path: Path) -> None:
    reader = Reader(client, tmp_path)
    printed = []
    for language, code in BLOCKS:
        if language == "graphql":
            await reader.graphql(code)
        else:
            assert language == "sh", code
            printed.append(await reader.sh(code))
    answers = reader.answers
    assert answers["Create"]["sandbox"]["status"] == "RUNNING"
    assert answers["Create"]["sandbox"]["driver"] == "bubblewrap"
    chunks = [e["text"] for e in answers["Output"] if e["__typename"] == "SandboxOutputChunk"]
    assert "".join(chunks) == "hello world\n1\n2\n3\n"
    assert answers["Output"][-1]["execution"]["reason"] == "EXITED"
    commands = [process["command"] for process in answers["Processes"]["processes"]]
    assert any("http.server" in command for command in commands)
    (file,) = answers["Files"]["files"]
    assert (file["path"], file["content"], file["verdict"]) == (
        "in/data.csv",
        "a,b\n1,2\n",
        "CLEAN",
    )
    assert [event["__typename"] for event in answers["Changes"]] == ["SandboxFilesReset"]
    assert '"3,' in printed[0] or "3,4" in printed[0]
    assert printed[1].startswith("a,b\n1,2\n")
    assert "in/" in printed[1]
    assert answers["Network"]["sandbox"]["security"]["network"] == "ALLOW_LIST"
    assert answers["Grow"]["sandbox"]["resources"]["memoryBytes"] == 402653184
    assert answers["Usage"][0]["sampledAt"]
    assert answers["Quota"]["sandboxQuota"]["used"]["count"] == 1
    assert [f["path"] for f in answers["Again"]["sandbox"]["files"]] == [
        "in/data.csv",
        "in/more.csv",
    ]
    statuses = {
        name: answers[name]["sandbox"]["status"]
        for name in ("Stop", "Start", "Pause", "Resume", "Delete")
    }
    assert statuses == {
        "Stop": "STOPPED",
        "Start": "RUNNING",
        "Pause": "PAUSED",
        "Resume": "RUNNING",
        "Delete": "DELETED",
    }
    assert answers["Templates"]["nodes"][0]["name"] == "python"


def test_the_guide_names_every_reason_and_error() -> None:
    import schema

    graph = schema.build()._schema
    for name in ("SandboxExecutionReason", "UserErrorCode"):
        values = set(graph.type_map[name].values)  # type: ignore[attr-defined]
        missing = {value for value in values if f"`{value}`" not in GUIDE}
        assert missing <= {"UNAUTHENTICATED"}, name
    assert "docs/sandboxes.md" in (ROOT / "README.md").read_text(encoding="utf-8")
