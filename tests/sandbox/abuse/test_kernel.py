"""Doors of the kernel past a sandbox, the channel of the agent, and things that run out."""

import pytest

from sandbox.client import Reason
from sandbox.limits import Limits
from tests.sandbox.abuse.attack import PROLOGUE, Attempt, attempts, execute, is_contained
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOWHERE = "EROFS|EACCES|EPERM|ENOENT|ENOTDIR"


def write(name: str, *paths: str, value: str = "|/workspace/evil") -> Attempt:
    """Writing a value into any of these files, in each way that opens one."""
    program = f"for path in {paths!r}:\n"
    program += f"    attempt(lambda: os.write(os.open(path, os.O_WRONLY), {value.encode()!r}))"
    return Attempt(name, program, " ".join([NOWHERE] * len(paths)))


@attempts(
    write("a program for core dumps", "/proc/sys/kernel/core_pattern"),
    write("a program for modules and hotplug", "/proc/sys/kernel/modprobe",
          "/proc/sys/kernel/hotplug", "/sys/kernel/uevent_helper",
          "/proc/sys/kernel/usermodehelper/inheritable"),
    write("a program for empty groups", "/sys/fs/cgroup/release_agent",
          "/sys/fs/cgroup/memory/release_agent", "/run/cgroup/release_agent",
          "/run/cgroup/notify_on_release"),
    write("an interpreter of formats", "/proc/sys/fs/binfmt_misc/register",
          "/proc/sys/fs/binfmt_misc/status", value=":x:M::x::/workspace/evil:C"),
    write("limits of its group", "/run/cgroup/memory.limit_in_bytes", "/run/cgroup/memory.max",
          "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max",
          "/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/cpu.max",
          "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", value="-1"),
    write("another group", "/run/cgroup/cgroup.procs", "/run/cgroup/tasks",
          "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs",
          "/sys/fs/cgroup/pids/tasks", "/sys/fs/cgroup/cgroup.subtree_control", value="0"),
    write("an end of the out-of-memory killer", "/run/cgroup/memory.oom_control",
          "/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.oom.group",
          "/run/cgroup/cgroup.event_control", value="1"),
    write("magic keys of the console", "/proc/sysrq-trigger", "/proc/sys/kernel/sysrq", value="b"),
    write("rules of the machine", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/drop_caches",
          "/proc/sys/kernel/pid_max", "/proc/sys/kernel/randomize_va_space",
          "/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/fs/file-max",
          "/proc/sys/fs/protected_symlinks", "/proc/sys/user/max_user_namespaces", value="0"),
    write("rules of its own network", "/proc/sys/net/ipv4/ip_forward",
          "/proc/sys/net/ipv4/tcp_mem", "/proc/sys/net/core/wmem_max",
          "/proc/sys/net/ipv4/ping_group_range", value="0 2147483647"),
    write("a map of users", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups",
          "/proc/self/projid_map", value="0 0 1"),
    write("a profile of security", "/proc/self/attr/current", "/proc/self/attr/exec",
          "/proc/self/attr/apparmor/current", "/proc/self/attr/smack/current", value="unconfined"),
    write("the log and messages of the kernel", "/dev/kmsg", "/proc/kmsg",
          "/sys/kernel/debug/tracing/trace_marker", "/sys/kernel/tracing/trace_marker"),
    write("memory of the machine", "/dev/mem", "/dev/kmem", "/proc/kcore", "/dev/port"),
    write("a firmware variable", "/sys/firmware/efi/vars/new_var",
          "/sys/firmware/efi/efivars/x-1", "/sys/power/state", "/sys/power/disk", value="mem"),
)  # fmt: skip
async def test_no_door_of_the_kernel_is_opened(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


INNER = "0x10000000"  # CLONE_NEWUSER


@attempts(
    Attempt("the channel by its descriptor in proc",
            "for fd in range(3, 20):\n"
            "    for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):\n"
            "        try: os.open(f'/proc/1/fd/{fd}', mode); print('OPENED', fd)\n"
            "        except PermissionError: pass\nprint('end')", "end"),
    Attempt("the channel by what is known of descriptors",
            "for what in ('fdinfo', 'map_files', 'ns', 'task/1/fd', 'task/1/fdinfo'):\n"
            "    attempt(os.listdir, f'/proc/1/{what}')",
            " ".join(["EACCES|EPERM|ENOENT"] * 5)),
    Attempt("the channel by taking its descriptor",
            "fd = raw(NUMBERS['pidfd_open'], 1, 0)\n"
            "for number in range(64):\n    got = raw(NUMBERS['pidfd_getfd'], fd, number, 0)\n"
            "    if got >= 0: print('TAKEN', number)\nprint('end')", "end"),
    Attempt("the channel by what was inherited",
            "for fd in range(3, 1024):\n    try:\n        os.fstat(fd); print('INHERITED', fd)\n"
            "    except OSError: pass\nprint('end')", "end"),
    Attempt("what reads and writes memory of the agent",
            "for what in ('mem', 'syscall', 'stack', 'personality', 'auxv', 'pagemap', 'io',\n"
            "             'timerslack_ns', 'patch_state'):\n"
            "    try: os.read(os.open(f'/proc/1/{what}', os.O_RDWR), 8); print('OPENED', what)\n"
            "    except OSError: pass\nprint('end')", "end"),
    Attempt("one's own memory, by proc", "value = ctypes.create_string_buffer(b'kept')\n"
            "try:\n    fd = os.open('/proc/self/mem', os.O_RDWR)\n"
            "    os.pwrite(fd, b'gone', ctypes.addressof(value))\nexcept OSError: pass\n"
            "print(open('/proc/1/comm').read().strip() != '')", "True"),
    Attempt("a library into every program",
            "for name in ('LD_PRELOAD', 'PYTHONPATH', 'PYTHONSTARTUP'):\n"
            "    os.environ[name] = '/workspace/evil.so'\n"
            "print(subprocess.run(['/bin/true'], stderr=subprocess.DEVNULL).returncode)", "0"),
    Attempt("the name of process 1", "libc.prctl(15, b'python3', 0, 0, 0)\n"
            "import threading\nattempt(lambda: open('/proc/1/comm', 'w').write('x'))",
            "EACCES|EPERM"),
    Attempt("the process title of a shim", "libc.prctl(15, b'(x) S 1 1 1', 0, 0, 0)\n"
            "print(open('/proc/self/stat').read().count(')') >= 2)\n"
            "if os.fork() == 0:\n    libc.prctl(15, b') R 0 (', 0, 0, 0)\n    os.setsid()\n"
            "    time.sleep(600)", "True"),
    Attempt("user namespaces within one another", f"call('unshare', {INNER})\n"
            f"say(raw(NUMBERS['clone'], {INNER} | 17, 0, 0, 0, 0))", "EPERM EPERM"),
)  # fmt: skip
async def test_the_agent_is_out_of_reach(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_what_lies_in_the_workspace_is_no_part_of_the_agent(site: Site) -> None:
    box = await site.make()
    names = ("os", "zlib", "resource", "ctypes", "struct", "signal", "sitecustomize")
    for name in names:
        await box.client.files.write(
            f"{name}.py", b"open('/workspace/owned', 'w'); raise SystemExit"
        )
    # Workers and shims import lately, with the workspace as their working directory.
    assert (await box.run("echo well"))[1] == b"well\n"
    for _ in range(2):
        result, _, _ = await box.run("true")
        assert result.usage.cpu_ms is not None
    assert "owned" not in {entry.name for entry in await box.client.files.list()}


GREEDY = """
import fcntl
held = []
def more():
    {take}
for _ in range(6):
    if os.fork() == 0:
        break
try:
    while len(held) < 20_000:
        more()
except (OSError, MemoryError, AssertionError):
    pass
time.sleep(600)
"""


@pytest.mark.parametrize(
    "take",
    [
        pytest.param("held.append(raw(290 if X86 else 19, 0, 0)); assert held[-1] >= 0",
                     id="event descriptors"),
        pytest.param("held.append(select.epoll()); held[-1].register(held[-2] if held[1:] else 0)",
                     id="epoll instances in one another"),
        pytest.param("fd = libc.inotify_init(); held.append(fd)\n    for n in range(3000):\n"
                     "        os.makedirs(f'/tmp/w/{n}', exist_ok=True)\n"
                     "        assert libc.inotify_add_watch(fd, b'/tmp/w/%d' % n, 0xfff) >= 0",
                     id="watches"),
        pytest.param("a, b = socket.socketpair(); held.append(a)\n"
                     "    socket.send_fds(b, [b'x'], [a.fileno(), b.fileno()] * 100); b.close()",
                     id="descriptors in flight in a circle"),
        pytest.param("a, b = socket.socketpair(); held.extend((a, b))\n    a.setblocking(False)\n"
                     "    while True:\n        try: socket.send_fds(a, [b'x'], [0] * 250)\n"
                     "        except BlockingIOError: break", id="descriptors in flight"),
        pytest.param("held.append(raw(222 if X86 else 107, 0, 0, ctypes.byref(ctypes.c_int())))\n"
                     "    assert held[-1] >= 0", id="timers of processes"),
        pytest.param("fd = os.open('/tmp/locked', os.O_RDWR | os.O_CREAT); held.append(fd)\n"
                     "    for n in range(3000):\n"
                     "        fcntl.fcntl(fd, 37, __import__('struct').pack('hhqqi4x', n % 2, 0,"
                     " n * 2, 1, 0))", id="ranges of locks"),
        pytest.param("held.append(mmap.mmap(-1, 4096)); held[-1].madvise(12)",
                     id="mappings"),
        pytest.param("held.append(mmap.mmap(-1, 1 << 16)); assert libc.mlock("
                     "ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(held[-1]))),"
                     " ctypes.c_size_t(1 << 16)) == 0", id="locked memory"),
        pytest.param("assert raw(129 if X86 else 138, os.getpid(), 34, (34).to_bytes(4, 'little')"
                     " + bytes(4) + (-1 & 0xffffffff).to_bytes(4, 'little') + bytes(116)) >= 0;"
                     " held.append(0)", id="signals that wait"),
        pytest.param("held.append(socket.create_server(('127.0.0.1', 0), backlog=4096))",
                     id="listening sockets"),
    ],
)  # fmt: skip
async def test_what_the_kernel_keeps_runs_out_for_the_greedy(site: Site, take: str) -> None:
    box = await site.make(limits=Limits(memory_bytes=192 * MIB, disk_bytes=MIB, pids=48))
    ready = "signal.pthread_sigmask(0, [34])\n"
    result, _ = await execute(box, ready + GREEDY.format(take=take), timeout_s=1.5)
    assert result.reason in (Reason.TIMED_OUT, Reason.OOM_KILLED, Reason.KILLED)
    # Whatever was held is given back with its holders.
    for _ in range(2):
        assert (await box.run("echo well"))[1] == b"well\n"


@attempts(
    Attempt("arguments of two megabytes", "attempt(os.execv, '/bin/true', ['x' * 100_000] * 25)",
            "E2BIG"),
    Attempt("one argument of 128 KiB", "attempt(os.execv, '/bin/true', ['true', 'x' * 131072])",
            "E2BIG"),
    Attempt("an environment of two megabytes",
            "attempt(os.execve, '/bin/true', ['true'],"
            " {str(n): 'x' * 100_000 for n in range(25)})", "E2BIG"),
    Attempt("a script that names itself", "open('/tmp/self', 'w').write('#!/tmp/self\\n')\n"
            "os.chmod('/tmp/self', 0o755)\nattempt(os.execv, '/tmp/self', ['self'])",
            "ELOOP|ENOEXEC|EACCES|ENOENT"),
    Attempt("a chain of scripts", "for n in range(20):\n"
            "    open(f'/tmp/s{n}', 'w').write(f'#!/tmp/s{n + 1}\\n')\n"
            "    os.chmod(f'/tmp/s{n}', 0o755)\n"
            "attempt(os.execv, '/tmp/s0', ['s0'])", "ELOOP|ENOEXEC|EACCES"),
    Attempt("a program of nonsense",
            "open('/tmp/elf', 'wb').write(b'\\x7fELF' + os.urandom(4096))\n"
            "os.chmod('/tmp/elf', 0o755)\nattempt(os.execv, '/tmp/elf', ['elf'])",
            "ENOEXEC|ELIBBAD|EINVAL|ENOMEM"),
    Attempt("a limit of stack without end",
            "attempt(resource.setrlimit, resource.RLIMIT_STACK, (-1, -1))\n"
            "attempt(os.execv, '/bin/true', ['x' * 100_000] * 100)", "ALLOWED|EPERM E2BIG"),
)  # fmt: skip
async def test_no_program_is_too_much_to_begin(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_requests_in_the_format_of_the_agent_are_bytes_alone(box: Box) -> None:
    # Whoever writes frames to all that he holds reaches nobody but his own reader.
    program = """
import struct
frames = b''.join(struct.pack('>BII', kind, op, 4) + b'evil' for kind in range(256)
                  for op in (0, 1, 2, 0xffffffff))
for fd in (1, 2):
    os.write(fd, frames)
"""
    result, out, err = await box.python(PROLOGUE + program)
    assert (result.reason, len(out), len(err)) == (Reason.EXITED, 13312, 13312)
    assert (await box.run("echo well"))[1] == b"well\n"
