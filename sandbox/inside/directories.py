"""The directories that the kernel's inotify watches, by its numbers and by their names."""

import os

from sandbox.inside.native import (
    errno_of_last,
    libc_inotify_add_watch,
    libc_inotify_init1,
    libc_inotify_rm_watch,
)
from sandbox.inside.paths import Workspace
from sandbox.inside.wire import Refused, refusal

MAX_DIRECTORIES = 8192  # Of one watch.

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_Q_OVERFLOW, IN_IGNORED, IN_ISDIR = 0x100, 0x200, 0x4000, 0x8000, 0x40000000
IN_EXCL_UNLINK = 0x4000000
INTEREST = (
    IN_MODIFY
    | IN_ATTRIB
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_EXCL_UNLINK
)


class Directories:
    """A directory that is watched, the top, and those below it that were added."""

    def __init__(self, workspace: Workspace, path: bytes) -> None:
        self.workspace = workspace
        self.top = path
        self.root = -1
        # By the kernel's number: the number of the one above, and the name in it.
        self.places: dict[int, tuple[int, bytes]] = {}
        self.numbers: dict[tuple[int, bytes], int] = {}
        self.fd = libc_inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise refusal(OSError(errno_of_last(), "inotify_init1"))
        try:
            folder = self.open(b"")
            try:
                self.root = self.add(folder)
            finally:
                os.close(folder)
        except (OSError, Refused):
            os.close(self.fd)
            raise
        self.places[self.root] = (0, b"")

    def open(self, path: bytes) -> int:
        """A directory below the top; one that is not there (or a link) raises OSError."""
        whole = self.top + b"/" + path if path else self.top
        folder, name = self.workspace.walk(whole, not path)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)

    def add(self, folder: int) -> int:
        """Let the kernel watch an open directory; its number."""
        if len(self.places) >= MAX_DIRECTORIES:
            raise Refused("EXHAUSTED", "Too many directories are watched.")
        # By the descriptor, so that no link put in its place meanwhile is followed.
        home = os.open(".", os.O_PATH | os.O_DIRECTORY)
        try:
            os.fchdir(folder)
            number = int(libc_inotify_add_watch(self.fd, b".", INTEREST))
        finally:
            os.fchdir(home)
            os.close(home)
        if number < 0:
            raise refusal(OSError(errno_of_last(), "inotify_add_watch"))
        return number

    def path(self, number: int, name: bytes = b"") -> bytes:
        """The path below the top of a name in a directory."""
        parts = [name] if name else []
        while number in self.places and number != self.root:
            number, part = self.places[number]
            parts.append(part)
        return b"/".join(reversed(parts))

    def place(self, number: int, where: tuple[int, bytes]) -> None:
        """Note where a directory is now."""
        if number == self.root:
            return
        before = self.places.get(number)
        if before is not None and self.numbers.get(before) == number:
            del self.numbers[before]
        self.places[number] = where
        self.numbers[where] = number

    def forget(self, number: int) -> None:
        where = self.places.pop(number, None)
        if where is not None and self.numbers.get(where) == number:
            del self.numbers[where]

    def leave(self, number: int) -> None:
        """Watch a directory no more, nor those below it: it went elsewhere."""
        gone = {number}
        for other in list(self.places):
            line = []
            above = other
            while above in self.places and above not in gone and above != self.root:
                line.append(above)
                above = self.places[above][0]
            if above in gone:
                gone.update(line)
        for other in gone:
            libc_inotify_rm_watch(self.fd, other)
            self.forget(other)
