"""Commands: what they are given, what they write, how they end."""

import asyncio
import hashlib
import signal
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from models.base import now
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState
from services import system
from services.base import Viewer, work
from services.errors import UserError, UserErrorCode, UserErrors
from services.sandboxes import executions, lifecycle, output, rows
from services.sandboxes.recording import LIMIT_MARK, MARK
from services.sandboxes.wishes import Security
from tests.services.sandboxes.conftest import BOTH_DATABASES, Launch, Server, collect, finished, ran

pytestmark = pytest.mark.bubblewrap


@pytest.fixture
async def box(server: Server, ada: Viewer) -> Sandbox:
    return await lifecycle.create(server.deps, ada)


async def test_output_arrives_while_the_command_runs(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    started = await executions.execute(
        deps,
        ada,
        sandbox_id=box.id,
        command="for i in 1 2 3; do echo line $i; while [ ! -e go$i ]; do sleep 0.01; done; done",
    )
    assert started.status is RunState.PENDING
    heard = []
    async with asyncio.timeout(60), aclosing(output.follow(deps, ada, started.id)) as items:
        async for item in items:
            if isinstance(item, output.Chunk):
                heard.append(item.text)
                # The command waits for this: were the line not here before its end, it never ended.
                await ran(deps, ada, box.id, f"touch go{len(heard)}")
            else:
                assert isinstance(item, output.Exited)
                assert item.execution.status is RunState.COMPLETED
    assert heard == ["line 1\n", "line 2\n", "line 3\n"]


async def test_an_execution_is_canceled_with_all_it_started(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    deps = server.deps
    started = await executions.execute(
        deps,
        ada,
        sandbox_id=box.id,
        command="(setsid sleep 4321 &) ; echo begun; sleep 4321",
        timeout_s=900,
    )
    async with asyncio.timeout(60), aclosing(output.follow(deps, ada, started.id)) as items:
        assert isinstance(await anext(items), output.Chunk)
        canceled = await executions.cancel(deps, ada, execution_id=started.id)
        assert canceled.cancel_requested_at is not None
        last = [item async for item in items][-1]
    assert isinstance(last, output.Exited)
    ended = last.execution
    assert (ended.status, ended.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    assert ended.stdout == "begun\n"
    assert await executions.cancel(deps, ada, execution_id=started.id) == ended
    look = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[4]321'"
    left = await ran(deps, ada, box.id, look)
    assert left.stdout == "0\n"


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
async def test_a_signal_of_its_own_cancels_nothing(
    server: Server, ada: Viewer, box: Sandbox, name: str
) -> None:
    ended = await ran(server.deps, ada, box.id, f"kill -{name} $$")
    assert (ended.status, ended.reason) == (RunState.FAILED, ExecutionReason.EXITED)
    assert (ended.exit_code, ended.signal) == (None, signal.Signals[f"SIG{name}"])


async def test_canceling_what_has_ended_changes_nothing(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    done = await ran(server.deps, ada, box.id, "true")
    same = await executions.cancel(server.deps, ada, execution_id=done.id)
    assert (same.status, same.cancel_requested_at) == (RunState.COMPLETED, None)


async def test_an_execution_ends_at_its_timeout(server: Server, ada: Viewer, box: Sandbox) -> None:
    done = await ran(server.deps, ada, box.id, "echo begun; sleep 600", timeout_s=2)
    assert (done.status, done.reason) == (RunState.TIMED_OUT, ExecutionReason.TIMED_OUT)
    assert (done.timeout_s, done.stdout) == (2, "begun\n")


BAD: list[tuple[dict[str, Any], UserErrorCode, str]] = [
    ({"command": ""}, UserErrorCode.REQUIRED, "command"),
    ({"command": "  \n"}, UserErrorCode.REQUIRED, "command"),
    ({"command": "echo \0"}, UserErrorCode.INVALID, "command"),
    ({"command": "echo \ud800"}, UserErrorCode.INVALID, "command"),
    ({"command": "x" * 65_537}, UserErrorCode.LIMIT, "command"),
    ({"command": "é" * 32_769}, UserErrorCode.LIMIT, "command"),
    ({"working_dir": "a\0b"}, UserErrorCode.INVALID, "working_dir"),
    ({"working_dir": ""}, UserErrorCode.REQUIRED, "working_dir"),
    ({"working_dir": "d" * 256}, UserErrorCode.LIMIT, "working_dir"),
    ({"stdin": "x" * 1_048_577}, UserErrorCode.LIMIT, "stdin"),
    ({"stdin": "\udfff"}, UserErrorCode.INVALID, "stdin"),
    ({"timeout_s": 0}, UserErrorCode.INVALID, "timeout_seconds"),
    ({"timeout_s": -1}, UserErrorCode.INVALID, "timeout_seconds"),
    ({"timeout_s": 3601}, UserErrorCode.LIMIT, "timeout_seconds"),
    ({"timeout_s": 86_401, "is_background": True}, UserErrorCode.LIMIT, "timeout_seconds"),
    ({"command": None}, UserErrorCode.REQUIRED, "command"),
    ({"argv": ["true"]}, UserErrorCode.INVALID, "argv"),
    ({"command": None, "argv": []}, UserErrorCode.REQUIRED, "argv"),
    ({"command": None, "argv": ["", "x"]}, UserErrorCode.REQUIRED, "argv"),
    ({"command": None, "argv": ["echo", "\0"]}, UserErrorCode.INVALID, "argv"),
    ({"command": None, "argv": ["echo", "\ud800"]}, UserErrorCode.INVALID, "argv"),
    ({"command": None, "argv": ["echo"] * 4_097}, UserErrorCode.LIMIT, "argv"),
    ({"command": None, "argv": ["echo", "x" * 65_533]}, UserErrorCode.LIMIT, "argv"),
    ({"stdin": b"x" * 1_048_577}, UserErrorCode.LIMIT, "stdin"),
    ({"terminal": (0, 80)}, UserErrorCode.INVALID, "terminal"),
    ({"terminal": (24, 4097)}, UserErrorCode.INVALID, "terminal"),
    ({"output_limit_bytes": 0}, UserErrorCode.INVALID, "output_limit_bytes"),
    ({"output_limit_bytes": 2**30 + 1}, UserErrorCode.LIMIT, "output_limit_bytes"),
]


async def test_bad_arguments_are_refused_and_nothing_is_written(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    for arguments, code, path in BAD:
        given: dict[str, Any] = {"command": "true", **arguments}
        with pytest.raises(UserError) as caught:
            await executions.execute(server.deps, ada, sandbox_id=box.id, **given)
        assert (caught.value.code, caught.value.path) == (code, (path,))
    async with server.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(SandboxExecution)) == 0


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"9": "x"}, UserErrorCode.INVALID),
        ({"A": "a\0b"}, UserErrorCode.INVALID),
        ({"A": "\ud800"}, UserErrorCode.INVALID),
        ({"A": "x" * 65_536}, UserErrorCode.LIMIT),
    ],
)
async def test_an_environment_that_cannot_be_is_refused(
    server: Server, ada: Viewer, box: Sandbox, variables: dict[str, str], code: UserErrorCode
) -> None:
    with pytest.raises(UserErrors) as caught:
        await executions.execute(
            server.deps, ada, sandbox_id=box.id, command="true", environment=variables
        )
    assert [(e.code, e.path) for e in caught.value.errors] == [(code, ("environment",))]


async def spawned(server: Server, viewer: Viewer, box: Sandbox, *argv: str) -> SandboxExecution:
    """Execute a program with its arguments and wait for its end."""
    made = await executions.execute(server.deps, viewer, sandbox_id=box.id, argv=argv)
    return await finished(server.deps, viewer, made.id)


async def test_arguments_reach_the_program_as_they_are(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    words = ["", "a b", "$HOME", "'", '"; exit 9', "*", "é\n", "-n"]
    program = "import sys; print(ascii(sys.argv[1:]))"
    done = await spawned(server, ada, box, "python3", "-c", program, *words)
    assert done.stdout == f"{words!a}\n"
    assert done.argv == ["python3", "-c", program, *words]
    # The same for a shell, to be read and run again.
    assert (await ran(server.deps, ada, box.id, done.command)).stdout == done.stdout
    absent = await spawned(server, ada, box, "no-such-program")
    assert (absent.exit_code, absent.reason) == (126, ExecutionReason.EXITED)
    assert "not found" in (absent.stderr or "")


async def test_an_environment_is_of_one_execution(server: Server, ada: Viewer) -> None:
    box = await lifecycle.create(
        server.deps, ada, security=Security(env_variables={"ALL": "all", "ONE": "of the sandbox"})
    )
    look = 'echo "$ALL, $ONE, $TWO"'
    done = await ran(server.deps, ada, box.id, look, environment={"ONE": "é=1", "TWO": ""})
    assert (done.stdout, done.environment) == ("all, é=1, \n", {"ONE": "é=1", "TWO": ""})
    after = await ran(server.deps, ada, box.id, look)
    assert after.stdout == "all, of the sandbox, \n"


async def test_input_of_bytes_arrives_exactly(server: Server, ada: Viewer, box: Sandbox) -> None:
    data = bytes(range(256)) * 4096
    assert len(data) == executions.STDIN_BYTES
    done = await ran(server.deps, ada, box.id, "sha256sum", stdin=data)
    assert (done.stdout or "").split()[0] == hashlib.sha256(data).hexdigest()
    assert done.stdin_bytes == len(data)


async def test_a_limit_of_output_ends_the_execution_and_is_marked(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    done = await ran(server.deps, ada, box.id, "echo oh >&2; yes é", output_limit_bytes=1000)
    assert (done.status, done.reason) == (RunState.FAILED, ExecutionReason.OUTPUT_LIMIT)
    text = ("é\n" * 334).encode()[:1000].decode("utf-8", "replace")
    assert (done.stdout, done.stdout_bytes) == (text + LIMIT_MARK, 1000)
    assert (done.stderr, done.is_truncated, done.output_limit) == ("oh\n", True, 1000)
    # One who comes late is told the same, with nothing of the mark among the bytes.
    late = await collect(server.deps, ada, done.id)
    heard = b"".join(i.data for i in late if isinstance(i, output.Chunk) and i.stream == "STDOUT")
    assert heard == ("é\n" * 334).encode()[:1000]
    short = await ran(server.deps, ada, box.id, "echo 1234", output_limit_bytes=5)
    assert (short.status, short.stdout) == (RunState.COMPLETED, "1234\n")


async def test_the_longest_command_runs(server: Server, ada: Viewer, box: Sandbox) -> None:
    command = "echo ok; #" + "é" * ((65_536 - 10) // 2)
    assert len(command.encode()) == 65_536
    assert (await ran(server.deps, ada, box.id, command)).stdout == "ok\n"


async def test_input_and_working_directory_reach_the_command(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    await ran(server.deps, ada, box.id, "mkdir -p deep/er")
    text = "zeile 1\nзеле́ный\0\n" * 1000
    done = await ran(server.deps, ada, box.id, "pwd; wc -c", stdin=text, working_dir="deep/er")
    assert done.stdout == f"/workspace/deep/er\n{len(text.encode())}\n"
    away = await ran(server.deps, ada, box.id, "pwd", working_dir="/tmp")
    assert away.stdout == "/tmp\n"
    absent = await ran(server.deps, ada, box.id, "pwd", working_dir="nowhere")
    assert (absent.status, absent.reason) == (RunState.FAILED, ExecutionReason.EXITED)
    assert absent.exit_code == 126
    assert "not found" in (absent.stderr or "")


@BOTH_DATABASES
async def test_many_executions_run_side_by_side(server: Server, ada: Viewer, box: Sandbox) -> None:
    # Each waits for the file of the one after it: they end only if all run at once.
    made = [
        await executions.execute(
            server.deps,
            ada,
            sandbox_id=box.id,
            command=f"touch f{i}; while [ ! -e f{(i + 1) % 8} ]; do sleep 0.01; done; echo {i}",
        )
        for i in range(8)
    ]
    ended = await asyncio.gather(*(finished(server.deps, ada, e.id) for e in made))
    assert [row.stdout for row in ended] == [f"{i}\n" for i in range(8)]


@BOTH_DATABASES
async def test_output_is_exact_and_no_character_is_cut(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    program = (
        "import os, sys, time\n"
        "data = ('\\N{GRINNING FACE}한é' * 9).encode()\n"
        "for byte in data:\n"
        "    os.write(1, bytes((byte,))); time.sleep(0.002)\n"
        "os.write(2, bytes(range(256)) + b'\\xe2\\x82')\n"
    )
    started = await executions.execute(
        server.deps, ada, sandbox_id=box.id, command="python3 -", stdin=program
    )
    items = await collect(server.deps, ada, started.id)
    chunks = [item for item in items if isinstance(item, output.Chunk)]
    wanted = "😀한é" * 9
    texts = [chunk.text for chunk in chunks if chunk.stream == "STDOUT"]
    assert len(texts) > 1
    assert "".join(texts) == wanted
    errors = b"".join(chunk.data for chunk in chunks if chunk.stream == "STDERR")
    assert errors == bytes(range(256)) + b"\xe2\x82"
    done = items[-1].execution  # type: ignore[union-attr]
    assert done.stdout == wanted
    assert (done.stdout_bytes, done.stderr_bytes) == (len(wanted.encode()), 258)
    assert done.stderr == errors.decode("utf-8", "replace")


async def test_what_is_kept_is_bounded_and_says_so(launch: Launch) -> None:
    server = await launch(execution_output_bytes=1001)
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    done = await ran(
        server.deps, ada, box.id, "python3 -c \"print('é' * 100_000, end='')\"; echo short >&2"
    )
    assert done.stdout == "é" * 500 + MARK
    assert (done.stderr, done.is_truncated) == ("short\n", True)
    assert (done.stdout_bytes, done.stderr_bytes) == (200_000, 6)
    assert done.status is RunState.COMPLETED


async def test_endless_output_ends_the_execution(server: Server, ada: Viewer, box: Sandbox) -> None:
    done = await ran(server.deps, ada, box.id, "yes")
    assert (done.status, done.reason) == (RunState.FAILED, ExecutionReason.OUTPUT_LIMIT)
    assert done.stdout_bytes == 16 * 1_048_576
    assert (done.stdout or "").endswith("y\n" + MARK + LIMIT_MARK)
    assert done.is_truncated


async def test_usage_is_noted(server: Server, ada: Viewer, box: Sandbox) -> None:
    done = await ran(server.deps, ada, box.id, "sleep 0.05")
    assert done.resource_usage is not None
    assert done.resource_usage["wall_ms"] >= 50
    assert done.resource_usage["memory_peak_bytes"] > 0
    assert done.started_at is not None
    assert done.completed_at is not None
    assert done.created_at <= done.started_at <= done.completed_at


async def test_an_execution_nobody_was_told_of_is_run_all_the_same(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(*_: object, **__: object) -> dict[str, object]:
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(server.host, "ask", deaf)
        made = await executions.execute(server.deps, ada, sandbox_id=box.id, command="echo here")
    assert (await finished(server.deps, ada, made.id)).stdout == "here\n"


async def test_an_order_canceled_before_it_began_never_runs(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def deaf(*_: object, **__: object) -> dict[str, object]:
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(server.host, "ask", deaf)
        made = await executions.execute(server.deps, ada, sandbox_id=box.id, command="touch ran")
    canceled = await executions.cancel(server.deps, ada, execution_id=made.id)
    assert (canceled.status, canceled.reason) == (RunState.CANCELED, ExecutionReason.KILLED)
    assert canceled.started_at is None
    assert (await ran(server.deps, ada, box.id, "ls")).stdout == ""


async def test_what_runs_at_once_is_bounded(
    server: Server, ada: Viewer, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "UNFINISHED_PER_SANDBOX", 2)
    order: dict[str, Any] = {"sandbox_id": box.id, "command": "sleep 600"}
    tries = [executions.execute(server.deps, ada, **order) for _ in range(4)]
    told = await asyncio.gather(*tries, return_exceptions=True)
    refused = [error for error in told if isinstance(error, UserError)]
    begun = [row for row in told if isinstance(row, SandboxExecution.Row)]
    assert [error.code for error in refused] == [UserErrorCode.LIMIT] * 2
    assert len(begun) == 2
    await executions.cancel(server.deps, ada, execution_id=begun[0].id)
    await finished(server.deps, ada, begun[0].id)
    await executions.execute(server.deps, ada, **order)


async def test_old_executions_go_once_their_sandbox_has_ended(
    server: Server, ada: Viewer, box: Sandbox
) -> None:
    old, new = [await ran(server.deps, ada, box.id, "true") for _ in range(2)]
    async with work(server.deps) as unit:
        await unit.session.execute(
            update(SandboxExecution)
            .where(SandboxExecution.id == old.id)
            .values(completed_at=now() - timedelta(days=31))
        )
    assert (await system.clean(server.deps))["executions"] == 0
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    assert (await system.clean(server.deps))["executions"] == 1
    assert await rows.execution(server.deps, old.id) is None
    assert await rows.execution(server.deps, new.id) is not None
