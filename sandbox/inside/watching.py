"""What changes below a directory, told as it happens, and everything there is below one.

The kernel's inotify tells. A watch begins with OVERFLOW, which means: what there is must be listed
now; from here on every change is told. It comes again whenever changes were lost. Directories that
cannot be watched (there are too many, or they may not be read) make it come with the flag set:
what happens in those is not told.

A burst is read in small rounds with pauses in between, so that no program keeps the agent busy by
writing; what the kernel cannot hold meanwhile is lost, which OVERFLOW says.
"""

import os
import select
import stat
import struct
import time
from collections import deque

from sandbox.inside.changes import Changes
from sandbox.inside.core import PARTS, Agent
from sandbox.inside.directories import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Directories,
)
from sandbox.inside.files import Files
from sandbox.inside.paths import MAX_DEPTH, Workspace
from sandbox.inside.walking import walk
from sandbox.inside.wire import (
    AMOUNT,
    CHUNK,
    CREATED,
    MODIFIED,
    REMOVED,
    RENAMED,
    WALK,
    WATCH,
    WATCH_HEAD,
    Refused,
    unpack,
)

MAX_WATCHES = 8  # At once; the kernel allows 128 instances to a user.
ROUND = 32 * 1024  # Bytes of the kernel's queue read in one round.
PAUSE_S = 0.02
STEP = 256  # Entries of a directory looked at in one turn.
NEWS = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class Watch:
    """One watch: a directory, and those below it if it is recursive."""

    def __init__(
        self, agent: Agent, workspace: Workspace, op: int, recursive: bool, credit: int, path: bytes
    ) -> None:
        self.agent = agent
        self.op = op
        self.recursive = recursive
        self.next_at = 0.0
        # Directories to look into: place, whether what is in them is news, and how far that is.
        self.queue: deque[tuple[tuple[int, bytes], bool]] = deque()
        self.looking: tuple[int, bool, int, os._ScandirIterator[str]] | None = None
        self.moves: dict[int, tuple[int, bytes, bool]] = {}
        # Files that were not where they were told of: gone, or moved with a directory above.
        self.missing: set[tuple[int, bytes]] = set()
        self.has_moved = False  # A directory did, since the missing were looked for.
        self.changes = Changes(agent, op, credit)
        self.directories = Directories(workspace, path)
        self.fd = self.directories.fd
        self.queue.append(((0, b""), False))

    # Looking into directories.

    def look(self) -> None:
        """Look into directories for a while: watch those below, tell what is in new ones."""
        left = STEP
        while left > 0 and (self.looking is not None or self.queue):
            if self.looking is None:
                left -= 8  # Opening costs more than a name.
                self.enter(*self.queue.popleft())
                continue
            number, is_news, _, entries = self.looking
            for entry in entries:
                left -= 1
                self.see(number, is_news, entry)
                if left <= 0:
                    break
            else:
                self.stop_looking()
        if self.changes.overflow and not self.queue and self.looking is None:
            # Only now is everything watched that is there.
            self.changes.tell_overflow()

    def enter(self, where: tuple[int, bytes], is_news: bool) -> None:
        above, name = where
        if name and above not in self.directories.places:
            return
        path = self.directories.path(above, name)
        if path.count(b"/") >= MAX_DEPTH:
            # Each is opened from the top on, so a few thousand levels would cost minutes.
            self.changes.miss()
            return
        try:
            folder = self.directories.open(path)
            try:
                number = self.directories.root if not name else self.directories.add(folder)
                self.directories.place(number, where)
                self.looking = (number, is_news, folder, os.scandir(folder))
            except (OSError, Refused):
                os.close(folder)
                raise
        except FileNotFoundError:
            return
        except (OSError, Refused):
            self.changes.miss()

    def see(self, number: int, is_news: bool, entry: "os.DirEntry[str]") -> None:
        name = os.fsencode(entry.name)
        try:
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_news:
                info = entry.stat(follow_symlinks=False)
                size = info.st_size if stat.S_ISREG(info.st_mode) else 0
                self.changes.note(CREATED, is_directory, self.directories.path(number, name), size)
        except OSError:
            return
        if is_directory and self.recursive:
            self.queue.append(((number, name), is_news))

    def stop_looking(self) -> None:
        if self.looking is not None:
            self.looking[3].close()
            os.close(self.looking[2])
            self.looking = None

    # Changes.

    def round(self) -> None:
        """Read some of the kernel's news, and tell what they mean."""
        began = time.monotonic()
        held = dict(self.moves)
        try:
            data = os.read(self.fd, ROUND)
        except BlockingIOError:
            data = b""
        at = 0
        touched: set[tuple[int, bytes]] = set()
        while at < len(data):
            number, mask, cookie, size = NEWS.unpack_from(data, at)
            at += NEWS.size
            name = data[at : at + size].rstrip(b"\0")
            at += size
            self.take(number, mask, cookie, name, touched)
        for cookie in held:
            # The other half of a move comes at once, or never.
            self.gone(cookie)
        self.tell_touched(touched)
        self.find_missing(not data)
        self.changes.pack()
        self.next_at = time.monotonic() + max(PAUSE_S, 3 * (time.monotonic() - began))

    def take(
        self, number: int, mask: int, cookie: int, name: bytes, touched: "set[tuple[int, bytes]]"
    ) -> None:
        is_directory = bool(mask & IN_ISDIR)
        where = (number, name)
        if mask & IN_Q_OVERFLOW:
            self.restart()
        elif mask & IN_IGNORED:
            if number == self.directories.root:
                raise Refused("NOT_FOUND", "The directory was removed.")
            self.directories.forget(number)
        elif number not in self.directories.places or not name:
            return
        elif mask & IN_MOVED_FROM:
            self.tell_touched(touched)
            self.moves[cookie] = (number, name, is_directory)
        elif mask & IN_MOVED_TO and cookie in self.moves:
            self.tell_touched(touched)
            self.moved(cookie, where)
        elif mask & IN_DELETE:
            touched.discard(where)
            self.missing.discard(where)
            self.changes.note(REMOVED, is_directory, self.directories.path(number, name), 0)
        elif mask & (IN_CREATE | IN_MOVED_TO):
            self.appeared(where, is_directory)
        elif is_directory:
            if mask & IN_ATTRIB and where not in self.directories.numbers:
                self.find(where, is_directory)  # It may be readable now.
        elif mask & (IN_MODIFY | IN_CLOSE_WRITE):
            touched.add(where)

    def appeared(self, where: tuple[int, bytes], is_directory: bool) -> None:
        for cookie, (above, name, _) in list(self.moves.items()):
            if (above, name) == where:
                self.gone(cookie)
        self.changes.note(
            CREATED, is_directory, self.directories.path(*where), self.size(where, is_directory)
        )
        self.find(where, is_directory)

    def tell_touched(self, touched: "set[tuple[int, bytes]]") -> None:
        """Tell what was written to, once for all writes, with the size after them."""
        for where in sorted(touched):
            if where[0] in self.directories.places:
                self.changes.note(
                    MODIFIED, False, self.directories.path(*where), self.size(where, False)
                )
        touched.clear()

    def find_missing(self, is_quiet: bool) -> None:
        """Tell the sizes of files where they are by now; once all news are read they are gone.

        They are found again only where a directory above has moved: to look for all of them at
        every round would cost more the longer the news are that are still to be read.
        """
        if not (is_quiet or self.has_moved):
            return
        self.has_moved = False
        missing, self.missing = self.missing, set()
        for where in sorted(missing):
            size = self.size(where, False)
            if where not in self.missing and where[0] in self.directories.places:
                self.changes.note(MODIFIED, False, self.directories.path(*where), size)
        if is_quiet:
            self.missing.clear()

    def size(self, where: tuple[int, bytes], is_directory: bool) -> int:
        if is_directory:
            return 0
        directories = self.directories
        path = directories.path(*where)
        try:
            folder, name = directories.workspace.walk(directories.top + b"/" + path, False)
            try:
                info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            finally:
                os.close(folder)
        except (OSError, Refused):
            self.missing.add(where)
            return 0
        return info.st_size if stat.S_ISREG(info.st_mode) else 0

    def find(self, where: tuple[int, bytes], is_directory: bool) -> None:
        if is_directory and self.recursive:
            self.queue.append((where, True))

    def moved(self, cookie: int, where: tuple[int, bytes]) -> None:
        above, name, is_directory = self.moves.pop(cookie)
        old, path = self.directories.path(above, name), self.directories.path(*where)
        size = self.size(where, is_directory)
        self.changes.note(RENAMED, is_directory, path, size, old)
        number = self.directories.numbers.get((above, name))
        if number is not None:
            self.directories.place(number, where)
            self.has_moved = True
        else:
            self.find(where, is_directory)

    def gone(self, cookie: int) -> None:
        """A move that leads out of what is watched."""
        found = self.moves.pop(cookie, None)
        if found is None:
            return
        number, name, is_directory = found
        if number in self.directories.places:
            self.changes.note(REMOVED, is_directory, self.directories.path(number, name), 0)
        below = self.directories.numbers.get((number, name))
        if below is not None:
            self.directories.leave(below)

    def restart(self) -> None:
        """Changes were lost: look at everything anew."""
        self.changes.lose()
        self.moves.clear()
        self.missing.clear()
        self.queue.clear()
        self.stop_looking()
        self.queue.append(((0, b""), False))

    # Turns.

    def due(self) -> float:
        if self.changes.outbox:
            return float("inf")
        if self.queue or self.looking is not None or self.changes.overflow:
            return 0.0
        if self.fd in self.agent.handlers and not self.moves and not self.missing:
            return float("inf")
        return self.next_at

    def turn(self, now: float) -> None:
        if self.changes.outbox:
            # Who does not read is told no more; the kernel holds what it can.
            self.agent.unwatch(self.fd)
            return
        if self.queue or self.looking is not None or self.changes.overflow:
            self.look()
            self.changes.pack()
        if now >= self.next_at and not self.changes.outbox:
            if self.moves or self.missing:
                self.round()
            elif self.fd not in self.agent.handlers:
                self.agent.watch(self.fd, select.EPOLLIN, self.on_news)

    def on_news(self, events: int) -> None:
        self.agent.unwatch(self.fd)
        try:
            self.round()
        except Refused as refused:
            self.agent.fail(self.op, refused)
            self.agent.part(Watching).drop(self.op)

    def close(self) -> None:
        self.stop_looking()
        self.agent.close(self.fd)


class Watching:
    """The watches of a client, and walks."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.workspace = agent.part(Files).workspace
        self.open: dict[int, Watch] = {}
        agent.operations[WATCH] = self.on_watch
        agent.operations[WALK] = self.on_walk
        agent.reset_hooks.append(self.on_reset)
        agent.room_hooks.append(self.on_room)
        agent.due_hooks.append(self.due)
        agent.tick_hooks.append(self.tick)

    def on_watch(self, op: int, body: bytes) -> None:
        recursive, credit = WATCH_HEAD.unpack_from(body)
        path, _ = unpack(body, WATCH_HEAD.size)
        if len(self.open) >= MAX_WATCHES:
            raise Refused("EXHAUSTED", "Too many directories are watched.")
        if credit < CHUNK:
            raise Refused("INVALID", "A watch needs more room for its answers.")
        self.open[op] = Watch(self.agent, self.workspace, op, bool(recursive), credit, path)
        self.agent.cancel_hooks[op] = lambda: self.drop(op)
        self.agent.credit_hooks[op] = self.open[op].changes.on_credit

    def drop(self, op: int) -> None:
        self.open.pop(op).close()
        self.agent.forget(op)

    def on_reset(self) -> None:
        for op in list(self.open):
            self.drop(op)

    def on_room(self) -> None:
        for watch in self.open.values():
            watch.changes.flush()

    def due(self) -> float:
        return min([watch.due() for watch in self.open.values()], default=float("inf"))

    def tick(self, now: float, lost: float) -> None:
        for op, watch in list(self.open.items()):
            try:
                watch.turn(now)
            except Refused as refused:
                self.agent.fail(op, refused)
                self.drop(op)

    def on_walk(self, op: int, body: bytes) -> None:
        (credit,) = AMOUNT.unpack_from(body)
        path, _ = unpack(body, AMOUNT.size)
        self.agent.fork_worker(op, lambda output, _: walk(self.workspace, path, output), credit)


PARTS.append(Watching)
