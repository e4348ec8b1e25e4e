"""What user code may not write, beyond what it has no right to: the files of the kernel in /proc.

Through them it could put its own OOM score beside the agent's, and then have the kernel end the
agent in its place. Landlock, which needs no privilege, takes the right away from a shim and from
all below it, for good; and they can no longer look into processes outside of their execution.
Kernels before 5.19, and those without Landlock, have no such rules: everything else holds there.
"""

import fcntl
import os
import struct

from sandbox.inside.native import Long, libc_syscall

# The same numbers on every machine that seccomp knows.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
BELOW_A_PATH = 1
VERSION_ASKED = (CREATE_RULESET, None, 0, 1)
# Files open for writing, and move between folders, only where a rule says so.
WRITE_FILE, MOVE = 1 << 1, 1 << 13
LEAST_VERSION = 2  # The first that can allow moves, which the one before forbids.
HANDLED = struct.pack("=Q", WRITE_FILE | MOVE)
OUTSIDE = ("proc", "sys")


def landlock(number: int, *arguments: object) -> int:
    """What one of its calls gives; negative where it failed."""
    wide = [Long(a) if isinstance(a, int) else a for a in arguments]
    return int(libc_syscall(Long(number), *wide))


def write_rules() -> int:
    """A descriptor of rules that allow writing everywhere but to the kernel; -1 without them."""
    if landlock(*VERSION_ASKED) < LEAST_VERSION:
        return -1
    rules = landlock(CREATE_RULESET, HANDLED, len(HANDLED), 0)
    if rules < 0:
        return -1
    for name in set(os.listdir("/")).difference(OUTSIDE):
        try:
            folder = os.open("/" + name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # A link, or a file: what it leads to has a rule of its own or is read-only.
        rule = struct.pack("=Qi", WRITE_FILE | MOVE, folder)
        landlock(ADD_RULE, rules, BELOW_A_PATH, rule, 0)
        os.close(folder)
    # Out of the way of the low numbers that shims give to their pipes.
    high = fcntl.fcntl(rules, fcntl.F_DUPFD_CLOEXEC, 32)
    os.close(rules)
    return high


def obey(rules: int) -> None:
    """Hold this process and all that it will start to the rules, and close them."""
    if rules >= 0:
        landlock(RESTRICT_SELF, rules, 0)
        os.close(rules)
