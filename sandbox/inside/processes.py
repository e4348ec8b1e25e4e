"""Processes inside: what there is, how a tree of them ends, and the shim above each execution.

A shim is the subreaper of one execution at a time, so that ending one execution ends its own
daemons and not another's. What it reports is advice alone: an execution is over when the kernel
says that nothing is left below its shim.
"""

import errno
import os
import signal
import struct
from typing import TYPE_CHECKING

from sandbox.inside.barriers import obey
from sandbox.inside.native import Memory, errno_of_last, libc_prctl, libc_wait4
from sandbox.inside.wire import (
    EXEC_HEAD,
    EXEC_NAMED,
    EXEC_PTY,
    LONGEST_NAME,
    SIZE,
    Refused,
    unpack,
)

if TYPE_CHECKING:
    Order = tuple[bytes, list[bytes], dict[bytes, bytes], bool]

MAX_ORDER = 4096  # Bytes that any pipe takes at once, and gives at once.
REPORT = struct.Struct(">cIQQ")  # kind, value, CPU microseconds, peak bytes
SIGNALS = [n for n in range(1, 32) if n not in (signal.SIGKILL, signal.SIGSTOP)]

PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36
RUSAGE = struct.Struct("5l")  # Its beginning: user and system time, peak of memory in KiB.
WAIT_STATUS, WAIT_USAGE = Memory(), Memory()  # What wait4 writes.
STATUS = struct.Struct("i")
# Whom the kernel ends first when memory runs out: what user code started, last of all the agent,
# whose score is 0. Barriers see to it that nobody changes a score of his own.
USER_SCORE, WORKER_SCORE, SHIM_SCORE = b"1000", b"700", b"500"


def prctl(option: int, value: int) -> None:
    if libc_prctl(option, value, 0, 0, 0) != 0:
        raise OSError(errno_of_last(), "prctl")


def read_file(path: str, most: int = 4096) -> bytes:
    """The beginning of a small file; empty if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    except OSError:
        return b""
    finally:
        os.close(fd)


def processes() -> dict[int, list[bytes]]:
    """Fields of /proc/…/stat from the state on (so the parent is [1]) of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        line = read_file("/proc/" + name + "/stat")
        # The name in parentheses may hold anything; the last parenthesis ends it.
        fields = line[line.rfind(b")") + 2 :].split()
        if len(fields) > 21:
            found[int(name)] = fields
    return found


def is_dead(fields: list[bytes]) -> bool:
    return fields[0] in (b"Z", b"X")


def descendants(roots: set[int]) -> set[int]:
    """Every living process below the roots, the roots not among them."""
    table = processes()
    children: dict[int, list[int]] = {}
    for pid, fields in table.items():
        children.setdefault(int(fields[1]), []).append(pid)
    below: set[int] = set()
    queue = list(roots)
    while queue:
        for pid in children.get(queue.pop(), ()):
            if pid not in below:
                below.add(pid)
                queue.append(pid)
    return {pid for pid in below if not is_dead(table[pid])}


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # Already gone.


def end_below(roots: set[int]) -> None:
    """Stop everything below the roots until nothing new appears, then kill all of it.

    A stopped process cannot fork, so the set settles even against a fork bomb.
    """
    seen: set[int] = set()
    for _ in range(64):
        fresh = descendants(roots) - seen
        if not fresh:
            break
        for pid in fresh:
            send_signal(pid, signal.SIGSTOP)
        seen |= fresh
    for pid in seen:
        send_signal(pid, signal.SIGKILL)


def end_orphans(known: set[int]) -> None:
    """Kill children of this process that are not `known`: what guarded them was killed."""
    for _ in range(64):
        table = processes()
        mine = {pid for pid, fields in table.items() if int(fields[1]) == os.getpid()}
        orphans = {pid for pid in mine - known if not is_dead(table[pid])}
        if not orphans:
            return
        end_below(orphans)
        for pid in orphans:
            send_signal(pid, signal.SIGKILL)


def search_path(program: bytes, env: dict[bytes, bytes]) -> bytes:
    if b"/" in program:
        return program
    for folder in env.get(b"PATH", b"").split(b":"):
        candidate = (folder or b".") + b"/" + program
        if os.access(candidate, os.X_OK):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "not found")


class Request:
    """What EXEC asks for. Raises Refused for what no process can be given."""

    def __init__(self, body: bytes) -> None:
        head = EXEC_HEAD.unpack_from(body)
        self.timeout_ms, self.limit, self.credit, self.flags, count, pairs = head
        at = EXEC_HEAD.size
        self.rows = self.columns = 0
        if self.flags & EXEC_PTY:
            self.rows, self.columns = SIZE.unpack_from(body, at)
            at += SIZE.size
        named = bool(self.flags & EXEC_NAMED)
        strings = []
        for _ in range(count + 1 + 2 * pairs + named):
            value, at = unpack(body, at)
            strings.append(value)
        if b"\0" in b"".join(strings):
            raise Refused("INVALID", "A NUL byte cannot be part of a command.")
        if not count:
            raise Refused("INVALID", "The command is empty.")
        self.name = strings.pop() if named else b""
        if len(self.name) > LONGEST_NAME or (named and not self.name):
            raise Refused("INVALID", "The name is empty or too long.")
        self.argv = strings[:count]
        self.folder = strings[count]
        self.env = dict(zip(strings[count + 1 :: 2], strings[count + 2 :: 2]))  # noqa: B905 - 3.8

    def order(self, root: bytes) -> "Order":
        """What a shim has to know of it."""
        on_terminal = bool(self.flags & EXEC_PTY)
        return os.path.join(root, self.folder), self.argv, self.env, on_terminal


def pack_order(order: "Order") -> bytes:
    """The order as bytes; none of its strings holds a NUL."""
    folder, argv, env, on_terminal = order
    pairs = [string for pair in env.items() for string in pair]
    return b"\0".join([folder, b"%d" % on_terminal, b"%d" % len(argv), *argv, *pairs])


def unpack_order(sent: bytes) -> "Order":
    folder, on_terminal, count, *strings = sent.split(b"\0")
    end = int(count)
    env = dict(zip(strings[end::2], strings[end + 1 :: 2]))  # noqa: B905 - 3.8
    return folder, strings[:end], env, on_terminal == b"1"


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        part = os.read(fd, 8192)
        if not part:
            return data
        data += part


def tells_children() -> bool:
    """Whether this kernel lists the children of a process."""
    pid = os.getpid()
    return os.path.exists("/proc/%d/task/%d/children" % (pid, pid))  # noqa: UP031 - brief.


def is_childless(pid: int) -> bool:
    """Whether the kernel says that a process has no child; False where it does not say.

    A subreaper without a child has nothing below it, for whatever loses its parent becomes one.
    """
    try:
        fd = os.open("/proc/%d/task/%d/children" % (pid, pid), os.O_RDONLY)  # noqa: UP031 - brief.
    except OSError:
        return False
    try:
        return not os.read(fd, 1)
    except OSError:
        return False
    finally:
        os.close(fd)


def leave_agent(pipes: list[int], kept: "tuple[int, ...]" = ()) -> None:
    """In a forked child: hold nothing but the pipes, as 0, 1, 2 and so on, and what is kept as it
    is (in ascending order, above those), in a session of its own."""
    for target, fd in enumerate(pipes):
        os.dup2(fd, target, target < 3)
    at = len(pipes)
    for fd in kept:
        os.closerange(at, fd)
        at = fd + 1
    os.closerange(at, 1024)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()


def shim(pipes: list[int], later: list[int], order: "Order | None", rules: int) -> None:
    """Become the reaper of one execution: start it, outlive all its descendants, report.

    A spare shim has no order yet: it waits for one on the fifth pipe, and ends when that closes
    without. In `later` are the ends of standard input, output and error of the executions that it
    serves afterwards, one after the other, once nothing is left of the one before. `rules` are
    those of `write_rules`, which hold for all that it starts.

    Every page that a shim touches is copied for it: what it does here is little, and in few places.
    """
    leave_agent([*pipes, rules] if rules >= 0 else pipes, tuple(later))
    libc_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # Where it fails the agent adopts; see strays.
    score = open_oom_score()
    set_oom_score(score, SHIM_SCORE)
    obey(len(pipes) if rules >= 0 else -1)
    null = os.open("/dev/null", os.O_RDWR)
    while True:
        if order is None:
            sent = os.read(4, MAX_ORDER)
            if not sent:
                return
            order = unpack_order(sent)
        if not guard(order, score, null) or not later:
            return
        order = None
        for target in (0, 1, 2):
            fd = later.pop(0)
            os.dup2(fd, target)
            os.close(fd)


def guard(order: "Order", score: int, null: int) -> bool:
    """In a shim, see one execution through; False if it did not start.

    Reports S (pid), X (errno), M (main process ended, others remain) and E (none remains), and
    returns when none remains.
    """
    set_oom_score(score, USER_SCORE)
    try:
        main = spawn(*order)
    except OSError as error:
        os.write(3, REPORT.pack(b"X", error.errno or errno.EIO, 0, 0))
        return False
    os.write(3, REPORT.pack(b"S", main, 0, 0))
    set_oom_score(score, SHIM_SCORE)
    for target in (0, 1, 2):
        os.dup2(null, target)
    status = flags = cpu = peak = 0
    while True:
        pid = libc_wait4(-1, WAIT_STATUS, flags, WAIT_USAGE)
        if pid > 0:
            # CPU of all, peak of one: those that it had waited for itself are counted in.
            user_s, user_us, system_s, system_us, peak_kib = RUSAGE.unpack_from(WAIT_USAGE)
            cpu += (user_s + system_s) * 1000000 + user_us + system_us
            peak = max(peak, peak_kib * 1024)
            if pid == main:
                (status,) = STATUS.unpack_from(WAIT_STATUS)
                flags = os.WNOHANG
        elif pid == 0:
            os.write(3, REPORT.pack(b"M", status, 0, 0))
            flags = 0
        elif errno_of_last() == errno.ECHILD:
            break
    os.write(3, REPORT.pack(b"E", status, cpu, peak))
    return True


def spawn(folder: bytes, argv: list[bytes], env: dict[bytes, bytes], on_terminal: bool) -> int:
    """Start the program; on a terminal it leads a session whose controlling terminal that is."""
    os.chdir(folder)
    path = search_path(argv[0], env)
    if not on_terminal:
        return os.posix_spawn(path, argv, env, setpgroup=0, setsigmask=[], setsigdef=SIGNALS)
    # The first terminal that the leader of a new session opens becomes its controlling one.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.ttyname(0), os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    try:
        return os.posix_spawn(
            path,
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=SIGNALS,
        )
    except NotImplementedError:
        raise OSError(errno.ENOSYS, "setsid") from None


def open_oom_score() -> int:
    """A descriptor of one's own score that no program inherits; -1 where there is none."""
    # Only a dumpable process may open it. Not for a moment longer than that: code of the same uid
    # could open the descriptors, and the memory.
    prctl(PR_SET_DUMPABLE, 1)
    try:
        return os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return -1
    finally:
        prctl(PR_SET_DUMPABLE, 0)


def set_oom_score(fd: int, value: bytes) -> None:
    """User code goes first when memory runs out, so that the agent lives to tell."""
    try:
        os.write(fd, value)
    except OSError:
        return
