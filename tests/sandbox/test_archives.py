"""Whole trees: packed for every other program, and unpacked with nothing let out or left behind."""

import asyncio
import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits, Unpacked
from sandbox.errors import (
    FileError,
    FileErrorCode,
    InvalidArgumentError,
    PolicyUnsupportedError,
    SandboxError,
)
from sandbox.inside import tars, wire, zips
from tests.sandbox.conftest import MIB, Box, Boxes

TAR, TAR_GZ, ZIP = ArchiveFormat.TAR, ArchiveFormat.TAR_GZ, ArchiveFormat.ZIP
LIMITS = ArchiveLimits(16 * MIB, 2000, 100)
LONG = "/".join(["a" * 60] * 4) + "/" + "b" * 200
formats = pytest.mark.parametrize("style", list(ArchiveFormat))


async def pieces(data: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def packed(box: Box, path: str, style: ArchiveFormat, **more: Any) -> bytes:
    async with aclosing(box.client.files.pack(path, style, **more)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def unpacked(
    box: Box, data: bytes, style: ArchiveFormat = TAR, target: str = "out", **more: Any
) -> Unpacked:
    return await box.client.files.unpack(
        target, pieces(data), style, more.pop("limits", LIMITS), **more
    )


async def refused(box: Box, data: bytes, style: ArchiveFormat = TAR, **more: Any) -> str:
    """The code of a refusal, after which nothing is left."""
    with pytest.raises(SandboxError) as caught:
        await unpacked(box, data, style, **more)
    assert await box.client.files.list() == []
    error = caught.value
    return error.code.value if isinstance(error, FileError) else type(error).__name__


async def names(box: Box) -> list[str]:
    _, out, _ = await box.run("find . -mindepth 1 | sort")
    return [line[2:] for line in out.decode("utf-8", "replace").splitlines()]


def tar(*entries: tuple[str, bytes | dict[str, Any]], mode: str = "w", style: int = 1) -> bytes:
    """A tar archive of files with a content, and of other things with what is odd about them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=style) as archive:  # type: ignore[call-overload]
        for name, given in entries:
            info = tarfile.TarInfo(name)
            odd = given if isinstance(given, dict) else {}
            data = b"" if isinstance(given, dict) else given
            info.size, info.mode = len(data), 0o644
            for key, value in odd.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(*entries: tuple[str, bytes, int], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.create_system, info.compress_type = 3 if mode else 0, method
            archive.writestr(info, data)
    return buffer.getvalue()


def content(data: bytes, style: ArchiveFormat) -> dict[str, tuple[int, bytes | str]]:
    """What another program finds in an archive: modes, and contents or targets of links."""
    if style is ZIP:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            return {
                info.filename.rstrip("/"): (info.external_attr >> 16, archive.read(info))
                for info in archive.infolist()
            }
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        found: dict[str, tuple[int, bytes | str]] = {}
        for member in opened:
            file = opened.extractfile(member) if member.isreg() else None
            kind = {"0": stat.S_IFREG, "1": 0, "2": stat.S_IFLNK, "5": stat.S_IFDIR}
            mode = kind[member.type.decode()] | member.mode
            found[member.name] = (mode, file.read() if file else member.linkname)
        return found


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


def link(target: str) -> dict[str, Any]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target: str) -> dict[str, Any]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


ESCAPES: dict[str, tuple[tuple[str, bytes | dict[str, Any]], ...]] = {
    "a name upwards": (("../evil", b"1"),),
    "a name upwards from below": (("a/../../evil", b"1"),),
    "a name upwards that comes back": (("a/../b", b"1"),),
    "an absolute name": (("/tmp/evil", b"1"),),
    "no name": (("./.", b"1"),),
    "an absolute link": (("l", link("/etc")), ("l/evil", b"1")),
    "a link upwards": (("l", link("..")), ("l/evil", b"1")),
    "a link upwards from below": (("a/b/l", link("../../../x")),),
    "a link down and up again": (("l", link("a/../../x")),),
    "a link to nothing": (("l", link(".")), ("l/evil", b"1")),
    "a link by way of a link": (("a/b/up", link("../..")), ("l", link("a/b/up/../x"))),
    "a path through a link that stays": (("a/b", b"1"), ("l", link("a")), ("l/evil", b"1")),
    "a folder for a link": (
        ("a/b", b"1"),
        ("l", link("a")),
        ("l/", {"type": tarfile.DIRTYPE, "mode": 0o777}),
    ),
    "a hard link upwards": (("h", hard("../secret")),),
    "a hard link absolute": (("h", hard("/etc/passwd")),),
    "a hard link to a link": (("a/l", link("../x")), ("h", hard("a/l"))),
    "a hard link through a link": (("a/b", b"1"), ("l", link("a")), ("h", hard("l/b"))),
    "a hard link to nothing": (("h", hard("nothing")),),
    "a hard link to a folder": (("a/b", b"1"), ("h", hard("a"))),
    "a hard link to the target": (("h", hard(".")),),
}


@pytest.mark.parametrize("entries", ESCAPES.values(), ids=ESCAPES)
async def test_no_entry_leads_out(
    box: Box, entries: tuple[tuple[str, bytes | dict[str, Any]], ...]
) -> None:
    assert await refused(box, tar(("good", b"1"), *entries)) == "OUTSIDE"
    _, out, _ = await box.run("find / -xdev -name evil 2>/dev/null; ls /tmp")
    assert out == b""


@pytest.mark.parametrize("entries", ESCAPES.values(), ids=ESCAPES)
async def test_no_entry_goes_through_a_link_that_is_kept(
    box: Box, entries: tuple[tuple[str, bytes | dict[str, Any]], ...]
) -> None:
    await box.run("echo secret > secret")
    is_harmless = all(isinstance(held, dict) and held["type"] == b"2" for _, held in entries)
    data = tar(("good", b"1"), *entries)
    if is_harmless:
        assert (await unpacked(box, data, keep_links=True)).entries > 1
    else:
        with pytest.raises(FileError) as caught:
            await unpacked(box, data, keep_links=True)
        assert caught.value.code is FileErrorCode.OUTSIDE
    _, out, _ = await box.run("find / -xdev -name evil 2>/dev/null; ls /tmp; stat -c %h secret")
    assert out == b"1\n"


async def test_an_archive_does_not_go_through_links_of_an_earlier_one(box: Box) -> None:
    links = tar(("l", link("/tmp")), ("up", link("..")), ("f", link("/tmp/evil")))
    assert (await unpacked(box, links, keep_links=True)).entries == 3
    for name in ("l/evil", "up/evil"):
        with pytest.raises(FileError) as caught:
            await unpacked(box, tar((name, b"1")), keep_links=True)
        assert caught.value.code is FileErrorCode.EXISTS
    with pytest.raises(FileError) as caught:
        await unpacked(box, tar(("evil", b"1")), keep_links=True, target="out/l")
    assert caught.value.code is FileErrorCode.OUTSIDE
    for name in ("out/l/evil", "out/f"):
        with pytest.raises(FileError) as caught:
            await box.client.files.read(name)
        assert caught.value.code in (FileErrorCode.OUTSIDE, FileErrorCode.NOT_FOUND)
    with pytest.raises(FileError):
        await box.client.files.write("out/l/evil", b"1")
    # The link gives way to the file; what it led to is not touched.
    await unpacked(box, tar(("f", b"1")), keep_links=True)
    _, out, _ = await box.run("find / -xdev -name evil 2>/dev/null; ls /tmp; cat out/f")
    assert out == b"1"


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_link_to_no_name_is_refused(box: Box, keeps: bool) -> None:
    for data, style in (
        (tar(("good", b"1"), ("l", link(""))), TAR),
        (zipped(("l", b"", 0o120777)), ZIP),
        (zipped(("l", b"a\0b", 0o120777)), ZIP),
    ):
        with pytest.raises(InvalidArgumentError):
            await unpacked(box, data, style, keep_links=keeps)
    with pytest.raises((FileError, InvalidArgumentError)):
        await unpacked(box, tar(("l", link("x" * 5000))), keep_links=keeps)
    assert await names(box) == []


async def test_what_no_tree_of_files_holds_is_refused(box: Box) -> None:
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        odd = {"type": kind, "devmajor": 1, "devminor": 3}
        assert await refused(box, tar(("good", b"1"), ("odd", odd))) == "DENIED"
    assert await refused(box, tar(("odd", {"type": b"Z"}))) == "InvalidArgumentError"
    assert await refused(box, tar(("odd", {"type": b"S"}))) == "InvalidArgumentError"
    assert await refused(box, zipped(("odd", b"", stat.S_IFCHR | 0o666)), ZIP) == "DENIED"
    for name in ("../evil", "/evil", "a/../../evil"):
        assert await refused(box, zipped((name, b"1", 0)), ZIP) == "OUTSIDE"
    assert await refused(box, zipped(("l", b"/etc", 0o120777)), ZIP) == "OUTSIDE"


async def test_links_that_are_kept_may_lead_anywhere(box: Box) -> None:
    await box.run("mkdir one; ln -s /usr/bin/python3 one/python; ln -s ../../x one/up")
    data = await packed(box, "one", TAR_GZ)
    with pytest.raises(FileError):
        await unpacked(box, data, TAR_GZ)
    assert (await unpacked(box, data, TAR_GZ, keep_links=True)).entries == 2
    _, out, _ = await box.run("readlink out/python out/up")
    assert out == b"/usr/bin/python3\n../../x\n"
    # What comes after them does not go through them all the same.
    through = tar(("l", link("/tmp")), ("l/evil", b"1"))
    with pytest.raises(FileError) as caught:
        await unpacked(box, through, keep_links=True, target="through")
    assert caught.value.code is FileErrorCode.OUTSIDE


async def test_dangerous_bits_are_dropped(box: Box) -> None:
    await unpacked(box, tar(("tool", {"mode": 0o6777}), ("dir/", {"type": b"5", "mode": 0o7777})))
    await unpacked(box, zipped(("zool", b"1", 0o104755)), ZIP)
    _, out, _ = await box.run("stat -c %a out/tool out/dir out/zool")
    assert out == b"777\n777\n755\n"


def bomb(size: int, style: ArchiveFormat) -> bytes:
    if style is ZIP:
        return zipped(("zeros", bytes(size), 0))
    data = tar(("zeros", bytes(size)))
    return data if style is TAR else gzip.compress(data)


@formats
async def test_an_archive_unpacks_to_so_many_bytes_alone(box: Box, style: ArchiveFormat) -> None:
    limits = ArchiveLimits(4 * MIB, 10, 100_000)
    assert await refused(box, bomb(4 * MIB + 1, style), style, limits=limits) == "TOO_LARGE"
    assert (await unpacked(box, bomb(4 * MIB, style), style, limits=limits)).bytes == 4 * MIB


@formats
async def test_an_archive_has_so_many_entries_alone(box: Box, style: ArchiveFormat) -> None:
    limits = ArchiveLimits(MIB, 20, 1000)
    few = [(f"f{n}", b"") for n in range(20)]
    for count in (20, 21):
        files = [*few, ("more", b"")][:count]
        data = zipped(*((n, b, 0) for n, b in files)) if style is ZIP else tar(*files)
        data = gzip.compress(data) if style is TAR_GZ else data
        if count == 21:
            await box.client.files.remove("out", recursive=True)
            assert await refused(box, data, style, limits=limits) == "TOO_LARGE"
        else:
            assert (await unpacked(box, data, style, limits=limits)).entries == 20


async def test_folders_on_the_way_and_repeated_names_count(box: Box) -> None:
    limits = ArchiveLimits(MIB, 20, 1000)
    deep = "/".join("d" * 21) + "/f"
    assert await refused(box, tar((deep, b"")), limits=limits) == "TOO_LARGE"
    again = tar(*((("same"), b"") for _ in range(21)))
    assert await refused(box, again, limits=limits) == "TOO_LARGE"
    assert await refused(box, tar(("/".join("d" * 300), b""))) == "InvalidArgumentError"


@pytest.mark.parametrize("style", [TAR_GZ, ZIP])
async def test_bombs_are_known_by_what_they_unpack_to(box: Box, style: ArchiveFormat) -> None:
    assert await refused(box, bomb(12 * MIB, style), style) == "TOO_LARGE"
    honest = os.urandom(2 * MIB)
    data = zipped(("f", honest, 0)) if style is ZIP else gzip.compress(tar(("f", honest)))
    assert (await unpacked(box, data, style)).bytes == 2 * MIB
    # Little may be as dense as it likes.
    assert (await unpacked(box, bomb(MIB, style), style)).bytes == MIB


async def test_bombs_behind_and_between_the_entries_end_as_well(box: Box) -> None:
    longest = tarfile.TarInfo("././@LongLink")
    longest.type, longest.size = b"L", 60_000
    headers = (longest.tobuf(tarfile.GNU_FORMAT) + b"n" * 60_000 + bytes(-60_000 % 512)) * 9
    assert await refused(box, gzip.compress(headers + bytes(1024)), TAR_GZ) == (
        "InvalidArgumentError"
    )
    tail = gzip.compress(tar(("f", b"1")) + bytes(40 * MIB))
    assert await refused(box, tail, TAR_GZ) == "InvalidArgumentError"
    longest.size = 1 << 40
    assert (
        await refused(box, longest.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        == "InvalidArgumentError"
    )


def changed(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at + len(more) :]


ZIPPED = zipped(("file", b"content" * 99, 0o100644))
TARRED = tar(("file", b"content" * 99))
DAMAGED: dict[str, tuple[ArchiveFormat, bytes]] = {
    "an empty tar": (TAR, b""),
    "an empty gz": (TAR_GZ, b""),
    "an empty zip": (ZIP, b""),
    "noise as tar": (TAR, os.urandom(4096)),
    "noise as gz": (TAR_GZ, os.urandom(4096)),
    "noise as zip": (ZIP, os.urandom(4096)),
    "a tar without its end": (TAR, TARRED[:1536]),
    "a tar that stops in a file": (TAR, TARRED[:700]),
    "a tar that stops in a head": (TAR, TARRED[:300]),
    "a wrong checksum": (TAR, changed(TARRED, 0, b"F")),
    "a gz that stops": (TAR_GZ, gzip.compress(TARRED)[:-20]),
    "a gz without its sum": (TAR_GZ, gzip.compress(TARRED)[:-8]),
    "a gz with another sum": (TAR_GZ, changed(gzip.compress(TARRED), -8, b"1234") + b""),
    "a zip that stops": (ZIP, ZIPPED[:-30]),
    "a zip without its files": (ZIP, ZIPPED[-120:]),
    "a zip with another content": (ZIP, changed(ZIPPED, 36, b"\xff")),
    "a zip with another sum": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 16, b"1234")),
    "a zip with another size": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 24, b"\1")),
    "a zip with a size beyond": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 20, b"\xff\xff")),
    "a zip with a wide size that is missing": (
        ZIP,
        changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 24, b"\xff" * 4),
    ),
    "a zip with a place beyond": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 42, b"\xff" * 3)),
    "a zip with a secret": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 8, b"\1")),
    "a zip of another method": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\1\2") + 10, b"\x0e")),
    "a zip in parts": (ZIP, changed(ZIPPED, ZIPPED.rfind(b"PK\5\6") + 4, b"\1")),
    "a zip with more entries than there are": (
        ZIP,
        changed(ZIPPED, ZIPPED.rfind(b"PK\5\6") + 8, b"\2\0\2\0"),
    ),
    "a tar as zip": (ZIP, TARRED),
    "a zip as tar": (TAR, ZIPPED * 9),
    "a gz as tar": (TAR, gzip.compress(os.urandom(2000))),
    "a tar as gz": (TAR_GZ, TARRED),
}


@pytest.mark.parametrize(("style", "data"), DAMAGED.values(), ids=DAMAGED)
async def test_a_damaged_archive_leaves_nothing(
    box: Box, style: ArchiveFormat, data: bytes
) -> None:
    assert await refused(box, data, style) == "InvalidArgumentError"
    assert (await box.run("exit 0"))[0].exit_code == 0


async def gone(box: Box) -> None:
    """Wait until nothing is left of what was unpacked."""
    async with asyncio.timeout(30):
        while await box.client.files.list():  # noqa: ASYNC110 - whoever clears it tells nobody.
            await asyncio.sleep(0.02)


@formats
async def test_an_upload_that_breaks_off_leaves_nothing(box: Box, style: ArchiveFormat) -> None:
    data = os.urandom(3 * MIB)
    whole = {TAR: tar, TAR_GZ: lambda *e: gzip.compress(tar(*e))}
    archive = (
        zipped(("sub/file", data, 0))
        if style is ZIP
        else whole[style](("sub/one", data[:MIB]), ("sub/two", data))
    )

    async def broken() -> AsyncIterator[bytes]:
        yield archive[: 2 * MIB]
        await box.client.files.list()
        raise RuntimeError("the sender is gone")

    with pytest.raises(RuntimeError):
        await box.client.files.unpack("out", broken(), style, LIMITS)
    await gone(box)
    assert (await box.client.files.measure()).bytes < MIB


async def test_a_worker_that_is_killed_leaves_nothing(box: Box) -> None:
    data = tar(("sub/one", os.urandom(MIB)), ("sub/two", os.urandom(MIB)))

    async def slow() -> AsyncIterator[bytes]:
        yield data[: MIB + 4096]
        # The worker has set its folder up once there is something in it.
        await box.run("until ls .archive.*/sub; do sleep 0.05; done; kill -9 -1")
        yield data[MIB + 4096 :]

    with pytest.raises(SandboxError):
        await box.client.files.unpack("out", slow(), TAR, LIMITS)
    await gone(box)


async def test_a_full_disk_ends_it_and_leaves_nothing(box: Box) -> None:
    limits = ArchiveLimits(1 << 40, 10, 1000)
    size = 40 * MIB
    assert await refused(box, bomb(size, TAR), TAR, limits=limits) == "NO_SPACE"
    assert (await box.client.files.measure()).bytes < MIB


async def test_packing_waits_for_its_reader_and_ends_with_it(box: Box) -> None:
    for number in range(20):
        await box.client.files.write(f"file{number}", os.urandom(MIB))
    for _ in range(20):
        async with aclosing(box.client.files.pack(".", TAR)) as chunks:
            await anext(chunks)
    # Had the workers lived on, there would be no room for one more.
    assert len(await packed(box, ".", TAR)) > 20 * MIB
    with pytest.raises(FileError) as caught:
        await packed(box, ".", TAR, most=MIB)
    assert caught.value.code is FileErrorCode.TOO_LARGE


@pytest.mark.parametrize("style", list(ArchiveFormat))
async def test_a_file_of_holes_without_end_is_refused_at_once(
    box: Box, style: ArchiveFormat
) -> None:
    await box.run("mkdir d; echo one >d/a; truncate -s 1000000 d/b; truncate -s 1T d/c")
    with pytest.raises(FileError, match=r"as far as c come .* holes in them counted") as caught:
        await packed(box, "d", style, content=16 * MIB)
    assert caught.value.code is FileErrorCode.TOO_LARGE
    await box.run("rm d/c")
    data = await packed(box, "d", style, content=16 * MIB)
    assert content(data, style)["b"][1] == bytes(1_000_000)
    with pytest.raises(FileError):
        await packed(box, "d", style, content=1_000_000)
    with pytest.raises(InvalidArgumentError):
        await packed(box, "d", style, content=0)


async def test_packing_what_cannot_be_packed_says_so(box: Box) -> None:
    await box.run("ln -s /etc out; mkdir -p a/secret; chmod 0 a/secret")
    for path, code in (("nothing", "NOT_FOUND"), ("out", "OUTSIDE"), ("../x", "OUTSIDE")):
        with pytest.raises(FileError) as caught:
            await packed(box, path, TAR)
        assert caught.value.code.value == code
    with pytest.raises(FileError, match=r"may not be read: secret"):
        await packed(box, "a", TAR)
    with pytest.raises(FileError) as caught:
        await unpacked(box, TARRED, target="../x")
    assert caught.value.code is FileErrorCode.OUTSIDE
    with pytest.raises(InvalidArgumentError):
        ArchiveLimits(-1, 1, 1)


async def test_files_that_change_while_they_are_packed_do_no_harm(box: Box) -> None:
    await box.client.files.make_dir("src")
    program = (
        "import os, time\n"
        "end = time.time() + 20\n"
        "while time.time() < end:\n"
        "    open('src/f', 'wb').write(bytes(200000))\n"
        "    os.truncate('src/f', 3)\n"
        "    os.rename('src/f', 'src/g')\n"
        "    os.symlink('/etc/passwd', 'src/f')\n"
        "    os.unlink('src/f')\n"
    )
    writer = await box.start(["python3", "-c", program])
    for style in list(ArchiveFormat) * 6:
        try:
            found = content(await packed(box, "src", style), style)
        except FileError:
            continue
        assert set(found) <= {"f", "g"}
        for mode, data in found.values():
            assert stat.S_ISLNK(mode) or not bytes(data).strip(b"\0")  # type: ignore[arg-type]
    await writer.cancel()
    await writer.result()


async def test_a_sandbox_without_zlib_takes_tar_alone(box: Box) -> None:
    box.client.has_zlib = False
    for style in (TAR_GZ, ZIP):
        with pytest.raises(PolicyUnsupportedError, match="format tar"):
            await packed(box, ".", style)
        with pytest.raises(PolicyUnsupportedError, match="format tar"):
            await unpacked(box, ZIPPED, style)
    assert (await unpacked(box, TARRED)).entries == 1


async def test_the_agent_itself_knows_three_formats_alone(wrapped: Boxes) -> None:
    box = await wrapped.make()
    body = wire.UNPACK_HEAD.pack(7, 1, 1, 1) + wire.pack(b"x")
    with pytest.raises(InvalidArgumentError, match="no such format"):
        async with box.client.ask(wire.UNPACK_OPEN, body) as answers:
            await answers.finish()


def item(name: bytes, size: int, data: bytes = b"", kind: bytes = tars.IS_FILE) -> tars.Item:
    return tars.Item(kind, name, 0o640, size, 1_600_000_000, b"", lambda: iter([data]))


def test_a_zip_of_more_entries_than_its_first_makers_thought_of(tmp_path: Path) -> None:
    place = tmp_path / "many.zip"
    with place.open("wb") as file:
        writer = zips.ZipWriter(file.write)  # type: ignore[arg-type]
        for number in range(66_000):
            writer.add(item(b"%05d" % number, 0))
        # Its size is said to be large beforehand, as is one's that is being written to.
        writer.add(item(b"large", zips.LARGE, b"content"))
        writer.finish()
    with zipfile.ZipFile(place) as archive:
        assert len(archive.namelist()) == 66_001
        assert archive.read("large") == b"content"
        assert archive.getinfo("00007").date_time == (2020, 9, 13, 12, 26, 40)
    with place.open("rb") as file:
        reader = zips.ZipReader(file.fileno())
        found = list(reader.items(66_001))
        assert (len(found), found[-1].name, found[0].time) == (66_001, b"large", 1_600_000_000)
        assert b"".join(found[-1].chunks()) == b"content"
        with pytest.raises(wire.Refused, match="more than 66000"):
            list(reader.items(66_000))


@pytest.mark.parametrize("size", [0, 8**11 - 1, 8**11, 1 << 45])
def test_sizes_in_a_tar_are_as_large_as_they_like(size: int) -> None:
    head = tars.tar_header(tars.IS_FILE, b"name", 0o644, size, 1_600_000_000, b"")
    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == size
    assert tars.tar_value(head[124:136]) == size
    # Negative ones are none.
    assert tars.tar_value(b"\xff" * 12) == -1


@pytest.mark.parametrize("seconds", [0, 315_532_800, 951_782_400, 1_600_000_000, 4_354_819_198])
def test_times_in_a_zip_are_read_as_they_were_written(seconds: int) -> None:
    clock, date = zips.dos_time(seconds)
    # They begin in 1980, and know even seconds alone.
    assert zips.unix_time(clock, date) == max(seconds, 315_532_800) // 2 * 2
    assert zips.unix_time(clock, 0) == 0
