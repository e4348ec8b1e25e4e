"""Paths of the workspace, walked by directory descriptors so that no race leads out."""

import errno
import os
import stat
from collections import deque

from sandbox.inside.wire import ENTRY, Refused, pack

MAX_DEPTH = 200


class Workspace:
    """The one folder that files are read from and written to."""

    def __init__(self, root: bytes) -> None:
        self.root = root

    def parts(self, path: bytes) -> list[bytes]:
        if not path.startswith(b"/"):
            return path.split(b"/")
        if path == self.root or path.startswith(self.root + b"/"):
            return path[len(self.root) :].split(b"/")
        raise Refused("OUTSIDE", "The path leads out of the workspace.")

    def walk(self, path: bytes, follow: bool) -> tuple[int, bytes]:
        """The open directory that holds the path, and the name in it; the caller closes it.

        The name is `.` for the workspace itself. A symlink that stays inside is followed; at the
        last name only if `follow`.
        """
        todo = deque(self.parts(path))
        stack = [os.open(self.root, os.O_PATH | os.O_DIRECTORY)]
        links = 0
        try:
            while todo:
                name = todo.popleft()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    if len(stack) == 1:
                        raise Refused("OUTSIDE", "The path leads out of the workspace.")
                    os.close(stack.pop())
                    continue
                last = not any(part not in (b"", b".") for part in todo)
                if last and not follow:
                    return stack.pop(), name
                target = self.enter(name, stack, last)
                if target is None:
                    if last:
                        return stack.pop(), name
                    continue
                links += 1
                if links > 40:
                    raise Refused("DENIED", "Too many symbolic links.")
                todo.extendleft(reversed(self.parts(target)))
                while target.startswith(b"/") and len(stack) > 1:
                    os.close(stack.pop())
            return stack.pop(), b"."
        finally:
            for fd in stack:
                os.close(fd)

    def enter(self, name: bytes, stack: list[int], last: bool) -> bytes | None:
        """Step into a directory, unless it is the last name; the target if it is a link."""
        target = self.link(name, stack[-1])
        if target is not None or last:
            return target
        try:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            stack.append(os.open(name, flags, dir_fd=stack[-1]))
        except NotADirectoryError:
            # A file, or a link that has just taken the place of a directory.
            target = self.link(name, stack[-1])
            if target is None:
                raise
        return target

    def link(self, name: bytes, folder: int) -> bytes | None:
        try:
            return os.readlink(name, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise

    def open(self, path: bytes, flags: int) -> int:
        folder, name = self.walk(path, True)
        try:
            # Without O_NONBLOCK a named pipe would hold the agent for ever.
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            return os.open(name, flags, dir_fd=folder)
        finally:
            os.close(folder)

    def entry(self, folder: int, name: bytes, shown: bytes) -> bytes:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        directory = stat.S_ISDIR(info.st_mode)
        size = 0 if directory else info.st_size
        return ENTRY.pack(directory, size, info.st_mtime, info.st_mode) + pack(shown)

    def clear(self, folder: int, name: bytes, depth: int = 0) -> None:
        """Remove a directory with all that is in it."""
        if depth > MAX_DEPTH:
            raise Refused("DENIED", "The directory is nested too deeply; remove it by a command.")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        inner = os.open(name, flags, dir_fd=folder)
        try:
            for child in os.listdir(inner):
                raw = os.fsencode(child)
                mode = os.stat(raw, dir_fd=inner, follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    self.clear(inner, raw, depth + 1)
                else:
                    os.unlink(raw, dir_fd=inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=folder)


def write_all(fd: int, data: bytes) -> None:
    """Write to a blocking descriptor until nothing is left."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
