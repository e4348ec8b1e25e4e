"""The system calls a sandbox may make: one policy, compiled for Docker and for bubblewrap.

The policy is an allow-list; everything else answers EPERM, and what libraries probe for and
survive without answers ENOSYS. `python -m sandbox.seccomp` compiles it anew with pyseccomp into
`seccomp_<machine>.bpf`; a test compares. Known traps, all closed here:

- clone3 passes its flags in memory, where no filter sees them: ENOSYS, so that libc uses clone.
- The kernel looks at the low 32 bits of an ioctl request only, so 0x1_0000_5412 is TIOCSTI
  again: requests are allowed by name, compared under a 32-bit mask.
- prlimit64 changes limits of every process of the same user, so of process 1: without
  descriptors it ends. Limits of others can be read only.
- So do the calls for priorities, schedulers and processors: process 1, idle on a processor that
  others burn, ends nothing in time. They are for the caller alone, whose number for that is 0: its
  real one (also that of a thread) is refused, for no filter knows whose it is.
- System V queues, semaphores and shared memory outlive their program and fill the sandbox's memory
  for good: absent, except segments below a page, which databases lock their folders with.
"""

import errno
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from sandbox.errors import DriverUnavailableError

MASK32 = 0xFFFF_FFFF
MASK64 = 0xFFFF_FFFF_FFFF_FFFF
MACHINES = ("x86_64", "aarch64")

# CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
NAMESPACE_FLAGS = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000
NAMESPACE_FLAGS |= 0x40000000

SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, MASK32)

# Terminal settings, sizes and jobs; file and socket flags; reflinks. Not: TIOCSTI, TIOCLINUX,
# TIOCSETD, TIOCCONS, device and network configuration.
IOCTLS = (
    *range(0x5401, 0x540A),  # TCGETS … TCSBRK
    0x540A, 0x540B,  # TCXONC, TCFLSH
    0x540C, 0x540D, 0x540E, 0x540F, 0x5410, 0x5411,  # TIOCEXCL … TIOCOUTQ
    0x5413, 0x5414, 0x5415, 0x5419, 0x541A, 0x541B,  # window size, modem bits, FIONREAD
    0x5421, 0x5422, 0x5429, 0x542A, 0x542B, 0x542C, 0x542D,  # FIONBIO, TIOCGSID, termios2
    0x5430, 0x5431, 0x5432, 0x5438, 0x5439, 0x5440, 0x5441,  # ptys
    0x5450, 0x5451, 0x5452, 0x5460,  # FIONCLEX, FIOCLEX, FIOASYNC, FIOQSIZE
    0x80045430, 0x40045431, 0x80045438, 0x80045439, 0x5441,  # TIOCGPTN, TIOCSPTLCK, …
    0x40049409, 0x4020940D,  # FICLONE, FICLONERANGE
    0x80086601, 0x40086602,  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
    0x8912, 0x8913, 0x8915, 0x8927, 0x8933,  # SIOCGIF{CONF,FLAGS,ADDR,HWADDR,INDEX}
)  # fmt: skip

ALLOWED = """
accept accept4 access alarm bind brk capget capset chdir chmod chown clock_getres clock_gettime
clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchown fchownat fcntl
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
futex_waitv futimesat get_robust_list getcpu getcwd getdents getdents64 getegid geteuid getgid
getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioprio_get kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create mincore mkdir mkdirat
mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedsend mq_unlink mremap msync munlock munlockall munmap nanosleep newfstatat open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll
prctl pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat
readv recvfrom recvmmsg recvmsg removexattr rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_yield seccomp select sendfile sendmmsg
sendmsg sendto set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl shmdt
shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync
sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate
umask uname unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev
""".split()  # noqa: SIM905 - three hundred quotes would hide the names.
ALLOWED_HERE = {"x86_64": ("arch_prctl",), "aarch64": ()}

ABSENT = (
    "clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit",
    "io_getevents", "io_pgetevents", "io_cancel", "io_destroy", "memfd_secret", "process_madvise",
    "process_mrelease",
    "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop",
)  # fmt: skip

Condition = tuple[int, int, int]  # argument, mask, value

# What changes how a process is scheduled, as a call on the caller itself has it.
OF_ONESELF: tuple[tuple[str, list[Condition]], ...] = (
    ("sched_setaffinity", [(0, MASK32, 0)]),
    ("sched_setattr", [(0, MASK32, 0)]),
    ("sched_setparam", [(0, MASK32, 0)]),
    ("sched_setscheduler", [(0, MASK32, 0)]),
    ("setpriority", [(0, MASK32, 0), (1, MASK32, 0)]),  # PRIO_PROCESS
    ("ioprio_set", [(0, MASK32, 1), (1, MASK32, 0)]),  # IOPRIO_WHO_PROCESS
)


class Rule(TypedDict):
    names: tuple[str, ...]
    conditions: list[Condition]
    errno: int | None  # None allows.


def rules(machine: str) -> Iterator[Rule]:
    """The policy for a machine; several rules for one call are alternatives."""
    yield Rule(names=(*ALLOWED, *ALLOWED_HERE[machine]), conditions=[], errno=None)
    yield Rule(names=("clone",), conditions=[(0, NAMESPACE_FLAGS, 0)], errno=None)
    for family in SOCKET_FAMILIES:
        yield Rule(names=("socket",), conditions=[(0, MASK32, family)], errno=None)
    for value in PERSONALITIES:
        yield Rule(names=("personality",), conditions=[(0, MASK32, value)], errno=None)
    for request in dict.fromkeys(IOCTLS):
        yield Rule(names=("ioctl",), conditions=[(1, MASK32, request)], errno=None)
    # Of oneself (0), or without new limits.
    yield Rule(names=("prlimit64",), conditions=[(0, MASK32, 0)], errno=None)
    yield Rule(names=("prlimit64",), conditions=[(2, MASK64, 0)], errno=None)
    for name, conditions in OF_ONESELF:
        yield Rule(names=(name,), conditions=conditions, errno=None)
    yield Rule(names=("shmget",), conditions=[(1, MASK64 ^ 0xFFF, 0)], errno=None)
    yield Rule(names=ABSENT, conditions=[], errno=errno.ENOSYS)


def oci_profile() -> dict[str, Any]:
    """The policy as Docker's `seccomp=` option takes it; the engine picks its architecture."""
    common = []
    for rule in rules("x86_64"):
        entry: dict[str, Any] = {"names": list(rule["names"]), "action": "SCMP_ACT_ALLOW"}
        if rule["errno"] is not None:
            entry |= {"action": "SCMP_ACT_ERRNO", "errnoRet": rule["errno"]}
        if rule["conditions"]:
            entry["args"] = [
                {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
                for index, mask, value in rule["conditions"]
            ]
        common.append(entry)
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": common,
    }


def program_path(machine: str) -> Path:
    return Path(__file__).with_name(f"seccomp_{machine}.bpf")


def load_program() -> bytes:
    """The compiled filter for this machine. Raises DriverUnavailableError where there is none."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise DriverUnavailableError(f"There is no system call policy for {machine} machines.")
    return program_path(machine).read_bytes()


def compile_program(machine: str) -> bytes:
    """Compile the policy with pyseccomp, which only development environments have."""
    import tempfile

    import pyseccomp

    archs = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}
    policy = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    if pyseccomp.system_arch() != archs[machine]:
        policy.add_arch(archs[machine])
        policy.remove_arch(pyseccomp.system_arch())
    policy.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ERRNO(errno.EPERM))
    # Binary search over the calls; a linear list would cost every call up to 300 comparisons.
    policy.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for rule in rules(machine):
        action = pyseccomp.ALLOW if rule["errno"] is None else pyseccomp.ERRNO(rule["errno"])
        arguments = [
            pyseccomp.Arg(index, pyseccomp.MASKED_EQ, mask, value)
            for index, mask, value in rule["conditions"]
        ]
        for name in rule["names"]:
            policy.add_rule(action, name, *arguments)
    with tempfile.TemporaryFile() as file:
        policy.export_bpf(file)
        file.seek(0)
        return file.read()


if __name__ == "__main__":
    for each in MACHINES:
        program_path(each).write_bytes(compile_program(each))
