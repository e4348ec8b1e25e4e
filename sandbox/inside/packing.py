"""A tree on its way into an archive: what there is, entry by entry, and the bytes that leave."""

import os
import stat
from collections.abc import Iterator
from typing import Any

from sandbox.inside.paths import MAX_DEPTH, write_all
from sandbox.inside.tars import IS_FILE, IS_FOLDER, IS_LINK, IS_SYMLINK, Item, no_chunks
from sandbox.inside.wire import CHUNK, TAR_GZ, Refused


def tree(
    folder: int, above: bytes = b"", depth: int = 0
) -> Iterator[tuple[int, bytes, bytes, os.stat_result]]:
    """All that is below an open directory, each folder before what is in it; links stay links."""
    if depth > MAX_DEPTH:
        raise Refused("DENIED", "The directory is nested too deeply.")
    for name in sorted(map(os.fsencode, os.listdir(folder))):
        try:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue  # Removed since it was listed.
        yield folder, name, above + name, info
        if not stat.S_ISDIR(info.st_mode):
            continue
        try:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise unreadable(above + name) from None
        try:
            yield from tree(inner, above + name + b"/", depth + 1)
        finally:
            os.close(inner)


def oversized(shown: bytes, content: int) -> Refused:
    """Holes are packed as the zeros they read as: a file of few blocks may have no end in sight."""
    name = shown[:200].decode("utf-8", "replace")
    why = f"The files as far as {name} come to more than {content} bytes, holes in them counted."
    return Refused("TOO_LARGE", why)


def unreadable(shown: bytes) -> Refused:
    return Refused("DENIED", "It may not be read: " + shown.decode("utf-8", "replace"))


def as_item(
    folder: int,
    name: bytes,
    shown: bytes,
    info: os.stat_result,
    links: dict[tuple[int, int], bytes] | None,
) -> Item | None:
    """The entry of an archive; None for what does not travel: sockets, pipes, devices.

    `links` has the files seen that have several names; None where archives know no such thing.
    """
    mode, moment = info.st_mode & 0o777, int(info.st_mtime)
    if stat.S_ISDIR(info.st_mode):
        return Item(IS_FOLDER, shown, mode, 0, moment, b"", no_chunks)
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(name, dir_fd=folder)
        return Item(IS_SYMLINK, shown, 0o777, 0, moment, target, no_chunks)
    if not stat.S_ISREG(info.st_mode):
        return None
    if info.st_nlink > 1 and links is not None:
        first = links.setdefault((info.st_dev, info.st_ino), shown)
        if first != shown:
            return Item(IS_LINK, shown, mode, 0, moment, first, no_chunks)

    def chunks() -> Iterator[bytes]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            return  # Removed since it was listed: an empty file.
        except PermissionError:
            raise unreadable(shown) from None
        try:
            left = info.st_size
            while left > 0:
                data = os.read(fd, min(CHUNK, left))
                if not data:
                    return
                left -= len(data)
                yield data
        finally:
            os.close(fd)

    return Item(IS_FILE, shown, mode, info.st_size, moment, b"", chunks)


class Packed:
    """An archive on its way out, in pieces of a good size."""

    def __init__(self, output: int, style: int, most: int) -> None:
        self.output = output
        self.left = most
        self.held = b""
        self.stream: Any = None
        if style == TAR_GZ:
            import zlib

            self.stream = zlib.compressobj(6, zlib.DEFLATED, 31)

    def write(self, data: bytes) -> None:
        self.send(data if self.stream is None else self.stream.compress(data))

    def send(self, data: bytes) -> None:
        self.held += data
        if len(self.held) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        self.left -= len(self.held)
        if self.left < 0:
            raise Refused("TOO_LARGE", "The archive is larger than it may be.")
        write_all(self.output, self.held)
        self.held = b""

    def finish(self) -> None:
        if self.stream is not None:
            self.send(self.stream.flush())
        self.flush()
