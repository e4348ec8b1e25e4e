"""Files of a sandbox's workspace, all touched by the agent inside, never from the host."""

import stat
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from sandbox import archives, watching
from sandbox.answers import ask
from sandbox.archives import ArchiveFormat, ArchiveLimits, Hold, Unpacked
from sandbox.connection import Connection
from sandbox.errors import FileError, FileErrorCode, InvalidArgumentError
from sandbox.inside import wire
from sandbox.watching import Changes, Walked

READ_LIMIT_BYTES = 64 * 1024 * 1024
LIST_LIMIT = wire.MAX_ENTRIES
WINDOW_BYTES = 1024 * 1024
NAME_BYTES = 255  # The longest name that Linux knows.
ENTRY_BYTES = wire.ENTRY.size + 4 + NAME_BYTES


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One entry of the workspace; a symbolic link is described as itself, not as its target."""

    path: str
    name: str
    is_directory: bool
    size_bytes: int
    modified_at: datetime
    mode: int

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


Entries = list[FileInfo]


@dataclass(frozen=True, slots=True)
class Usage:
    """What the filesystem of the workspace holds, as the kernel counts it."""

    bytes: int
    inodes: int


class Files:
    """Paths are relative to the workspace, or absolute and inside it.

    Every method raises FileError; InvalidArgumentError for a malformed path; SandboxLostError;
    TimeoutError_ when the agent is silent for 30 s (a paused sandbox does not answer).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(
        self, path: str, offset: int = 0, limit: int | None = None, *, most: int = READ_LIMIT_BYTES
    ) -> bytes:
        """Bytes of a file from `offset`, up to `limit`.

        Without a limit the whole rest; FileError TOO_LARGE if that is more than `most` bytes.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise InvalidArgumentError("offset and limit must not be negative.")
        wanted = most + 1 if limit is None else limit
        data = bytearray()
        async for chunk in self.stream(path, offset, wanted):
            data += chunk
        if limit is None and len(data) > most:
            raise FileError(
                FileErrorCode.TOO_LARGE, f"The file is larger than {most} bytes.", path=path
            )
        return bytes(data)

    async def stream(
        self, path: str, offset: int = 0, limit: int = 1 << 62
    ) -> AsyncGenerator[bytes, None]:
        """Chunks of a file as it is read; a slow reader makes the agent wait."""
        body = wire.READ_HEAD.pack(offset, limit, WINDOW_BYTES) + wire.pack(encode_path(path))
        left = limit
        async with ask(
            self._connection, wire.READ, body, window=WINDOW_BYTES, path=path
        ) as answers:
            async for chunk in answers:
                left -= len(chunk)
                if left < 0:
                    raise self._connection.distrust("more of a file than was asked for")
                yield chunk
                await answers.grant(len(chunk))

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Replace a file as a whole: another reader sees the old content or the new."""

        async def whole() -> AsyncIterator[bytes]:
            yield data

        await self.write_stream(path, whole(), mode)

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes], mode: int = 0o644) -> int:
        """Replace a file by what is read from `chunks`; the number of bytes written.

        Another reader sees the old content or the new. At most 1 MiB is on its way at a time, so
        a slow disk makes `chunks` wait. Ended early, by whatever error, the old file stays.
        """
        if not 0 <= mode <= 0o777:
            raise InvalidArgumentError("mode must be between 0 and 0o777.")
        body = struct.pack(">I", mode) + wire.pack(encode_path(path))
        size = 0
        async with ask(self._connection, wire.WRITE_OPEN, body, path=path) as answers:
            async for chunk in chunks:
                await answers.write(chunk)
                size += len(chunk)
            await self._connection.send(wire.WRITE_END, answers.op)
            await answers.finish()
        return size

    async def list(
        self, path: str = ".", *, first: int | None = None, after: str | None = None
    ) -> Entries:
        """Entries of a directory by name; FileError TOO_LARGE beyond 10,000.

        Asked for the `first` ones (10,000 at most) `after` a name, it may have any number.
        """
        options = b""
        if first is not None or after is not None:
            most = LIST_LIMIT if first is None else max(0, min(first, LIST_LIMIT))
            options = wire.LIST_PAGE.pack(most) + wire.pack(encode_path(after) if after else b"")
        return await self._entries(wire.LIST, path, PurePosixPath(path), options)

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """One entry; symbolic links are followed while they stay inside.

        Without `follow` a link at the end of the path is described itself, wherever it leads.
        """
        entries = await self._entries(
            wire.STAT, path, PurePosixPath(path).parent, b"" if follow else b"\1"
        )
        if len(entries) != 1:
            raise self._connection.distrust("not one entry")
        entry = entries[0]
        return FileInfo(
            path, entry.name, entry.is_directory, entry.size_bytes, entry.modified_at, entry.mode
        )

    async def make_dir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with `parents` also those above it, and none need be new."""
        await self._done(wire.MAKE_DIR, bytes((parents,)) + wire.pack(encode_path(path)), path)

    async def rename(self, source: str, target: str) -> None:
        """Move within the workspace, replacing a file that stands at the target."""
        await self._done(
            wire.RENAME, wire.pack(encode_path(source)) + wire.pack(encode_path(target)), source
        )

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link (not its target), or a directory (empty, unless `recursive`)."""
        await self._done(wire.REMOVE, bytes((recursive,)) + wire.pack(encode_path(path)), path)

    async def measure(self, path: str = ".") -> Usage:
        """What the filesystem that holds the path is filled with: all of it, not the path alone."""
        data = bytearray()
        body = wire.pack(encode_path(path))
        window = wire.USED.size
        async with ask(self._connection, wire.MEASURE, body, window=window, path=path) as answers:
            async for chunk in answers:
                data += chunk
        if len(data) != wire.USED.size:
            raise self._connection.distrust("a torn measure")
        return Usage(*wire.USED.unpack(data))

    def watch(self, path: str = ".", *, recursive: bool = True) -> AsyncGenerator[Changes, None]:
        """Changes below a directory in batches, until it is closed; consume it by `aclosing`.

        The first one is an OVERFLOW: what there is must be walked now, what changes from then on
        is told. Another OVERFLOW says that changes were lost. Also raises ResourceExhaustedError
        when the kernel watches no more directories, and FileError when the directory is removed.
        What programs write to memory they share with a file is told when they close it, if then.
        """
        return watching.watch(self._connection, encode_path(path), path, recursive=recursive)

    def walk(self, path: str = ".") -> AsyncGenerator[Walked, None]:
        """Every entry below a directory in batches, in no order; consume it by `aclosing`.

        FileError TOO_LARGE beyond 200,000 of them.
        """
        return watching.walk(self._connection, encode_path(path), path)

    def pack(
        self,
        path: str,
        style: ArchiveFormat,
        *,
        most: int = archives.MOST_BYTES,
        content: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """An archive of what is below a directory, or of one file, as it is made; consume it by
        `aclosing`.

        A slow reader makes it wait. Links stay links; sockets, pipes and devices are left out.
        FileError TOO_LARGE beyond `most` bytes, or for files of more than `content` bytes, which
        counts holes: they are packed as zeros. PolicyUnsupportedError when the Python inside
        cannot compress.
        """
        return archives.pack(self._connection, encode_path(path), path, style, most, content)

    async def unpack(
        self,
        target: str,
        chunks: AsyncIterator[bytes],
        style: ArchiveFormat,
        limits: ArchiveLimits,
        *,
        keep_links: bool = False,
        hold: Hold | None = None,
    ) -> Unpacked:
        """Unpack an archive into a directory, which is made if it is not there.

        Files replace files; folders are merged. Nothing changes unless all of it can be unpacked:
        no entry leads out of the target, nor is anything unpacked through a link; symbolic links
        that lead out are refused, or with `keep_links` made as they are. There are no devices; bits
        beyond 0o777 are dropped, and the owner may read every file. With `hold` all of it is looked
        at first, unless the agent is older than that (`SandboxClient.holds_archives`). FileError
        TOO_LARGE beyond the limits, OUTSIDE, EXISTS, NO_SPACE; InvalidArgumentError for what is no
        such archive; PolicyUnsupportedError when the Python inside cannot compress.
        """
        path = encode_path(target)
        return await archives.unpack(
            self._connection, path, target, chunks, style, limits, keep_links=keep_links, hold=hold
        )

    async def _done(self, kind: int, body: bytes, path: str) -> None:
        async with ask(self._connection, kind, body, path=path) as answers:
            await answers.finish()

    async def _entries(
        self, kind: int, path: str, parent: PurePosixPath, options: bytes = b""
    ) -> Entries:
        data = bytearray()
        window = ENTRY_BYTES * (wire.MAX_ENTRIES if kind == wire.LIST else 1)
        body = wire.pack(encode_path(path)) + options
        async with ask(self._connection, kind, body, window=window, path=path) as answers:
            async for chunk in answers:
                data += chunk
        try:
            return list(_unpack_entries(bytes(data), parent))
        except (struct.error, wire.Refused) as error:
            raise self._connection.distrust(error) from error


def _unpack_entries(data: bytes, parent: PurePosixPath) -> Iterator[FileInfo]:
    """Raises struct.error and wire.Refused for what no agent sends."""
    at = 0
    while at < len(data):
        directory, size, modified, mode = wire.ENTRY.unpack_from(data, at)
        name, at = wire.unpack(data, at + wire.ENTRY.size)
        text = name.decode("utf-8", "surrogateescape")
        yield FileInfo(str(parent / text), text, bool(directory), size, moment(modified), mode)


def moment(seconds: float) -> datetime:
    """A time as the agent tells it.

    A program may give its files any time; one outside the calendar reads as 1970.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def encode_path(path: str) -> bytes:
    """A path as the agent takes it. Raises InvalidArgumentError for a malformed one."""
    if not path or "\0" in path:
        raise InvalidArgumentError("A path must not be empty nor hold a NUL byte.")
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("The path is not valid text.") from error
    if len(encoded) > 4096:
        raise InvalidArgumentError("The path is longer than 4096 bytes.")
    return encoded
