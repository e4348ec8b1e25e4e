"""System calls that a sandbox has no business with."""

import platform
import signal

import pytest

from sandbox.client import Reason
from tests.sandbox.abuse.attack import Attempt, attempts, execute, is_contained, matches
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")


def one(name: str, arguments: str = "0, 0, 0, 0, 0", expected: str = "EPERM") -> Attempt:
    return Attempt(name, f"call({name!r}, {arguments})", expected)


@attempts(
    one("keyctl", "0, -3, 0"),
    one("add_key", "b'user', b'x', b'y', 1, -2"),
    one("request_key", "b'user', b'x', 0, -2"),
    one("bpf", "0, 0, 0"),
    one("perf_event_open", "0, 0, -1, -1, 0"),
    one("userfaultfd", "0"),
    one("open_by_handle_at", "-100, 0, 0"),
    one("name_to_handle_at", "-100, b'/', 0, 0, 0"),
    one("init_module", "0, 0, b''"),
    one("finit_module", "0, b'', 0"),
    one("delete_module", "b'x', 0"),
    one("kexec_load"),
    one("kexec_file_load"),
    one("io_uring_setup", "8, 0", "ENOSYS"),
    one("io_uring_enter", expected="ENOSYS"),
    one("io_uring_register", expected="ENOSYS"),
    one("memfd_secret", "0", "ENOSYS"),
    one("process_madvise", expected="ENOSYS"),
    one("acct", "b'/tmp/acct'"),
    one("reboot", "0xfee1dead, 672274793, 0x1234567, 0"),
    one("sethostname", "b'mine', 4"),
    one("setdomainname", "b'mine', 4"),
    one("settimeofday", "0, 0"),
    one("clock_settime", "0, 0"),
    one("adjtimex", "0"),
    one("clock_adjtime", "0, 0"),
    one("syslog", "3, ctypes.create_string_buffer(100), 100"),
    one("swapon", "b'/tmp/x', 0"),
    one("swapoff", "b'/tmp/x'"),
    one("quotactl", "0, b'/dev/sda', 0, 0"),
    one("vhangup", ""),
    one("mbind", "0, 0, 0, 0, 0, 0"),
    one("set_mempolicy", "0, 0, 0"),
    one("move_pages", "1, 0, 0, 0, 0, 0"),
    one("migrate_pages", "1, 0, 0, 0"),
    one("fanotify_init", "0, 0"),
    one("kcmp", "1, 1, 0, 0, 0"),
    one("personality", "0x0040000"),  # ADDR_NO_RANDOMIZE
    one("capset", "b'\\x22\\x05\\x08\\x20' + bytes(4), b'\\xff' * 24"),
)
async def test_a_call_is_refused(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


@attempts(
    Attempt("PR_SET_NO_NEW_PRIVS off", "call('prctl', 38, 0, 0, 0, 0)", "EINVAL"),
    Attempt("PR_CAP_AMBIENT raise", "call('prctl', 47, 2, 21, 0, 0)", "EPERM"),
    Attempt("PR_SET_SECUREBITS", "call('prctl', 28, 0x2f, 0, 0, 0)", "EPERM"),
    Attempt("PR_SET_MM", "call('prctl', 35, 8, 0, 0, 0)", "EPERM"),
    Attempt(
        "a new system call filter that allows all",
        # A filter added later cannot loosen an earlier one.
        "import struct\n"
        "code = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0x7fff0000))\n"
        "program = struct.pack('=HxxxxxxQ', 1, ctypes.addressof(code))\n"
        "call('prctl', 22, 2, program, 0, 0)\n"
        "call('unshare', 0x10000000)",
        "ALLOWED EPERM",
    ),
)
async def test_privileges_are_not_regained(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have one ABI")


@X86
@attempts(
    Attempt("x32: unshare", "say(raw(0x40000000 | 272, 0x10000000))", "EPERM|ENOSYS"),
    Attempt("x32: ptrace", "say(raw(0x40000000 | 521, 16, 1, 0, 0))", "EPERM|ENOSYS"),
    Attempt("x32: getpid", "say(raw(0x40000000 | 39))", "EPERM|ENOSYS"),
    Attempt("a call beyond all", "say(raw(100_000))", "EPERM|ENOSYS"),
    Attempt("a call with high bits", "say(raw(0x1_0000_0000 | 272, 0x10000000))", "EPERM|ENOSYS"),
    Attempt("iopl", "say(raw(172, 3))", "EPERM"),
    Attempt("ioperm", "say(raw(173, 0, 1, 1))", "EPERM"),
    Attempt("modify_ldt", "say(raw(154, 0, 0, 0))", "EPERM"),
    Attempt("uselib", "say(raw(134, b'/lib'))", "EPERM|ENOSYS"),
)
async def test_another_door_to_the_kernel_is_shut(box: Box, attempt: Attempt) -> None:
    await is_refused_or_fatal(box, attempt)


async def is_refused_or_fatal(box: Box, attempt: Attempt) -> None:
    """One engine refuses calls of another ABI, another kills the caller for them (SIGSYS)."""
    result, out = await execute(box, attempt.program)
    if (result.reason, result.signal) != (Reason.EXITED, signal.SIGSYS):
        assert matches(out.split(), attempt.expected.split()), (result, out)


INT80 = """
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# push rbx; mov eax, number; mov ebx, argument; int 0x80; pop rbx; ret
page.write(b'\\x53\\xb8' + (%d).to_bytes(4, 'little') + b'\\xbb' + (%d).to_bytes(4, 'little')
           + b'\\xcd\\x80\\x5b\\xc3')
start = ctypes.addressof(ctypes.c_char.from_buffer(page))
got = ctypes.CFUNCTYPE(ctypes.c_int)(start)()
print('ALLOWED' if got >= 0 else errno.errorcode[-got])
"""


@X86
@attempts(
    Attempt("int 0x80: unshare", INT80 % (310, 0x10000000), "EPERM|ENOSYS"),
    Attempt("int 0x80: getpid", INT80 % (20, 0), "EPERM|ENOSYS"),
    Attempt("int 0x80: reboot", INT80 % (88, 0), "EPERM|ENOSYS"),
)
async def test_calls_of_32_bit_programs_are_refused(box: Box, attempt: Attempt) -> None:
    await is_refused_or_fatal(box, attempt)
