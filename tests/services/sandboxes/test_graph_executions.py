"""Executions and processes as the graph shows and takes them."""

import base64
from typing import Any

import pytest

from models.sandboxes import Sandbox
from schema.execution.engine import Engine
from services.access import READ_EVERYTHING
from services.base import ANONYMOUS, Viewer
from services.sandboxes import lifecycle
from tests.api import operations
from tests.services.sandboxes.conftest import Server, finished, ran
from tests.services.sandboxes.graph import ask, events

pytestmark = pytest.mark.bubblewrap
EXECUTE = """mutation ($input: SandboxExecuteInput!) {
  sandboxExecute(input: $input) {
    execution {
      id command argv isInteractive isBackground outputLimitBytes timeoutSeconds stdinBytes pid
      environment { name value } terminal { rows cols }
    }
    errors { code message path }
  }
}"""

OUTPUT = """subscription ($id: ID!, $after: String) {
  sandboxExecutionOutput(executionId: $id, after: $after) {
    __typename cursor
    ... on SandboxOutputChunk { stream text bytes }
    ... on SandboxExecutionExited { execution { id status exitCode reason stdout } }
    ... on SandboxOutputReset { execution { id status stdout } }
  }
}"""


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


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


async def test_a_terminal_is_used_over_the_graph(
    engine: Engine, server: Server, ada: Viewer, box: Sandbox
) -> None:
    begun = (
        await ask(
            engine,
            server,
            ada,
            EXECUTE,
            input={
                "sandboxId": box.id,
                "argv": ["sh"],
                "terminal": {"rows": 10},
                "environment": [{"name": "PS1", "value": "> "}],
                "outputLimitBytes": 100_000,
            },
        )
    )["sandboxExecute"]
    assert begun["errors"] == []
    row = begun["execution"]
    assert (row["command"], row["argv"], row["terminal"]) == (
        "sh",
        ["sh"],
        {"rows": 10, "cols": 80},
    )
    assert (row["isInteractive"], row["isBackground"], row["timeoutSeconds"]) == (True, False, 3600)
    assert row["environment"] == [{"name": "PS1", "value": "> "}]
    assert (row["outputLimitBytes"], row["stdinBytes"], row["pid"]) == (100_000, 0, None)
    target = {"executionId": row["id"]}
    resized = await ask(
        engine,
        server,
        ada,
        operations.EXECUTION_RESIZE,
        input={**target, "terminal": {"rows": 33, "cols": 99}},
    )
    assert resized["sandboxExecutionResize"] == {
        "execution": {"id": row["id"], "terminal": {"rows": 33, "cols": 99}},
        "errors": [],
    }
    size = "stty size; printf '\\377\\0\\n'\n"
    for given, total in (
        ({"text": size}, len(size)),
        ({"base64": base64.b64encode(b"exit 5\n").decode()}, len(size) + 7),
    ):
        written = await ask(
            engine, server, ada, operations.EXECUTION_WRITE, input={**target, **given}
        )
        assert written["sandboxExecutionWrite"] == {
            "execution": {"id": row["id"], "stdinBytes": total},
            "errors": [],
        }
    told = await events(engine, server, ada, operations.OUTPUT, id=row["id"])
    *chunks, last = told
    seen = b"".join(base64.b64decode(chunk["bytes"]) for chunk in chunks)
    assert b"33 99\r\n" in seen
    assert b"\xff\0" in seen
    assert {chunk["stream"] for chunk in chunks} == {"STDOUT"}
    assert "".join(chunk["text"] for chunk in chunks).count("\ufffd") == 1
    assert (last["execution"]["exitCode"], last["execution"]["reason"]) == (5, "EXITED")
    again = await ask(
        engine, server, ada, operations.EXECUTION_WRITE, input={**target, "text": "x"}
    )
    assert again["sandboxExecutionWrite"] == {
        "execution": None,
        "errors": [
            {
                "code": "CONFLICT",
                "message": "The execution has ended; it is FAILED.",
                "path": ["input", "executionId"],
            }
        ],
    }


async def test_background_work_is_listed_signaled_and_killed(
    engine: Engine, server: Server, ada: Viewer, box: Sandbox
) -> None:
    ids = []
    for word in ("one", "two"):
        begun = await ask(
            engine,
            server,
            ada,
            EXECUTE,
            input={
                "sandboxId": box.id,
                "argv": ["python3", "-c", "input(); import time; time.sleep(900)", word],
                "isBackground": True,
                "keepStdinOpen": True,
                "stdinBase64": base64.b64encode(b"\n").decode(),
            },
        )
        row = begun["sandboxExecute"]["execution"]
        assert (row["isBackground"], row["timeoutSeconds"]) == (True, 0)
        ids.append(row["id"])
    done = await ran(server.deps, ada, box.id, "true")
    for id_ in ids:
        # Answered when the program has begun.
        written = await ask(
            engine,
            server,
            ada,
            operations.EXECUTION_WRITE,
            input={"executionId": id_, "text": "", "isLast": True},
        )
        assert written["sandboxExecutionWrite"]["errors"] == []
    shown = (await ask(engine, server, ada, operations.PROCESSES, id=box.id, status="RUNNING"))[
        "sandbox"
    ]
    assert [node["id"] for node in shown["executions"]["nodes"]] == ids[::-1]
    own = {
        process["execution"]["id"]: process
        for process in shown["processes"]
        if process["execution"] is not None
    }
    assert list(own) == ids
    assert all(process["pid"] > 1 and process["memoryBytes"] > 0 for process in own.values())
    others = await ask(engine, server, ada, operations.PROCESSES, id=box.id, status="COMPLETED")
    assert [node["id"] for node in others["sandbox"]["executions"]["nodes"]] == [done.id]
    everything = await ask(engine, server, ada, operations.PROCESSES, id=box.id)
    assert len(everything["sandbox"]["executions"]["nodes"]) == 3

    killed = await ask(
        engine,
        server,
        ada,
        operations.PROCESS_KILL,
        input={"sandboxId": box.id, "pid": own[ids[0]]["pid"]},
    )
    assert killed["sandboxProcessKill"] == {"sandbox": {"id": box.id}, "errors": []}
    assert (await finished(server.deps, ada, ids[0])).signal == 9
    signaled = await ask(
        engine,
        server,
        ada,
        operations.EXECUTION_SIGNAL,
        input={"executionId": ids[1], "signal": "TERM"},
    )
    assert signaled["sandboxExecutionSignal"]["errors"] == []
    assert (await finished(server.deps, ada, ids[1])).signal == 15
    gone = await ask(
        engine, server, ada, operations.PROCESS_KILL, input={"sandboxId": box.id, "pid": 99999}
    )
    assert gone["sandboxProcessKill"] == {
        "sandbox": None,
        "errors": [
            {
                "code": "NOT_FOUND",
                "message": "There is no process 99999.",
                "path": ["input", "pid"],
            }
        ],
    }


async def test_processes_are_those_of_sandboxes_that_run_and_of_ones_own(
    engine: Engine, server: Server, ada: Viewer, box: Sandbox
) -> None:
    bob = await server.person("bob")
    admin = await server.person("admin", READ_EVERYTHING)
    assert (await ask(engine, server, bob, operations.PROCESSES, id=box.id))["sandbox"] is None
    seen = await ask(engine, server, admin, operations.PROCESSES, id=box.id)
    assert seen["sandbox"]["processes"] == []
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    after = await ask(engine, server, ada, operations.PROCESSES, id=box.id)
    assert after["sandbox"]["processes"] is None


BAD: list[tuple[dict[str, Any], str, list[str]]] = [
    ({}, "REQUIRED", ["input", "command"]),
    ({"command": "true", "argv": ["true"]}, "INVALID", ["input", "argv"]),
    ({"argv": []}, "REQUIRED", ["input", "argv"]),
    ({"command": "cat", "stdin": "a", "stdinBase64": "YQ=="}, "INVALID", ["input", "stdinBase64"]),
    ({"command": "cat", "stdinBase64": "é"}, "INVALID", ["input", "stdinBase64"]),
    ({"command": "cat", "stdinBase64": "YQ="}, "INVALID", ["input", "stdinBase64"]),
    ({"command": "sh", "terminal": {"rows": 0}}, "INVALID", ["input", "terminal"]),
    ({"command": "sh", "outputLimitBytes": 0}, "INVALID", ["input", "outputLimitBytes"]),
    (
        {"command": "sh", "environment": [{"name": "A=B", "value": ""}]},
        "INVALID",
        ["input", "environment"],
    ),
]


async def test_bad_input_is_told_where_it_is(
    engine: Engine, server: Server, ada: Viewer, box: Sandbox
) -> None:
    for given, code, path in BAD:
        refused = await ask(engine, server, ada, EXECUTE, input={"sandboxId": box.id, **given})
        (error,) = refused["sandboxExecute"]["errors"]
        assert (error["code"], error["path"]) == (code, path)
    for more, code, path in (
        ({"text": "a", "base64": "YQ=="}, "INVALID", ["input", "base64"]),
        ({"base64": "?"}, "INVALID", ["input", "base64"]),
        ({"text": "a"}, "NOT_FOUND", ["input", "executionId"]),
    ):
        refused = await ask(
            engine,
            server,
            ada,
            operations.EXECUTION_WRITE,
            input={"executionId": "sbe_none", **more},
        )
        (error,) = refused["sandboxExecutionWrite"]["errors"]
        assert (error["code"], error["path"]) == (code, path)
