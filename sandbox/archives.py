"""Whole trees of a workspace: packed into archives, and made from archives."""

import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum

from sandbox.answers import Answers, ask
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
class Hold:
    """How what an archive came to is looked at before it takes its place.

    `check` is awaited when all of it is in the folder `name` of the workspace, and given how many
    entries that are; whatever it raises ends it, and nothing is left. `number` is one's own choice,
    below 2**63.
    """

    number: int
    check: Callable[[int], Awaitable[None]]

    @property
    def name(self) -> str:
        return (wire.STAGING % self.number).decode()


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
    hold: Hold | None = None,
) -> Unpacked:
    """What became of an archive; see `Files.unpack`."""
    if not connection.holds_archives:
        hold = None
    number = require_zlib(connection, style) | (wire.KEEP_LINKS if keep_links else 0)
    number |= 0 if hold is None else wire.HOLD
    head = wire.UNPACK_HEAD.pack(number, limits.max_bytes, limits.max_entries, limits.max_ratio)
    asking = ask(
        connection,
        wire.UNPACK_OPEN,
        head + wire.pack(path) + (b"" if hold is None else wire.HELD_AT.pack(hold.number)),
        window=0 if hold is None else wire.UNPACKED.size,
        path=shown,
        timeout_s=UNPACK_TIMEOUT_S,
    )
    async with asking as answers:
        async for chunk in chunks:
            if hold is None:
                await answers.write(chunk)
            elif chunk:
                await answers.write(wire.pack(chunk))
        if hold is not None:
            await _held(connection, answers, hold)
        if not answers.is_over:
            await connection.send(wire.WRITE_END, answers.op)
        body = await answers.finish()
    return _account(connection, body)


async def _held(connection: Connection, answers: Answers, hold: Hold) -> None:
    """Have what was unpacked looked at, and let it take its place then."""
    await answers.write(wire.pack(b""))
    async with aclosing(answers.parts()) as parts:
        async for told in parts:
            await hold.check(_account(connection, told).entries)
            await answers.write(wire.GO)
            return
    raise connection.distrust("an archive that was not held")


def _account(connection: Connection, body: bytes) -> Unpacked:
    try:
        return Unpacked(*wire.UNPACKED.unpack(body))
    except struct.error as error:
        raise connection.distrust(error) from error
