"""Files of a sandbox's workspace, all touched by the agent inside, never from the host."""

import asyncio
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sandbox import agent as wire
from sandbox.errors import (
    FileError,
    FileErrorCode,
    InvalidArgumentError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    SandboxLostError,
    TimeoutError_,
)

if TYPE_CHECKING:
    from sandbox.client import SandboxClient

ANSWER_TIMEOUT_S = 30.0
READ_LIMIT_BYTES = 64 * 1024 * 1024
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


def file_error(code: str, message: str, path: str = "") -> FileError:
    """Raises ValueError for a code that is none of a file's."""
    return FileError(FileErrorCode(code), message, path=path)


class Files:
    """Paths are relative to the workspace, or absolute and inside it.

    Every method raises FileError; InvalidArgumentError for a malformed path; SandboxLostError;
    TimeoutError_ when the agent is silent for 30 s (a paused sandbox does not answer).
    """

    def __init__(self, client: "SandboxClient") -> None:
        self._client = client

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
    ) -> AsyncIterator[bytes]:
        """Chunks of a file as it is read; a slow reader makes the agent wait."""
        body = wire.READ_HEAD.pack(offset, limit, WINDOW_BYTES) + wire.pack(_path(path))
        left = limit
        async with self._operation(wire.READ, body, path, WINDOW_BYTES) as answers:
            async for op, chunk in answers:
                left -= len(chunk)
                if left < 0:
                    raise self._client.distrust("more of a file than was asked for")
                yield chunk
                await self._client.grant(op, len(chunk))

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Replace a file as a whole: another reader sees the old content or the new."""
        if not 0 <= mode <= 0o777:
            raise InvalidArgumentError("mode must be between 0 and 0o777.")
        op = self._client.operation()
        queue = self._client.listen(op)
        body = struct.pack(">I", mode) + wire.pack(_path(path))
        try:
            await self._client.send(wire.WRITE_OPEN, op, body)
            view = memoryview(data)
            while view and queue.empty():
                await self._client.send(wire.WRITE_DATA, op, bytes(view[: wire.CHUNK]))
                view = view[wire.CHUNK :]
            await self._client.send(wire.WRITE_END, op)
            async for _ in self._answers(op, queue, path):
                pass
        except BaseException:
            self._client.send_now(wire.CANCEL, op)
            raise
        finally:
            self._client.forget(op)

    async def list(self, path: str = ".") -> Entries:
        """Entries of a directory by name; FileError TOO_LARGE beyond 10,000."""
        return await self._entries(wire.LIST, path, PurePosixPath(path))

    async def stat(self, path: str) -> FileInfo:
        """One entry; symbolic links are followed while they stay inside."""
        entries = await self._entries(wire.STAT, path, PurePosixPath(path).parent)
        if len(entries) != 1:
            raise self._client.distrust("not one entry")
        entry = entries[0]
        return FileInfo(
            path, entry.name, entry.is_directory, entry.size_bytes, entry.modified_at, entry.mode
        )

    async def make_dir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; with `parents` also those above it, and none need be new."""
        await self._done(wire.MAKE_DIR, bytes((parents,)) + wire.pack(_path(path)), path)

    async def rename(self, source: str, target: str) -> None:
        """Move within the workspace, replacing a file that stands at the target."""
        await self._done(wire.RENAME, wire.pack(_path(source)) + wire.pack(_path(target)), source)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link (not its target), or a directory (empty, unless `recursive`)."""
        await self._done(wire.REMOVE, bytes((recursive,)) + wire.pack(_path(path)), path)

    async def _done(self, kind: int, body: bytes, path: str) -> None:
        async with self._operation(kind, body, path) as answers:
            async for _ in answers:
                pass

    async def _entries(self, kind: int, path: str, parent: PurePosixPath) -> Entries:
        data = bytearray()
        window = ENTRY_BYTES * (wire.MAX_ENTRIES if kind == wire.LIST else 1)
        async with self._operation(kind, wire.pack(_path(path)), path, window) as answers:
            async for _, chunk in answers:
                data += chunk
        try:
            return list(_unpack_entries(bytes(data), parent))
        except (struct.error, wire.Refused) as error:
            raise self._client.distrust(error) from error

    @asynccontextmanager
    async def _operation(
        self, kind: int, body: bytes, path: str, window: int = 0
    ) -> "AsyncIterator[AsyncIterator[tuple[int, bytes]]]":
        op = self._client.operation()
        queue = self._client.listen(op, window)
        try:
            await self._client.send(kind, op, body)
            yield self._answers(op, queue, path)
        except BaseException:
            self._client.send_now(wire.CANCEL, op)
            raise
        finally:
            self._client.forget(op)

    async def _answers(
        self, op: int, queue: "asyncio.Queue[tuple[int, bytes]]", path: str
    ) -> "AsyncIterator[tuple[int, bytes]]":
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    kind, body = await queue.get()
            except TimeoutError as error:
                raise TimeoutError_("The sandbox did not answer in time.") from error
            if kind == wire.DONE:
                return
            if kind == wire.ERROR:
                raise self._error(body, path)
            yield op, body

    def _error(self, body: bytes, path: str) -> SandboxError:
        code, _, text = body.partition(b"\0")
        message = text.decode("utf-8", "replace")
        if code == b"LOST":
            return SandboxLostError(message)
        if code == b"EXHAUSTED":
            return ResourceExhaustedError(message, resource=Resource.SANDBOX)
        if code == b"INVALID":
            return InvalidArgumentError(message)
        try:
            return file_error(code.decode("ascii", "replace"), message, path)
        except ValueError:
            return self._client.distrust(body[:100])


def _unpack_entries(data: bytes, parent: PurePosixPath) -> Iterator[FileInfo]:
    """Raises struct.error and wire.Refused for what no agent sends."""
    at = 0
    while at < len(data):
        directory, size, modified, mode = wire.ENTRY.unpack_from(data, at)
        name, at = wire.unpack(data, at + wire.ENTRY.size)
        text = name.decode("utf-8", "surrogateescape")
        yield FileInfo(str(parent / text), text, bool(directory), size, _moment(modified), mode)


def _moment(seconds: float) -> datetime:
    """A program may give its files any time; one outside the calendar reads as 1970."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _path(path: str) -> bytes:
    if not path or "\0" in path:
        raise InvalidArgumentError("A path must not be empty nor hold a NUL byte.")
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("The path is not valid text.") from error
    if len(encoded) > 4096:
        raise InvalidArgumentError("The path is longer than 4096 bytes.")
    return encoded
