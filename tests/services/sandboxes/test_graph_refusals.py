"""What the graph refuses names the argument at fault."""

import pytest

from schema.execution import Engine
from services.sandboxes import lifecycle
from services.sandboxes.wishes import Resources
from tests.services.sandboxes.conftest import Launch, Server, ran
from tests.services.sandboxes.graph import MIB, ask

pytestmark = pytest.mark.bubblewrap


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
