"""Process 1, its shims, and other people's privileges: what a program does to its guardians."""

import asyncio
from contextlib import aclosing

import pytest

from sandbox.client import Reason
from sandbox.limits import Limits
from tests.sandbox.abuse.attack import PROLOGUE, Attempt, attempts, execute, is_contained, tries
from tests.sandbox.abuse.conftest import ANSWER_S, Site, answers
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")


@attempts(
    Attempt("ptrace attach to process 1", "call('ptrace', 16, 1, 0, 0)", "EPERM"),
    Attempt("ptrace seize process 1", "call('ptrace', 0x4206, 1, 0, 0)", "EPERM"),
    Attempt("ptrace attach to the shim", "call('ptrace', 16, os.getppid(), 0, 0)", "EPERM"),
    Attempt("ptrace traceme", "call('ptrace', 0, 0, 0, 0)", "EPERM"),
    Attempt("process_vm_readv", "call('process_vm_readv', 1, 0, 0, 0, 0, 0)", "EPERM"),
    Attempt("process_vm_writev", "call('process_vm_writev', 1, 0, 0, 0, 0, 0)", "EPERM"),
    Attempt("pidfd_getfd", "call('pidfd_getfd', raw(NUMBERS['pidfd_open'], 1, 0), 0, 0)", "EPERM"),
    *(
        Attempt(f"open /proc/{whom}/{what}", f"attempt(open, f'/proc/{{{pid}}}/{what}', {mode!r})",
                "EACCES|EPERM")
        for whom, pid in (("1", "1"), ("shim", "os.getppid()"))
        for what, mode in (("mem", "rb"), ("environ", "rb"), ("oom_score_adj", "wb"),
                           ("clear_refs", "wb"), ("coredump_filter", "wb"))
    ),
    Attempt("list descriptors of process 1", "attempt(os.listdir, '/proc/1/fd')", "EACCES"),
    Attempt("list descriptors of the shim",
            "attempt(os.listdir, f'/proc/{os.getppid()}/fd')", "EACCES"),
    Attempt("the root of process 1", "attempt(os.listdir, '/proc/1/root/')", "EACCES"),
    Attempt("memory maps of process 1",
            "attempt(lambda: open('/proc/1/maps').read())", "EACCES|EPERM"),
)  # fmt: skip
async def test_no_guardian_is_opened(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


ALL_SIGNALS = "for number in range(1, 65):\n    {}\nprint('sent')"


@attempts(
    Attempt("every signal by kill", ALL_SIGNALS.format(
        "raw(62 if X86 else 129, 1, number)"), "sent"),
    Attempt("every signal by tgkill", ALL_SIGNALS.format(
        "raw(NUMBERS['tgkill'], 1, 1, number)"), "sent"),
    Attempt("every signal by pidfd", "fd = raw(NUMBERS['pidfd_open'], 1, 0)\n" + ALL_SIGNALS.format(
        "raw(NUMBERS['pidfd_send_signal'], fd, number, 0, 0)"), "sent"),
    Attempt("every signal with a value", ALL_SIGNALS.format(
        "raw(NUMBERS['rt_sigqueueinfo'], 1, number,"
        " number.to_bytes(4, 'little') + bytes(4) + (-1 & 0xffffffff).to_bytes(4, 'little')"
        " + bytes(116))"), "sent"),
    Attempt(
        "signals of a pipe, owned by process 1",
        # The kernel sends these by itself when the pipe becomes readable.
        "import fcntl\n"
        "for number in (9, 19, 6):\n"
        "    read, write = os.pipe()\n"
        "    for command, value in ((10, number), (8, 1)):\n"
        "        try: fcntl.fcntl(read, command, value)\n"
        "        except OSError: pass\n"
        "    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)\n"
        "    os.write(write, b'x')\n"
        "print('sent')",
        "sent",
    ),
    Attempt("the process group of process 1",
            "attempt(os.setpgid, 1, 0)", "ESRCH|EPERM|EACCES"),
)  # fmt: skip
async def test_process_1_is_not_ended_by_signals(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_killing_everybody_ends_oneself_alone(site: Site) -> None:
    box = await site.make()
    result, _ = await execute(box, "os.kill(-1, signal.SIGKILL)\ntime.sleep(600)")
    assert result.reason in (Reason.KILLED, Reason.EXITED)
    result, _ = await execute(box, "os.kill(-1, signal.SIGSTOP)\nprint('end')", timeout_s=1)
    assert result.reason in (Reason.KILLED, Reason.EXITED, Reason.TIMED_OUT)


@attempts(
    *(
        Attempt(f"take {name} from {whom}",
                f"attempt(resource.prlimit, {pid}, resource.{name}, (0, 0))", "EPERM")
        for whom, pid in (("process 1", "1"), ("the shim", "os.getppid()"))
        for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE")
    ),
    Attempt("take RLIMIT_NOFILE by a number with high bits",
            "call('prlimit64', 0x1_0000_0001, 7, bytes(16), 0)", "EPERM"),
    Attempt("raise a limit of one's own",
            "call('prlimit64', 0, 7, (4096).to_bytes(8, 'little') * 2, 0)", "EPERM"),
    Attempt("lower a limit of one's own",
            "attempt(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))\n"
            "print(resource.prlimit(os.getpid(), resource.RLIMIT_NOFILE)[0])", "ALLOWED 64"),
)  # fmt: skip
async def test_limits_of_others_stay(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)
    # The shim ahead of need is from before: only later ones have what process 1 has now.
    for _ in range(2):
        assert (await box.run("echo well"))[1] == b"well\n"


SCHEDULING = {
    "a processor": "'sched_setaffinity', {pid}, 8, (1).to_bytes(8, sys.byteorder)",
    "SCHED_IDLE": "'sched_setscheduler', {pid}, 5, bytes(4)",
    "SCHED_BATCH": "'sched_setscheduler', {pid}, 3, bytes(4)",
    "a parameter": "'sched_setparam', {pid}, bytes(4)",
    "attributes": "'sched_setattr', {pid}, struct.pack('=IIQiIQQQ', 48, 5, 0, 0, 0, 0, 0, 0), 0",
    "nice 19": "'setpriority', 0, {pid}, 19",
    "an idle disk": "'ioprio_set', 1, {pid}, 3 << 13",
}


def scheduling(name: str, whom: str, pid: str, expected: str) -> Attempt:
    program = f"import struct\ncall({SCHEDULING[name].format(pid=pid)})"
    return Attempt(f"{name} for {whom}", program, expected)


@attempts(
    *(
        scheduling(name, whom, pid, expected)
        for whom, pid, expected in (
            ("process 1", "1", "EPERM"), ("process 1, high bits", "0x7_0000_0001", "EPERM"),
            ("the shim", "os.getppid()", "EPERM"), ("oneself", "0", "ALLOWED"))
        for name in SCHEDULING
    ),
    Attempt("nice 19 for one's group", "call('setpriority', 1, 0, 19)", "EPERM"),
    Attempt("nice 19 for the group of process 1", "call('setpriority', 1, 1, 19)", "EPERM"),
    Attempt("nice 19 for all of one's user", "call('setpriority', 2, 0, 19)", "EPERM"),
    Attempt("nice 19 for a user", "call('setpriority', 2, os.getuid(), 19)", "EPERM"),
    Attempt("nice 19 for a user, high bits", "call('setpriority', 0x7_0000_0002, 0, 19)", "EPERM"),
    Attempt("an idle disk for one's group", "call('ioprio_set', 2, 0, 3 << 13)", "EPERM"),
    Attempt("an idle disk for a user", "call('ioprio_set', 3, os.getuid(), 3 << 13)", "EPERM"),
    *(
        Attempt(f"write {what} of process 1", f"attempt(open, '/proc/1/{what}', 'wb')",
                "EACCES|EPERM|ENOENT|EROFS")
        for what in ("autogroup", "timerslack_ns", "sched")
    ),
    Attempt("look at how process 1 is scheduled",
            "for look in (os.sched_getaffinity, os.sched_getscheduler, os.sched_getparam):\n"
            "    attempt(look, 1)\n"
            "attempt(os.getpriority, os.PRIO_PROCESS, 1)", " ".join(["ALLOWED"] * 4)),
)  # fmt: skip
async def test_nobody_else_is_scheduled(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


BURNERS = 40
BURN = f"""
place = min(os.sched_getaffinity(0))
def harm(pid):
    for work in (lambda: os.sched_setaffinity(pid, {{place}}), lambda: HARM):
        try:
            work()
        except OSError:
            pass
for name in os.listdir('/proc'):
    if name.isdigit() and int(name) != os.getpid():
        harm(int(name))
os.sched_setaffinity(0, {{place}})
for _ in range({BURNERS}):
    if os.fork() == 0:
        break
else:
    print('burning', flush=True)
while True:
    pass
"""


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param("os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))", id="idle"),
        pytest.param("os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))", id="batch"),
        pytest.param("os.setpriority(os.PRIO_PROCESS, pid, 19)", id="nice"),
        pytest.param("os.setpriority(os.PRIO_PGRP, os.getpgid(pid), 19)", id="nice for groups"),
        pytest.param("raw(NUMBERS['sched_setattr'], pid, struct.pack("
                     "'=IIQiIQQQ', 48, 5, 0, 0, 0, 0, 0, 0), 0)", id="attributes"),
    ],
)  # fmt: skip
async def test_burners_beside_process_1_end_in_time(site: Site, harm: str) -> None:
    limits = Limits(cpu_millis=1000, memory_bytes=192 * MIB, disk_bytes=MIB, pids=64)
    box = await site.make(limits=limits)
    program = PROLOGUE + "import struct\n" + BURN.replace("HARM", harm)
    burner = await box.start(["python3", "-c", program], timeout_s=3)
    async with asyncio.timeout(ANSWER_S), aclosing(burner.output()) as output:
        said = (await anext(output)).data
        while not said.endswith(b"\n"):
            said += (await anext(output)).data
        assert said == b"burning\n"
    # They burn until their time is up, and others are served meanwhile and then.
    await answers(box)
    async with asyncio.timeout(ANSWER_S):
        assert (await burner.result()).reason is Reason.TIMED_OUT
    burner = await box.start(["python3", "-c", program])
    async with asyncio.timeout(ANSWER_S):
        await burner.cancel()
        assert (await burner.result()).reason is Reason.KILLED


@attempts(
    Attempt("setuid 0", "attempt(os.setuid, 0)", "EPERM|EINVAL"),
    Attempt("setgid 0", "attempt(os.setgid, 0)", "EPERM|EINVAL"),
    Attempt("setgroups 0", "attempt(os.setgroups, [0])", "EPERM|EINVAL"),
    Attempt("setresuid to another sandbox", "attempt(os.setresuid, 200001, 200001, 200001)",
            "EPERM|EINVAL"),
    Attempt("capabilities", "print(*[line.split()[1] for line in open('/proc/self/status')"
            " if line.startswith('Cap')])", " ".join(["0" * 16] * 5)),
    Attempt("no new privileges", "print([line.split()[1] for line in open('/proc/self/status')"
            " if line.startswith('NoNewPrivs')][0])", "1"),
    Attempt("a priority above others", "attempt(os.setpriority, os.PRIO_PROCESS, 0, -20)",
            "EPERM|EACCES"),
    Attempt("real-time scheduling",
            "attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(50))", "EPERM"),
    Attempt("write a user map",
            "attempt(lambda: os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 0 1'))",
            "EPERM|EACCES|EROFS"),
)  # fmt: skip
async def test_nobody_becomes_somebody(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


PLANTED = """
import shutil
for mode in (0o4755, 0o2755, 0o6755):
    shutil.copy('/bin/sh', '/workspace/planted')
    os.chmod('/workspace/planted', mode)
    print(subprocess.check_output(['/workspace/planted', '-c', 'cat /proc/$$/status']).decode()
          .partition('Uid:')[2].split()[:4] == [str(os.getuid())] * 4)
print(bool(os.statvfs('/workspace').f_flag & os.ST_NOSUID),
      bool(os.statvfs('/tmp').f_flag & os.ST_NOSUID))
attempt(os.chown, '/workspace/planted', 0, 0)
attempt(os.setxattr, '/workspace/planted', 'security.capability',
        bytes.fromhex('0100000202000000' + '00' * 12))
"""


async def test_planted_setuid_programs_gain_nothing(box: Box) -> None:
    got = await tries(box, PLANTED)
    assert got[:5] == ["True"] * 5
    assert set(got[5:]) <= {"EPERM", "EINVAL", "EOPNOTSUPP"}
    assert len(got) == 7


FOUND = """
found = subprocess.check_output('find / -xdev -perm /6000 -type f 2>/dev/null; true', shell=True)
for path in [*found.decode().split(), '/bin/sh']:
    try:
        child = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
    except PermissionError:
        continue
    # Popen returns once the program runs; even if it has ended, its users still stand here.
    status = open(f'/proc/{child.pid}/status').read()
    child.kill()
    child.wait()
    for kind, own in (('Uid:', os.getuid()), ('Gid:', os.getgid())):
        if status.partition(kind)[2].split()[:4] != [str(own)] * 4:
            print('BECAME', path, status.partition(kind)[2].split()[:4])
print('end')
"""


async def test_found_setuid_programs_gain_nothing(box: Box) -> None:
    assert await tries(box, FOUND) == ["end"]


async def test_a_root_shell_through_su_and_mount(box: Box) -> None:
    program = """
for command in (['su', '-c', 'id -u'], ['sudo', '-n', 'id', '-u'], ['pkexec', 'id', '-u'],
                ['mount', '-t', 'tmpfs', 'x', '/tmp'], ['newgrp', 'root'],
                ['passwd', '-d', 'root']):
    try:
        done = subprocess.run(command, input=b'', capture_output=True, timeout=10)
        print('ALLOWED' if done.returncode == 0 and done.stdout.strip() == b'0' else 'refused')
    except FileNotFoundError:
        print('refused')
"""
    assert await tries(box, program) == ["refused"] * 6
