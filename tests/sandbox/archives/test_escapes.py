"""Nothing of an archive leads out of its folder."""

import stat
import tarfile
from typing import Any

import pytest

from sandbox.errors import (
    FileError,
    FileErrorCode,
    InvalidArgumentError,
)
from tests.sandbox.archives.packing import (
    TAR,
    TAR_GZ,
    ZIP,
    hard,
    link,
    names,
    packed,
    refused,
    tar,
    unpacked,
    zipped,
)
from tests.sandbox.conftest import Box

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
