"""Sandboxes as clients of the graph see them."""

import base64
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from models.sandboxes import Sandbox
from resolvers.base import Context
from schema.execution import Engine
from services.access import READ_EVERYTHING
from services.base import ANONYMOUS, Viewer
from services.sandboxes import files, lifecycle
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, ran
from tests.services.sandboxes.graph import BOX, ask, prepared

pytestmark = pytest.mark.bubblewrap


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
