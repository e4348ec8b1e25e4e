"""Whole trees: packed for every other program, and unpacked as they went."""

import gzip
import os
import stat
import tarfile
import zipfile
from typing import Any

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits, Unpacked
from sandbox.errors import (
    FileError,
    FileErrorCode,
)
from tests.sandbox.archives.packing import (
    LONG,
    TAR_GZ,
    ZIP,
    content,
    formats,
    names,
    packed,
    tar,
    unpacked,
    zipped,
)
from tests.sandbox.conftest import MIB, Box


@formats
async def test_other_programs_read_what_is_packed(box: Box, style: ArchiveFormat) -> None:
    data = os.urandom(300_000)
    await box.client.files.make_dir("src")
    await box.client.files.write("src/data.bin", data)
    await box.client.files.write("src/run.sh", b"#!/bin/sh\n", 0o755)
    await box.client.files.make_dir(f"src/{LONG}", parents=True)
    await box.client.files.write(f"src/{LONG}/héllo 한", b"deep")
    await box.run("cd src; : > empty; ln -s run.sh link; ln -s /etc/passwd out; mkfifo pipe")
    found = content(await packed(box, "src", style), style)
    deep = LONG.split("/")
    folders = ["/".join(deep[:n]) for n in range(1, len(deep) + 1)]
    assert {name: mode for name, (mode, _) in found.items()} == {
        "data.bin": stat.S_IFREG | 0o644,
        "run.sh": stat.S_IFREG | 0o755,
        "empty": stat.S_IFREG | 0o644,
        "link": stat.S_IFLNK | 0o777,
        "out": stat.S_IFLNK | 0o777,
        f"{LONG}/héllo 한": stat.S_IFREG | 0o644,
        **dict.fromkeys(folders, stat.S_IFDIR | 493),
    }
    assert found["data.bin"][1] == data
    assert found[f"{LONG}/héllo 한"][1] == b"deep"
    target = found["link"][1]
    assert (target.encode() if isinstance(target, str) else target) == b"run.sh"
    alone = content(await packed(box, "src/run.sh", style), style)
    assert alone == {"run.sh": (stat.S_IFREG | 0o755, b"#!/bin/sh\n")}


@formats
async def test_a_tree_comes_back_as_it_went(box: Box, style: ArchiveFormat) -> None:
    await box.client.files.make_dir("one")
    await box.client.files.write("one/random", os.urandom(2 * MIB + 3))
    await box.client.files.write("one/zeros", bytes(300_000))
    await box.client.files.make_dir(f"one/{LONG}", parents=True)
    await box.run(
        "cd one; mkdir empty bin; chmod 700 empty; : > none; ln -s ../none bin/up;"
        " ln random second; touch -d '2020-02-29 12:34:56 UTC' none; chmod 4755 zeros;"
        " python3 -c \"open(b'\\xff\\xfe', 'w').write('odd')\""
    )
    data = await packed(box, "one", style)
    made = await unpacked(box, data, style, "two/three", limits=ArchiveLimits(16 * MIB, 20, 200))
    _, listed, _ = await box.run("cd one; find . -mindepth 1 | wc -l")
    assert made.entries == int(listed)
    result, out, _ = await box.run(
        "chmod 755 one/zeros; show() { find . -printf '%p %y %m %l\\n' | sort; };"
        "(cd one; show) > /tmp/a; (cd two/three; show) > /tmp/b; cmp /tmp/a /tmp/b &&"
        " diff -r one two/three && stat -c %Y two/three/none && stat -c %h two/three/random"
    )
    assert result.exit_code == 0
    assert out.decode().split() == ["1582979696", "1" if style is ZIP else "2"]
    assert {name.split("/")[0] for name in await names(box)} == {"one", "two"}


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_what_other_programs_pack_is_unpacked(box: Box, style: int) -> None:
    name = "d" * 60 + "/" + "f" * (30 if style == tarfile.USTAR_FORMAT else 90)
    entries: list[tuple[str, bytes | dict[str, Any]]] = [
        ("./", {"type": tarfile.DIRTYPE, "mode": 0o700}),
        ("./plain", b"plain"),
        (name, b"long"),
        ("links/hard", {"type": tarfile.LNKTYPE, "linkname": "plain"}),
        ("links/soft", {"type": tarfile.SYMTYPE, "linkname": "../" + name}),
        ("only/", {"type": tarfile.DIRTYPE, "mode": 0o555}),
        ("only/inside", b"x"),
    ]
    data = tar(*entries, style=style)
    assert (await unpacked(box, data)).entries == 8
    _, out, _ = await box.run(f"cd out; cat plain links/hard links/soft {name}; stat -c %a only")
    assert out == b"plainplainlonglong755\n"
    for written in (gzip.compress(data), gzip.compress(data[:700]) + gzip.compress(data[700:])):
        assert (await unpacked(box, written, TAR_GZ)).entries == 8
    if style != tarfile.USTAR_FORMAT:
        odd = tar(("ü" * 120, b"1"), ("s", {"type": b"2", "linkname": "l" * 300}), style=style)
        assert (await unpacked(box, odd, target="odd")).entries == 2
        assert [len(n.encode()) for n in await names(box) if n.startswith("odd/ü")] == [244]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
async def test_a_zip_of_another_program_is_unpacked(box: Box, method: int) -> None:
    data = zipped(
        ("a/", b"", 0),
        ("a/b.txt", b"text" * 9999, 0),
        ("run", b"#!", 0o100755),
        ("link", b"a/b.txt", 0o120777),
        ("none", b"", 0o100600),
        method=method,
    )
    assert await unpacked(box, data, ZIP) == Unpacked(39996 + 2 + 7, 5)
    _, out, _ = await box.run("cd out; stat -c '%n %a %s' a a/b.txt run none; cmp link a/b.txt")
    assert [line.split()[:2] for line in out.decode().splitlines()] == [
        ["a", "755"], ["a/b.txt", "644"], ["run", "755"], ["none", "600"],
    ]  # fmt: skip


async def test_what_is_there_is_merged_with_what_comes(box: Box) -> None:
    files = box.client.files
    await files.make_dir("out/sub", parents=True)
    await files.write("out/keep", b"kept")
    await files.write("out/sub/old", b"old")
    await box.run("ln -s /etc/passwd out/link")
    data = tar(("sub/old", b"new"), ("sub/more", b"more"), ("fresh/file", b"1"), ("link", b"mine"))
    assert (await unpacked(box, data)).entries == 6
    assert await names(box) == [
        "out", "out/fresh", "out/fresh/file", "out/keep", "out/link", "out/sub", "out/sub/more",
        "out/sub/old",
    ]  # fmt: skip
    assert await files.read("out/sub/old") == b"new"
    assert await files.read("out/link") == b"mine"
    # The workspace itself is a target as well.
    assert (await unpacked(box, tar(("top", b"1")), target=".")).entries == 1
    assert await files.read("top") == b"1"


@pytest.mark.parametrize("entry", [("out", b"file"), ("file/below", b"1")])
async def test_what_stands_in_the_way_stays_and_so_does_the_rest(
    box: Box, entry: tuple[str, bytes]
) -> None:
    await box.client.files.make_dir("out")
    await box.client.files.write("file", b"file")
    before = await names(box)
    with pytest.raises(FileError) as caught:
        await unpacked(box, tar(("a", b"1"), entry, ("z", b"1")), target=".")
    assert caught.value.code is FileErrorCode.EXISTS
    assert await names(box) == before
    with pytest.raises(FileError) as caught:
        await unpacked(box, tar(("a", b"1")), target="file")
    assert caught.value.code is FileErrorCode.NOT_A_DIRECTORY
