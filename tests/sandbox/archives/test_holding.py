"""Archives that are looked at in a folder of their own before they take their place."""

import asyncio
import gzip
import os
from collections.abc import Awaitable, Callable

import pytest

from sandbox.archives import ArchiveFormat, Hold, Unpacked
from sandbox.errors import FileError, FileErrorCode, InvalidArgumentError, ResourceExhaustedError
from sandbox.inside import wire
from tests.sandbox.archives.packing import (
    TAR,
    TAR_GZ,
    formats,
    gone,
    names,
    tar,
    unpacked,
    zipped,
)
from tests.sandbox.conftest import MIB, Box, Boxes

NUMBER = 4711
NAME = f".archive.{NUMBER}.part"
Check = Callable[[int], Awaitable[None]]


async def held(box: Box, data: bytes, check: Check, style: ArchiveFormat = TAR) -> Unpacked:
    return await unpacked(box, data, style, hold=Hold(NUMBER, check))


def archive(style: ArchiveFormat, data: bytes) -> bytes:
    whole = tar(("sub/one", data), ("two", b"2"))
    if style is TAR:
        return whole
    return (
        gzip.compress(whole) if style is TAR_GZ else zipped(("sub/one", data, 0), ("two", b"2", 0))
    )


@formats
async def test_nothing_is_in_its_place_until_it_was_looked_at(
    box: Box, style: ArchiveFormat
) -> None:
    data = os.urandom(2 * MIB + 5)
    await box.client.files.make_dir("out")
    await box.client.files.write("out/two", b"old")
    seen = []

    async def check(entries: int) -> None:
        seen.append(entries)
        assert await names(box) == [
            NAME, f"{NAME}/sub", f"{NAME}/sub/one", f"{NAME}/two", "out", "out/two"
        ]  # fmt: skip
        assert await box.client.files.read(f"{NAME}/sub/one") == data
        assert await box.client.files.read("out/two") == b"old"

    made = await held(box, archive(style, data), check, style)
    assert (made.entries, made.bytes, seen) == (3, len(data) + 1, [3])
    assert await names(box) == ["out", "out/sub", "out/sub/one", "out/two"]
    assert await box.client.files.read("out/sub/one") == data
    assert await box.client.files.read("out/two") == b"2"


@formats
async def test_what_is_refused_leaves_nothing(box: Box, style: ArchiveFormat) -> None:
    async def check(entries: int) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await held(box, archive(style, os.urandom(MIB)), check, style)
    await gone(box)


async def test_a_look_that_is_broken_off_leaves_nothing(box: Box) -> None:
    looking = asyncio.Event()

    async def check(entries: int) -> None:
        looking.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(held(box, archive(TAR, b"1"), check))
    async with asyncio.timeout(60):
        await looking.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(box)
    # The number is free again.
    assert (await held(box, archive(TAR, b"1"), nothing)).entries == 3


async def nothing(entries: int) -> None:
    """Have nothing against it."""


async def test_an_archive_that_cannot_be_unpacked_is_not_looked_at(box: Box) -> None:
    async def check(entries: int) -> None:
        raise AssertionError("there is nothing to look at")

    with pytest.raises(InvalidArgumentError, match="damaged"):
        await held(box, archive(TAR, b"1")[:700], check)
    await gone(box)
    with pytest.raises(FileError) as caught:
        await held(box, tar(("../out", b"")), check)
    assert caught.value.code is FileErrorCode.OUTSIDE
    await gone(box)


async def test_what_stands_in_the_way_is_found_after_the_look(box: Box) -> None:
    async def check(entries: int) -> None:
        await box.client.files.write("out/sub", b"a file now")

    await box.client.files.make_dir("out")
    with pytest.raises(FileError) as caught:
        await held(box, archive(TAR, b"1"), check)
    assert caught.value.code is FileErrorCode.EXISTS
    assert await names(box) == ["out", "out/sub"]


async def test_a_worker_that_is_killed_while_it_waits_leaves_nothing(box: Box) -> None:
    async def check(entries: int) -> None:
        await box.run("kill -9 -1")

    with pytest.raises(ResourceExhaustedError, match="killed"):
        await held(box, archive(TAR, b"1"), check)
    await gone(box)


async def test_files_that_nobody_may_read_can_be_looked_at(box: Box) -> None:
    data = tar(("secret", b"content"), mode="w")
    closed = data.replace(b"0000644\0", b"0000000\0", 1)
    # The sum of the header, which knows its mode.
    total = sum(closed[:148]) + 8 * 32 + sum(closed[156:512])
    closed = closed[:148] + b"%06o\0 " % total + closed[156:]

    async def check(entries: int) -> None:
        assert await box.client.files.read(f"{NAME}/secret") == b"content"

    assert (await held(box, closed, check)).entries == 1
    assert (await box.run("stat -c %a out/secret"))[1] == b"400\n"


@pytest.mark.parametrize("last", [b"", b"\2"], ids=["nothing", "something else"])
async def test_only_one_word_has_it_moved(wrapped: Boxes, last: bytes) -> None:
    box = await wrapped.make()
    head = wire.UNPACK_HEAD.pack(wire.TAR | wire.HOLD, MIB, 10, 10)
    body = head + wire.pack(b"out") + wire.HELD_AT.pack(NUMBER)
    told: list[bytes] = []

    async def ask() -> None:
        async with box.client.ask(wire.UNPACK_OPEN, body, window=wire.UNPACKED.size) as answers:
            await answers.write(wire.pack(archive(TAR, b"1")) + wire.pack(b"") + last)
            await box.client.send(wire.WRITE_END, answers.op)
            async for part in answers:
                told.append(part)  # noqa: PERF401 - it ends by an error.

    with pytest.raises(InvalidArgumentError, match="broken off"):
        await ask()
    assert told == [wire.UNPACKED.pack(2, 3)]
    await gone(box)


async def test_an_agent_of_before_unpacks_at_once(box: Box) -> None:
    async def check(entries: int) -> None:
        raise AssertionError("it cannot hold anything")

    assert box.client.holds_archives
    box.client.holds_archives = False
    assert (await held(box, archive(TAR, b"1"), check)).entries == 3
    assert await names(box) == ["out", "out/sub", "out/sub/one", "out/two"]
