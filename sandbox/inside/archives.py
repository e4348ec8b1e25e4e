"""Whole trees: packed into an archive, and made from one.

An archive is unpacked beside its target, into a folder of its own, and moved there when it is
whole: nothing of one that is broken off, or refused, is left behind.
"""

import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.files import Files
from sandbox.inside.paths import MAX_DEPTH, write_all
from sandbox.inside.processes import leave_agent
from sandbox.inside.tars import (
    IS_FILE,
    IS_FOLDER,
    IS_LINK,
    IS_SYMLINK,
    MAX_NAME,
    Inflated,
    Item,
    TarWriter,
    damaged,
    no_chunks,
    tar_items,
)
from sandbox.inside.wire import (
    CHUNK,
    KEEP_LINKS,
    PACK,
    READ_HEAD,
    TAR,
    TAR_GZ,
    UNPACK_HEAD,
    UNPACK_OPEN,
    UNPACKED,
    ZIP,
    Refused,
    unpack,
)
from sandbox.inside.zips import ZipReader, ZipWriter

if TYPE_CHECKING:
    from typing import NoReturn

MAX_TRAILER = 1024 * 1024  # Bytes behind the end of an archive, which some programs fill up.
FREE_RATIO = 1024 * 1024  # Bytes that any archive may unpack to, however small it is.


class Archives:
    """Operations on whole trees, each in a worker."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.files = agent.part(Files)
        self.workspace = self.files.workspace
        agent.operations[PACK] = self.on_pack
        agent.operations[UNPACK_OPEN] = self.on_unpack

    def on_pack(self, op: int, body: bytes) -> None:
        content, most, credit = READ_HEAD.unpack_from(body)
        style = body[READ_HEAD.size]
        path, _ = unpack(body, READ_HEAD.size + 1)
        check_style(style)
        folder, name = self.workspace.walk(path, True)
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

        def work(output: int, _: int) -> None:
            self.pack(path, style, Packed(output, style, most), content)

        self.agent.fork_worker(op, work, credit)

    def pack(self, path: bytes, style: int, packed: "Packed", content: int) -> None:
        """Pack files of at most `content` bytes, holes counted; 0: however many."""
        writer: Any = ZipWriter(packed.write) if style == ZIP else TarWriter(packed.write)
        folder, name = self.workspace.walk(path, True)
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        found: Any = [(folder, name, name, info)]
        if stat.S_ISDIR(info.st_mode):
            found = tree(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder))
        links: dict[tuple[int, int], bytes] = {}
        taken = 0
        for where, base, shown, entry in found:
            item = as_item(where, base, shown, entry, None if style == ZIP else links)
            if item is None:
                continue
            taken += item.size
            if 0 < content < taken:
                raise oversized(shown, content)
            writer.add(item)
        writer.finish()
        packed.finish()

    def on_unpack(self, op: int, body: bytes) -> None:
        style, most, entries, ratio = UNPACK_HEAD.unpack_from(body)
        path, _ = unpack(body, UNPACK_HEAD.size)
        keeps, style = bool(style & KEEP_LINKS), style & ~KEEP_LINKS
        check_style(style)
        self.check_target(path)
        # As drafts of single files are called, which nobody looks at.
        staging = b".archive.%d.part" % int.from_bytes(os.urandom(6), "big")

        def work(_: int, source: int) -> bytes:
            os.mkdir(os.path.join(self.workspace.root, staging), 0o700)
            draft = self.workspace.open(staging, os.O_RDONLY | os.O_DIRECTORY)
            unpacking = Unpacking(draft, Arriving(source), (most, entries, ratio), keeps)
            try:
                unpacking.run(style)
                self.files.make_dirs(path)
                target = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
                merge(draft, target, is_trial=True)
                merge(draft, target, is_trial=False)
            finally:
                self.workspace.clear(os.open(self.workspace.root, os.O_RDONLY), staging)
            return UNPACKED.pack(unpacking.bytes, unpacking.entries)

        self.agent.fork_worker(op, work, 0, receives=True)
        pid = self.agent.workers[op].pid
        settle = self.agent.children[pid]

        def on_exit(status: int) -> None:
            # However it ended, by an answer, CANCEL or a signal of user code.
            self.clean(staging)
            settle(status)

        self.agent.children[pid] = on_exit

    def check_target(self, path: bytes) -> None:
        """Find out early what stands in the way; what is not there is made at the end."""
        try:
            fd = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        os.close(fd)

    def clean(self, staging: bytes) -> None:
        """Remove what an archive was unpacked into, in a child that nobody waits for."""
        try:
            top = os.open(self.workspace.root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            os.rmdir(staging, dir_fd=top)
        except FileNotFoundError:
            return
        except OSError:
            try:
                pid = os.fork()
            except OSError:
                return
            if pid == 0:
                self.clear(staging)
            self.agent.children[pid] = lambda status: None
        finally:
            os.close(top)

    def clear(self, staging: bytes) -> "NoReturn":
        try:
            null = os.open("/dev/null", os.O_RDWR)
            leave_agent([null, null, 2])
            self.workspace.clear(os.open(self.workspace.root, os.O_RDONLY), staging)
        finally:
            os._exit(0)


def check_style(style: int) -> None:
    if style not in (TAR, TAR_GZ, ZIP):
        raise Refused("INVALID", "There is no such format of archives.")
    if style != TAR:
        try:
            import zlib
        except ImportError:
            zlib = None  # type: ignore[assignment]
        if zlib is None:
            raise Refused(
                "UNSUPPORTED", "The Python inside the sandbox cannot compress: use the format tar."
            )


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


class Arriving:
    """An archive on its way in."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.taken = 0

    def some(self, most: int) -> bytes:
        data = os.read(self.fd, most)
        self.taken += len(data)
        return data


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
            os.fchmod(fd, item.mode & 0o777)
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


PARTS.append(Archives)
