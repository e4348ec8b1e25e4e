"""What changes in a workspace as it happens, and all there is in it."""

import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from sandbox.answers import ask, records
from sandbox.connection import Connection
from sandbox.inside import wire

WINDOW_BYTES = 512 * 1024


class ChangeKind(StrEnum):
    """What became of a file or directory; OVERFLOW: what became of them all is not known."""

    CREATED = "CREATED"
    MODIFIED = "MODIFIED"
    REMOVED = "REMOVED"
    RENAMED = "RENAMED"
    OVERFLOW = "OVERFLOW"


_KINDS = {
    wire.CREATED: ChangeKind.CREATED,
    wire.MODIFIED: ChangeKind.MODIFIED,
    wire.REMOVED: ChangeKind.REMOVED,
    wire.RENAMED: ChangeKind.RENAMED,
    wire.OVERFLOW: ChangeKind.OVERFLOW,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One change. Paths begin with the path that is watched; bytes that are no text in them are
    surrogates. `size_bytes` is that of regular files, 0 for everything else.

    An OVERFLOW calls for `walk`: what is changed from then on is told. `is_partial` on it says
    that some directories cannot be watched.
    """

    kind: ChangeKind
    path: str
    is_directory: bool = False
    size_bytes: int = 0
    old_path: str | None = None
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a walk; `modified_s` is in seconds since 1970, whatever a program set."""

    path: str
    is_directory: bool
    size_bytes: int
    mode: int
    modified_s: float = 0.0


Changes = list[Change]
Walked = list[Entry]


async def watch(
    connection: Connection, path: bytes, shown: str, *, recursive: bool
) -> AsyncGenerator[Changes, None]:
    """Batches of changes, the first of which ends with an OVERFLOW; see `Files.watch`."""
    body = wire.WATCH_HEAD.pack(recursive, WINDOW_BYTES) + wire.pack(path)
    data = bytearray()
    async with ask(
        connection, wire.WATCH, body, window=WINDOW_BYTES, path=shown, timeout_s=None
    ) as answers:
        async for chunk in answers:
            data += chunk
            try:
                found = [_change(shown, *record) for record in records(data, wire.CHANGE, 2)]
            except (struct.error, LookupError) as error:
                raise connection.distrust(error) from error
            if found:
                yield found
            await answers.grant(len(chunk))


async def walk(connection: Connection, path: bytes, shown: str) -> AsyncGenerator[Walked, None]:
    """Batches of entries; see `Files.walk`."""
    body = wire.AMOUNT.pack(WINDOW_BYTES) + wire.pack(path)
    data = bytearray()
    async with ask(connection, wire.WALK, body, window=WINDOW_BYTES, path=shown) as answers:
        async for chunk in answers:
            data += chunk
            try:
                found = [
                    Entry(_below(shown, name), bool(directory), size, mode, modified)
                    for directory, size, modified, mode, name in records(data, wire.ENTRY, 1)
                ]
            except struct.error as error:
                raise connection.distrust(error) from error
            if found:
                yield found
            await answers.grant(len(chunk))
    if data:
        raise connection.distrust("a torn entry")


def _change(top: str, kind: int, flag: int, size: int, path: bytes, old: bytes) -> Change:
    if kind == wire.OVERFLOW:
        return Change(ChangeKind.OVERFLOW, top, is_partial=bool(flag))
    return Change(
        _KINDS[kind], _below(top, path), bool(flag), size, _below(top, old) if old else None
    )


def _below(top: str, path: bytes) -> str:
    return str(PurePosixPath(top) / path.decode("utf-8", "surrogateescape"))
