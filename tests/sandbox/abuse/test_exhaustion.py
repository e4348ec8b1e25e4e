"""Everything that can run out runs out for the one who uses it up, and for nobody else."""

import asyncio
import time

import pytest

from sandbox.client import Reason
from sandbox.limits import Limits
from tests.sandbox.abuse.attack import PROLOGUE, Attempt, attempts, execute, is_contained, tries
from tests.sandbox.abuse.conftest import Neighbour, Site, holds
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = Limits(memory_bytes=192 * MIB, disk_bytes=MIB, pids=48)
OVER = (Reason.TIMED_OUT, Reason.EXITED, Reason.KILLED, Reason.OOM_KILLED)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param("b() { b | b & b; }; b; sleep 600", id="shell fork bomb"),
        pytest.param(
            "exec python3 -c 'import os\nwhile True:\n"
            "  try: os.fork()\n  except OSError: pass'", id="fork bomb that never waits"),
        pytest.param(
            "exec python3 -c 'import os\nwhile True:\n"
            "  try:\n    if os.fork(): os._exit(0)\n    os.setsid()\n  except OSError: pass'",
            id="fork bomb that always leaves its parent"),
        pytest.param(
            "exec python3 -c 'import threading, time\nwhile True:\n"
            "  try: threading.Thread(target=time.sleep, args=(600,)).start()\n"
            "  except RuntimeError: pass'", id="thread bomb"),
        pytest.param("while :; do sleep 600 & done", id="background jobs"),
    ],
)  # fmt: skip
async def test_a_bomb_of_processes_is_contained_and_cleared(site: Site, bomb: str) -> None:
    box = await site.make(limits=SMALL)
    result, _, _ = await box.run(bomb, timeout_s=1)
    assert result.reason in OVER
    (count,) = await tries(box, "print(sum(p.isdigit() for p in os.listdir('/proc')))")
    # Process 1, this program, its shim, and a shim ahead of need.
    assert int(count) <= 4


HOG = """
for _ in range({forks}):
    os.fork()
held = []
while True:
    {take}
"""


@pytest.mark.parametrize(
    ("forks", "take"),
    [
        pytest.param(0, "held.append(b'1' * (1 << 20))", id="memory bomb of one process"),
        pytest.param(4, "held.append(b'1' * (1 << 20))", id="memory bomb of many processes"),
        pytest.param(0, "held.append(mmap.mmap(-1, 1 << 24)); held[-1][::4096] = b'1' * 4096",
                     id="memory bomb of shared pages"),
        pytest.param(0, "held.append(subprocess.Popen(['cat'], stdin=-1))",
                     id="memory bomb of programs"),
    ],
)  # fmt: skip
async def test_a_bomb_of_memory_is_contained(site: Site, forks: int, take: str) -> None:
    if not await holds(site, "memory"):
        return
    box = await site.make(limits=SMALL)
    result, _ = await execute(box, HOG.format(forks=forks, take=take), timeout_s=2)
    assert result.reason in OVER


async def test_empty_files_of_shared_memory_run_out(site: Site) -> None:
    if not await holds(site, "inodes"):
        return
    program = """
def fill():
    for number in range(1_000_000):
        os.close(os.open(f'/dev/shm/{number}', os.O_CREAT))
attempt(fill)
print(len(os.listdir('/dev/shm')) < 5000)
"""
    await is_contained(await site.make(limits=SMALL), Attempt("", program, "ENOSPC True"))


@attempts(
    Attempt("System V shared memory", "call('shmget', 0, 1 << 20, 0o600)", "EPERM"),
    Attempt("System V shared memory, high bits", "call('shmget', 0, 1 << 32, 0o600)", "EPERM"),
    Attempt("System V queues", "call('msgget', 0, 0o600)", "ENOSYS"),
    Attempt("System V semaphores", "call('semget', 0, 32000, 0o600)", "ENOSYS"),
    Attempt(
        "POSIX queues",
        "rt = ctypes.CDLL('librt.so.1', use_errno=True)\n"
        "class Size(ctypes.Structure):\n"
        "    _fields_ = [('f', ctypes.c_long), ('n', ctypes.c_long), ('s', ctypes.c_long),"
        " ('c', ctypes.c_long), ('_', ctypes.c_long * 4)]\n"
        "made = 0\n"
        "while made < 5000 and rt.mq_open(b'/q%d' % made, 0o102, 0o600,"
        " ctypes.byref(Size(0, 10, 8192))) >= 0:\n"
        "    made += 1\n"
        "print(made < 100)\n"
        "for number in range(made): rt.mq_unlink(b'/q%d' % number)",
        "True",
    ),
)
async def test_no_memory_outlives_its_program(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_a_page_of_system_v_memory_is_left_to_databases(box: Box) -> None:
    program = """
found = raw(NUMBERS['shmget'], 0, 56, 0o600)
say(found)
say(raw(31 if X86 else 195, found, 0, 0))
"""
    await is_contained(box, Attempt("", program, "ALLOWED ALLOWED"))


async def test_every_filesystem_is_filled(site: Site) -> None:
    box = await site.make(limits=Limits(memory_bytes=160 * MIB, disk_bytes=64 * MIB))
    fill = "for d in /workspace /tmp /dev/shm /dev /run /etc /; do cat /dev/zero > $d/big; done"
    result, _, err = await box.run(f"{fill}; true", timeout_s=60)
    assert (result.exit_code, result.reason) == (0, Reason.EXITED)
    assert err.count(b"No space left") == 3
    result, _, _ = await box.run("rm /workspace/big /tmp/big /dev/shm/big")
    assert result.exit_code == 0


@pytest.mark.parametrize("kind", ["files", "directories", "symbolic links", "hard links"])
async def test_inodes_run_out(site: Site, kind: str) -> None:
    if not await holds(site, "inodes"):
        return
    limits = Limits(memory_bytes=192 * MIB, disk_bytes=32 * MIB, inodes=500)
    box = await site.make(limits=limits)
    program = f"""
open('/workspace/first', 'w').close()
work = {{'files': lambda p: open(p, 'w').close(), 'directories': os.mkdir,
        'symbolic links': lambda p: os.symlink('first', p),
        'hard links': lambda p: os.link('/workspace/first', p)}}[{kind!r}]
def fill(folder):
    for number in range(2000):
        work(f'{{folder}}/{{number}}')
attempt(fill, '/workspace')
print(len(os.listdir('/workspace')) <= 500)
"""
    await is_contained(box, Attempt("", program, "ENOSPC True"))
    result, _, _ = await box.run("rm -rf /workspace/*")
    assert result.exit_code == 0


async def test_descriptors_run_out_for_each_process_alone(site: Site) -> None:
    program = """
for _ in range(4):
    os.fork()
held = []
try:
    while len(held) < 5000:
        held.append(os.dup(0))
except OSError as error:
    os.write(1, f'{errno.errorcode[error.errno]}-{len(held) < 1024} '.encode())
time.sleep(600)
"""
    box = await site.make(limits=SMALL)
    execution = await box.start(["python3", "-c", "import errno, os, time" + program])
    seen = b""
    async with asyncio.timeout(60):
        async for chunk in execution.output():
            seen += chunk.data
            if seen.count(b" ") == 16:
                break
    assert seen.split() == [b"EMFILE-True"] * 16
    # While all of them are held.
    assert (await box.run("echo here"))[1] == b"here\n"
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


HELD = """
for _ in range(8):
    if os.fork() == 0:
        break
held = []
mark = os.open(f'full{{os.getpid()}}', os.O_CREAT | os.O_WRONLY)
def take():
    {take}
try:
    while len(held) < 100_000:
        take()
except (OSError, MemoryError, AssertionError):
    os.write(mark, b'x')
time.sleep(600)
"""


@pytest.mark.parametrize(
    "take",
    [
        pytest.param("held.append(os.pipe());"
                     " fcntl.fcntl(held[-1][1], 1031, 1 << 20)", id="pages of pipes"),
        pytest.param("held.append(os.eventfd(0))", id="event descriptors"),
        pytest.param("held.append(select.epoll())", id="epoll instances"),
        pytest.param("held.append(libc.inotify_init()); assert held[-1] >= 0",
                     id="inotify instances"),
        pytest.param("held.append(socket.socket())", id="sockets"),
        pytest.param("held.append(os.openpty())", id="terminals"),
        pytest.param("held.append(raw(283 if X86 else 85, 1, 0)); assert held[-1] >= 0",
                     id="timers"),
        pytest.param("held.append(open(f'/tmp/{os.getpid()}-{len(held)}', 'w'));"
                     " fcntl.flock(held[-1], 2)", id="locks"),
    ],
)  # fmt: skip
async def test_what_the_kernel_lends_runs_out(site: Site, take: str) -> None:
    box = await site.make(limits=SMALL)
    program = PROLOGUE + "import fcntl\n" + HELD.format(take=take)
    execution = await box.start(["python3", "-c", program])
    wait = "while [ $(find -name 'full*' -size +0 | wc -l) -lt 9 ]; do sleep 0.05; done; echo full"
    # The box answers, starts programs and takes files while all of it is held.
    assert (await box.run(wait))[1] == b"full\n"
    await box.client.files.write("through", b"x" * 100_000)
    assert len(await box.client.files.read("through")) == 100_000
    await execution.cancel()
    assert (await execution.result()).reason is Reason.KILLED


async def test_cpu_burners_keep_to_their_quota(site: Site, neighbour: Neighbour) -> None:
    if not await holds(site, "cpu"):
        return
    limits = Limits(cpu_millis=200, memory_bytes=192 * MIB, disk_bytes=MIB)
    box = await site.make(limits=limits)
    burn = "import os\nfor _ in range(15):\n    if os.fork() == 0: break\nwhile True: pass"
    before = await site.driver.stats(box.id)
    began = time.monotonic()
    result, _, _ = await box.python(burn, timeout_s=2)
    wall_ms = (time.monotonic() - began) * 1000
    after = await site.driver.stats(box.id)
    assert result.reason is Reason.TIMED_OUT
    assert before.cpu_ms is not None
    assert after.cpu_ms is not None
    # A fifth of one processor, and twice that for what is measured late.
    assert after.cpu_ms - before.cpu_ms < wall_ms * 0.4
    assert neighbour.rounds > 0


@attempts(
    Attempt("lock memory", "call_ = mmap.mmap(-1, 1 << 24)\n"
            "say(libc.mlockall(3))", "ENOMEM|EPERM"),
    Attempt("a core dump", "print(*resource.getrlimit(resource.RLIMIT_CORE))", "0 0"),
    Attempt("address space without end", "held = []\n"
            "try:\n    while len(held) < 64: held.append(mmap.mmap(-1, 1 << 40))\n"
            "except (OSError, MemoryError): pass\nprint('end')", "end"),
    Attempt("a file of an exabyte", "fd = os.open('/workspace/sparse', os.O_RDWR | os.O_CREAT)\n"
            "try:\n    os.ftruncate(fd, 1 << 60); os.pwrite(fd, b'x', (1 << 60) - 1)\n"
            "except OSError: pass\nos.unlink('/workspace/sparse')\nprint('end')", "end"),
    Attempt("fallocate beyond the disk",
            "fd = os.open('/workspace/big', os.O_RDWR | os.O_CREAT)\n"
            "attempt(os.posix_fallocate, fd, 0, 1 << 40)\nos.unlink('/workspace/big')",
            "ENOSPC|EFBIG"),
    Attempt("zombies", "for _ in range(200):\n"
            "    try:\n        if os.fork() == 0: os._exit(0)\n"
            "    except OSError: break\nprint('end')", "end"),
    Attempt("arguments without end",
            "attempt(os.execv, '/bin/true', ['true'] + ['x' * 100_000] * 100)", "E2BIG"),
)  # fmt: skip
async def test_it_ends_in_an_error(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


async def test_more_executions_than_there_is_room_for(site: Site) -> None:
    box = await site.make(limits=SMALL)
    asked = [box.start("sleep 600") for _ in range(100)]
    begun = await asyncio.gather(*asked, return_exceptions=True)
    running = [each for each in begun if not isinstance(each, BaseException)]
    assert 0 < len(running) < 48
    await asyncio.gather(*(each.cancel() for each in running))
    results = await asyncio.gather(*(each.result() for each in running))
    # Where there was no room any more for what the shell starts, it has ended by itself.
    assert {result.reason for result in results} <= {Reason.KILLED, Reason.EXITED}


async def test_folders_nested_beyond_every_path(site: Site) -> None:
    box = await site.make()
    program = """
try:
    for _ in range(3000):
        os.mkdir('d' * 200)
        os.chdir('d' * 200)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    said = await tries(box, program)
    if said:
        # AppArmor refuses by itself what lies deeper than a path can tell.
        assert said == ["ENAMETOOLONG"]
        await box.client.files.remove("d" * 200, recursive=True)
        assert await box.client.files.list(".") == []
        return
    with pytest.raises(Exception, match="nested too deeply"):
        await box.client.files.remove("d" * 200, recursive=True)
    assert len(await box.client.files.list(".")) == 1
