"""Executions on a terminal."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from sandbox.client import Execution, Output, Reason
from sandbox.errors import InvalidArgumentError
from tests.sandbox.conftest import Box


async def until(output: AsyncIterator[Output], wanted: bytes) -> bytes:
    """What arrives up to and with these bytes."""
    seen = b""
    async with asyncio.timeout(30):
        while wanted not in seen:
            chunk = await anext(output)
            assert chunk.stream == "stdout"
            seen += chunk.data
    return seen


async def everything(execution: Execution) -> bytes:
    return b"".join([chunk.data async for chunk in execution.output()])


async def test_a_program_sees_a_terminal_that_it_controls(box: Box) -> None:
    program = (
        "import os, sys\n"
        "assert all(os.isatty(fd) for fd in (0, 1, 2))\n"
        "tty = os.open('/dev/tty', os.O_RDWR)\n"
        "assert os.getsid(0) == os.getpid() == os.getpgrp() == os.tcgetpgrp(tty)\n"
        "size = os.get_terminal_size(0)\n"
        "os.write(2, b'%d %d %s\\n' % (size.lines, size.columns, os.environb[b'TERM']))\n"
    )
    execution = await box.start(["python3", "-c", program], terminal=(33, 121))
    assert await everything(execution) == b"33 121 xterm-256color\r\n"
    result = await execution.result()
    assert (result.exit_code, result.reason, result.stderr_bytes) == (0, Reason.EXITED, 0)


async def test_what_is_typed_is_echoed_and_read(box: Box) -> None:
    execution = await box.start("read line; echo got $line", terminal=(24, 80))
    async with aclosing(execution.output()) as output:
        await execution.write_stdin(b"words\n")
        assert await until(output, b"got words\r\n") == b"words\r\ngot words\r\n"
    assert (await execution.result()).exit_code == 0


@pytest.mark.parametrize(
    ("typed", "read"), [(b"", b"0"), (b"a line\n", b"7"), (b"half a line", b"11")]
)
async def test_the_end_of_input_is_typed(box: Box, typed: bytes, read: bytes) -> None:
    execution = await box.start("stty -echo; echo up; wc -c", terminal=(24, 80))
    async with aclosing(execution.output()) as output:
        await until(output, b"up\r\n")
        if typed:
            await execution.write_stdin(typed)
        await execution.close_stdin()
        await until(output, read + b"\r\n")
    assert (await execution.result()).exit_code == 0


LETS_GO = (
    "import os, time\n"
    "path = os.ttyname(0)\n"
    "os.closerange(0, 3)\n"
    "os.mkdir('closed')\n"
    "while not os.path.exists('go'): time.sleep(0.01)\n"
)


async def test_a_program_that_lets_go_of_its_terminal_lives_on(box: Box) -> None:
    program = LETS_GO + "os._exit(3 if os.path.exists(path) else 4)"
    execution = await box.start(["python3", "-c", program], terminal=(24, 80))
    await execution.close_stdin()
    # Once the first is over, the agent has seen that nobody holds the terminal open. Were it to
    # close its own end for that, a program about to exit, as `cat` is when it closes what it
    # wrote, would be ended by SIGHUP.
    await box.run("while [ ! -e closed ]; do sleep 0.01; done")
    await box.run("touch go")
    assert await everything(execution) == b""
    result = await execution.result()
    assert (result.exit_code, result.signal, result.reason) == (3, None, Reason.EXITED)


async def test_a_terminal_that_is_opened_again_is_read_and_written_to(box: Box) -> None:
    program = LETS_GO + (
        "for turn in range(3):\n"
        "    fd = os.open(path, os.O_RDWR)\n"
        "    os.write(fd, b'turn %d\\n' % turn)\n"
        "    said = os.read(fd, 100)\n"
        "    os.write(fd, b'heard ' + said)\n"
        "    os.close(fd)\n"
        "    while not os.path.exists('%d' % turn): time.sleep(0.01)\n"
        "os._exit(4)\n"
    )
    execution = await box.start(["python3", "-c", program], terminal=(24, 80))
    await box.run("while [ ! -e closed ]; do sleep 0.01; done; touch go")
    async with aclosing(execution.output()) as output:
        for turn in range(3):
            await until(output, b"turn %d\r\n" % turn)
            await execution.write_stdin(b"word\n")
            await until(output, b"heard word\r\n")
            await box.run(["touch", str(turn)])
        assert b"".join([chunk.data async for chunk in output]) == b""
    result = await execution.result()
    assert (result.exit_code, result.signal, result.reason) == (4, None, Reason.EXITED)


async def test_a_new_size_is_told_to_the_foreground(box: Box) -> None:
    program = (
        "import os, signal\n"
        "def told(*_):\n"
        "    size = os.get_terminal_size(0)\n"
        "    print('now', size.lines, size.columns, flush=True)\n"
        "signal.signal(signal.SIGWINCH, told)\n"
        "print('up', flush=True)\n"
        "while True: signal.pause()\n"
    )
    execution = await box.start(["python3", "-c", program], terminal=(24, 80))
    async with aclosing(execution.output()) as output:
        await until(output, b"up\r\n")
        await execution.resize(50, 132)
        await until(output, b"now 50 132\r\n")
        await execution.resize(1, 4096)
        await until(output, b"now 1 4096\r\n")
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_control_characters_are_signals(box: Box) -> None:
    # dash loses an interrupt while it forks, so it does not.
    execution = await box.start("echo up; exec sleep 600", terminal=(24, 80))
    async with aclosing(execution.output()) as output:
        await until(output, b"up\r\n")
        await execution.write_stdin(b"\x03")
        assert b"".join([chunk.data async for chunk in output]) == b"^C"
    result = await execution.result()
    assert (result.signal, result.reason) == (signal.SIGINT, Reason.EXITED)


async def test_a_shell_controls_its_jobs(box: Box) -> None:
    execution = await box.start(["sh", "-i"], terminal=(24, 80), env={"PS1": "ready> "})
    async with aclosing(execution.output()) as output:
        seen = await until(output, b"ready> ")
        assert b"no job control" not in seen
        await execution.write_stdin(b"sleep 600\n")
        await until(output, b"sleep 600\r\n")
        async with asyncio.timeout(20):
            while not any("600" in p.command for p in await box.client.processes()):
                continue
        # To the sleep alone: the shell lives on.
        await execution.write_stdin(b"\x03")
        await until(output, b"ready> ")
        await execution.write_stdin(b"echo a-$((40 + 2))\n")
        await until(output, b"a-42")
        await execution.write_stdin(b"exit 9\n")
        async for _ in output:
            pass
    assert (await execution.result()).exit_code == 9


async def test_nothing_can_be_typed_from_inside(box: Box) -> None:
    program = (
        "import fcntl, os\n"
        "tty = os.open('/dev/tty', os.O_RDWR)\n"
        "for fd in (0, tty):\n"
        "    for request in (0x5412, 0x1_0000_5412, 0x541C):\n"
        "        try:\n"
        "            fcntl.ioctl(fd, request if request < 1 << 32 else request - (1 << 64), b'x')\n"
        "        except (OSError, OverflowError) as error:\n"
        "            print(type(error).__name__)\n"
        "        else:\n"
        "            print('typed')\n"
    )
    execution = await box.start(["python3", "-c", program], terminal=(24, 80))
    seen = await everything(execution)
    assert b"typed" not in seen
    assert len(seen.splitlines()) == 6
    assert (await execution.result()).exit_code == 0


async def test_a_terminal_is_quick_to_carry_a_lot(box: Box) -> None:
    command = "stty raw; head -c 3000000 /dev/urandom > out; cat out"
    execution = await box.start(command, terminal=(24, 80))
    seen = await everything(execution)
    assert (await execution.result()).stdout_bytes == 3_000_000
    assert seen == await box.client.files.read("out")


async def test_input_beyond_what_the_terminal_takes_waits(box: Box) -> None:
    execution = await box.start("stty raw -echo; echo up; sha256sum < /dev/tty > sum & wait",
                                terminal=(24, 80))  # fmt: skip
    async with aclosing(execution.output()) as output:
        await until(output, b"up\n")
        writing = asyncio.ensure_future(execution.write_stdin(b"0123456789abcdef" * 40_000))
        # A terminal in raw mode has no end of input: all is read, yet the program waits.
        async with asyncio.timeout(60):
            await writing
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_the_limit_of_output_holds_on_a_terminal(box: Box) -> None:
    execution = await box.start("yes", terminal=(24, 80), output_limit_bytes=50_001)
    assert len(await everything(execution)) == 50_001
    assert (await execution.result()).reason is Reason.OUTPUT_LIMIT


async def test_what_outlives_its_terminal_is_ended(box: Box) -> None:
    command = "(trap '' HUP; sleep 600) & setsid sleep 601 & echo up"
    execution = await box.start(command, terminal=(24, 80))
    assert await everything(execution) == b"up\r\n"
    assert (await execution.result()).reason is Reason.EXITED
    assert await box.client.processes() == []


async def test_terminals_are_given_back(box: Box) -> None:
    for _ in range(40):
        execution = await box.start("tty", terminal=(24, 80))
        name = await everything(execution)
        assert (await execution.result()).exit_code == 0
    # Numbers that were given back are used again.
    assert name.startswith(b"/dev/pts/")
    assert int(name.split(b"/")[-1]) < 10


@pytest.mark.parametrize("size", [(0, 80), (24, 0), (-1, 80), (24, 70_000)])
async def test_a_size_that_no_terminal_has_is_refused(box: Box, size: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.start("true", terminal=size)
    execution = await box.start("cat", terminal=(24, 80))
    with pytest.raises(InvalidArgumentError):
        await execution.resize(*size)
    plain = await box.start("cat", keep_stdin_open=True)
    with pytest.raises(InvalidArgumentError):
        await plain.resize(24, 80)
    await plain.cancel()
    await execution.cancel()


async def test_a_program_that_is_not_there_has_no_terminal(box: Box) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.start(["no-such-program"], terminal=(24, 80))
    assert (await box.run("exit 0"))[0].exit_code == 0
