# ruff: noqa: B905 - Python 3.8 knows no strict zip.
"""The agent: process 1 inside a sandbox, serving one duplex channel of frames.

This file travels into the sandbox as the text of `python3 -c`, so it needs Python 3.8 with the
standard library's C extensions (`ctypes`, `resource`) and imports nothing else. It trusts the
channel and distrusts everything that runs beside it: user code has the same uid, so the agent is
safe only through being process 1 (signals from inside cannot end it), through PR_SET_DUMPABLE
(its memory and descriptors, and those of its shims, cannot be opened) and through the seccomp
policy (no ptrace). What a shim reports is advice alone: an execution is over when the kernel says
that its shim is gone and nothing is left below.

Wire format: `type u8, operation u32, length u32, payload`, big endian. A zero byte where a type
is expected is padding and is skipped: a client that takes over a channel in the middle of a frame
first sends more zeros than any frame is long, then HELLO; everything older is ended by HELLO.
"""

import ctypes
import errno
import gc
import os
import select
import signal
import stat
import struct
import sys
import time
from collections import deque

VERSION = 1
HEADER = struct.Struct(">BII")
MAX_PAYLOAD = 256 * 1024
CHUNK = 64 * 1024
STDIN_WINDOW = 256 * 1024
HIGH_WATER = 1024 * 1024  # Bytes waiting for the channel beyond which no pipe is read.
MAX_ENTRIES = 10_000
MAX_REPORTS = 8  # Of one shim; it needs four.
MAX_PID = 1 << 22

# From the client.
HELLO, EXEC, STDIN, STDIN_CLOSE, SIGNAL, CANCEL, CREDIT, PING = 1, 2, 3, 4, 5, 6, 7, 8
READ, WRITE_OPEN, WRITE_DATA, WRITE_END, LIST, STAT, MAKE_DIR, RENAME, REMOVE = range(16, 25)
# To the client.
READY, HELLO_ACK, STARTED, OUTPUT, RESULT, ERROR, STDIN_CREDIT, DATA, DONE, PONG = range(64, 74)

EXEC_HEAD = struct.Struct(">QQIBHH")  # timeout ms, output limit, credit, flags, argv, env
EXEC_STDIN = 1
RESULT_BODY = struct.Struct(">BBiiQQQQQ")
# reason, truncated, exit code (-1: none), signal (0: none), stdout bytes, stderr bytes,
# CPU microseconds, wall microseconds, peak memory of one process in bytes
EXITED, TIMED_OUT, OOM_KILLED, OUTPUT_LIMIT, KILLED = 0, 1, 2, 3, 4
READ_HEAD = struct.Struct(">QQI")  # offset, limit, credit
ENTRY = struct.Struct(">BQdI")  # is directory, size, modification time, mode
REPORT = struct.Struct(">cIQQ")  # kind, value, CPU microseconds, peak bytes

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36

ERRORS = {
    errno.ENOENT: "NOT_FOUND",
    errno.ENOTDIR: "NOT_A_DIRECTORY",
    errno.EISDIR: "IS_A_DIRECTORY",
    errno.EEXIST: "EXISTS",
    errno.ENOTEMPTY: "EXISTS",
    errno.ENOSPC: "NO_SPACE",
    errno.EDQUOT: "NO_SPACE",
    errno.EFBIG: "TOO_LARGE",
    errno.ENOMEM: "EXHAUSTED",
    errno.EAGAIN: "EXHAUSTED",
    errno.EMFILE: "EXHAUSTED",
    errno.ENFILE: "EXHAUSTED",
}


class Refused(Exception):  # noqa: N818
    """An operation that cannot be done: a code of ERRORS or OUTSIDE, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def refusal(error: OSError) -> Refused:
    code = ERRORS.get(error.errno or 0, "DENIED")
    return Refused(code, os.strerror(error.errno or errno.EIO) + ".")


def pack(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def unpack(data: bytes, at: int) -> "tuple[bytes, int]":
    (size,) = struct.unpack_from(">I", data, at)
    end = at + 4 + size
    if end > len(data):
        raise Refused("INVALID", "The frame is shorter than it says.")
    return data[at + 4 : end], end


def prctl(option: int, value: int) -> None:
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


# --- processes -----------------------------------------------------------------------------


def processes() -> "dict[int, tuple[int, bytes]]":
    """Parent and state of every process of this PID namespace."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fd = os.open("/proc/" + name + "/stat", os.O_RDONLY)
        except OSError:
            continue
        try:
            line = os.read(fd, 4096)
        except OSError:
            continue
        finally:
            os.close(fd)
        # The name in parentheses may hold anything; the last parenthesis ends it.
        fields = line[line.rfind(b")") + 2 :].split(None, 2)
        if len(fields) == 3:
            found[int(name)] = (int(fields[1]), fields[0])
    return found


def descendants(roots: "set[int]") -> "set[int]":
    """Every living process below the roots, the roots not among them."""
    table = processes()
    children = {}  # type: dict[int, list[int]]
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    below = set()  # type: set[int]
    queue = list(roots)
    while queue:
        for pid in children.get(queue.pop(), ()):
            if pid not in below:
                below.add(pid)
                queue.append(pid)
    return {pid for pid in below if table[pid][1] not in (b"Z", b"X")}


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # Already gone.


def end_below(roots: "set[int]") -> None:
    """Stop everything below the roots until nothing new appears, then kill all of it.

    A stopped process cannot fork, so the set settles even against a fork bomb.
    """
    seen = set()  # type: set[int]
    for _ in range(64):
        fresh = descendants(roots) - seen
        if not fresh:
            break
        for pid in fresh:
            send_signal(pid, signal.SIGSTOP)
        seen |= fresh
    for pid in seen:
        send_signal(pid, signal.SIGKILL)


def search_path(program: bytes, env: "dict[bytes, bytes]") -> bytes:
    if b"/" in program:
        return program
    for folder in env.get(b"PATH", b"").split(b":"):
        candidate = (folder or b".") + b"/" + program
        if os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "not found")


SIGNALS = [n for n in range(1, 32) if n not in (signal.SIGKILL, signal.SIGSTOP)]


def parse_exec(body: bytes) -> "tuple[int, int, int, int, list[bytes], bytes, dict[bytes, bytes]]":
    """Timeout in ms, output limit, credit, flags, command, directory, environment."""
    timeout_ms, limit, credit, flags, count, pairs = EXEC_HEAD.unpack_from(body)
    at = EXEC_HEAD.size
    strings = []
    for _ in range(count + 1 + 2 * pairs):
        value, at = unpack(body, at)
        if b"\0" in value:
            raise Refused("INVALID", "A NUL byte cannot be part of a command.")
        strings.append(value)
    if not count:
        raise Refused("INVALID", "The command is empty.")
    env = dict(zip(strings[count + 1 :: 2], strings[count + 2 :: 2]))
    return timeout_ms, limit, credit, flags, strings[:count], strings[count], env


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        part = os.read(fd, 65536)
        if not part:
            return data
        data += part


def shim(root: bytes, pipes: "list[int]", body: "bytes | None") -> None:
    """Become the reaper of one execution: start it, outlive all its descendants, report.

    A spare shim has no body yet: it waits for one on the fifth pipe, and ends when that closes
    without. Reports S (pid), X (errno), M (main process ended, others remain) and E (none remains).
    """
    for target, fd in enumerate(pipes):
        os.dup2(fd, target, inheritable=target < 3)
    os.closerange(len(pipes), 1024)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.setsid()
    if body is None:
        body = read_all(4)
        os.close(4)
        if not body:
            return
    # Only a dumpable process may open its own score. Not for a moment longer than that: code of the
    # same uid could open the descriptor of the reports, and the memory.
    prctl(PR_SET_DUMPABLE, 1)
    score = open_oom_score()
    prctl(PR_SET_DUMPABLE, 0)
    set_oom_score(score, b"1000")
    _, _, _, _, argv, cwd, env = parse_exec(body)
    cwd = os.path.join(root, cwd)
    try:
        os.chdir(cwd)
        path = search_path(argv[0], env)
        main = os.posix_spawn(path, argv, env, setpgroup=0, setsigmask=[], setsigdef=SIGNALS)
    except OSError as error:
        os.write(3, REPORT.pack(b"X", error.errno or errno.EIO, 0, 0))
        return
    os.write(3, REPORT.pack(b"S", main, 0, 0))
    set_oom_score(score, b"0")
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    status = 0
    flags = 0
    while True:
        try:
            pid, ended = os.waitpid(-1, flags)
        except ChildProcessError:
            break
        if pid == main:
            status = ended
            flags = os.WNOHANG
        elif pid == 0:
            os.write(3, REPORT.pack(b"M", status, 0, 0))
            flags = 0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = int((used.ru_utime + used.ru_stime) * 1e6)
    os.write(3, REPORT.pack(b"E", status, cpu, used.ru_maxrss * 1024))


def open_oom_score() -> int:
    """A descriptor that no program inherits; -1 where there is none."""
    try:
        return os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return -1


def set_oom_score(fd: int, value: bytes) -> None:
    """User code goes first when memory runs out, so that the agent lives to tell."""
    try:
        os.write(fd, value)
    except OSError:
        return


class Execution:
    """One command: its shim, its pipes, its limits."""

    def __init__(self, op: int, timeout_s: float, limit: int, credit: int) -> None:
        self.op = op
        self.limit = limit
        self.credit = credit
        self.started = time.monotonic()
        self.deadline = self.started + timeout_s
        self.shim = 0
        self.main = 0
        self.report = -1
        self.reports = 0
        self.reported = False  # The shim said itself that nothing is left.
        self.failed = 0  # The errno for which the program did not start.
        self.stdin = -1
        self.stdin_data = deque()  # type: deque[bytes]
        self.stdin_ends = False
        self.streams = {}  # type: dict[int, int]
        self.counts = [0, 0]
        self.truncated = False
        self.reason = EXITED
        self.status = None  # type: int | None
        self.usage = (0, 0)
        self.ending = 0.0  # When the tree was first killed; 0 while it may live.
        self.next_sweep = 0.0
        self.empty = False
        self.silent = False
        self.crowded = False
        self.settling = False
        self.oom_before = 0


class Reader:
    """One file on its way to the client, as far as credit allows."""

    def __init__(self, fd: int, left: int, credit: int) -> None:
        self.fd = fd
        self.left = left
        self.credit = credit


class Writer:
    """One file on its way in: written beside its target, renamed over it at the end."""

    def __init__(self, folder: int, name: bytes, draft: bytes, fd: int) -> None:
        self.folder = folder
        self.name = name
        self.draft = draft
        self.fd = fd
        self.failed = None  # type: Refused | None


# --- paths ---------------------------------------------------------------------------------


class Workspace:
    """Paths of the workspace, walked by directory descriptors so that no race leads out."""

    def __init__(self, root: bytes) -> None:
        self.root = root

    def parts(self, path: bytes) -> "list[bytes]":
        if not path.startswith(b"/"):
            return path.split(b"/")
        if path == self.root or path.startswith(self.root + b"/"):
            return path[len(self.root) :].split(b"/")
        raise Refused("OUTSIDE", "The path leads out of the workspace.")

    def walk(self, path: bytes, follow: bool) -> "tuple[int, bytes]":
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

    def enter(self, name: bytes, stack: "list[int]", last: bool) -> "bytes | None":
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

    @staticmethod
    def link(name: bytes, folder: int) -> "bytes | None":
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
        if depth > 200:
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


# --- the agent -----------------------------------------------------------------------------


class Agent:
    """The loop: one channel, any number of executions and file operations."""

    def __init__(self, reading: int, writing: int, options: "dict[str, str]") -> None:
        self.reading = reading
        self.writing = writing
        self.options = options
        self.workspace = Workspace(os.fsencode(options.get("workspace", "/workspace")))
        self.poll = select.epoll()
        self.handlers = {}  # type: dict[int, object]
        self.incoming = bytearray()
        self.outgoing = deque()  # type: deque[bytes]
        self.waiting = 0
        self.blocked = False
        self.running = {}  # type: dict[int, Execution]
        self.shims = {}  # type: dict[int, Execution]
        self.readers = {}  # type: dict[int, Reader]
        self.writers = {}  # type: dict[int, Writer]
        self.last_tick = time.monotonic()
        self.spare = None  # type: tuple[int, list[int]] | None
        self.wants_spare = True

    # Channel out.

    def send(self, kind: int, op: int, *parts: bytes) -> None:
        size = sum(map(len, parts))
        self.outgoing.append(HEADER.pack(kind, op, size))
        self.outgoing.extend(part for part in parts if part)
        self.waiting += HEADER.size + size

    def flush(self) -> None:
        while self.outgoing:
            batch = [self.outgoing[i] for i in range(min(len(self.outgoing), 64))]
            try:
                written = os.writev(self.writing, batch)
            except BlockingIOError:
                break
            self.waiting -= written
            while written:
                head = self.outgoing.popleft()
                if len(head) > written:
                    self.outgoing.appendleft(head[written:])
                    break
                written -= len(head)
        blocked = bool(self.outgoing)
        if blocked != self.blocked:
            self.blocked = blocked
            self.watch_channel()

    def watch_channel(self) -> None:
        if self.reading == self.writing:
            events = select.EPOLLIN | (select.EPOLLOUT if self.blocked else 0)
            self.poll.modify(self.reading, events)
        elif self.blocked:
            self.poll.register(self.writing, select.EPOLLOUT)
        else:
            self.poll.unregister(self.writing)

    def fail(self, op: int, refused: Refused) -> None:
        self.send(ERROR, op, refused.code.encode() + b"\0" + refused.message.encode())

    # Channel in.

    def on_channel(self) -> None:
        try:
            data = os.read(self.reading, 256 * 1024)
        except BlockingIOError:
            return
        if not data:
            # The server closed its end for good: a sandbox without a server has no purpose.
            os._exit(0)
        self.incoming += data
        at = 0
        held = self.incoming
        while at < len(held):
            if held[at] == 0:
                at += 1
                continue
            if len(held) - at < HEADER.size:
                break
            kind, op, size = HEADER.unpack_from(held, at)
            if size > MAX_PAYLOAD:
                os._exit(65)
            end = at + HEADER.size + size
            if end > len(held):
                break
            self.dispatch(kind, op, bytes(held[at + HEADER.size : end]))
            at = end
        del held[:at]

    def dispatch(self, kind: int, op: int, body: bytes) -> None:
        try:
            self.operations[kind](self, op, body)
        except Refused as refused:
            self.fail(op, refused)
        except OSError as error:
            self.fail(op, refusal(error))
        except (KeyError, struct.error, ValueError):
            self.fail(op, Refused("INVALID", "The request is malformed."))

    def on_hello(self, op: int, body: bytes) -> None:
        """A client takes over: end what the previous one began, forget its pending answers."""
        for execution in list(self.running.values()):
            execution.silent = True
            if execution.empty:
                self.finish(execution)
            else:
                self.end(execution, KILLED)
        self.running.clear()
        for reader in self.readers.values():
            os.close(reader.fd)
        self.readers.clear()
        for number in list(self.writers):
            self.drop_writer(number)
        self.outgoing.clear()
        self.waiting = 0
        self.send(HELLO_ACK, op, body[:16], struct.pack(">H", VERSION))

    def on_ping(self, op: int, body: bytes) -> None:
        self.send(PONG, op)

    # Executions.

    def on_exec(self, op: int, body: bytes) -> None:
        timeout_ms, limit, credit, flags, _, _, _ = parse_exec(body)
        execution = Execution(op, timeout_ms / 1000, limit, credit)
        execution.oom_before = self.oom_kills()
        pid, ours = self.hand_over(body) or self.fork_shim(body)
        self.wants_spare = True
        execution.shim = pid
        self.shims[pid] = execution
        self.running[op] = execution
        if flags & EXEC_STDIN:
            execution.stdin = ours[0]
        else:
            os.close(ours[0])
        for index, fd in enumerate(ours[1:3]):
            execution.streams[fd] = index
        execution.report = ours[3]
        for fd in ours[1:]:
            self.poll.register(fd, select.EPOLLIN)
            self.handlers[fd] = execution

    def fork_shim(self, body: "bytes | None") -> "tuple[int, list[int]]":
        """Its PID, and our ends of its pipes: stdin, stdout, stderr, report[, request]."""
        ours, theirs = [], []  # type: list[int], list[int]
        try:
            for writes in (
                (True, False, False, False) if body else (True, False, False, False, True)
            ):
                read, write = os.pipe()
                ours.append(write if writes else read)
                theirs.append(read if writes else write)
            pid = os.fork()
        except OSError:
            for fd in ours + theirs:
                os.close(fd)
            raise
        if pid == 0:
            try:
                shim(self.workspace.root, theirs, body)
            finally:
                os._exit(0)
        for fd in theirs:
            os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)
        return pid, ours

    def prepare_spare(self) -> None:
        """Fork a shim ahead of need: the next execution then starts without that delay."""
        self.wants_spare = False
        if self.spare is None:
            try:
                self.spare = self.fork_shim(None)
            except OSError:
                return  # No room now; executions fork their own and say so if there is none.

    def hand_over(self, body: bytes) -> "tuple[int, list[int]] | None":
        """Give a request to the spare; None if there is none or the request fills its pipe."""
        if self.spare is None or len(body) > 4096:
            return None
        pid, ours = self.spare
        self.spare = None
        request = ours.pop()
        try:
            os.write(request, body)
        except OSError:
            # Code of the same uid has killed it.
            for fd in ours:
                os.close(fd)
            return None
        finally:
            os.close(request)
        send_signal(pid, signal.SIGCONT)
        return pid, ours

    def forget_spare(self) -> None:
        if self.spare is not None:
            for fd in self.spare[1]:
                os.close(fd)
            self.spare = None

    def on_stdin(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is None:
            return
        if execution.stdin < 0:
            self.send(STDIN_CREDIT, op, struct.pack(">I", len(body)))
            return
        execution.stdin_data.append(body)
        self.feed(execution)

    def on_stdin_close(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is not None:
            execution.stdin_ends = True
            self.feed(execution)

    def feed(self, execution: Execution) -> None:
        """Write what the pipe takes; wait for room by epoll, never by blocking."""
        fd = execution.stdin
        if fd < 0:
            return
        taken = 0
        closed = False
        while execution.stdin_data:
            data = execution.stdin_data[0]
            try:
                written = os.write(fd, data)
            except BlockingIOError:
                break
            except OSError:
                taken += sum(map(len, execution.stdin_data))
                execution.stdin_data.clear()
                closed = True
                break
            taken += written
            if written < len(data):
                execution.stdin_data[0] = data[written:]
            else:
                execution.stdin_data.popleft()
        if taken:
            self.send(STDIN_CREDIT, execution.op, struct.pack(">I", taken))
        if closed or (execution.stdin_ends and not execution.stdin_data):
            self.close(fd)
            execution.stdin = -1
        elif execution.stdin_data and fd not in self.handlers:
            self.poll.register(fd, select.EPOLLOUT)
            self.handlers[fd] = execution
        elif not execution.stdin_data and fd in self.handlers:
            self.poll.unregister(fd)
            del self.handlers[fd]

    def on_signal(self, op: int, body: bytes) -> None:
        execution = self.running.get(op)
        if execution is not None and execution.main and execution.status is None:
            try:
                os.killpg(execution.main, body[0])
            except ProcessLookupError:
                return

    def on_cancel(self, op: int, body: bytes) -> None:
        if op in self.readers:
            os.close(self.readers.pop(op).fd)
        if op in self.writers:
            self.drop_writer(op)
        execution = self.running.get(op)
        if execution is None:
            return
        if execution.empty:
            # Only unread output is left, and nobody wants it.
            execution.truncated = True
            self.finish(execution)
        else:
            self.end(execution, KILLED)

    def on_credit(self, op: int, body: bytes) -> None:
        (amount,) = struct.unpack(">I", body)
        execution = self.running.get(op)
        if execution is not None:
            execution.credit += amount
            self.watch_streams(execution)
        reader = self.readers.get(op)
        if reader is not None:
            reader.credit += amount
            self.pump(op, reader)

    def watch_streams(self, execution: Execution) -> None:
        wanted = execution.credit > 0 and self.waiting < HIGH_WATER
        execution.crowded = self.waiting >= HIGH_WATER
        for fd in execution.streams:
            if wanted and fd not in self.handlers:
                self.poll.register(fd, select.EPOLLIN)
                self.handlers[fd] = execution
            elif not wanted and fd in self.handlers:
                self.poll.unregister(fd)
                del self.handlers[fd]

    def on_stream(self, execution: Execution, fd: int) -> bool:
        """Forward one chunk; False when there is nothing more to read now or no credit."""
        if execution.credit <= 0:
            return False
        index = execution.streams[fd]
        room = execution.limit - execution.counts[index]
        size = min(CHUNK, execution.credit, room + 1)
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return False
        if not data:
            del execution.streams[fd]
            self.close(fd)
            self.settle(execution)
            return False
        if len(data) > room:
            data = data[:room]
            execution.truncated = True
        execution.counts[index] += len(data)
        execution.credit -= len(data)
        if data and not execution.silent:
            self.send(OUTPUT, execution.op, bytes((index,)), data)
        if execution.truncated:
            self.end(execution, OUTPUT_LIMIT)
            return False
        if execution.credit <= 0 or self.waiting >= HIGH_WATER:
            self.watch_streams(execution)
            return False
        return True

    def on_report(self, execution: Execution) -> bool:
        """Take in what the shim wrote; False when there is no more now.

        Nothing here ends an execution, for user code may have found a way to write it.
        """
        try:
            data = os.read(execution.report, REPORT.size * MAX_REPORTS)
        except BlockingIOError:
            return False
        execution.reports += len(data) // REPORT.size
        forged = bool(len(data) % REPORT.size) or execution.reports > MAX_REPORTS
        if not forged:
            for kind, value, cpu, peak in REPORT.iter_unpack(data):
                forged = forged or not self.take_report(execution, kind, value, (cpu, peak))
        if forged:
            self.end(execution, KILLED)
        if forged or not data:
            self.close(execution.report)
            execution.report = -1
        return execution.report >= 0

    def take_report(
        self, execution: Execution, kind: bytes, value: int, usage: "tuple[int, int]"
    ) -> bool:
        """False for what no shim says."""
        if kind == b"S" and not execution.main and 1 < value <= MAX_PID:
            execution.main = value
            if not execution.silent:
                self.send(STARTED, execution.op, struct.pack(">I", value))
            if execution.ending:
                # Ended before it began: what has just begun must not wait for the next sweep.
                self.sweep(execution)
        elif kind == b"X" and not execution.main and 0 < value <= 0xFFFF:
            execution.failed = value
        elif kind == b"M" and execution.main and value <= 0xFFFF:
            execution.status = value
            self.end(execution, execution.reason)
        elif kind == b"E" and execution.main and value <= 0xFFFF:
            execution.status = value
            execution.usage = usage
            execution.reported = True
            if descendants({execution.shim}):
                self.end(execution, KILLED)
        else:
            return False
        return True

    def not_started(self, execution: Execution, number: int) -> None:
        if number == errno.ENOENT:
            refused = Refused("NOT_STARTED", "The program or working directory was not found.")
        elif number in (errno.EAGAIN, errno.ENOMEM):
            refused = Refused("EXHAUSTED", "The sandbox has no room for another process.")
        else:
            refused = Refused("NOT_STARTED", os.strerror(number) + ".")
        if not execution.silent:
            self.fail(execution.op, refused)
        execution.silent = True
        execution.empty = True
        self.finish(execution)

    def end(self, execution: Execution, reason: int) -> None:
        """Kill the tree of an execution; the first reason stands."""
        if execution.ending or execution.empty:
            return
        execution.reason = reason
        execution.ending = time.monotonic()
        self.sweep(execution)

    def sweep(self, execution: Execution) -> None:
        if execution.shim not in self.shims:
            return  # Reaped: its number may be another's by now.
        now = time.monotonic()
        end_below({execution.shim})
        # Code of the same uid may have stopped the shim.
        send_signal(execution.shim, signal.SIGCONT)
        if now - execution.ending > 1.0:
            send_signal(execution.shim, signal.SIGKILL)
        execution.next_sweep = now + 0.005

    def emptied(self, execution: Execution) -> None:
        """No process of the execution is left."""
        execution.empty = True
        self.settle(execution)

    def settle(self, execution: Execution, overdue: bool = False) -> None:
        """Send the result once the processes are gone and the output is out.

        Output of an execution that was ended by force, or whose deadline has passed, is sent as
        far as the credit goes.
        """
        if not execution.empty or execution.settling:
            return
        forced = execution.ending and execution.reason != EXITED
        if execution.silent or overdue or forced:
            execution.settling = True
            for fd in list(execution.streams):
                while fd in execution.streams and self.on_stream(execution, fd):
                    continue
            execution.truncated = execution.truncated or bool(execution.streams)
            self.finish(execution)
        elif not execution.streams:
            self.finish(execution)

    def finish(self, execution: Execution) -> None:
        if self.running.get(execution.op) is execution:
            del self.running[execution.op]
        elif not execution.silent:
            return
        for fd in [*execution.streams, execution.stdin, execution.report]:
            if fd >= 0:
                self.close(fd)
        execution.streams.clear()
        execution.stdin = execution.report = -1
        if not execution.silent:
            self.send(RESULT, execution.op, self.result(execution))

    def result(self, execution: Execution) -> bytes:
        status = execution.status
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else -1
        if status is None:
            number = int(signal.SIGKILL)
        reason = execution.reason
        if reason == EXITED and number == signal.SIGKILL:
            reason = KILLED
        if reason in (EXITED, KILLED) and self.oom_kills() > execution.oom_before:
            alone = not self.running
            if number == signal.SIGKILL or code == 137 or (alone and code != 0):
                reason = OOM_KILLED
        wall = int((time.monotonic() - execution.started) * 1e6)
        return RESULT_BODY.pack(
            reason,
            execution.truncated,
            code,
            number,
            *execution.counts,
            execution.usage[0],
            wall,
            execution.usage[1],
        )

    def oom_kills(self) -> int:
        """How often the kernel killed in this sandbox's cgroup (v1 and v2 spell it alike)."""
        for path in self.options.get("oom", "").split(","):
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                data = os.read(fd, 4096)
            finally:
                os.close(fd)
            for line in data.splitlines():
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
        return 0

    def reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.spare is not None and pid == self.spare[0]:
                self.forget_spare()
            execution = self.shims.get(pid)
            if execution is not None:
                self.bury(execution)

    def bury(self, execution: Execution) -> None:
        """The shim is gone, and with what it left behind the execution is over."""
        del self.shims[execution.shim]
        while execution.report >= 0 and self.on_report(execution):
            continue
        if execution.report >= 0:
            # Someone else holds the other end.
            self.close(execution.report)
            execution.report = -1
        # What a killed shim guarded is ours now.
        self.end_orphans()
        if execution.failed and not execution.main:
            self.not_started(execution, execution.failed)
            return
        if not execution.reported and not execution.ending:
            execution.reason = KILLED
            execution.ending = time.monotonic()
        self.emptied(execution)

    def end_orphans(self) -> None:
        """Kill children of process 1 that are no shim: their shim was killed."""
        for _ in range(64):
            table = processes()
            mine = {p for p, (parent, _) in table.items() if parent == os.getpid()}
            if self.spare is not None:
                mine.discard(self.spare[0])
            orphans = {p for p in mine - set(self.shims) if table[p][1] not in (b"Z", b"X")}
            if not orphans:
                return
            end_below(orphans)
            for pid in orphans:
                send_signal(pid, signal.SIGKILL)

    # Files.

    def on_read(self, op: int, body: bytes) -> None:
        offset, limit, credit = READ_HEAD.unpack_from(body)
        path, _ = unpack(body, READ_HEAD.size)
        fd = self.workspace.open(path, os.O_RDONLY)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            if not stat.S_ISREG(mode):
                raise Refused("DENIED", "The path is not a regular file.")
            os.lseek(fd, offset, os.SEEK_SET)
        except (OSError, Refused):
            os.close(fd)
            raise
        self.readers[op] = Reader(fd, limit, credit)
        self.pump(op, self.readers[op])

    def pump(self, op: int, reader: Reader) -> None:
        while reader.credit > 0 and self.waiting < HIGH_WATER:
            data = b""
            try:
                if reader.left > 0:
                    data = os.read(reader.fd, min(CHUNK, reader.left, reader.credit))
            except OSError as error:
                self.fail(op, refusal(error))
                break
            if not data:
                self.send(DONE, op)
                break
            reader.left -= len(data)
            reader.credit -= len(data)
            self.send(DATA, op, data)
        else:
            return
        os.close(reader.fd)
        del self.readers[op]

    def on_write_open(self, op: int, body: bytes) -> None:
        (mode,) = struct.unpack_from(">I", body)
        path, _ = unpack(body, 4)
        folder, name = self.workspace.walk(path, True)
        try:
            if name == b".":
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            except FileNotFoundError:
                found = 0
            if stat.S_ISDIR(found):
                raise Refused("IS_A_DIRECTORY", "The path is a directory.")
            draft = b".%s.%d.part" % (name[:200], op)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(draft, flags, mode & 0o777, dir_fd=folder)
        except (OSError, Refused):
            os.close(folder)
            raise
        os.fchmod(fd, mode & 0o777)
        self.writers[op] = Writer(folder, name, draft, fd)

    def on_write_data(self, op: int, body: bytes) -> None:
        writer = self.writers.get(op)
        if writer is None or writer.failed is not None:
            return
        view = memoryview(body)
        try:
            while view:
                view = view[os.write(writer.fd, view) :]
        except OSError as error:
            writer.failed = refusal(error)
            # Free the space at once: the rest of the file is still on its way.
            os.ftruncate(writer.fd, 0)

    def on_write_end(self, op: int, body: bytes) -> None:
        writer = self.writers.get(op)
        if writer is None:
            return  # Refused when it was opened.
        try:
            if writer.failed is not None:
                raise writer.failed
            os.rename(writer.draft, writer.name, src_dir_fd=writer.folder, dst_dir_fd=writer.folder)
            writer.draft = b""
        finally:
            self.drop_writer(op)
        self.send(DONE, op)

    def drop_writer(self, op: int) -> None:
        writer = self.writers.pop(op)
        os.close(writer.fd)
        if writer.draft:
            try:
                os.unlink(writer.draft, dir_fd=writer.folder)
            except OSError:
                writer.draft = b""  # Someone else removed it.
        os.close(writer.folder)

    def on_list(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 0)
        fd = self.workspace.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(map(os.fsencode, os.listdir(fd)))
            if len(names) > MAX_ENTRIES:
                raise Refused("TOO_LARGE", "The directory has more than 10000 entries.")
            batch = b""
            for name in names:
                try:
                    batch += self.workspace.entry(fd, name, name)
                except FileNotFoundError:
                    continue  # Removed since it was listed.
                if len(batch) > CHUNK:
                    self.send(DATA, op, batch)
                    batch = b""
        finally:
            os.close(fd)
        self.send(DATA, op, batch)
        self.send(DONE, op)

    def on_stat(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 0)
        folder, name = self.workspace.walk(path, True)
        try:
            entry = self.workspace.entry(folder, name, name)
        finally:
            os.close(folder)
        self.send(DATA, op, entry)
        self.send(DONE, op)

    def on_make_dir(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 1)
        if body[0]:
            done = b""
            for part in self.workspace.parts(path):
                done = done + b"/" + part if done else part
                if part not in (b"", b".", b".."):
                    self.make_one(done, exists=True)
        else:
            self.make_one(path, exists=False)
        self.send(DONE, op)

    def make_one(self, path: bytes, exists: bool) -> None:
        folder, name = self.workspace.walk(path, True)
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            info = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not exists or not stat.S_ISDIR(info.st_mode):
                raise
        finally:
            os.close(folder)

    def on_rename(self, op: int, body: bytes) -> None:
        source, at = unpack(body, 0)
        target, _ = unpack(body, at)
        from_folder, from_name = self.workspace.walk(source, False)
        try:
            to_folder, to_name = self.workspace.walk(target, False)
            try:
                if b"." in (from_name, to_name):
                    raise Refused("DENIED", "The workspace itself cannot be renamed.")
                os.rename(from_name, to_name, src_dir_fd=from_folder, dst_dir_fd=to_folder)
            finally:
                os.close(to_folder)
        finally:
            os.close(from_folder)
        self.send(DONE, op)

    def on_remove(self, op: int, body: bytes) -> None:
        path, _ = unpack(body, 1)
        folder, name = self.workspace.walk(path, False)
        try:
            if name == b".":
                raise Refused("DENIED", "The workspace itself cannot be removed.")
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=folder)
            elif body[0]:
                self.workspace.clear(folder, name)
            else:
                os.rmdir(name, dir_fd=folder)
        finally:
            os.close(folder)
        self.send(DONE, op)

    operations = {  # noqa: RUF012
        HELLO: on_hello, PING: on_ping, EXEC: on_exec, STDIN: on_stdin,
        STDIN_CLOSE: on_stdin_close, SIGNAL: on_signal, CANCEL: on_cancel, CREDIT: on_credit,
        READ: on_read, WRITE_OPEN: on_write_open, WRITE_DATA: on_write_data,
        WRITE_END: on_write_end, LIST: on_list, STAT: on_stat, MAKE_DIR: on_make_dir,
        RENAME: on_rename, REMOVE: on_remove,
    }  # fmt: skip

    # The loop.

    def close(self, fd: int) -> None:
        if fd in self.handlers:
            self.poll.unregister(fd)
            del self.handlers[fd]
        os.close(fd)

    def timed(self) -> "list[Execution]":
        """What lives, and what is over except for output that nobody has taken."""
        return [*self.shims.values(), *(e for e in self.running.values() if e.empty)]

    def next_wait(self) -> float:
        """Seconds until the nearest deadline or sweep, at most one."""
        now = time.monotonic()
        nearest = now + 1.0
        for execution in self.timed():
            sweeping = execution.ending and not execution.empty
            due = execution.next_sweep if sweeping else execution.deadline
            nearest = min(nearest, due)
        return max(0.0, nearest - now)

    def tick(self, expected_s: float) -> None:
        now = time.monotonic()
        lost = now - self.last_tick - expected_s
        self.last_tick = now
        for execution in self.timed():
            if lost > 1.0:
                # The whole sandbox was frozen: that time is not the execution's.
                execution.deadline += lost
            if execution.empty:
                if now >= execution.deadline:
                    self.settle(execution, overdue=True)
            elif execution.ending:
                if now >= execution.next_sweep:
                    self.sweep(execution)
            elif now >= execution.deadline:
                self.end(execution, TIMED_OUT)

    def serve(self) -> None:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(wake_read, select.EPOLLIN)
        self.poll.register(self.reading, select.EPOLLIN)
        self.send(READY, 0, struct.pack(">H", VERSION))
        self.flush()
        while True:
            wait = self.next_wait()
            events = self.poll.poll(wait)
            if self.shims or self.running:
                self.tick(wait)
            else:
                self.last_tick = time.monotonic()
            for fd, event in events:
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self.reap()
                elif fd == self.reading and event & ~select.EPOLLOUT:
                    self.on_channel()
                else:
                    self.on_pipe(fd)
            self.flush()
            if self.wants_spare:
                self.prepare_spare()
            if self.waiting < HIGH_WATER:
                self.resume()

    def on_pipe(self, fd: int) -> None:
        execution = self.handlers.get(fd)
        if not isinstance(execution, Execution):
            return  # Closed by an earlier event of the same round.
        if fd == execution.report:
            self.on_report(execution)
        elif fd == execution.stdin:
            self.feed(execution)
        elif fd in execution.streams:
            self.on_stream(execution, fd)

    def resume(self) -> None:
        for execution in list(self.running.values()):
            if execution.crowded:
                self.watch_streams(execution)
        for op, reader in list(self.readers.items()):
            self.pump(op, reader)


def limit_processes(options: "dict[str, str]") -> None:
    import resource

    limits = (
        ("nproc", resource.RLIMIT_NPROC),
        ("address_space", resource.RLIMIT_AS),
        ("file_size", resource.RLIMIT_FSIZE),
    )
    for name, which in limits:
        if name in options:
            resource.setrlimit(which, (int(options[name]), int(options[name])))


def main() -> None:
    """Take the channel off the descriptors that programs use, then serve until it closes."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    channel = options.get("channel")
    reading = os.dup(int(channel or 0))
    writing = reading if channel else os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    for fd in range(3, 256):
        if fd not in (reading, writing):
            try:
                os.close(fd)
            except OSError:
                continue
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    os.umask(0o022)
    limit_processes(options)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # A collection in a shim would touch, and so copy, every page it shares with the agent.
    gc.collect()
    gc.freeze()
    Agent(reading, writing, options).serve()


if __name__ == "__main__":
    main()
