"""Floods of output, input, files and requests: bounded for the server, whatever is sent."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from sandbox.client import Execution, Reason
from sandbox.errors import FileError, FileErrorCode
from sandbox.limits import Limits
from tests.sandbox.abuse.attack import tries
from tests.sandbox.abuse.conftest import Neighbour, Site
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

GIB = 1024 * MIB
GROWTH = 64 * MIB


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


FLOODS = {
    "10 GB on standard output": "head -c 10G /dev/zero",
    "10 GB on standard error": "head -c 10G /dev/zero >&2",
    "10 GB on both": "head -c 5G /dev/zero & head -c 5G /dev/zero >&2; wait",
    "one line without end": "tr '\\0' x < /dev/zero",
    "lines without end": "yes",
    "single bytes without end": "exec python3 -c 'import os\nwhile True: os.write(1, b\"x\")'",
    "many writers at once": "for i in 1 2 3 4 5 6 7 8; do yes $i & done; wait",
    "output held by a daemon": "(setsid yes &) ; sleep 600",
}


@pytest.mark.parametrize("command", FLOODS.values(), ids=FLOODS.keys())
async def test_output_ends_at_its_limit(box: Box, command: str) -> None:
    limit = 100_000 if "os.write" in command else 8 * MIB
    before = resident()
    execution = await box.start(command, output_limit_bytes=limit, timeout_s=60)
    received = {"stdout": 0, "stderr": 0}
    peak = before
    async for chunk in execution.output():
        received[chunk.stream] += len(chunk.data)
        peak = max(peak, resident())
    result = await execution.result()
    assert (result.reason, result.truncated) == (Reason.OUTPUT_LIMIT, True)
    assert max(received.values()) == limit
    assert (result.stdout_bytes, result.stderr_bytes) == tuple(received.values())
    assert peak - before < GROWTH


async def test_10_gb_that_nobody_reads_are_never_written(site: Site, neighbour: Neighbour) -> None:
    before = resident()
    stalled: list[Execution] = []
    for _ in range(4):
        program = (
            "import os\ndone = 0\nname = f'done{os.getpid()}'\n"
            "while done < 10 << 30:\n"
            "    done += os.write(1, bytes(1 << 16)); open(name, 'w').write(f'{done}\\n')\n"
        )
        stalled.append(
            await site.box.start(["python3", "-c", program], output_limit_bytes=10 * GIB)
        )
    look = "cat done* 2>/dev/null; sleep 0.3"
    last, seen = None, b""
    while last != seen or not seen:
        last, (_, seen, _) = seen, await site.box.run(look)
    assert max(map(int, seen.split())) < 80 * MIB
    assert resident() - before < GROWTH
    assert neighbour.rounds > 0
    for execution in stalled:
        await execution.cancel()
        assert (await execution.result()).reason is Reason.KILLED
    await site.box.run("rm done*")


async def test_output_that_nobody_wants_is_bounded_too(box: Box) -> None:
    before = resident()
    execution = await box.start("head -c 10G /dev/zero", output_limit_bytes=64 * MIB, timeout_s=60)
    result = await execution.result()
    assert (result.reason, result.stdout_bytes) == (Reason.OUTPUT_LIMIT, 64 * MIB)
    assert resident() - before < GROWTH


async def test_input_that_nobody_reads_waits_outside(box: Box) -> None:
    execution = await box.start("sleep 600", keep_stdin_open=True)
    writing = asyncio.ensure_future(execution.write_stdin(bytes(256 * MIB)))
    before = resident()
    for _ in range(20):
        assert (await box.run("echo on"))[1] == b"on\n"
    assert not writing.done()
    assert resident() - before < GROWTH
    await execution.cancel()
    await writing
    assert (await execution.result()).reason is Reason.KILLED


async def test_a_folder_of_more_entries_than_are_listed(site: Site) -> None:
    limits = Limits(memory_bytes=256 * MIB, disk_bytes=32 * MIB, inodes=20_000)
    box = await site.make(limits=limits)
    program = """
os.makedirs('many')
for number in range(10_001):
    os.close(os.open(f'many/{number:06d}' + 'x' * 200, os.O_CREAT | os.O_WRONLY))
print(len(os.listdir('many')))
"""
    assert await tries(box, program) == ["10001"]
    with pytest.raises(FileError) as caught:
        await box.client.files.list("many")
    assert caught.value.code is FileErrorCode.TOO_LARGE
    last, seen = "", list[str]()
    while page := await box.client.files.list("many", first=4000, after=last):
        seen += [entry.name for entry in page]
        last = page[-1].name
    assert seen == [f"{number:06d}" + "x" * 200 for number in range(10_001)]
    await box.run("rm many/000000*")
    assert len(await box.client.files.list("many")) == 10_000


async def test_a_file_that_grows_while_it_is_read(box: Box) -> None:
    writer = await box.start("while :; do head -c 1000000 /dev/zero >> grows; "
                             "truncate -s '<9000000' grows; done", timeout_s=60)  # fmt: skip
    before = resident()
    refused = []
    while FileErrorCode.TOO_LARGE not in refused:
        try:
            await box.client.files.read("grows", most=4 * MIB)
        except FileError as error:
            refused.append(error.code)
    assert resident() - before < GROWTH
    await writer.cancel()
    await writer.result()
    await box.run("rm grows")


async def test_a_file_without_end_is_read_as_far_as_asked(box: Box) -> None:
    await box.run("truncate -s 30M sparse")
    got = 0
    async with aclosing(box.client.files.stream("sparse", limit=5 * MIB)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            got += len(chunk)
    assert got == 5 * MIB
    await box.run("rm sparse")


async def test_a_thousand_requests_at_once(box: Box) -> None:
    files = box.client.files
    await files.write("one", b"1")
    answers = await asyncio.gather(*(files.read("one") for _ in range(1000)))
    assert answers == [b"1"] * 1000
    stats = await asyncio.gather(*(files.stat("none") for _ in range(1000)), return_exceptions=True)
    assert {type(answer) for answer in stats} == {FileError}


async def test_a_storm_of_executions(box: Box) -> None:
    async def one(number: int) -> bytes:
        _, out, _ = await box.run(f"echo {number}")
        return out

    for start in range(0, 100, 20):
        got = await asyncio.gather(*(one(n) for n in range(start, start + 20)))
        assert got == [f"{n}\n".encode() for n in range(start, start + 20)]
