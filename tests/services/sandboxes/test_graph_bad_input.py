"""Bad input through the graph: a clear error each time, and nothing left behind."""

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution, SandboxFile, SandboxPort
from models.states import SandboxStatus
from schema.execution.engine import Engine
from services.base import Viewer, work
from services.sandboxes import executions, files, lifecycle, rows
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, Server, finished, ran
from tests.services.sandboxes.graph import ask
from tests.services.sandboxes.refusing import held_by_driver

pytestmark = pytest.mark.bubblewrap
MIB = 1_048_576
Codes = list[tuple[str, str]]


class Graph:
    """Mutations of one person, that say what was refused."""

    def __init__(self, engine: Engine, server: Server, viewer: Viewer) -> None:
        self._engine, self._server, self._viewer = engine, server, viewer

    async def refused(self, name: str, input: dict[str, Any]) -> Codes:
        """Give codes and paths of what a mutation refuses, in words that a person can use."""
        kind = name[0].upper() + name[1:] + "Input"
        document = f"""mutation ($input: {kind}!) {{
          {name}(input: $input) {{ __typename errors {{ code message path }} }}
        }}"""
        return self._codes(await self._ask(document, input=input))

    async def refused_id(self, name: str, id_: str, more: str = "") -> Codes:
        """The same of a mutation that takes an id."""
        document = f"""mutation ($id: ID!) {{
          {name}(id: $id{more}) {{ __typename errors {{ code message path }} }}
        }}"""
        return self._codes(await self._ask(document, id=id_))

    async def _ask(self, document: str, **variables: Any) -> dict[str, Any]:
        found = await ask(self._engine, self._server, self._viewer, document, **variables)
        (payload,) = found.values()
        return dict(payload)

    @staticmethod
    def _codes(payload: dict[str, Any]) -> Codes:
        for error in payload["errors"]:
            assert re.fullmatch(r"[A-Z`].{8,}[.?]", error["message"], re.DOTALL), error
            assert not re.search(r"/(?:var|root|proc|usr|run)/|Traceback", error["message"])
        return [(error["code"], ".".join(error["path"])) for error in payload["errors"]]


@pytest.fixture
async def eve(server: Server) -> Viewer:
    return await server.person("eve")


@pytest.fixture
async def box(server: Server, eve: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, eve)


@pytest.fixture
def graph(engine: Engine, server: Server, eve: Viewer) -> Graph:
    return Graph(engine, server, eve)


async def count(server: Server, table: Any) -> int:
    async with server.deps.db.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0


COMMANDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "64 KB and one byte": ({"command": "x" * 65_537}, "LIMIT", "command"),
    "a megabyte": ({"command": "é" * 500_000}, "LIMIT", "command"),
    "nothing": ({"command": ""}, "REQUIRED", "command"),
    "a NUL byte": ({"command": "echo \0"}, "INVALID", "command"),
    "half a character": ({"command": "echo \ud83d"}, "INVALID", "command"),
    "arguments of more than 64 KB": ({"argv": ["echo", "x" * 65_537]}, "LIMIT", "argv"),
    "an argument with a NUL byte": ({"argv": ["echo", "a\0b"]}, "INVALID", "argv"),
    "no arguments": ({"argv": []}, "REQUIRED", "argv"),
    "a directory with a NUL byte": ({"workingDir": "a\0b"}, "INVALID", "workingDir"),
    "a directory of many words": ({"workingDir": "d" * 5000}, "LIMIT", "workingDir"),
    "no time": ({"timeoutSeconds": 0}, "INVALID", "timeoutSeconds"),
    "all the time there is": ({"timeoutSeconds": 2**31 - 1}, "LIMIT", "timeoutSeconds"),
    "input of more than a megabyte": ({"stdin": "x" * 1_048_577}, "LIMIT", "stdin"),
    "no output at all": ({"outputLimitBytes": 0}, "INVALID", "outputLimitBytes"),
    "a variable that cannot be named": (
        {"environment": [{"name": "A=B", "value": "x"}]},
        "INVALID",
        "environment",
    ),
    "a variable with a NUL byte": (
        {"environment": [{"name": "A", "value": "x\0"}]},
        "INVALID",
        "environment",
    ),
    "a terminal of no size": ({"terminal": {"rows": 0, "cols": 80}}, "INVALID", "terminal"),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_commands_that_cannot_be_are_refused(
    server: Server, eve: Viewer, box: Sandbox, graph: Graph, name: str
) -> None:
    given, code, field = COMMANDS[name]
    command = {} if "argv" in given else {"command": "touch ran"}
    found = await graph.refused("sandboxExecute", {"sandboxId": box.id, **command, **given})
    assert [(code_, path.removeprefix("input.")) for code_, path in found] == [(code, field)]
    assert await count(server, SandboxExecution) == 0
    assert (await ran(server.deps, eve, box.id, "ls -a")).stdout == ".\n..\n"


@pytest.mark.parametrize("folder", ["nowhere", "/no/such", "file", "file/below"])
async def test_a_working_directory_that_is_none_is_told(
    engine: Engine, server: Server, eve: Viewer, box: Sandbox, folder: str
) -> None:
    await ran(server.deps, eve, box.id, "touch file")
    made = await ask(
        engine,
        server,
        eve,
        """mutation ($input: SandboxExecuteInput!) {
          sandboxExecute(input: $input) { execution { id } errors { code } }
        }""",
        input={"sandboxId": box.id, "command": "touch /workspace/ran", "workingDir": folder},
    )
    assert made["sandboxExecute"]["errors"] == []
    id_ = made["sandboxExecute"]["execution"]["id"]
    await finished(server.deps, eve, id_)
    shown = await ask(
        engine,
        server,
        eve,
        "query ($id: ID!) { sandboxExecution(id: $id) { status reason exitCode stdout stderr } }",
        id=id_,
    )
    execution = shown["sandboxExecution"]
    assert (execution["status"], execution["exitCode"]) == ("FAILED", 126)
    assert "directory" in execution["stderr"]
    assert execution["stdout"] == ""
    assert (await ran(server.deps, eve, box.id, "test -e ran; echo $?")).stdout == "1\n"


SANDBOXES: dict[str, tuple[dict[str, Any], Codes]] = {
    "an unknown template": ({"templateId": "stp_none"}, [("NOT_FOUND", "templateId")]),
    "a template with a NUL byte": ({"templateId": "a\0b"}, [("NOT_FOUND", "templateId")]),
    "an unknown snapshot": ({"snapshotId": "snp_none"}, [("NOT_FOUND", "snapshotId")]),
    "an unknown conversation": ({"conversationId": "cnv_none"}, [("NOT_FOUND", "conversationId")]),
    "no time": ({"timeoutSeconds": 0}, [("INVALID", "timeoutSeconds")]),
    "all the time there is": ({"timeoutSeconds": 2**31 - 1}, [("LIMIT", "timeoutSeconds")]),
    "no time unused": ({"idleTimeoutSeconds": -1}, [("INVALID", "idleTimeoutSeconds")]),
    "too little of everything": (
        {"resources": {"cpuMillis": 1, "memoryBytes": 1, "diskBytes": 1, "pids": 1}},
        [
            ("INVALID", f"resources.{name}")
            for name in ("cpuMillis", "memoryBytes", "diskBytes", "pids")
        ],
    ),
    "too much of everything": (
        {
            "resources": {
                "cpuMillis": 10**9,
                "memoryBytes": 2**52,
                "diskBytes": 2**52,
                "pids": 10**9,
            }
        },
        [
            ("LIMIT", f"resources.{name}")
            for name in ("cpuMillis", "memoryBytes", "diskBytes", "pids")
        ],
    ),
    "more disk than memory": (
        {"resources": {"memoryBytes": 128 * MIB, "diskBytes": 128 * MIB}},
        [("INVALID", "resources.diskBytes")],
    ),
    "more than the quota": (
        {"resources": {"memoryBytes": 601 * MIB}},
        [("QUOTA", "resources.memoryBytes")],
    ),
    "a policy of system calls": (
        {"security": {"syscalls": ["mount"]}},
        [("INVALID", "security.syscalls")],
    ),
    "mounts": ({"security": {"mounts": ["/etc:/etc"]}}, [("INVALID", "security.mounts")]),
    "capabilities": (
        {"security": {"capabilities": ["CAP_SYS_ADMIN"]}},
        [("INVALID", "security.capabilities")],
    ),
    "a network that is not let": (
        {"security": {"network": "ALLOW_LIST", "networkRules": [{"host": "example.org"}]}},
        [("INVALID", "security.network")],
    ),
    "a variable that cannot be named": (
        {"security": {"envVariables": [{"name": "LD=PRELOAD", "value": "x"}]}},
        [("INVALID", "security.envVariables")],
    ),
}


@pytest.mark.parametrize("name", SANDBOXES)
async def test_sandboxes_that_cannot_be_are_refused(
    engine: Engine, launch: Launch, name: str
) -> None:
    server = await launch(sandbox_user_memory_bytes=600 * MIB)
    graph = Graph(engine, server, await server.person("eve"))
    given, expected = SANDBOXES[name]
    found = await graph.refused("sandboxCreate", given)
    assert [(code, path.removeprefix("input.")) for code, path in found] == expected
    assert await count(server, Sandbox) == 0
    assert await held_by_driver(server) == set()


PATHS = ("..", "../x", "a/../../x", "/etc/passwd", "/", "/workspacex/a", "out/passwd", "a\0b")


@pytest.mark.parametrize("path", PATHS)
async def test_paths_that_leave_the_workspace_are_refused(
    server: Server, eve: Viewer, box: Sandbox, graph: Graph, path: str
) -> None:
    await ran(server.deps, eve, box.id, "ln -s /etc out; echo old >old")
    before = await count(server, SandboxFile)
    there = {"sandboxId": box.id, "path": path}
    for name, more in (
        ("sandboxFileWrite", {"content": "x"}),
        ("sandboxFileRemove", {"isRecursive": True}),
        ("sandboxFileMakeDirectory", {}),
        ("sandboxFileRename", {"newPath": "new"}),
    ):
        found = await graph.refused(name, {**there, **more})
        assert [(code, field.removeprefix("input.")) for code, field in found] == [
            ("INVALID", "path")
        ], name
    found = await graph.refused(
        "sandboxFileRename", {"sandboxId": box.id, "path": "old", "newPath": path}
    )
    assert [code for code, _ in found] == ["INVALID"]
    assert (await ran(server.deps, eve, box.id, "ls; cat old")).stdout == "old\nout\nold\n"
    assert await count(server, SandboxFile) >= before


async def used(graph: Graph, sandbox_id: str) -> set[str]:
    """Give the codes by which all that needs a running sandbox of one's own is refused."""
    there = {"sandboxId": sandbox_id}
    found = [
        *await graph.refused("sandboxExecute", {**there, "command": "touch ran"}),
        *await graph.refused("sandboxFileWrite", {**there, "path": "new", "content": "x"}),
        *await graph.refused("sandboxFileRemove", {**there, "path": "old"}),
        *await graph.refused("sandboxFileMakeDirectory", {**there, "path": "made"}),
        *await graph.refused("sandboxFileRename", {**there, "path": "old", "newPath": "new"}),
        *await graph.refused("sandboxSnapshot", there),
        *await graph.refused("sandboxProcessKill", {**there, "pid": 2, "signal": "KILL"}),
    ]
    assert len(found) == 7
    assert {path.removeprefix("input.") for _, path in found} == {"sandboxId"}
    return {code for code, _ in found}


async def test_only_a_running_sandbox_of_ones_own_is_used(
    engine: Engine, server: Server, eve: Viewer, box: Sandbox, graph: Graph
) -> None:
    deps = server.deps
    await files.write(deps, eve, sandbox_id=box.id, path="old", content="old")
    stranger = Graph(engine, server, await server.person("stranger"))
    assert await used(stranger, box.id) == {"NOT_FOUND"}
    for name in ("Pause", "Resume", "Stop", "Start", "Delete"):
        assert await stranger.refused_id(f"sandbox{name}", box.id) == [("NOT_FOUND", "id")]
    for wrong in ("sbx_none", "", "a\0b"):
        assert await used(graph, wrong) == {"NOT_FOUND"}
    await lifecycle.pause(deps, eve, sandbox_id=box.id)
    assert await used(graph, box.id) == {"CONFLICT"}
    await lifecycle.resume(deps, eve, sandbox_id=box.id)
    assert (await ran(deps, eve, box.id, "ls")).stdout == "old\n"
    await lifecycle.stop(deps, eve, sandbox_id=box.id)
    assert await used(graph, box.id) == {"CONFLICT"}
    for name in ("sandboxPause", "sandboxResume", "sandboxStart"):
        assert await graph.refused_id(name, box.id) == [("CONFLICT", "id")]
    assert await graph.refused_id("sandboxExtend", box.id, ", seconds: 60") == [("CONFLICT", "id")]
    # What is over already is no error to end again.
    for name in ("sandboxStop", "sandboxDelete", "sandboxDelete"):
        assert await graph.refused_id(name, box.id) == []
    assert await used(graph, box.id) == {"CONFLICT"}
    assert await count(server, SandboxPort) == 0
    assert await held_by_driver(server) == set()


async def test_an_expired_sandbox_takes_nothing_new(
    server: Server, eve: Viewer, box: Sandbox, graph: Graph
) -> None:
    async with work(server.deps) as unit:
        past = now() - timedelta(seconds=1)
        await unit.session.execute(
            update(Sandbox).where(Sandbox.id == box.id).values(expires_at=past)
        )
    assert await used(graph, box.id) == {"CONFLICT"}
    assert await count(server, SandboxExecution) == 0


async def test_cancelling_twice_is_harmless(
    server: Server, eve: Viewer, box: Sandbox, graph: Graph
) -> None:
    made = await executions.execute(server.deps, eve, sandbox_id=box.id, command="sleep 600")
    for _ in range(2):
        assert await graph.refused_id("sandboxExecutionCancel", made.id) == []
    ended = await finished(server.deps, eve, made.id)
    assert ended.reason == "KILLED"
    assert await graph.refused_id("sandboxExecutionCancel", made.id) == []
    assert await graph.refused_id("sandboxExecutionCancel", "sbe_none") == [("NOT_FOUND", "id")]


async def test_changes_that_cannot_be_leave_everything_as_it_is(
    engine: Engine, launch: Launch
) -> None:
    server = await launch(sandbox_user_memory_bytes=600 * MIB)
    eve = await server.person("eve")
    graph = Graph(engine, server, eve)
    wish = Resources(memory_bytes=256 * MIB, disk_bytes=64 * MIB)
    box = await lifecycle.create(server.deps, eve, resources=wish)
    before = await rows.sandbox(server.deps, box.id)
    document = """mutation ($id: ID!, $input: SandboxUpdateInput!) {
      sandboxUpdate(id: $id, input: $input) { __typename errors { code message path } }
    }"""
    for given, code, field in (
        ({"resources": {"memoryBytes": 1}}, "INVALID", "resources.memoryBytes"),
        ({"resources": {"memoryBytes": 601 * MIB}}, "QUOTA", "resources.memoryBytes"),
        ({"resources": {"pids": 10**9}}, "LIMIT", "resources.pids"),
        ({"idleTimeoutSeconds": 0}, "INVALID", "idleTimeoutSeconds"),
        ({"network": "ALLOW_LIST"}, "INVALID", "network"),
    ):
        found = graph._codes(await graph._ask(document, id=box.id, input=given))
        assert [(c, p.removeprefix("input.")) for c, p in found] == [(code, field)]
    assert await rows.sandbox(server.deps, box.id) == before
    assert before is not None
    assert before.status is SandboxStatus.RUNNING
