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

from sandbox.inside.core import PARTS, Agent
from sandbox.inside.files import Files
from sandbox.inside.native import (
    errno_of_last,
    libc_inotify_add_watch,
    libc_inotify_init1,
    libc_inotify_rm_watch,
)
from sandbox.inside.paths import MAX_DEPTH, Workspace, write_all
from sandbox.inside.wire import (
    AMOUNT,
    CHANGE,
    CHUNK,
    CREATED,
    DATA,
    ENTRY,
    MODIFIED,
    OVERFLOW,
    REMOVED,
    RENAMED,
    WALK,
    WATCH,
    WATCH_HEAD,
    Refused,
    pack,
    refusal,
    unpack,
)

MAX_WATCHES = 8  # At once; the kernel allows 128 instances to a user.
MAX_DIRECTORIES = 8192  # Of one watch.
MAX_PATH = 4096
WALK_ENTRIES = 200_000
PACKED = 16 * 1024  # Bytes beyond which a frame of changes takes no more.
ROUND = 32 * 1024  # Bytes of the kernel's queue read in one round.
PAUSE_S = 0.02
STEP = 256  # Entries of a directory looked at in one turn.

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
NEWS = struct.Struct("iIII")  # watch, mask, cookie, length of the name


class Watch:
    """One watch: a directory, and those below it if it is recursive."""

    def __init__(
        self, agent: Agent, workspace: Workspace, op: int, recursive: bool, credit: int, path: bytes
    ) -> None:
        self.agent = agent
        self.workspace = workspace
        self.op = op
        self.recursive = recursive
        self.credit = credit
        self.top = path
        self.root = -1
        self.next_at = 0.0
        # Directories by the kernel's number: the number of the one above, and the name in it.
        self.places: dict[int, tuple[int, bytes]] = {}
        self.numbers: dict[tuple[int, bytes], int] = {}
        # Directories to look into: place, whether what is in them is news, and how far that is.
        self.queue: deque[tuple[tuple[int, bytes], bool]] = deque()
        self.looking: tuple[int, bool, int, os._ScandirIterator[str]] | None = None
        self.moves: dict[int, tuple[int, bytes, bool]] = {}
        # Files that were not where they were told of: gone, or moved with a directory above.
        self.missing: set[tuple[int, bytes]] = set()
        self.has_moved = False  # A directory did, since the missing were looked for.
        self.changes: list[tuple[int, bool, int, bytes, bytes]] = []
        self.latest: dict[bytes, int] = {}
        self.outbox: deque[bytes] = deque()
        self.overflow = True
        self.partial = False
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
        self.queue.append(((0, b""), False))

    # Directories.

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
        if self.overflow and not self.queue and self.looking is None:
            # Only now is everything watched that is there.
            self.overflow = False
            self.changes.append((OVERFLOW, self.partial, 0, b"", b""))
            self.latest.clear()

    def enter(self, where: tuple[int, bytes], is_news: bool) -> None:
        above, name = where
        if name and above not in self.places:
            return
        path = self.path(above, name)
        if path.count(b"/") >= MAX_DEPTH:
            # Each is opened from the top on, so a few thousand levels would cost minutes.
            self.miss()
            return
        try:
            folder = self.open(path)
            try:
                number = self.root if not name else self.add(folder)
                self.place(number, where)
                self.looking = (number, is_news, folder, os.scandir(folder))
            except (OSError, Refused):
                os.close(folder)
                raise
        except FileNotFoundError:
            return
        except (OSError, Refused):
            self.miss()

    def miss(self) -> None:
        """Something cannot be watched: the reader must look for itself."""
        if not self.partial:
            self.partial = self.overflow = True

    def see(self, number: int, is_news: bool, entry: "os.DirEntry[str]") -> None:
        name = os.fsencode(entry.name)
        try:
            is_directory = entry.is_dir(follow_symlinks=False)
            if is_news:
                info = entry.stat(follow_symlinks=False)
                size = info.st_size if stat.S_ISREG(info.st_mode) else 0
                self.note(CREATED, is_directory, self.path(number, name), size)
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

    def note(self, kind: int, is_directory: bool, path: bytes, size: int, old: bytes = b"") -> None:
        """Add a change to those that are told next; several of one path become one."""
        if len(path) > MAX_PATH or len(old) > MAX_PATH:
            self.miss()
            return
        at = self.latest.get(path)
        if kind == RENAMED:
            # What came before was told of other names.
            self.latest.clear()
        elif at is not None and self.changes[at][1] == is_directory:
            before = self.changes[at][0]
            if REMOVED in (kind, before):
                self.latest.pop(path)
            else:
                kind = before if before in (CREATED, RENAMED) else kind
                self.changes[at] = (kind, is_directory, size, path, self.changes[at][4])
                return
        self.latest[path] = len(self.changes)
        self.changes.append((kind, is_directory, size, path, old))

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
        self.pack()
        self.next_at = time.monotonic() + max(PAUSE_S, 3 * (time.monotonic() - began))

    def take(
        self, number: int, mask: int, cookie: int, name: bytes, touched: "set[tuple[int, bytes]]"
    ) -> None:
        is_directory = bool(mask & IN_ISDIR)
        where = (number, name)
        if mask & IN_Q_OVERFLOW:
            self.restart()
        elif mask & IN_IGNORED:
            if number == self.root:
                raise Refused("NOT_FOUND", "The directory was removed.")
            self.forget(number)
        elif number not in self.places or not name:
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
            self.note(REMOVED, is_directory, self.path(number, name), 0)
        elif mask & (IN_CREATE | IN_MOVED_TO):
            self.appeared(where, is_directory)
        elif is_directory:
            if mask & IN_ATTRIB and where not in self.numbers:
                self.find(where, is_directory)  # It may be readable now.
        elif mask & (IN_MODIFY | IN_CLOSE_WRITE):
            touched.add(where)

    def appeared(self, where: tuple[int, bytes], is_directory: bool) -> None:
        for cookie, (above, name, _) in list(self.moves.items()):
            if (above, name) == where:
                self.gone(cookie)
        self.note(CREATED, is_directory, self.path(*where), self.size(where, is_directory))
        self.find(where, is_directory)

    def tell_touched(self, touched: "set[tuple[int, bytes]]") -> None:
        """Tell what was written to, once for all writes, with the size after them."""
        for where in sorted(touched):
            if where[0] in self.places:
                self.note(MODIFIED, False, self.path(*where), self.size(where, False))
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
            if where not in self.missing and where[0] in self.places:
                self.note(MODIFIED, False, self.path(*where), size)
        if is_quiet:
            self.missing.clear()

    def size(self, where: tuple[int, bytes], is_directory: bool) -> int:
        if is_directory:
            return 0
        path = self.path(*where)
        try:
            folder, name = self.workspace.walk(self.top + b"/" + path, False)
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
        old, path = self.path(above, name), self.path(*where)
        size = self.size(where, is_directory)
        self.note(RENAMED, is_directory, path, size, old)
        number = self.numbers.get((above, name))
        if number is not None:
            self.place(number, where)
            self.has_moved = True
        else:
            self.find(where, is_directory)

    def gone(self, cookie: int) -> None:
        """A move that leads out of what is watched."""
        found = self.moves.pop(cookie, None)
        if found is None:
            return
        number, name, is_directory = found
        if number in self.places:
            self.note(REMOVED, is_directory, self.path(number, name), 0)
        below = self.numbers.get((number, name))
        if below is not None:
            self.leave(below)

    def restart(self) -> None:
        """Changes were lost: look at everything anew."""
        self.overflow = True
        self.partial = False
        self.moves.clear()
        self.missing.clear()
        self.changes.clear()
        self.latest.clear()
        self.queue.clear()
        self.stop_looking()
        self.queue.append(((0, b""), False))

    # Frames.

    def pack(self) -> None:
        """Put the changes into frames that wait for credit."""
        frame = b""
        for kind, is_directory, size, path, old in self.changes:
            frame += CHANGE.pack(kind, is_directory, size) + pack(path) + pack(old)
            if len(frame) > PACKED:
                self.outbox.append(frame)
                frame = b""
        if frame:
            self.outbox.append(frame)
        self.changes.clear()
        self.latest.clear()
        self.flush()

    def flush(self) -> None:
        while self.outbox and self.credit >= len(self.outbox[0]) and not self.agent.is_full():
            frame = self.outbox.popleft()
            self.credit -= len(frame)
            self.agent.send(DATA, self.op, frame)

    def on_credit(self, amount: int) -> None:
        self.credit += amount
        self.flush()

    # Turns.

    def due(self) -> float:
        if self.outbox:
            return float("inf")
        if self.queue or self.looking is not None or self.overflow:
            return 0.0
        if self.fd in self.agent.handlers and not self.moves and not self.missing:
            return float("inf")
        return self.next_at

    def turn(self, now: float) -> None:
        if self.outbox:
            # Who does not read is told no more; the kernel holds what it can.
            self.agent.unwatch(self.fd)
            return
        if self.queue or self.looking is not None or self.overflow:
            self.look()
            self.pack()
        if now >= self.next_at and not self.outbox:
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
        self.agent.credit_hooks[op] = self.open[op].on_credit

    def drop(self, op: int) -> None:
        self.open.pop(op).close()
        self.agent.forget(op)

    def on_reset(self) -> None:
        for op in list(self.open):
            self.drop(op)

    def on_room(self) -> None:
        for watch in self.open.values():
            watch.flush()

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


def walk(workspace: Workspace, top: bytes, output: int) -> None:
    """Write every entry below a directory, at most 200 levels deep.

    One that goes meanwhile may be told or not.
    """
    todo = [b""]
    batch = b""
    left = WALK_ENTRIES
    while todo:
        path = todo.pop()
        whole = top + b"/" + path if path else top
        try:
            folder, name = workspace.walk(whole, not path)
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
                inner = os.open(name, flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError:
            if not path:
                raise
            continue  # Gone, or not to be read.
        try:
            for child in os.listdir(inner):
                raw = os.fsencode(child)
                shown = path + b"/" + raw if path else raw
                try:
                    record = workspace.entry(inner, raw, shown)
                except OSError:
                    continue
                left -= 1
                if left < 0:
                    raise Refused("TOO_LARGE", "The directory has more than 200000 entries below.")
                if len(shown) > MAX_PATH:
                    continue
                if ENTRY.unpack_from(record)[0] and shown.count(b"/") < MAX_DEPTH:
                    todo.append(shown)
                batch += record
                if len(batch) > CHUNK:
                    write_all(output, batch)
                    batch = b""
        finally:
            os.close(inner)
    write_all(output, batch)


PARTS.append(Watching)
