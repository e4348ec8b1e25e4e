"""What guards executions, and serves several of them where they come one upon the other."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from sandbox.client import ExecutionResult, Reason
from tests.sandbox.conftest import MIB, Box, Boxes

WAIT_S = 60
COUNT = 220


async def guarded(box: Box, command: str, **options: object) -> tuple[int, ExecutionResult]:
    """The guardian of an execution, whose command may say no more than that, and its result."""
    result, out, _ = await box.run(f"echo $PPID; {command}", **options)
    return int(out.split()[0]), result


async def one_after_another(box: Box, first: str, then: str) -> tuple[ExecutionResult, ...]:
    """Run both until the same guardian has served the one right after the other."""
    async with asyncio.timeout(WAIT_S):
        while True:
            before, result = await guarded(box, first)
            after, second = await guarded(box, then)
            if before == after:
                return result, second


async def test_one_serves_several_executions_one_after_the_other(box: Box) -> None:
    seen: list[int] = []
    async with asyncio.timeout(WAIT_S):
        while len(set(seen)) == len(seen):
            guardian, result = await guarded(box, "exit 7")
            assert (result.exit_code, result.reason) == (7, Reason.EXITED)
            seen.append(guardian)


async def test_no_one_serves_two_executions_at_once(boxes: Boxes) -> None:
    limits = replace(boxes.spec().limits, pids=512, memory_bytes=1024 * MIB)
    box = await boxes.make(limits=limits)
    await one_after_another(box, "true", "true")
    # As many as the agent's 1,024 descriptors allow, if nothing is kept for others.
    started = [await box.start("echo $PPID; read n; exit $n", keep_stdin_open=True)
               for _ in range(COUNT)]  # fmt: skip
    guardians = []
    async with asyncio.timeout(WAIT_S):
        for number, each in enumerate(started):
            async with aclosing(each.output()) as output:
                guardians.append(int((await anext(output)).data))
            await each.write_stdin(b"%d\n" % number)
    results = [await each.result() for each in started]
    assert [result.exit_code for result in results] == [number % 256 for number in range(COUNT)]
    assert len(set(guardians)) == COUNT


async def test_what_one_used_is_not_counted_for_the_next(box: Box) -> None:
    much = "python3 -c 'x = bytearray(64 << 20); sum(range(3000000))'"
    first, second = await one_after_another(box, much, "true")
    assert (first.usage.memory_peak_bytes or 0) > 64 * MIB > (second.usage.memory_peak_bytes or 0)
    assert first.usage.cpu_ms > second.usage.cpu_ms


async def test_folder_and_environment_are_those_of_each(box: Box) -> None:
    await box.run("mkdir deep")
    seen: set[int] = set()
    told = b""
    async with asyncio.timeout(WAIT_S):
        while not told:
            _, out, _ = await box.run("echo $PPID", cwd="deep", env={"MINE": "1"})
            seen.add(int(out))
            _, out, _ = await box.run("echo $PPID; pwd; echo -${MINE-}-")
            guardian, _, rest = out.partition(b"\n")
            told = rest if int(guardian) in seen else b""
    assert told == b"/workspace\n--\n"


@pytest.mark.parametrize("left", ["setsid sleep 600 &", "sleep 600 &"])
async def test_one_whose_execution_left_something_behind_serves_no_other(
    box: Box, left: str
) -> None:
    avoided = set()
    for _ in range(12):
        # Others before it make what guards it one that could serve again.
        await one_after_another(box, "true", "true")
        guardian, result = await guarded(box, f"({left})")
        assert (result.exit_code, result.reason) == (0, Reason.EXITED)
        avoided.add(guardian)
        assert (await guarded(box, "true"))[0] not in avoided
    assert await box.client.processes() == []


# Of a process, or of the one that asks (0): what it has of processors and disks.
SCHEDULED = """
import ctypes, os
number = 252 if os.uname().machine == "x86_64" else 31
def scheduled(pid):
    return (os.sched_getaffinity(pid), os.sched_getscheduler(pid),
            os.getpriority(os.PRIO_PROCESS, pid),
            ctypes.CDLL(None).syscall(number, 1, pid))
"""
SCHEDULE = """
before = scheduled(0)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.setpriority(os.PRIO_PROCESS, 0, 15)
assert ctypes.CDLL(None).syscall(number - 1, 1, 0, 3 << 13) == 0
assert scheduled(0) != before
"""


async def test_how_one_schedules_itself_is_not_passed_on(box: Box) -> None:
    """The first program of an execution is the child of its guardian: exec lets that be Python."""
    first = f"exec python3 -c '{SCHEDULED}{SCHEDULE}'"
    same = "assert scheduled(0) == scheduled(1) == scheduled(os.getppid())"
    then = f"exec python3 -c '{SCHEDULED}{same}'"
    for result in await one_after_another(box, first, then):
        assert (result.exit_code, result.reason) == (0, Reason.EXITED)
