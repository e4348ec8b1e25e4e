"""Executions with a name: they outlive their client, and the next one misses nothing of them."""

import asyncio
from collections.abc import Mapping

import pytest

from sandbox.client import WINDOW_BYTES, Execution, ExecutionResult, Reason
from sandbox.errors import InvalidArgumentError, ResourceExhaustedError
from sandbox.inside import wire
from tests.sandbox.conftest import Box, Boxes

# What both streams get: bytes of any value, not one place like the one before.
PATTERN = "bytes(n * 7 % 251 for n in range(8192))"
WRITES = f"""
import os, sys
data = {PATTERN}
def write(fd, data):
    while data:
        data = data[os.write(fd, data):]
for part in sys.argv[1:]:
    if part == "wait":
        os.read(0, 1)
    else:
        fd, count = part.split(":")
        write(int(fd), data * int(count))
"""
BLOCK = eval(PATTERN)  # noqa: S307 - the constant above.
# Waits, without a word, until nothing of the program with that PID is left.
GONE = "until ! kill -0 {0} 2>/dev/null; do sleep 0.01; done"

RESIZED = (
    "echo begun; until [ \"$(stty size)\" = '30 90' ]; do sleep 0.01; done; "
    "read word; echo got $word"
)


async def taken_over(boxes: Boxes, box: Box) -> Box:
    """The sandbox by another client, as after a restart of the server."""
    return Box(box.driver, box.handle, await boxes.client(box.id))


async def read(
    execution: Execution, at: tuple[int, int] = (0, 0), most: int | None = None
) -> Mapping[str, bytes]:
    """What comes of both streams, up to `most` bytes of both, acknowledged as it comes."""
    streams = {"stdout": bytearray(), "stderr": bytearray()}
    async with asyncio.timeout(60):
        async for chunk in execution.output():
            streams[chunk.stream] += chunk.data
            execution.acknowledge(*(n + len(s) for n, s in zip(at, streams.values(), strict=True)))
            if most is not None and sum(map(len, streams.values())) >= most:
                break
    return {name: bytes(data) for name, data in streams.items()}


async def resumed(box: Box, name: str, at: tuple[int, int] = (0, 0)) -> Execution:
    execution = box.client.kept.pop(name)
    assert execution.nearest(*at) == at
    await box.client.resume(execution, at, output_limit_bytes=1 << 30)
    return execution


async def end(execution: Execution) -> ExecutionResult:
    async with asyncio.timeout(60):
        return await execution.result()


@pytest.mark.parametrize("taken", [0, 1, 5000, 8192, 300_000])
async def test_what_has_a_name_goes_on_at_the_very_byte(boxes: Boxes, taken: int) -> None:
    box = await boxes.make()
    script = ["python3", "-c", WRITES, "1:40", "2:3", "wait", "2:40", "1:80"]
    first = await box.start(script, name="one", keep_stdin_open=True)
    before = await read(first, most=max(1, taken))
    at = tuple(min(taken, len(data)) for data in before.values())
    pid = first.pid
    box = await taken_over(boxes, box)
    execution = await resumed(box, "one", (at[0], at[1]))
    assert (execution.pid, execution.operation) == (pid, first.operation)
    # What the first client still has comes from it no more.
    assert (await end(first)).reason is Reason.SANDBOX_LOST
    await execution.write_stdin(b"\n")
    after = await read(execution, (at[0], at[1]))
    assert before["stdout"][: at[0]] + after["stdout"] == BLOCK * 120
    assert before["stderr"][: at[1]] + after["stderr"] == BLOCK * 43
    result = await end(execution)
    assert (result.reason, result.exit_code) == (Reason.EXITED, 0)
    assert (result.stdout_bytes, result.stderr_bytes) == (120 * 8192, 43 * 8192)


async def test_output_that_nobody_takes_stops_the_program_and_not_more(boxes: Boxes) -> None:
    box = await boxes.make()
    command = ["python3", "-c", WRITES, "1:400"]
    await box.start(command, name="flood", timeout_s=None)
    box = await taken_over(boxes, box)
    # It is full sooner or later, and then stays so for the next clients too.
    async with asyncio.timeout(60):
        while box.client.kept["flood"].nearest(1 << 40, 0) != (WINDOW_BYTES, 0):
            box = await taken_over(boxes, box)
    execution = await resumed(box, "flood")
    some = await read(execution, most=WINDOW_BYTES // 2)
    at = len(some["stdout"])
    box = await taken_over(boxes, box)
    execution = await resumed(box, "flood", (at, 0))
    rest = await read(execution, (at, 0))
    assert some["stdout"] + rest["stdout"] == BLOCK * 400
    assert not (await end(execution)).truncated


async def test_an_end_that_nobody_heard_is_told_until_it_is_released(boxes: Boxes) -> None:
    box = await boxes.make()
    first = await box.start(
        "read word; echo $word; echo bad >&2; exit 5", name="over", keep_stdin_open=True
    )
    await first.write_stdin(b"last\n")
    box = await taken_over(boxes, box)
    await box.run(GONE.format(first.pid))
    for _ in range(2):
        box = await taken_over(boxes, box)
        execution = await resumed(box, "over")
        assert await read(execution) == {"stdout": b"last\n", "stderr": b"bad\n"}
        result = await end(execution)
        assert (result.reason, result.exit_code) == (Reason.EXITED, 5)
        assert result.usage.wall_ms is not None
    execution.release()
    box = await taken_over(boxes, box)
    assert box.client.kept == {}


async def test_time_passes_whoever_listens(boxes: Boxes) -> None:
    box = await boxes.make()
    first = await box.start("echo begun; sleep 600", name="slow", timeout_s=0.3)
    box = await taken_over(boxes, box)
    await box.run(GONE.format(first.pid))
    box = await taken_over(boxes, box)
    execution = await resumed(box, "slow")
    assert (await read(execution))["stdout"] == b"begun\n"
    assert (await end(execution)).reason is Reason.TIMED_OUT


async def test_what_ended_in_time_loses_nothing_for_being_heard_late(boxes: Boxes) -> None:
    box = await boxes.make()
    blocks = WINDOW_BYTES // len(BLOCK) + 4
    first = await box.start(["python3", "-c", WRITES, f"1:{blocks}"], name="late", timeout_s=1.0)
    await box.run(GONE.format(first.pid))
    # Begun later, with as much time: when that is over, the other's is.
    result, _, _ = await box.run("sleep 600", timeout_s=1.0)
    assert result.reason is Reason.TIMED_OUT
    box = await taken_over(boxes, box)
    execution = await resumed(box, "late")
    assert (await read(execution))["stdout"] == BLOCK * blocks
    result = await end(execution)
    assert (result.reason, result.truncated) == (Reason.EXITED, False)


async def test_it_is_fed_signalled_and_canceled_as_before(boxes: Boxes) -> None:
    box = await boxes.make()
    cat = await box.start("cat; echo end", name="cat", keep_stdin_open=True)
    shell = await box.start(RESIZED, name="tty", terminal=(24, 80))
    await box.start("sleep 600", name="first", background=True)
    await box.start("sleep 600", name="second")
    await cat.write_stdin(b"one\n")
    await read(cat, most=1)
    await read(shell, most=1)
    box = await taken_over(boxes, box)
    assert set(box.client.kept) == {"cat", "tty", "first", "second"}
    at = (len(b"one\n"), 0)
    cat, first, second = [
        await resumed(box, name, at if name == "cat" else (0, 0))
        for name in ("cat", "first", "second")
    ]
    assert cat.stdin_bytes == len(b"one\n")
    await cat.write_stdin(b"two\n")
    await cat.close_stdin()
    assert (await read(cat, at))["stdout"] == b"two\nend\n"
    shell = await resumed(box, "tty")
    assert shell.has_terminal
    await shell.resize(30, 90)
    await shell.write_stdin(b"word\n")
    assert (await read(shell))["stdout"] == b"begun\r\nword\r\ngot word\r\n"
    assert (await end(shell)).exit_code == 0
    listed = {process.execution for process in await box.client.processes()}
    assert {first.operation, second.operation} <= listed
    await first.signal(15)
    assert (await end(first)).signal == 15
    await second.cancel()
    assert (await end(second)).reason is Reason.KILLED


async def test_input_on_its_way_arrives_once(boxes: Boxes) -> None:
    box = await boxes.make()
    data = BLOCK * 100
    script = "until [ -e go ]; do sleep 0.01; done; cat"
    first = await box.start(script, name="fed", keep_stdin_open=True)
    writing = asyncio.ensure_future(first.write_stdin(data))
    async with asyncio.timeout(60):
        # A pipe and the window are full: it waits.
        while first.stdin_bytes < wire.STDIN_WINDOW:
            await box.client.processes()
    box = await taken_over(boxes, box)
    await asyncio.wait({writing}, timeout=60)
    execution = await resumed(box, "fed")
    taken = execution.stdin_bytes
    assert 0 < taken < len(data)
    await box.client.files.write("go", b"")
    rest = asyncio.ensure_future(execution.write_stdin(data[taken:]))
    rest.add_done_callback(lambda _: asyncio.ensure_future(execution.close_stdin()))
    assert (await read(execution))["stdout"] == data
    await rest


async def test_what_has_no_name_or_is_released_ends(boxes: Boxes) -> None:
    box = await boxes.make()
    nameless = await box.start("sleep 600")
    unwanted = await box.start("sleep 600", name="unwanted")
    box = await taken_over(boxes, box)
    box.client.kept.pop("unwanted").release()
    for execution in (nameless, unwanted):
        result, _, _ = await box.run(GONE.format(execution.pid))
        assert result.reason is Reason.EXITED
    box = await taken_over(boxes, box)
    assert box.client.kept == {}


async def test_no_more_is_kept_than_may_be(wrapped: Boxes) -> None:
    box = await wrapped.make()
    with pytest.raises(InvalidArgumentError):
        await box.start("true", name="n" * 65)
    for number in range(wire.MAX_KEPT):
        await end(await box.start("true", name=f"n{number}"))
    with pytest.raises(ResourceExhaustedError):
        await box.start("true", name="one more")
    await box.run("true")
    box = await taken_over(wrapped, box)
    assert len(box.client.kept) == wire.MAX_KEPT
    box.client.kept.pop("n7").release()
    assert (await end(await box.start("true", name="one more"))).exit_code == 0
