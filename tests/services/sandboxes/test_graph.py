"""Sandboxes as the graph shows them."""

import asyncio
import base64
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

import schema
from models.sandboxes import Sandbox
from resolvers.base import Context
from schema.execution import Engine, Prepared, Result
from services.access import READ_EVERYTHING
from services.base import ANONYMOUS, Viewer
from services.sandboxes import files, lifecycle
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran

pytestmark = pytest.mark.bubblewrap
MIB = 1_048_576
BOX = "sandbox { id status failure }  errors { code message path }"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(schema.build()._schema)


def prepared(engine: Engine, document: str, variables: dict[str, Any]) -> Prepared:
    found = engine.prepare(document, None, variables)
    assert isinstance(found, Prepared), found
    return found


async def ask(
    engine: Engine, server: Server, viewer: Viewer, document: str, **variables: Any
) -> dict[str, Any]:
    """Run an operation that must not fail as a whole."""
    context = Context(server.deps, viewer)
    result = await engine.execute(prepared(engine, document, variables), context)
    assert not result.errors, result.errors
    assert result.data is not None
    return dict(result.data)


async def events(
    engine: Engine, server: Server, viewer: Viewer, document: str, **variables: Any
) -> list[Any]:
    """Consume a subscription to its end; the first word of its answer, of each event."""
    found = await engine.subscribe(
        prepared(engine, document, variables), Context(server.deps, viewer)
    )
    if isinstance(found, Result):
        return [found.errors]
    async with asyncio.timeout(60), aclosing(found) as results:
        return [result.errors or next(iter(result.data.values())) async for result in results]


WHOLE = """query ($id: ID!, $path: String = ".") {
  sandbox(id: $id) {
    __typename id status driver failure createdAt startedAt expiresAt lastActiveAt
    pausedAt stoppedAt
    user { username }
    conversation { id }
    template { name language imageName imageTag description createdAt updatedAt }
    workspace { rootPath sizeBytes createdAt modifiedAt }
    resources { cpuMillis memoryBytes diskBytes pids timeoutSeconds networkBytesPerSecond }
    security { network syscalls mounts capabilities envVariables { name value } }
    ports { containerPort hostPort protocol description createdAt }
    files(path: $path) {
      path name isDirectory sizeBytes modifiedAt mimeType contentHash content
      encoded: content(encoding: BASE64)
    }
    executions(first: 5) {
      nodes {
        id command workingDir timeoutSeconds status reason exitCode signal stdout stderr stdoutBytes
        stderrBytes isTruncated createdAt startedAt completedAt
        resourceUsage { cpuMilliseconds wallMilliseconds memoryPeakBytes }
        sandbox { id } user { username }
      }
      edges { cursor } pageInfo { hasNextPage }
    }
  }
}"""


@BOTH_DATABASES
async def test_a_sandbox_is_shown_with_all_its_parts(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    made = await ask(
        engine,
        server,
        ada,
        """mutation ($input: SandboxCreateInput) {
          sandboxCreate(input: $input) { sandbox { id status } errors { code message path } }
        }""",
        input={
            "resources": {"cpuMillis": 500, "memoryBytes": 268435456, "pids": 32},
            "security": {"envVariables": [{"name": "WHO", "value": "ada"}]},
            "timeoutSeconds": 120,
        },
    )
    assert made["sandboxCreate"]["errors"] == []
    assert made["sandboxCreate"]["sandbox"]["status"] == "RUNNING"
    id_ = made["sandboxCreate"]["sandbox"]["id"]
    written = await ask(
        engine,
        server,
        ada,
        """mutation ($input: SandboxFileWriteInput!) {
          sandboxFileWrite(input: $input) {
            file { path name sizeBytes contentHash mimeType content } errors { code path }
          }
        }""",
        input={"sandboxId": id_, "path": "d/hello.txt", "content": "안녕"},
    )
    file = written["sandboxFileWrite"]["file"]
    assert (file["path"], file["sizeBytes"], file["content"]) == ("d/hello.txt", 6, "안녕")
    await ran(server.deps, ada, id_, 'echo "$WHO"; head -c 3 /dev/urandom > d/raw')
    shown = (await ask(engine, server, ada, WHOLE, id=id_, path="d"))["sandbox"]
    assert shown["user"] == {"username": "ada"}
    assert shown["template"]["name"] == "python"
    assert shown["workspace"]["rootPath"] == "/workspace"
    assert shown["workspace"]["sizeBytes"] == 6
    assert shown["resources"] == {
        "cpuMillis": 500,
        "memoryBytes": 268435456,
        "diskBytes": 268435456 - 96 * 1048576,
        "pids": 32,
        "timeoutSeconds": 120,
        "networkBytesPerSecond": None,
    }
    assert shown["security"] == {
        "network": "NONE",
        "syscalls": [],
        "mounts": [],
        "capabilities": [],
        "envVariables": [{"name": "WHO", "value": "ada"}],
    }
    assert shown["ports"] == []
    hello, raw = shown["files"]
    assert (hello["path"], hello["content"]) == ("d/hello.txt", "안녕")
    assert base64.b64decode(hello["encoded"]).decode() == "안녕"
    assert (raw["name"], raw["sizeBytes"]) == ("raw", 3)
    assert len(base64.b64decode(raw["encoded"])) == 3
    (execution,) = shown["executions"]["nodes"]
    assert (execution["stdout"], execution["exitCode"], execution["reason"]) == (
        "ada\n",
        0,
        "EXITED",
    )
    assert execution["resourceUsage"]["wallMilliseconds"] > 0
    assert execution["sandbox"] == {"id": id_}
    single = await ask(
        engine,
        server,
        ada,
        """query ($id: ID!, $path: String!) {
          sandboxFile(sandboxId: $id, path: $path) { path content }
          absent: sandboxFile(sandboxId: $id, path: "nothing") { path }
          node(id: $id) { __typename id }
          sandboxTemplates(first: 1) { nodes { name } }
          viewer { sandboxes { nodes { id } } }
        }""",
        id=id_,
        path="d/hello.txt",
    )
    assert single == {
        "sandboxFile": {"path": "d/hello.txt", "content": "안녕"},
        "absent": None,
        "node": {"__typename": "Sandbox", "id": id_},
        "sandboxTemplates": {"nodes": [{"name": "python"}]},
        "viewer": {"sandboxes": {"nodes": [{"id": id_}]}},
    }


async def test_the_input_of_a_creation_may_be_left_out(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    for document in (
        f"mutation {{ sandboxCreate {{ {BOX} }} }}",
        f"mutation {{ sandboxCreate(input: {{}}) {{ {BOX} }} }}",
    ):
        made = (await ask(engine, server, ada, document))["sandboxCreate"]
        assert (made["sandbox"]["status"], made["errors"]) == ("RUNNING", [])


async def test_the_life_of_a_sandbox_by_mutations(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    statuses = []
    for name in ("Pause", "Resume", "Stop", "Delete"):
        document = f"mutation ($id: ID!) {{ answer: sandbox{name}(id: $id) {{ {BOX} }} }}"
        answer = (await ask(engine, server, ada, document, id=box.id))["answer"]
        assert answer["errors"] == []
        statuses.append(answer["sandbox"]["status"])
        if name == "Resume":
            longer = await ask(
                engine,
                server,
                ada,
                f"mutation ($id: ID!) {{ sandboxExtend(id: $id, seconds: 60) {{ {BOX} }} }}",
                id=box.id,
            )
            assert longer["sandboxExtend"]["errors"] == []
    assert statuses == ["PAUSED", "RUNNING", "STOPPED", "DELETED"]
    listed = await ask(
        engine,
        server,
        ada,
        """query ($id: ID!) {
          sandbox(id: $id) { status }
          sandboxes { nodes { id } }
          deleted: sandboxes(status: DELETED) { nodes { id } }
        }""",
        id=box.id,
    )
    assert listed["sandbox"] == {"status": "DELETED"}
    assert listed["sandboxes"]["nodes"] == []
    assert listed["deleted"]["nodes"] == [{"id": box.id}]


async def test_errors_name_the_argument_at_fault(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    create = """mutation ($input: SandboxCreateInput!) {
      sandboxCreate(input: $input) { sandbox { id } errors { code path } } }"""
    execute = """mutation ($input: SandboxExecuteInput!) {
      sandboxExecute(input: $input) { execution { id } errors { code path } } }"""
    cases = [
        (
            create,
            {"resources": {"memoryBytes": 1, "networkBytesPerSecond": 5}, "timeoutSeconds": 60},
            [
                {"code": "INVALID", "path": ["input", "resources", "memoryBytes"]},
                {"code": "INVALID", "path": ["input", "resources", "networkBytesPerSecond"]},
            ],
        ),
        (
            create,
            {"security": {"network": "ALLOW_LIST"}},
            [{"code": "INVALID", "path": ["input", "security", "network"]}],
        ),
        (create, {"timeoutSeconds": 0}, [{"code": "INVALID", "path": ["input", "timeoutSeconds"]}]),
        (
            execute,
            {"sandboxId": box.id, "command": "x", "timeoutSeconds": 999_999},
            [{"code": "LIMIT", "path": ["input", "timeoutSeconds"]}],
        ),
        (
            execute,
            {"sandboxId": "sbx_no", "command": "x"},
            [{"code": "NOT_FOUND", "path": ["input", "sandboxId"]}],
        ),
        (
            execute,
            {"sandboxId": box.id, "command": "x", "workingDir": "\0"},
            [{"code": "INVALID", "path": ["input", "workingDir"]}],
        ),
    ]
    for document, given, wanted in cases:
        answer = next(iter((await ask(engine, server, ada, document, input=given)).values()))
        assert answer["errors"] == wanted
        assert answer.get("sandbox") is None
        assert answer.get("execution") is None
    for name in ("sandboxPause", "sandboxResume", "sandboxStop", "sandboxDelete"):
        document = f'mutation {{ answer: {name}(id: "sbx_no") {{ errors {{ code path }} }} }}'
        answer = (await ask(engine, server, ada, document))["answer"]
        assert answer["errors"] == [{"code": "NOT_FOUND", "path": ["id"]}]


LISTED = """query ($id: ID!, $path: String = ".", $first: Int, $after: String) {
  sandbox(id: $id) { files(path: $path, first: $first, after: $after) { name path } } }"""


async def test_a_directory_of_any_size_is_listed_in_pages(
    engine: Engine, server: Server, ada: Viewer
) -> None:
    box = await lifecycle.create(server.deps, ada)
    await ran(server.deps, ada, box.id, "mkdir many; cd many; seq -f %05.0f 20000 | xargs touch")
    context = Context(server.deps, ada)
    whole = {"id": box.id, "path": "many"}
    for given, code in (({}, "LIMIT"), ({"first": 0}, "BAD_USER_INPUT"), ({"first": 20_000}, None)):
        result = await engine.execute(prepared(engine, LISTED, whole | given), context)
        (error,) = result.errors or ()
        assert error["extensions"]["code"] == (code or "BAD_USER_INPUT")
        assert "`first`" in error["message"]
        assert "10,000" in error["message"]
    seen: list[str] = []
    while True:
        more = {"first": 8000, "after": seen[-1] if seen else None}
        found = (await ask(engine, server, ada, LISTED, **whole, **more))["sandbox"]["files"]
        if not found:
            break
        assert found[0]["path"] == f"many/{found[0]['name']}"
        seen += [file["name"] for file in found]
    assert seen == [f"{number:05}" for number in range(1, 20_001)]
    for name in ("b", "a", "c/d"):
        await files.write(server.deps, ada, sandbox_id=box.id, path=f"few/{name}", content="")
    for _ in ("running", "stopped"):
        few = {"id": box.id, "path": "few", "after": "a"}
        page = await ask(engine, server, ada, LISTED, **few, first=1)
        assert page["sandbox"]["files"] == [{"name": "b", "path": "few/b"}]
        page = await ask(engine, server, ada, LISTED, **few)
        assert [file["name"] for file in page["sandbox"]["files"]] == ["b", "c"]
        await lifecycle.stop(server.deps, ada, sandbox_id=box.id)


async def test_refused_changes_name_the_argument_at_fault(launch: Launch, engine: Engine) -> None:
    server = await launch(sandbox_network_allowed=True)
    ada = await server.person("ada")
    small = Resources(memory_bytes=256 * MIB, disk_bytes=16 * MIB)
    box = await lifecycle.create(server.deps, ada, resources=small)
    await ran(server.deps, ada, box.id, "head -c 8M /dev/zero > full")
    document = """mutation ($id: ID!, $input: SandboxUpdateInput!) {
      sandboxUpdate(id: $id, input: $input) { sandbox { id } errors { code message path } } }"""
    rules = [{"host": "a.test"}, {"host": "127.0.0.1"}]
    for given, code, path in (
        ({"network": "ALLOW_LIST", "networkRules": rules}, "INVALID", ["networkRules", "1"]),
        ({"networkRules": rules}, "INVALID", ["networkRules"]),
        ({"idleTimeoutSeconds": 0}, "INVALID", ["idleTimeoutSeconds"]),
        ({"resources": {"pids": 1}}, "INVALID", ["resources", "pids"]),
        ({"resources": {"diskBytes": MIB}}, "CONFLICT", ["resources", "diskBytes"]),
    ):
        answer = (await ask(engine, server, ada, document, id=box.id, input=given))["sandboxUpdate"]
        assert answer["sandbox"] is None
        assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, ["input", *path])]
    (error,) = answer["errors"]
    assert "1,048,576" in error["message"]
    assert "rrno" not in error["message"]
    create = """mutation ($input: SandboxCreateInput!) {
      sandboxCreate(input: $input) { errors { code path } } }"""
    wish = {"security": {"network": "ALLOW_LIST", "networkRules": rules}}
    answer = (await ask(engine, server, ada, create, input=wish))["sandboxCreate"]
    assert answer["errors"] == [
        {"code": "INVALID", "path": ["input", "security", "networkRules", "1"]}
    ]


OUTPUT = """subscription ($id: ID!, $after: String) {
  sandboxExecutionOutput(executionId: $id, after: $after) {
    __typename cursor
    ... on SandboxOutputChunk { stream text bytes }
    ... on SandboxExecutionExited { execution { id status exitCode reason stdout } }
    ... on SandboxOutputReset { execution { id status stdout } }
  }
}"""


async def test_output_is_followed_by_subscription(engine: Engine, server: Server) -> None:
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    answer = await ask(
        engine,
        server,
        ada,
        """mutation ($input: SandboxExecuteInput!) {
          sandboxExecute(input: $input) { execution { id status } errors { code } } }""",
        input={"sandboxId": box.id, "command": "echo é; sleep 0.1; echo oh >&2; exit 2"},
    )
    id_ = answer["sandboxExecute"]["execution"]["id"]
    heard = await events(engine, server, ada, OUTPUT, id=id_)
    assert [(e["stream"], e["text"]) for e in heard[:-1]] == [("STDOUT", "é\n"), ("STDERR", "oh\n")]
    assert base64.b64decode(heard[0]["bytes"]) == "é\n".encode()
    assert heard[-1]["__typename"] == "SandboxExecutionExited"
    assert heard[-1]["execution"] == {
        "id": id_,
        "status": "FAILED",
        "exitCode": 2,
        "reason": "EXITED",
        "stdout": "é\n",
    }
    rest = await events(engine, server, ada, OUTPUT, id=id_, after=heard[0]["cursor"])
    assert rest == heard[1:]
    assert await events(engine, server, ada, OUTPUT, id=id_, after=heard[-1]["cursor"]) == []
    (errors,) = await events(engine, server, ada, OUTPUT, id=id_, after="!")
    assert errors[0]["extensions"]["code"] == "BAD_USER_INPUT"
    for viewer, code in ((ANONYMOUS, "UNAUTHENTICATED"), (await server.person("eve"), "NOT_FOUND")):
        (errors,) = await events(engine, server, viewer, OUTPUT, id=id_)
        assert errors[0]["extensions"]["code"] == code


async def test_strangers_see_nothing_and_who_reads_everything_sees_all(
    engine: Engine, server: Server
) -> None:
    ada, eve = await server.person("ada"), await server.person("eve")
    root = await server.person("root", READ_EVERYTHING)
    box = await lifecycle.create(server.deps, ada)
    done = await ran(server.deps, ada, box.id, "true")
    await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="x")
    document = """query ($id: ID!, $execution: ID!) {
      sandbox(id: $id) { id workspace { id } resources { id } security { id } files { path } }
      sandboxExecution(id: $execution) { id }
      sandboxFile(sandboxId: $id, path: "f") { content }
      sandboxes { nodes { id } }
    }"""
    for stranger in (eve, ANONYMOUS):
        seen = await ask(engine, server, stranger, document, id=box.id, execution=done.id)
        assert seen == {
            "sandbox": None,
            "sandboxExecution": None,
            "sandboxFile": None,
            "sandboxes": {"nodes": []},
        }
    for viewer in (ada, root):
        seen = await ask(engine, server, viewer, document, id=box.id, execution=done.id)
        assert seen["sandbox"]["id"] == box.id
        assert seen["sandbox"]["workspace"] is not None
        assert seen["sandbox"]["files"] == [{"path": "f"}]
        assert seen["sandboxExecution"] == {"id": done.id}
        assert seen["sandboxFile"] == {"content": "x"}


@BOTH_DATABASES
async def test_one_statement_a_level_whatever_the_number_of_sandboxes(
    engine: Engine, launch: Launch
) -> None:
    server = await launch()
    # Housekeeping reads now and then, and would be counted.
    await server.host._tasks.aclose()
    ada = await server.person("ada")
    document = """{ sandboxes(first: 100) { nodes {
      template { name } workspace { sizeBytes } resources { pids } security { network } ports { id }
      files { path } executions(first: 3) { nodes { id sandbox { id } user { username } } }
      user { username } } } }"""
    counts = []
    box: Sandbox | None = None
    for _ in range(3):
        for _ in range(2 if box else 1):
            box = await lifecycle.create(server.deps, ada)
            await ran(server.deps, ada, box.id, "true")
            await files.write(server.deps, ada, sandbox_id=box.id, path="f", content="x")
            await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
        statements: list[str] = []

        def note(_c: Any, _k: Any, statement: str, *_: Any, seen: list[str] = statements) -> None:
            seen.append(statement)

        target = server.deps.db.engine.sync_engine
        event.listen(target, "before_cursor_execute", note)
        shown = await ask(engine, server, ada, document)
        event.remove(target, "before_cursor_execute", note)
        assert all(node["files"] for node in shown["sandboxes"]["nodes"])
        counts.append(len([s for s in statements if s.lstrip("(").startswith("SELECT")]))
    assert counts == [counts[0]] * 3
    assert counts[0] <= 11


async def test_a_sandbox_is_changed_kept_started_and_made_again_through_the_graph(
    engine: Engine, launch: Launch, tmp_path: Path
) -> None:
    server = await launch(data_dir=tmp_path / "data")
    ada = await server.person("ada")
    made = await ask(
        engine,
        server,
        ada,
        f"""mutation {{ sandboxCreate(input: {{isPersistent: true, idleTimeoutSeconds: 900,
        onExpiry: PAUSE}}) {{ {BOX} }} }}""",
    )
    box = made["sandboxCreate"]["sandbox"]
    changed = await ask(
        engine,
        server,
        ada,
        """mutation ($id: ID!) { sandboxUpdate(id: $id, input: {resources: {cpuMillis: 300},
        idleTimeoutSeconds: null}) { sandbox { onExpiry idleTimeoutSeconds isPersistent
        imageDigest templateVersion resources { cpuMillis pids } } errors { message } } }""",
        id=box["id"],
    )
    assert changed["sandboxUpdate"] == {
        "sandbox": {
            "onExpiry": "PAUSE",
            "idleTimeoutSeconds": None,
            "isPersistent": True,
            "imageDigest": None,
            "templateVersion": 1,
            "resources": {"cpuMillis": 300, "pids": 128},
        },
        "errors": [],
    }
    await files.write(server.deps, ada, sandbox_id=box["id"], path="a", content="kept")
    taken = await ask(
        engine,
        server,
        ada,
        """mutation ($id: ID!) { sandboxSnapshot(input: {sandboxId: $id, name: "one"}) {
        snapshot { id name isAutomatic entries sandbox { id } } errors { message } } }""",
        id=box["id"],
    )
    snapshot = taken["sandboxSnapshot"]["snapshot"]
    assert snapshot["sandbox"]["id"] == box["id"]
    assert (snapshot["name"], snapshot["isAutomatic"]) == ("one", False)
    for verb, status in (("Stop", "STOPPED"), ("Start", "RUNNING")):
        answer = await ask(
            engine,
            server,
            ada,
            f"mutation ($id: ID!) {{ it: sandbox{verb}(id: $id) {{ {BOX} }} }}",
            id=box["id"],
        )
        assert answer["it"]["errors"] == []
        assert answer["it"]["sandbox"]["status"] == status
    again = await ask(
        engine,
        server,
        ada,
        f"mutation ($id: ID!) {{ sandboxCreate(input: {{snapshotId: $id}}) {{ {BOX} }} }}",
        id=snapshot["id"],
    )
    other = again["sandboxCreate"]["sandbox"]
    for id_ in (box["id"], other["id"]):
        assert await files.read(server.deps, ada, sandbox_id=id_, path="a") == b"kept"
    listed = await ask(
        engine,
        server,
        ada,
        """{ sandboxSnapshots { nodes { id isAutomatic } } viewer: sandboxes(first: 9) { nodes { id
        snapshots { nodes { id } } } } }""",
    )
    # What the stop kept is there until there is something newer.
    kept, asked_for = listed["sandboxSnapshots"]["nodes"]
    assert (kept["isAutomatic"], asked_for) == (True, {"id": snapshot["id"], "isAutomatic": False})
    assert {node["id"]: node["snapshots"]["nodes"] for node in listed["viewer"]["nodes"]} == {
        box["id"]: [{"id": kept["id"]}, {"id": snapshot["id"]}],
        other["id"]: [],
    }
    gone = await ask(
        engine,
        server,
        ada,
        "mutation ($id: ID!) { sandboxSnapshotDelete(id: $id) { snapshot { id } errors "
        "{ message } } }",
        id=snapshot["id"],
    )
    assert gone["sandboxSnapshotDelete"] == {"snapshot": {"id": snapshot["id"]}, "errors": []}
