"""What the agent leaves to children of its own, and uploads in pieces."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from sandbox.errors import FileError, FileErrorCode, InvalidArgumentError, PolicyUnsupportedError
from sandbox.inside import wire
from sandbox.limits import Limits
from tests.sandbox.conftest import MIB, Box, Boxes

MANY = "import os\nfor n in range(%d): open('%%s/%%05d' %% ('%s', n), 'w').close()"


async def refusal(work: object) -> FileErrorCode:
    with pytest.raises(FileError) as caught:
        await work  # type: ignore[misc]
    return caught.value.code


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_a_large_directory_is_listed_whole_and_in_order(box: Box) -> None:
    await box.client.files.make_dir("many")
    await box.python(MANY % (9999, "many"))
    entries = await box.client.files.list("many")
    assert [entry.name for entry in entries] == [f"{number:05}" for number in range(9999)]
    await box.run("touch many/one many/two")
    assert await refusal(box.client.files.list("many")) is FileErrorCode.TOO_LARGE


async def test_a_large_tree_is_removed_while_others_are_served(box: Box) -> None:
    await box.client.files.make_dir("many/below", parents=True)
    await box.python(MANY % (20_000, "many/below"))
    execution = await box.start("while read line; do echo $line; done", keep_stdin_open=True)
    removing = asyncio.ensure_future(box.client.files.remove("many", recursive=True))
    async with aclosing(execution.output()) as output:
        for _ in range(20):
            await execution.write_stdin(b"line\n")
            assert (await anext(output)).data == b"line\n"
        await removing
        await execution.close_stdin()
    assert await box.client.files.list() == []


async def test_a_worker_that_is_killed_fails_its_operation_alone(box: Box) -> None:
    await box.client.files.make_dir("many")
    await box.python(MANY % (9000, "many"))
    # Code of the same uid may kill all that it sees: executions and workers, never the agent.
    killer = await box.start(
        "python3 -c 'import os, signal\n"
        "while True:\n"
        '  for p in os.listdir("/proc"):\n'
        "    if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid()):\n"
        '      try: line = open("/proc/%s/stat" % p).read().split()\n'
        "      except OSError: continue\n"
        '      if line[3] == "1" and int(p) != os.getppid(): os.kill(int(p), signal.SIGKILL)\'',
        timeout_s=60,
    )
    codes = set()
    for _ in range(20):
        try:
            codes.add(len(await box.client.files.list("many")))
        except Exception as error:  # noqa: BLE001 - each is looked at below.
            codes.add(type(error).__name__)
    assert codes <= {9000, "ResourceExhaustedError"}
    await killer.cancel()
    await killer.result()
    assert len(await box.client.files.list("many")) == 9000


async def test_giving_up_ends_the_worker(box: Box) -> None:
    await box.client.files.make_dir("many")
    await box.python(MANY % (9000, "many"))
    for _ in range(40):
        task = asyncio.ensure_future(box.client.files.list("many"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # Had the workers lived on, the last ones would have found no room.
    assert len(await box.client.files.list("many")) == 9000


async def test_an_upload_arrives_in_pieces_of_any_size(box: Box) -> None:
    files = box.client.files
    data = os.urandom(5 * MIB + 11)
    assert await files.write_stream("one", pieces(data, 200_000)) == len(data)
    assert await files.read("one") == data
    assert await files.write_stream("two", pieces(data[:300], 1), 0o755) == 300
    assert await files.read("two") == data[:300]
    assert (await files.stat("two")).mode & 0o777 == 0o755
    assert await files.write_stream("none", pieces(b"", 1)) == 0
    assert await files.read("none") == b""
    with pytest.raises(InvalidArgumentError):
        await files.write_stream("two", pieces(data, 1), 0o1777)


async def test_an_upload_reads_no_further_than_is_written(boxes: Boxes) -> None:
    if (await boxes.driver.capabilities()).items["pause"] != "ENFORCED":
        pytest.skip("Pausing is not available here.")
    box = await boxes.make()
    taken = 0
    first = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        nonlocal taken
        for number in range(200):
            if number == 1:
                first.set()
                await proceed.wait()
            taken += 65536
            yield bytes(65536)

    proceed = asyncio.Event()
    writing = asyncio.ensure_future(box.client.files.write_stream("file", source()))
    async with asyncio.timeout(30):
        await first.wait()
    await box.driver.pause(box.id)
    proceed.set()
    # A frozen agent writes nothing, so after a window full of bytes nothing more is read.
    last = -1
    while taken != last:
        last = taken
        await asyncio.sleep(0.2)
    assert taken <= wire.WRITE_WINDOW + 3 * 65536
    await box.driver.resume(box.id)
    assert await writing == 200 * 65536
    assert (await box.client.files.stat("file")).size_bytes == 200 * 65536


async def test_an_upload_that_breaks_off_leaves_the_old_file(box: Box) -> None:
    files = box.client.files
    await files.write("file", b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise RuntimeError("the sender is gone")

    with pytest.raises(RuntimeError):
        await files.write_stream("file", broken())
    assert await files.read("file") == b"old"
    assert [entry.name for entry in await files.list()] == ["file"]


async def test_an_upload_beyond_the_disk_ends_at_once(box: Box) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += MIB
            yield bytes(MIB)

    assert await refusal(box.client.files.write_stream("file", endless())) is FileErrorCode.NO_SPACE
    assert taken < 64 * MIB
    assert await box.client.files.list() == []
    assert (await box.client.files.measure()).bytes < MIB


async def test_the_filesystem_is_measured(boxes: Boxes) -> None:
    limits = Limits(memory_bytes=192 * MIB, disk_bytes=32 * MIB)
    box = await boxes.make(limits=limits)
    before = await box.client.files.measure()
    await box.run("mkdir a; head -c 3000000 /dev/zero > a/file")
    after = await box.client.files.measure("a")
    assert 3_000_000 <= after.bytes - before.bytes < 4_000_000
    assert after == await box.client.files.measure("a/file")
    if before.inodes:
        assert after.inodes - before.inodes == 2
    assert await refusal(box.client.files.measure("../x")) is FileErrorCode.OUTSIDE
    assert await refusal(box.client.files.measure("nothing")) is FileErrorCode.NOT_FOUND


async def test_an_operation_that_the_agent_does_not_know_is_refused(box: Box) -> None:
    with pytest.raises(PolicyUnsupportedError):
        async with box.client.ask(29, b"") as answers:
            await answers.finish()
    assert (await box.run("exit 0"))[0].exit_code == 0
