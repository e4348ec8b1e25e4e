"""Terminals: a pair of descriptors of which the program holds one end and the agent the other."""

import os
import struct

WINDOW_SIZE = struct.Struct("HHHH")  # rows, columns, and pixels that nobody knows
TIOCSWINSZ = 0x5414


def open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """The agent's end and the program's; neither becomes a controlling terminal by this."""
    ours, theirs = os.openpty()
    try:
        set_size(ours, rows, columns)
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    return ours, theirs


def set_size(fd: int, rows: int, columns: int) -> None:
    """Change the size; the kernel sends SIGWINCH to the foreground if it differs."""
    import fcntl

    fcntl.ioctl(fd, TIOCSWINSZ, WINDOW_SIZE.pack(rows, columns, 0, 0))


def end_of_input(fd: int, last: bytes) -> bytes:
    """What to type so that the program sees the end of its input, as its terminal is set now.

    In the middle of a line the first such character only hands that line over.
    """
    import termios

    settings = termios.tcgetattr(fd)
    character = settings[6][termios.VEOF]
    if not isinstance(character, bytes) or character == b"\0":
        return b""
    return character if last in (b"", b"\n") else character * 2
