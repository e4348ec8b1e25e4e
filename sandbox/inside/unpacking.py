"""A tree on its way out of an archive, into a folder of its own, and from there to its target."""

import os
import stat
from collections.abc import Callable
from typing import Any

from sandbox.inside.paths import MAX_DEPTH, write_all
from sandbox.inside.tars import (
    IS_FILE,
    IS_FOLDER,
    IS_LINK,
    IS_SYMLINK,
    MAX_NAME,
    Inflated,
    Item,
    damaged,
    tar_items,
)
from sandbox.inside.wire import AMOUNT, CHUNK, GO, TAR_GZ, ZIP, Refused
from sandbox.inside.zips import ZipReader

MAX_TRAILER = 1024 * 1024  # Bytes behind the end of an archive, which some programs fill up.
FREE_RATIO = 1024 * 1024  # Bytes that any archive may unpack to, however small it is.


class Arriving:
    """An archive on its way in, as it is or in pieces that tell how long they are."""

    def __init__(self, fd: int, in_pieces: bool = False) -> None:
        self.fd = fd
        self.taken = 0
        self.in_pieces = in_pieces
        self.left = 0  # Of the piece that is being read.
        self.ends = False

    def some(self, most: int) -> bytes:
        if self.in_pieces:
            if self.left == 0 and not self.ends:
                (self.left,) = AMOUNT.unpack(self.exactly(AMOUNT.size))
                self.ends = self.left == 0
            if self.ends:
                return b""
            most = min(most, self.left)
        data = os.read(self.fd, most)
        self.left -= len(data)
        self.taken += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = os.read(self.fd, size - len(data))
            if not part:
                raise Refused("INVALID", "The archive was broken off.")
            data += part
        return data

    def wait(self) -> None:
        """Read what is left of the archive, then wait until it may take its place."""
        while self.some(CHUNK):
            continue
        if self.exactly(len(GO)) != GO:
            raise Refused("INVALID", "The archive was broken off.")


class Unpacking:
    """One archive into one open folder that is empty; no link of it is ever followed."""

    def __init__(
        self, root: int, source: Arriving, limits: tuple[int, int, int], keeps: bool
    ) -> None:
        self.root = root
        self.source = source
        self.most, self.most_entries, self.ratio = limits
        self.keeps = keeps
        self.bytes = self.entries = self.seen = 0
        self.folder = os.dup(root)
        self.parents: list[bytes] = []

    def run(self, style: int) -> None:
        if style == ZIP:
            for item in ZipReader(self.spool()).items(self.most_entries):
                self.add(item)
            return
        source: Any = Inflated(self.source) if style == TAR_GZ else self.source
        for item in tar_items(source):
            self.add(item)
        rest = 0
        while rest <= MAX_TRAILER:
            data = source.some(CHUNK)
            if not data:
                return
            rest += len(data)
        raise damaged("more follows its end.")

    def spool(self) -> int:
        """All of it in a file without a name, for what lies in it is told at its end."""
        name = b".spool"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.root)
        os.unlink(name, dir_fd=self.root)
        while True:
            data = self.source.some(CHUNK)
            if not data:
                return fd
            if self.source.taken > self.most + self.most_entries * 1024:
                raise self.too_large()
            write_all(fd, data)

    def too_large(self) -> Refused:
        return Refused("TOO_LARGE", f"The archive unpacks to more than {self.most} bytes.")

    def count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.most:
            raise self.too_large()
        if self.bytes > FREE_RATIO and self.bytes > self.ratio * self.source.taken:
            raise Refused(
                "TOO_LARGE", f"The archive unpacks to more than {self.ratio} times its size."
            )

    def count_entry(self) -> None:
        self.entries += 1
        self.check_entries(self.entries)

    def check_entries(self, count: int) -> None:
        if count > self.most_entries:
            raise Refused("TOO_LARGE", f"The archive has more than {self.most_entries} entries.")

    def add(self, item: Item) -> None:
        self.seen += 1
        self.check_entries(self.seen)
        parts = entry_parts(item.name)
        if not parts:
            if item.kind == IS_FOLDER:
                return  # The target itself.
            raise Refused("OUTSIDE", "An entry of the archive has no name.")
        if item.kind == IS_FOLDER:
            self.enter(parts)
            # What is in it is removed and replaced like the rest, so its owner keeps all rights.
            os.fchmod(self.folder, item.mode & 0o777 | 0o700)
            return
        self.enter(parts[:-1])
        name = parts[-1]
        try:
            os.unlink(name, dir_fd=self.folder)
        except FileNotFoundError:
            self.count_entry()
        except (IsADirectoryError, PermissionError):
            why = "The archive has a file where it has a folder: "
            raise Refused("IS_A_DIRECTORY", why + shown(item)) from None
        actions: dict[bytes, Callable[[Item, bytes, int], None]] = {
            IS_FILE: self.add_file, IS_SYMLINK: self.add_symlink, IS_LINK: self.add_link,
        }  # fmt: skip
        actions[item.kind](item, name, len(parts) - 1)

    def enter(self, parents: list[bytes]) -> None:
        """Stand in a folder below the root, making what is not there."""
        common = 0
        if parents[: len(self.parents)] == self.parents:
            common = len(self.parents)
        else:
            os.close(self.folder)
            self.folder, self.parents = os.dup(self.root), []
        for part in parents[common:]:
            try:
                os.mkdir(part, 0o755, dir_fd=self.folder)
            except FileExistsError:
                pass
            else:
                self.count_entry()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            try:
                inner = os.open(part, flags, dir_fd=self.folder)
            except OSError:
                why = "The archive has a path through a link or a file."
                raise Refused("OUTSIDE", why) from None
            os.close(self.folder)
            self.folder = inner
            self.parents = [*self.parents, part]

    def add_file(self, item: Item, name: bytes, depth: int) -> None:
        if self.bytes + item.size > self.most:
            raise self.too_large()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=self.folder)
        try:
            for chunk in item.chunks():
                self.count(len(chunk))
                write_all(fd, chunk)
            # Who unpacks it can read it, as what looks for harm in it must.
            os.fchmod(fd, item.mode & 0o777 | 0o400)
            if 0 < item.time < 1 << 33:
                os.utime(fd, (item.time, item.time))
        finally:
            os.close(fd)

    def add_symlink(self, item: Item, name: bytes, depth: int) -> None:
        self.count(len(item.target))
        if not item.target or b"\0" in item.target:
            raise damaged("a link in it leads to no name.")
        if not self.keeps:
            check_target(item, depth)
        os.symlink(item.target, name, dir_fd=self.folder)

    def add_link(self, item: Item, name: bytes, depth: int) -> None:
        """Another name for a file of the same archive."""
        parts = entry_parts(item.target)
        folder, parents = os.dup(self.folder), self.parents
        try:
            self.enter(parts[:-1])
            last = parts[-1] if parts else b"."
            if not stat.S_ISREG(os.stat(last, dir_fd=self.folder, follow_symlinks=False).st_mode):
                raise Refused("OUTSIDE", "A link of the archive is to no file: " + shown(item))
            os.link(last, name, src_dir_fd=self.folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            raise Refused(
                "OUTSIDE", "A link of the archive is to no file: " + shown(item)
            ) from None
        finally:
            os.close(self.folder)
            self.folder, self.parents = folder, parents


def shown(item: Item) -> str:
    return item.name[:200].decode("utf-8", "replace")


def entry_parts(name: bytes) -> list[bytes]:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts:
        text = name[:200].decode("utf-8", "replace")
        raise Refused("OUTSIDE", "An entry of the archive leads out of its folder: " + text)
    if b"\0" in name or len(name) > MAX_NAME or len(parts) > MAX_DEPTH:
        raise damaged("a name in it is malformed or too long.")
    return parts


def check_target(item: Item, depth: int) -> None:
    """A symbolic link must stay inside by itself: upwards first, then down, never up again.

    Names on the way down may be links as well; each of those is held to the same.
    """
    parts = [part for part in item.target.split(b"/") if part not in (b"", b".")]
    ups = 0
    while ups < len(parts) and parts[ups] == b"..":
        ups += 1
    if item.target.startswith(b"/") or ups > depth or b".." in parts[ups:]:
        raise Refused("OUTSIDE", "A link of the archive leads out of its folder: " + shown(item))


def merge(draft: int, target: int, is_trial: bool) -> None:
    """Move what is in a folder into another; a trial finds what stands in the way."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    for name in map(os.fsencode, os.listdir(draft)):
        is_folder = stat.S_ISDIR(os.stat(name, dir_fd=draft, follow_symlinks=False).st_mode)
        try:
            there = os.stat(name, dir_fd=target, follow_symlinks=False).st_mode
        except FileNotFoundError:
            there = 0
        if there and is_folder != stat.S_ISDIR(there):
            text = name.decode("utf-8", "replace")
            raise Refused("EXISTS", "A file and a folder stand in each other's way: " + text)
        if not there or not is_folder:
            if not is_trial:
                os.rename(name, name, src_dir_fd=draft, dst_dir_fd=target)
            continue
        inner = os.open(name, flags, dir_fd=draft)
        other = os.open(name, flags, dir_fd=target)
        try:
            merge(inner, other, is_trial)
        finally:
            os.close(inner)
            os.close(other)
