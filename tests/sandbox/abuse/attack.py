"""How an attempt is written: a name, a program that says what it got, and what it must get."""

from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import pytest

from sandbox.client import ExecutionResult
from sandbox.errors import FileError, ResourceExhaustedError
from tests.sandbox.conftest import Box

# x86-64, AArch64; None where a machine does not have the call.
NUMBERS: dict[str, tuple[int | None, int]] = {
    "unshare": (272, 97), "clone": (56, 220), "clone3": (435, 435), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "move_mount": (429, 429), "mount_setattr": (442, 442),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "memfd_secret": (447, 447), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272),
    "acct": (163, 89), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "vhangup": (153, 58), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "fanotify_init": (300, 262),
    "personality": (135, 92), "socket": (41, 198), "ioctl": (16, 29), "prlimit64": (302, 261),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "capset": (126, 91),
    "prctl": (157, 167), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "getpid": (39, 172), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
}  # fmt: skip

PROLOGUE = f"""
import ctypes, errno, mmap, os, resource, select, signal, socket, stat, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = os.uname().machine == 'x86_64'
NUMBERS = {{name: pair[not X86] for name, pair in {NUMBERS!r}.items()}}
def raw(number, *args):
    '''What a system call gives; numbers are passed with all their 64 bits.'''
    ctypes.set_errno(0)
    wide = [ctypes.c_ulong(a & (1 << 64) - 1) if isinstance(a, int) else a for a in args]
    return libc.syscall(ctypes.c_long(number), *wide)
def say(result):
    print('ALLOWED' if result >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
def call(name, *args):
    say(raw(NUMBERS[name], *args))
def attempt(work, *args):
    try:
        work(*args)
    except OSError as error:
        print(errno.errorcode.get(error.errno, error), flush=True)
    else:
        print('ALLOWED', flush=True)
"""


class Attempt(NamedTuple):
    """`expected` has one word for each that the program prints; `A|B` lets either pass."""

    name: str
    program: str
    expected: str


def attempts(*those: Attempt) -> pytest.MarkDecorator:
    """Make one test of each."""
    return pytest.mark.parametrize("attempt", those, ids=[each.name for each in those])


async def execute(box: Box, program: str, timeout_s: float = 30.0) -> tuple[ExecutionResult, str]:
    """Run a program after the prologue; its result and output."""
    result, out, err = await box.python(PROLOGUE + program, timeout_s=timeout_s)
    return result, out.decode() + err.decode()


async def tries(box: Box, program: str) -> list[str]:
    """Words that a program prints which must end well."""
    result, out = await execute(box, program)
    assert result.exit_code == 0, (result, out)
    return out.split()


async def is_contained(box: Box, attempt: Attempt) -> None:
    """Raise AssertionError unless an attempt gets exactly what it must get."""
    got = await tries(box, attempt.program)
    assert matches(got, attempt.expected.split()), got


def matches(got: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether every word is one of those expected at its place."""
    pairs = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(word in one.split("|") for word, one in pairs)


async def code_of(work: Awaitable[object]) -> str | None:
    """Why an operation on files was refused; None if it was not."""
    try:
        await work
    except FileError as error:
        return error.code.value
    except ResourceExhaustedError:
        return "EXHAUSTED"
    return None
