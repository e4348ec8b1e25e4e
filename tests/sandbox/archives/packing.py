"""Archives packed and unpacked by a sandbox, and made by other programs."""

import asyncio
import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from sandbox.archives import ArchiveFormat, ArchiveLimits, Unpacked
from sandbox.errors import (
    FileError,
    SandboxError,
)
from tests.sandbox.conftest import MIB, Box

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


def link(target: str) -> dict[str, Any]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target: str) -> dict[str, Any]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


def bomb(size: int, style: ArchiveFormat) -> bytes:
    if style is ZIP:
        return zipped(("zeros", bytes(size), 0))
    data = tar(("zeros", bytes(size)))
    return data if style is TAR else gzip.compress(data)


def changed(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at + len(more) :]


ZIPPED = zipped(("file", b"content" * 99, 0o100644))


TARRED = tar(("file", b"content" * 99))


async def gone(box: Box) -> None:
    """Wait until nothing is left of what was unpacked."""
    async with asyncio.timeout(30):
        while await box.client.files.list():  # noqa: ASYNC110 - whoever clears it tells nobody.
            await asyncio.sleep(0.02)
