"""Packing ends, whatever becomes of the files meanwhile."""

import stat

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits
from sandbox.errors import (
    FileError,
    FileErrorCode,
    InvalidArgumentError,
)
from tests.sandbox.archives.packing import TAR, TARRED, content, packed, unpacked
from tests.sandbox.conftest import MIB, Box


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
