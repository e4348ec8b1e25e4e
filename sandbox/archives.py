"""Whole trees of a workspace: packed into archives, and made from archives."""

import struct
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from sandbox.answers import ask
from sandbox.connection import Connection
from sandbox.errors import InvalidArgumentError, PolicyUnsupportedError
from sandbox.inside import wire

WINDOW_BYTES = 1024 * 1024
ANSWER_TIMEOUT_S = 120.0
# At its end an archive is moved to its place; a zip is only unpacked then.
UNPACK_TIMEOUT_S = 600.0
MOST_BYTES = (1 << 62) - 1


class ArchiveFormat(StrEnum):
    """The archives that are known, by the ends of their names."""

    TAR = "tar"
    TAR_GZ = "tar.gz"
    ZIP = "zip"


_NUMBERS = {
    ArchiveFormat.TAR: wire.TAR,
    ArchiveFormat.TAR_GZ: wire.TAR_GZ,
    ArchiveFormat.ZIP: wire.ZIP,
}


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may unpack to: bytes, entries, and bytes for each of its own bytes."""

    max_bytes: int
    max_entries: int
    max_ratio: int

    def __post_init__(self) -> None:
        numbers = (self.max_bytes, self.max_entries, self.max_ratio)
        if min(numbers) < 0 or self.max_bytes > MOST_BYTES or max(numbers[1:]) > 0xFFFF_FFFF:
            raise InvalidArgumentError("A limit of an archive is out of range.")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What an archive came to."""

    bytes: int
    entries: int


def require_zlib(connection: Connection, style: ArchiveFormat) -> int:
    """The number of a format. Raises PolicyUnsupportedError if the agent cannot compress."""
    if style is not ArchiveFormat.TAR and not connection.has_zlib:
        raise PolicyUnsupportedError(
            "The Python inside this sandbox cannot compress: use the format tar."
        )
    return _NUMBERS[style]


async def pack(
    connection: Connection,
    path: bytes,
    shown: str,
    style: ArchiveFormat,
    most: int,
    content: int | None,
) -> AsyncGenerator[bytes, None]:
    """The bytes of an archive; see `Files.pack`."""
    if not 0 <= most <= MOST_BYTES:
        raise InvalidArgumentError("most is out of range.")
    if content is not None and not 0 < content <= MOST_BYTES:
        raise InvalidArgumentError("content is out of range.")
    head = wire.READ_HEAD.pack(content or 0, most, WINDOW_BYTES)
    head += bytes((require_zlib(connection, style),))
    asking = ask(
        connection,
        wire.PACK,
        head + wire.pack(path),
        window=WINDOW_BYTES,
        path=shown,
        timeout_s=ANSWER_TIMEOUT_S,
    )
    async with asking as answers:
        async for chunk in answers:
            yield chunk
            await answers.grant(len(chunk))


async def unpack(
    connection: Connection,
    path: bytes,
    shown: str,
    chunks: AsyncIterator[bytes],
    style: ArchiveFormat,
    limits: ArchiveLimits,
    *,
    keep_links: bool,
) -> Unpacked:
    """What became of an archive; see `Files.unpack`."""
    number = require_zlib(connection, style) | (wire.KEEP_LINKS if keep_links else 0)
    head = wire.UNPACK_HEAD.pack(number, limits.max_bytes, limits.max_entries, limits.max_ratio)
    asking = ask(
        connection, wire.UNPACK_OPEN, head + wire.pack(path), path=shown, timeout_s=UNPACK_TIMEOUT_S
    )
    async with asking as answers:
        async for chunk in chunks:
            await answers.write(chunk)
        if not answers.is_over:
            await connection.send(wire.WRITE_END, answers.op)
        body = await answers.finish()
    try:
        return Unpacked(*wire.UNPACKED.unpack(body))
    except struct.error as error:
        raise connection.distrust(error) from error
