"""Files of the workspace, through the agent."""

import asyncio
import os

import pytest

from sandbox.errors import FileError, FileErrorCode, InvalidArgumentError
from tests.sandbox.conftest import MIB, Box


async def refusal(work: object) -> FileErrorCode:
    with pytest.raises(FileError) as caught:
        await work  # type: ignore[misc]
    return caught.value.code


async def test_what_is_written_is_read(box: Box) -> None:
    files = box.client.files
    data = os.urandom(5 * MIB + 7)
    await files.write("data.bin", data)
    assert await files.read("data.bin") == data
    assert await files.read("/workspace/data.bin", 100, 50) == data[100:150]
    assert await files.read("data.bin", len(data) + 5) == b""
    await files.write("data.bin", b"")
    assert await files.read("data.bin") == b""
    assert (await files.stat("data.bin")).size_bytes == 0


async def test_programs_and_the_client_see_the_same_files(box: Box) -> None:
    files = box.client.files
    await files.write("run.sh", b"#!/bin/sh\necho from $1\n", mode=0o755)
    result, out, _ = await box.run("./run.sh here; mkdir -p a/b; printf x > a/b/c; ln -s a link")
    assert (result.exit_code, out) == (0, b"from here\n")
    assert await files.read("a/b/c") == b"x"
    assert await files.read("link/b/c") == b"x"
    entries = await files.list(".")
    assert [(e.name, e.is_directory, e.size_bytes) for e in entries] == [
        ("a", True, 0),
        ("link", False, 1),
        ("run.sh", False, 23),
    ]
    assert [e.path for e in await files.list("a")] == ["a/b"]
    info = await files.stat("run.sh")
    assert (info.path, info.mode & 0o777) == ("run.sh", 0o755)


async def test_directories_are_made_moved_and_removed(box: Box) -> None:
    files = box.client.files
    await files.make_dir("one")
    assert await refusal(files.make_dir("one")) is FileErrorCode.EXISTS
    assert await refusal(files.make_dir("two/three")) is FileErrorCode.NOT_FOUND
    await files.make_dir("two/three/four", parents=True)
    await files.make_dir("two/three/four", parents=True)
    await files.write("two/three/file", b"1")
    await files.rename("two/three", "one/moved")
    assert [e.name for e in await files.list("one/moved")] == ["file", "four"]
    assert await refusal(files.remove("one")) is FileErrorCode.EXISTS
    await files.remove("one", recursive=True)
    assert await refusal(files.stat("one")) is FileErrorCode.NOT_FOUND
    assert [e.name for e in await files.list("/workspace")] == ["two"]


async def test_directories_are_listed_in_pages(box: Box) -> None:
    files = box.client.files
    # More of them are listed by a worker; names need not be UTF-8.
    for count in (3, 300):
        made = f"for n in range({count}): open(b'\\xfe%04d' % n, 'w').close()\n"
        await box.python(made + "open('a', 'w').close(); open('é', 'w').close()")
        whole = [entry.name for entry in await files.list()]
        assert len(whole) == count + 2
        for size in (1, 2, count + 1, 20_000):
            seen: list[str] = []
            while page := await files.list(first=size, after=seen[-1] if seen else None):
                assert len(page) <= size
                seen += [entry.name for entry in page]
                if count == 300 and size < 3 and len(seen) >= 5:
                    break
            assert seen == whole[: len(seen)]
            assert len(seen) >= 5
        assert await files.list(after=whole[-1]) == []
        assert await files.list(first=0) == []


async def test_mistakes_have_names(box: Box) -> None:
    files = box.client.files
    await files.write("file", b"12345678")
    await files.make_dir("folder")
    assert await refusal(files.read("nothing")) is FileErrorCode.NOT_FOUND
    assert await refusal(files.read("folder")) is FileErrorCode.IS_A_DIRECTORY
    assert await refusal(files.write("folder", b"")) is FileErrorCode.IS_A_DIRECTORY
    assert await refusal(files.list("file")) is FileErrorCode.NOT_A_DIRECTORY
    assert await refusal(files.read("file/below")) is FileErrorCode.NOT_A_DIRECTORY
    assert await refusal(files.read("file", most=7)) is FileErrorCode.TOO_LARGE
    assert await refusal(files.remove(".")) is FileErrorCode.DENIED
    assert await refusal(files.remove("/workspace", recursive=True)) is FileErrorCode.DENIED
    assert await refusal(files.rename("file", ".")) is FileErrorCode.DENIED
    assert await files.read("file") == b"12345678"


@pytest.mark.parametrize(
    "path",
    ["..", "../etc/passwd", "a/../../etc/passwd", "/etc/passwd", "/", "/workspace/../etc/passwd",
     "/workspacex", "escape", "escape/passwd", "up/etc/passwd", "chain/passwd"],
)  # fmt: skip
async def test_no_path_leads_out_of_the_workspace(box: Box, path: str) -> None:
    files = box.client.files
    await box.run("mkdir a; ln -s /etc escape; ln -s .. up; ln -s escape chain")
    # Naming the link itself is allowed where nothing behind it is touched.
    assert await refusal(files.read(path)) is FileErrorCode.OUTSIDE
    assert await refusal(files.write(path, b"x")) is FileErrorCode.OUTSIDE
    assert await refusal(files.list(path)) is FileErrorCode.OUTSIDE
    assert await refusal(files.make_dir(path + "/new")) is FileErrorCode.OUTSIDE
    assert await refusal(files.rename("a", path + "/b")) is FileErrorCode.OUTSIDE
    assert await refusal(files.remove(path + "/passwd")) is FileErrorCode.OUTSIDE
    assert {e.name for e in await files.list(".")} == {"a", "escape", "up", "chain"}


async def test_removing_a_link_leaves_its_target(box: Box) -> None:
    await box.run("mkdir keep; echo 1 > keep/file; ln -s keep link; ln -s loop loop")
    await box.client.files.remove("link", recursive=True)
    assert await box.client.files.read("keep/file") == b"1\n"
    assert await refusal(box.client.files.read("loop")) is FileErrorCode.DENIED


async def test_links_that_lead_out_are_described_renamed_and_removed_themselves(box: Box) -> None:
    files = box.client.files
    await box.run("ln -s /etc/passwd out; ln -s nowhere none; ln -s / root; touch file")
    for name, target in (("out", "/etc/passwd"), ("none", "nowhere"), ("root", "/")):
        info = await files.stat(name, follow=False)
        assert (info.is_symlink, info.is_directory, info.name) == (True, False, name)
        await files.rename(name, f"{name}-2")
        assert (await box.run(f"readlink {name}-2"))[1].decode() == f"{target}\n"
        assert await refusal(files.stat(f"{name}-2")) in (
            FileErrorCode.OUTSIDE,
            FileErrorCode.NOT_FOUND,
        )
        # Over a link the link goes, not what it leads to.
        await files.rename("file", f"{name}-2")
        assert not (await files.stat(f"{name}-2", follow=False)).is_symlink
        await files.rename(f"{name}-2", "file")
        await box.run(f"ln -s {target} {name}")
        await files.remove(name, recursive=True)
        assert await refusal(files.stat(name, follow=False)) is FileErrorCode.NOT_FOUND
    await box.run("ln -s / root")
    # What is on the way to the name is never outside.
    assert await refusal(files.stat("root/etc", follow=False)) is FileErrorCode.OUTSIDE


async def test_a_raced_symlink_never_leads_out(box: Box) -> None:
    await box.run("mkdir inside outside; ln -s /etc sly; echo safe > inside/passwd")
    flip = "while :; do mv -T inside aside; mv -T sly inside; mv -T inside sly; mv -T aside inside"
    racer = await box.start(flip + "; done", timeout_s=60)
    seen = set()
    for turn in range(3000):
        if turn >= 300 and b"safe\n" in seen:
            break
        try:
            seen.add(await box.client.files.read("inside/passwd"))
        except FileError as error:
            seen.add(error.code.value.encode())
    await racer.cancel()
    await racer.result()
    assert seen <= {b"safe\n", b"OUTSIDE", b"NOT_FOUND"}
    assert b"safe\n" in seen


async def test_special_files_do_not_hold_the_agent(box: Box) -> None:
    await box.run("mkfifo pipe; python3 -c \"import socket; socket.socket(1).bind('sock')\"")
    async with asyncio.timeout(20):
        assert await refusal(box.client.files.read("pipe")) is FileErrorCode.DENIED
        assert await refusal(box.client.files.read("sock")) is FileErrorCode.DENIED
        assert len(await box.client.files.list(".")) == 2


async def test_a_file_too_large_for_the_disk_leaves_the_old_one(box: Box) -> None:
    files = box.client.files
    await files.write("file", b"old")
    assert await refusal(files.write("file", bytes(40 * MIB))) is FileErrorCode.NO_SPACE
    assert await files.read("file") == b"old"
    assert [e.name for e in await files.list(".")] == ["file"]
    await files.write("file", bytes(20 * MIB))
    assert (await files.stat("file")).size_bytes == 20 * MIB


async def test_names_that_are_not_utf8_survive_the_journey(box: Box) -> None:
    await box.python("open(b'/workspace/\\xff\\xfe', 'w').write('odd')")
    (entry,) = await box.client.files.list(".")
    assert entry.name.encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert await box.client.files.read(entry.path) == b"odd"


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "\ud800"])
async def test_malformed_paths_are_refused(box: Box, path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await box.client.files.read(path)


async def test_reading_may_be_given_up(box: Box) -> None:
    await box.run("head -c 20000000 /dev/urandom > big")
    for _ in range(20):
        stream = box.client.files.stream("big")
        assert await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    # Had the agent kept those files open, it would have run out of descriptors by now.
    _, out, _ = await box.run("ls -l big | wc -l")
    assert out == b"1\n"
