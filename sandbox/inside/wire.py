"""Frames between client and agent: `type u8, operation u32, length u32, payload`, big endian.

A zero byte where a type is expected is padding and is skipped: a client that takes over a channel
in the middle of a frame first sends more zeros than any frame is long, then HELLO; everything
older is ended by HELLO, but for executions that were given a name.

Those go on. HELLO_ACK tells of each, and of those that have ended since: its number, by which it is
known to the new client as well, and how much of its output the agent holds. RESUME says how much of
each stream is safe, and has the rest sent, then the end. What is sent stays with the agent, within
the window that EXEC gave, until ACKNOWLEDGE says that it is safe too, which moves the window as
CREDIT does for others; RELEASE ends whatever there is of an execution.

The client numbers operations from 1 to LAST_OPERATION; those that the agent begins (connections
that a program makes to a port the agent listens on) have AGENT_OPERATION set.
"""

import errno
import os
import struct

VERSION = 3
OLDEST = 2  # Of an agent that a client can speak to; it knows of no names.
HEADER = struct.Struct(">BII")
MAX_PAYLOAD = 256 * 1024
CHUNK = 64 * 1024
STDIN_WINDOW = 256 * 1024  # Bytes of input on their way to one execution.
WRITE_WINDOW = 1024 * 1024  # Bytes of an upload on their way, not written yet.
TUNNEL_WINDOW = 128 * 1024  # Bytes of a tunnel on their way to the program behind it.
MAX_ENTRIES = 10_000
MAX_TUNNELS = 128
MAX_PID = 1 << 22
LAST_OPERATION = 0x7FFF_FFF0
AGENT_OPERATION = 0x8000_0000

# From the client.
HELLO, EXEC, STDIN, STDIN_CLOSE, SIGNAL, CANCEL, CREDIT, PING, RESIZE, PROCESSES, KILL = range(
    1, 12
)
ACKNOWLEDGE, RESUME, RELEASE = 12, 13, 14
READ, WRITE_OPEN, WRITE_DATA, WRITE_END, LIST, STAT, MAKE_DIR, RENAME, REMOVE = range(16, 25)
MEASURE, WATCH, WALK = 26, 27, 28
PACK, UNPACK_OPEN, DIAL, TUNNEL_DATA, TUNNEL_END, LISTEN = range(30, 36)
# To the client.
READY, HELLO_ACK, STARTED, OUTPUT, RESULT, ERROR, STDIN_CREDIT, DATA, DONE, PONG = range(64, 74)
WRITE_CREDIT, OPENED, TUNNEL_ENDED, ACCEPTED = range(74, 78)

HELLO_BODY = struct.Struct(">HI")  # version, features; behind the nonce that is answered.
KEPT = struct.Struct(">IIIQQQQQIB")
# Then, each followed by its name: operation, pid (0: it has not begun), window, bytes of each
# stream that were acknowledged, and that were read, bytes of input that came, and that wait, flags
KEPT_ENDED, KEPT_TERMINAL = 1, 2  # Its input was closed; it runs on a terminal.
HAS_ZLIB = 1
HOLDS_ARCHIVES = 2  # It knows HOLD.
READY_BODY = struct.Struct(">H4s")  # version, and that of the interpreter's byte code

EXEC_HEAD = struct.Struct(">QQIBHH")  # timeout ms (0: none), output limit, credit, flags, argv, env
EXEC_STDIN, EXEC_PTY, EXEC_BACKGROUND, EXEC_NAMED = 1, 2, 4, 8
LONGEST_NAME = 64  # Bytes; behind everything else of EXEC with EXEC_NAMED.
MAX_KEPT = 64  # Executions with a name, running or not released yet.
OFFSETS = struct.Struct(">QQ")  # bytes of standard output and error
SIZE = struct.Struct(">HH")  # rows, columns of a terminal; behind EXEC_HEAD with EXEC_PTY
RESULT_BODY = struct.Struct(">BBiiQQQQQ")
# reason, truncated, exit code (-1: none), signal (0: none), stdout bytes, stderr bytes,
# CPU microseconds, wall microseconds, peak memory of one process in bytes
EXITED, TIMED_OUT, OOM_KILLED, OUTPUT_LIMIT, KILLED = 0, 1, 2, 3, 4
PROC = struct.Struct(">IIIcQQQ")
# pid, parent, execution (0: none), state, start in ms since 1970, CPU microseconds, resident bytes;
# then the command line, at most MAX_COMMAND_LINE bytes of it
MAX_COMMAND_LINE = 4096
MAX_PROCESSES = 8192  # Of one listing.
KILL_BODY = struct.Struct(">IB")  # pid, signal
READ_HEAD = struct.Struct(">QQI")  # offset, limit, credit
LIST_PAGE = struct.Struct(">I")  # most entries; behind the path, then the name they come after
ENTRY = struct.Struct(">BQdI")  # is directory, size, modification time, mode
USED = struct.Struct(">QQ")  # bytes, inodes
WATCH_HEAD = struct.Struct(">BI")  # recursive, credit
CHANGE = struct.Struct(">BBQ")  # kind, is directory, size; then path and old path
CREATED, MODIFIED, REMOVED, RENAMED, OVERFLOW = range(1, 6)
UNPACK_HEAD = struct.Struct(">BQII")  # format, most bytes, most entries, highest ratio
UNPACKED = struct.Struct(">QI")  # bytes, entries
TAR, TAR_GZ, ZIP = 1, 2, 3
KEEP_LINKS = 0x80  # With a format: links may lead anywhere.
HOLD = 0x40  # With a format: the archive is unpacked beside its target and looked at there first.
# Behind the path is the number of the folder, see STAGING; the archive comes in pieces, each behind
# its length, the last one empty. DATA with UNPACKED says that all is there. Then GO has it moved.
HELD_AT = struct.Struct(">Q")
STAGING = b".archive.%d.part"
GO = b"\1"
PORT = struct.Struct(">HI")  # port, credit
LISTEN_BODY = struct.Struct(">H")  # port; 0: any
AMOUNT = struct.Struct(">I")

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


class Refused(Exception):  # noqa: N818 - it is an answer.
    """An operation that cannot be done: a code of ERRORS or another word, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def body(self) -> bytes:
        """The payload of ERROR."""
        return self.code.encode() + b"\0" + self.message.encode()


def refusal(error: OSError) -> Refused:
    code = ERRORS.get(error.errno or 0, "DENIED")
    return Refused(code, os.strerror(error.errno or errno.EIO) + ".")


def pack(value: bytes) -> bytes:
    return AMOUNT.pack(len(value)) + value


def unpack(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = AMOUNT.unpack_from(data, at)
    end = at + 4 + size
    if end > len(data):
        raise Refused("INVALID", "The frame is shorter than it says.")
    return data[at + 4 : end], end
