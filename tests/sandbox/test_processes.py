"""Background executions, the list of processes, and signals to one of them."""

import asyncio
import signal
import time
from contextlib import aclosing

import pytest

from sandbox.client import Process, Reason
from sandbox.errors import InvalidArgumentError, NotFoundError
from tests.sandbox.conftest import Box


async def named(box: Box, word: str) -> list[Process]:
    """Processes with this word among their arguments, once there is one."""
    async with asyncio.timeout(20):
        while True:
            found = [p for p in await box.client.processes() if word in p.command]
            if found:
                return found


async def test_processes_are_listed_with_their_execution(box: Box) -> None:
    assert await box.client.processes() == []
    before = time.time()
    one = await box.start(["sh", "-c", "sleep 601 & echo up; sleep 602"])
    two = await box.start("exec sleep 603")
    async with aclosing(one.output()) as output:
        assert (await anext(output)).data == b"up\n"
    (first,) = await named(box, "601")
    (second,) = await named(box, "602")
    (third,) = await named(box, "603")
    async with asyncio.timeout(60):
        # At the moment it takes the place of the shell it has none.
        while third.memory_bytes == 0:
            (third,) = await named(box, "603")
    assert first.execution == second.execution == one.operation
    assert first.parent == one.pid
    assert (third.execution, third.pid) == (two.operation, two.pid)
    assert third.command == ("sleep", "603")
    assert third.state in "RSD"
    assert before - 60 < third.started_at.timestamp() < time.time() + 60
    pids = [process.pid for process in await box.client.processes()]
    assert pids == sorted(pids)
    assert len(pids) == 4
    await one.cancel()
    await two.cancel()
    await one.result()
    await two.result()
    assert await box.client.processes() == []


async def test_a_busy_process_shows_its_time(box: Box) -> None:
    execution = await box.start("echo up; while :; do :; done")
    async with aclosing(execution.output()) as output:
        await anext(output)
    async with asyncio.timeout(60):
        while (await box.client.processes())[0].cpu_ms < 50:
            continue
    await execution.cancel()


async def test_one_process_is_killed_and_the_others_go_on(box: Box) -> None:
    execution = await box.start("sleep 601 & read line; echo $line", keep_stdin_open=True)
    (process,) = await named(box, "601")
    await box.client.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while any(p.pid == process.pid and p.state != "Z" for p in await box.client.processes()):
            continue
    await execution.write_stdin(b"still here\n")
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"still here\n"
    assert (await execution.result()).exit_code == 0


async def test_what_belongs_to_the_agent_is_not_killed(box: Box) -> None:
    execution = await box.start("echo $PPID; sleep 600")
    async with aclosing(execution.output()) as output:
        shim = int((await anext(output)).data)
    assert shim not in {process.pid for process in await box.client.processes()}
    for pid in (1, shim, 1 << 21):
        with pytest.raises(NotFoundError):
            await box.client.kill(pid, signal.SIGKILL)
    for pid, number in ((0, 9), (-1, 9), (1 << 40, 9), (execution.pid or 0, 0), (1, 65)):
        with pytest.raises(InvalidArgumentError):
            await box.client.kill(pid, number)
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_in_the_background_the_tree_outlives_its_first_process(box: Box) -> None:
    command = "(while ! test -e stop; do sleep 0.01; done; echo last) & echo first"
    execution = await box.start(command, background=True, timeout_s=None)
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"first\n"
        # The first process is over when only one that it started is left.
        async with asyncio.timeout(20):
            while any(p.pid == execution.pid for p in await box.client.processes()):
                continue
        assert {p.execution for p in await box.client.processes()} == {execution.operation}
        await box.run("touch stop")
        assert [chunk.data async for chunk in output] == [b"last\n"]
    result = await execution.result()
    assert (result.reason, result.exit_code) == (Reason.EXITED, 0)


async def test_a_background_tree_is_killed_as_a_whole(box: Box) -> None:
    command = "setsid sleep 601 & (sleep 602 &) ; echo up; exit 7"
    execution = await box.start(command, background=True, timeout_s=None)
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"up\n"
    await named(box, "601")
    await named(box, "602")
    await execution.cancel()
    result = await execution.result()
    assert (result.reason, result.exit_code) == (Reason.KILLED, 7)
    assert await box.client.processes() == []


async def test_a_background_execution_has_its_deadline_too(box: Box) -> None:
    execution = await box.start("sleep 600 & exit 0", background=True, timeout_s=0.5)
    result = await execution.result()
    assert (result.reason, result.exit_code) == (Reason.TIMED_OUT, 0)
    assert await box.client.processes() == []


async def test_the_list_copes_with_the_longest_command_lines(box: Box) -> None:
    program = (
        "import os, sys, time\n"
        "for n in range(20):\n"
        "    if os.fork() == 0:\n"
        "        os.execv('/bin/sleep', ['sleep', '600' + '0' * 9000])\n"
        "os.write(1, b'up\\n'); time.sleep(600)\n"
    )
    execution = await box.start(["python3", "-c", program])
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"up\n"
    async with asyncio.timeout(20):
        while True:
            found = await box.client.processes()
            if sum(p.command[0] == "sleep" for p in found) == 20:
                break
    assert all(len(" ".join(p.command)) <= 4096 for p in found)
    await execution.cancel()
