"""Executions: what goes in, what comes out, and how they are begun; the same on every driver."""

import asyncio
import os
import signal
from contextlib import aclosing

import pytest

from sandbox.client import Reason
from sandbox.errors import InvalidArgumentError
from tests.sandbox.conftest import MIB, Box
from tests.sandbox.test_execution_ends import processes


async def test_a_command_gives_its_output_and_exit_code(box: Box) -> None:
    result, out, err = await box.run("echo hello; echo trouble >&2; exit 3")
    assert (out, err) == (b"hello\n", b"trouble\n")
    assert (result.exit_code, result.signal, result.reason) == (3, None, Reason.EXITED)
    assert (result.stdout_bytes, result.stderr_bytes, result.truncated) == (6, 8, False)
    assert result.usage.wall_ms is not None
    assert result.usage.wall_ms > 0


async def test_a_sequence_runs_without_a_shell(box: Box) -> None:
    result, out, _ = await box.run(["echo", "$HOME", "a b", "*"])
    assert out == b"$HOME a b *\n"
    assert result.exit_code == 0


async def test_bytes_arrive_exactly_as_written(box: Box) -> None:
    program = "import os; os.write(1, bytes(range(256)) * 300); os.write(2, b'\\xff\\x00\\x1b[31m')"
    _, out, err = await box.python(program)
    assert out == bytes(range(256)) * 300
    assert err == b"\xff\x00\x1b[31m"


async def test_a_line_arrives_while_the_program_still_runs(box: Box) -> None:
    # The program goes on only once its first line was received here: no clock decides.
    execution = await box.start(
        "echo first; read go; echo second; read go; echo third", keep_stdin_open=True
    )
    async with aclosing(execution.output()) as output:
        for expected in (b"first\n", b"second\n", b"third\n"):
            async with asyncio.timeout(20):
                chunk = await anext(output)
            assert chunk.data == expected
            if expected != b"third\n":
                await execution.write_stdin(b"go\n")
    assert (await execution.result()).exit_code == 0


async def test_a_python_loop_prints_each_line_at_once(box: Box) -> None:
    program = "print('one'); input(); print('two')"
    execution = await box.start(["python3", "-c", program], keep_stdin_open=True)
    async with aclosing(execution.output()) as output:
        async with asyncio.timeout(20):
            first = await anext(output)
        assert first.data.startswith(b"one")
        await execution.write_stdin(b"\n")
        await execution.close_stdin()
        rest = [chunk.data async for chunk in output]
    assert first.data + b"".join(rest) == b"one\ntwo\n"


async def test_standard_input_reaches_the_program(box: Box) -> None:
    data = os.urandom(3 * MIB)
    result, out, _ = await box.run("cat", stdin=data)
    assert out == data
    assert result.exit_code == 0


async def test_without_input_the_program_sees_its_end(box: Box) -> None:
    result, out, _ = await box.run("cat; echo done")
    assert (out, result.exit_code) == (b"done\n", 0)


async def test_input_that_nobody_reads_does_not_hold_the_execution(box: Box) -> None:
    result, _, _ = await box.run("exit 5", stdin=bytes(4 * MIB))
    assert result.exit_code == 5


async def test_environment_and_directory_are_those_of_the_execution(box: Box) -> None:
    await box.client.files.make_dir("here")
    command = 'pwd; echo "$A-$B"'
    _, out, _ = await box.run(command, cwd="here", env={"A": "1", "B": "zwei ü"})
    assert out == "/workspace/here\n1-zwei ü\n".encode()
    _, out, _ = await box.run(command)
    assert out == b"/workspace\n-\n"


async def test_a_signal_ends_a_program_and_is_reported(box: Box) -> None:
    result, _, _ = await box.run("kill -TERM $$")
    assert (result.exit_code, result.signal) == (None, signal.SIGTERM)
    assert result.reason is Reason.EXITED


async def test_only_what_was_killed_from_outside_is_told_as_killed(box: Box) -> None:
    result, _, _ = await box.run("kill -KILL $$")
    assert (result.reason, result.signal) == (Reason.EXITED, signal.SIGKILL)
    for kill in ("execution", "process"):
        execution = await box.start("echo up; exec sleep 600")
        async with aclosing(execution.output()) as output:
            assert (await anext(output)).data == b"up\n"
            if kill == "execution":
                await execution.signal(signal.SIGKILL)
            else:
                await box.client.kill(execution.pid or 0, signal.SIGKILL)
            assert [chunk async for chunk in output] == []
        result = await execution.result()
        assert (result.reason, result.signal) == (Reason.KILLED, signal.SIGKILL), kill


async def test_signals_reach_the_program(box: Box) -> None:
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: (print('caught'), sys.exit(7)))\n"
        "import os; os.write(1, b'ready\\n')\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    execution = await box.start(["python3", "-u", "-c", program])
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"ready\n"
        await execution.signal(signal.SIGUSR1)
        assert b"".join([chunk.data async for chunk in output]) == b"caught\n"
    assert (await execution.result()).exit_code == 7


async def test_a_stalled_reader_stops_the_program_and_costs_no_memory(box: Box) -> None:
    program = (
        "import os\n"
        "done = 0\n"
        "while done < 200 << 20:\n"
        "    done += os.write(1, bytes(1 << 16))\n"
        "    open('/workspace/done', 'w').write(str(done))\n"
    )
    execution = await box.start(["python3", "-c", program], output_limit_bytes=1 << 30)
    written = -1
    while True:
        # It has come to rest when two looks, each a whole execution apart, see the same.
        _, out, _ = await box.run("sleep 0.2; cat done 2>/dev/null || echo 0")
        if out and int(out) == written and written > 0:
            break
        written = int(out or b"0")
    assert written < 8 * MIB
    assert sum(len(chunk.data) for chunk in execution._chunks) <= 2 * MIB
    total = 0
    async for chunk in execution.output():
        total += len(chunk.data)
    assert total == 200 << 20
    assert (await execution.result()).exit_code == 0


async def test_without_a_reader_the_output_is_discarded(box: Box) -> None:
    execution = await box.start("head -c 20000000 /dev/zero")
    result = await execution.result()
    assert (result.exit_code, result.stdout_bytes) == (0, 20_000_000)


async def test_many_executions_run_at_once(box: Box) -> None:
    async def one(number: int) -> bytes:
        _, out, _ = await box.run(f"read x; echo {number}-$x", stdin=f"{number * 7}\n".encode())
        return out

    outputs = await asyncio.gather(*(one(number) for number in range(20)))
    assert outputs == [f"{number}-{number * 7}\n".encode() for number in range(20)]


@pytest.mark.parametrize(
    "command",
    ["x" * 65_537, "echo a\0b", "", [], ["echo", "a\0b"], ["x" * 70_000], ["no-such-program"]],
    ids=["large", "nul", "empty", "no-words", "nul-word", "large-word", "absent"],
)
async def test_a_command_that_cannot_run_is_refused(box: Box, command: str | list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.start(command)
    result, _, _ = await box.run("exit 0")
    assert result.exit_code == 0


async def test_a_command_of_64_kb_runs(box: Box) -> None:
    command = "echo " + "x" * (65_536 - 5)
    result, out, _ = await box.run(command)
    assert (result.exit_code, len(out)) == (0, 65_536 - 5 + 1)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0},
        {"timeout_s": -1.0},
        {"output_limit_bytes": -1},
        {"env": {"A=B": "c"}},
        {"env": {"A": "\0"}},
        {"cwd": "/no/such/place"},
        {"cwd": "a\0b"},
    ],
)
async def test_bad_options_are_refused(box: Box, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.start("true", **options)


async def test_giving_up_while_starting_leaves_no_process(box: Box) -> None:
    for _ in range(5):
        task = asyncio.ensure_future(box.start("sleep 600"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # Nobody waits for the end of what was given up, so it may still be ending.
    async with asyncio.timeout(20):
        while await processes(box):
            continue
