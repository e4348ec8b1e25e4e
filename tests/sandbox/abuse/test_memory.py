"""Memory that no process seems to have, and kernel memory: whatever takes it, process 1 stays."""

import pytest

from sandbox.client import Reason
from sandbox.inside.barriers import LEAST_VERSION, VERSION_ASKED, landlock
from sandbox.limits import INODE_BYTES, Limits
from tests.sandbox.abuse.attack import Attempt, attempts, execute, is_contained, tries
from tests.sandbox.abuse.conftest import Site, holds
from tests.sandbox.conftest import MIB, Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

SMALL = Limits(memory_bytes=128 * MIB, disk_bytes=MIB, pids=48)
ENDED = (Reason.OOM_KILLED, Reason.KILLED, Reason.EXITED, Reason.TIMED_OUT)
HAS_LANDLOCK = landlock(*VERSION_ASKED) >= LEAST_VERSION
landlocked = pytest.mark.skipif(
    not HAS_LANDLOCK, reason="no Landlock: user code may give itself the OOM score of process 1"
)

# Beside the guardian as far as the kernel lets it, so that the largest process is the next to end.
HUMBLE = """
try:
    open('/proc/self/oom_score_adj', 'w').write('0')
except OSError:
    pass
page = b'1' * (1 << 20)
"""
HIDDEN = {
    "a file in memory without a name": "fd = os.memfd_create('x')\nwhile True: os.write(fd, page)",
    "many files in memory without names": "held = []\nwhile True:\n"
    "    held.append(os.memfd_create('x')); os.write(held[-1], page)",
    "a file in memory that is held by many": "fd = os.memfd_create('x')\nfor _ in range(20):\n"
    "    if os.fork() == 0: time.sleep(600)\nwhile True: os.write(fd, page)",
    "a file in memory under way in a socket": "a, b = socket.socketpair()\nwhile True:\n"
    "    fd = os.memfd_create('x'); os.write(fd, page); os.write(fd, page)\n"
    "    socket.send_fds(a, [b'x'], [fd]); os.close(fd)",
    "many small programs": "for _ in range(40):\n    if os.fork() == 0:\n"
    "        held = b'1' * (5 << 20); time.sleep(600)\ntime.sleep(600)",
    "programs that are born again": "while True:\n    try:\n        if os.fork() == 0:\n"
    "            held = b'1' * (5 << 20); time.sleep(0.2)\n    except OSError: pass",
    "what waits in pipes": "import fcntl\nheld = []\nfor _ in range(12):\n"
    "    if os.fork() == 0: break\nwhile True:\n"
    "    try:\n        held.append(os.pipe()); os.set_blocking(held[-1][1], False)\n"
    "        while True: os.write(held[-1][1], page)\n    except BlockingIOError: pass\n"
    "    except OSError: time.sleep(600)",
    "what waits in local sockets": "held = []\nfor _ in range(12):\n"
    "    if os.fork() == 0: break\nwhile True:\n    try:\n"
    "        held.append(socket.socketpair()); held[-1][0].setblocking(False)\n"
    "        while True: held[-1][0].send(page)\n    except BlockingIOError: pass\n"
    "    except OSError: time.sleep(600)",
    "tables of pages": "held = []\nwhile True:\n    held.append(mmap.mmap(-1, 1 << 30))\n"
    "    for at in range(0, 1 << 30, 1 << 21): held[-1][at]",
    "a stack without end": "import threading\nthreading.stack_size(1 << 28)\n"
    "sys.setrecursionlimit(1 << 30)\ndef deeper(n=0): deeper(n + 1)\n"
    "threading.Thread(target=deeper).start()",
    "arguments and environments of many": "env = {str(n): 'x' * 100_000 for n in range(15)}\n"
    "while True:\n    try:\n"
    "        if os.fork() == 0: os.execve('/bin/sleep', ['sleep', '600'], env)\n"
    "    except OSError: pass",
    "files beside programs": "for folder in ('/tmp', '/workspace', '/dev/shm'):\n"
    "    try:\n        with open(folder + '/full', 'wb') as file:\n"
    "            while True: file.write(page)\n    except OSError: pass\n"
    "held = []\nwhile True: held.append(page + b'1')",
}


@landlocked
@pytest.mark.parametrize("program", HIDDEN.values(), ids=HIDDEN.keys())
async def test_hidden_memory_ends_those_who_took_it(site: Site, program: str) -> None:
    if not await holds(site, "memory"):
        return
    box = await site.make(limits=SMALL)
    result, out = await execute(box, HUMBLE + program, timeout_s=2)
    assert result.reason in ENDED, out
    # It is free again: as much as half of the limit is there for the next one.
    got = await tries(box, "held = b'1' * (48 << 20); print(len(held) >> 20)")
    assert got == ["48"]


SCORE = "attempt(lambda: open('/proc/{}/{}', 'w').write('{}'))"


@landlocked
@attempts(
    *(
        Attempt(f"{file} {value}", SCORE.format("self", file, value), "EACCES")
        for file, value in (("oom_score_adj", "0"), ("oom_score_adj", "-1000"), ("oom_adj", "0"))
    ),
    Attempt("by way of a thread", SCORE.format("thread-self", "oom_score_adj", "0"), "EACCES"),
    Attempt("of a child", "child = subprocess.Popen(['sleep', '600'])\n"
            "attempt(lambda: open(f'/proc/{child.pid}/oom_score_adj', 'w').write('0'))\n"
            "child.kill()", "EACCES"),
    Attempt("by a relative path", "os.chdir('/proc/self')\n"
            "attempt(lambda: open('oom_score_adj', 'w').write('0'))", "EACCES"),
    Attempt("by a directory opened before", "fd = os.open('/proc/self', os.O_PATH)\n"
            "attempt(lambda: os.open('oom_score_adj', os.O_WRONLY, dir_fd=fd))", "EACCES"),
    Attempt("reopened for writing", "fd = os.open('/proc/self/oom_score_adj', os.O_RDONLY)\n"
            "attempt(os.open, f'/proc/self/fd/{fd}', os.O_WRONLY)", "EACCES"),
    Attempt("by way of a link", "os.symlink('/proc/self/oom_score_adj', '/tmp/score')\n"
            "attempt(os.open, '/tmp/score', os.O_WRONLY)\nos.unlink('/tmp/score')", "EACCES"),
    Attempt("by truncation", "attempt(os.open, '/proc/self/oom_score_adj',"
            " os.O_WRONLY | os.O_TRUNC)", "EACCES"),
    Attempt("after a new session",
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        "
            + SCORE.format("self", "oom_score_adj", "0") + "\n    os._exit(0)\nos.wait()\n"
            "time.sleep(0.5)", "EACCES"),
    Attempt("rules of one's own that allow it",
            # A second set of rules can take away more, and give nothing back.
            "rules = raw(444, (1 << 1).to_bytes(8, 'little'), 8, 0)\n"
            "fd = os.open('/', os.O_PATH)\n"
            "raw(445, rules, 1, (1 << 1).to_bytes(8, 'little') + fd.to_bytes(4, 'little'), 0)\n"
            "say(raw(446, rules, 0))\n" + SCORE.format("self", "oom_score_adj", "0"),
            "ALLOWED EACCES"),
    Attempt("what it is", "print(open('/proc/self/oom_score_adj').read(),"
            " open('/proc/1/oom_score_adj').read())", "1000 0"),
)  # fmt: skip
async def test_nobody_is_spared_before_process_1(box: Box, attempt: Attempt) -> None:
    await is_contained(box, attempt)


@attempts(
    Attempt("pipes and devices by their names in proc",
            "read, write = os.pipe()\n"
            "for path in (f'/proc/self/fd/{write}', '/dev/stdout', '/proc/self/fd/1', '/dev/null',"
            "             '/dev/shm/x', '/tmp/x', '/workspace/x', f'/dev/fd/{write}'):\n"
            "    attempt(lambda: open(path, 'w').close())", " ".join(["ALLOWED"] * 8)),
    Attempt("files in memory by their names in proc", "fd = os.memfd_create('x')\n"
            "attempt(lambda: open(f'/proc/self/fd/{fd}', 'w').write('x'))", "ALLOWED"),
    Attempt("moves between folders", "os.makedirs('/workspace/a/b', exist_ok=True)\n"
            "open('/workspace/a/b/c', 'w').close()\n"
            "attempt(os.rename, '/workspace/a/b/c', '/workspace/c')\n"
            "attempt(os.link, '/workspace/c', '/workspace/a/c')", "ALLOWED ALLOWED"),
)  # fmt: skip
async def test_what_everybody_writes_is_still_written(box: Box, attempt: Attempt) -> None:
    # Were everything refused, the refusals above would prove nothing.
    await is_contained(box, attempt)


FILL = """
def fill(folder):
    long = 'x' * 240
    for number in range(1_000_000):
        {make}
for folder in ('/workspace', '/tmp', '/dev/shm'):
    attempt(fill, folder)
for folder in ('/workspace', '/tmp', '/dev/shm'):
    attempt(lambda: open(folder + '/' + {full!r}, 'wb', buffering=0).write(bytes(1 << 30))
            if folder == '/dev/shm' else subprocess.run(
                'exec 2>&1; cat /dev/zero > ' + folder + '/' + {full!r} + '; exit 0', shell=True))
print(len(os.listdir('/workspace')))
"""
LONG_NAMES = "os.close(os.open(f'{folder}/{number:09}{long}', os.O_CREAT))"
MAKE = {
    "directories with long names": "os.mkdir(f'{folder}/{number:09}{long}')",
    "links with long names": "os.symlink(long, f'{folder}/{number:09}{long}')",
    "files with attributes": "name = f'{folder}/{number:09}{long}'; os.mknod(name);"
    " os.setxattr(name, b'user.x', b'x' * 900)",
}
LEAST = Limits(memory_bytes=76 * MIB, disk_bytes=MIB)
EVERYTHING = {
    "the least memory": LEAST,
    "files as large as may be": Limits(memory_bytes=160 * MIB, disk_bytes=76 * MIB),
    "more inodes than there is room for": Limits(
        memory_bytes=128 * MIB, disk_bytes=8 * MIB, inodes=10_000_000
    ),
}


@pytest.mark.parametrize(
    ("limits", "make"),
    [
        *(pytest.param(limits, LONG_NAMES, id=name) for name, limits in EVERYTHING.items()),
        *(pytest.param(LEAST, make, id=name) for name, make in MAKE.items()),
    ],
)
async def test_all_inodes_and_all_bytes_at_once(site: Site, limits: Limits, make: str) -> None:
    if not await holds(site, "inodes"):
        return
    box = await site.make(limits=limits)
    result, out = await execute(box, FILL.format(make=make, full="000000000"), timeout_s=60)
    assert (result.exit_code, result.reason) == (0, Reason.EXITED), out
    # One number has two names, and not every version of Python says the same one first.
    refusals = out.replace("EOPNOTSUPP", "ENOTSUP").split()[:3]
    known = [["ENOSPC"] * 3, ["ENOSPC", "ENOSPC", "ENOTSUP"]]
    if "setxattr" in make:
        # Before Linux 6.6 a tmpfs keeps no attributes of users.
        known.append(["ENOTSUP"] * 3)
    assert refusals in known, out
    usage = await site.driver.stats(box.id)
    assert usage.oom_kills == 0
    assert usage.inodes is None or usage.inodes * INODE_BYTES < limits.memory_bytes
    await box.run("find /workspace /tmp /dev/shm -mindepth 1 -delete", timeout_s=60)


SOCKETS = """
for _ in range(20):
    if os.fork() == 0:
        break
held = []
def pair():
    {pair}
    a.setblocking(False)
    held.extend((a, b))
    try:
        for _ in range(300):
            a.send(bytes(60_000))
    except OSError:
        pass
try:
    while len(held) < 900:
        pair()
except OSError:
    pass
time.sleep(600)
"""
PAIRS = {
    "UDP": "b = socket.socket(2, 2); b.bind(('127.0.0.1', 0)); a = socket.socket(2, 2);"
    " b.setsockopt(1, 8, 1 << 22); a.connect(b.getsockname())",
    "TCP": "s = socket.create_server(('127.0.0.1', 0)); a = socket.socket();"
    " a.connect(s.getsockname()); b = s.accept()[0]; s.close()",
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
async def test_what_waits_in_sockets_harms_nobody(site: Site, pair: str) -> None:
    box = await site.make(limits=SMALL)
    result, _ = await execute(box, SOCKETS.format(pair=pair), timeout_s=2)
    assert result.reason in ENDED
    # Others still connect and send while the kernel gives back what was held.
    program = PAIRS["TCP"].replace("; ", "\n") + "\na.sendall(b'well'); print(b.recv(4).decode())"
    assert await tries(site.other, program) == ["well"]
