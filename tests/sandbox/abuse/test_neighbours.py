"""From one sandbox to another: no memory, no message, no signal, no lock, no file passes."""

import asyncio
import uuid
from contextlib import aclosing

import pytest

from sandbox.client import Execution
from tests.sandbox.abuse.attack import PROLOGUE, Attempt, attempts, is_contained
from tests.sandbox.abuse.conftest import Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = uuid.uuid4().hex
SHARE = f"""
import fcntl
rt = ctypes.CDLL('librt.so.1', use_errno=True)
kept = socket.socket(1); kept.bind('\\0abstract-{TOKEN}'); kept.listen()
open('/dev/shm/{TOKEN}', 'w').write('x')
open('/tmp/{TOKEN}', 'w').write('x')
open('/workspace/{TOKEN}', 'w').write('x')
rt.mq_open(b'/{TOKEN}', 0o102, 0o666, None)
raw(NUMBERS['shmget'], 0x5eed, 512, 0o1666)
os.mkfifo('/tmp/fifo-{TOKEN}')
lock = open('/usr/bin/env', 'rb'); fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
leader, follower = os.openpty()
print('ready', os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def held() -> dict[str, Execution]:
    return {}


async def sharing(site: Site, held: dict[str, Execution]) -> Execution:
    """The program of the other sandbox, which offers all that could be shared."""
    if site.other.id not in held:
        execution = await site.other.start(["python3", "-c", PROLOGUE + SHARE], timeout_s=170)
        async with aclosing(execution.output()) as output, asyncio.timeout(30):
            assert (await anext(output)).data.startswith(b"ready")
        held[site.other.id] = execution
    return held[site.other.id]


@attempts(
    Attempt("abstract sockets",
            f"attempt(socket.socket(1).connect, '\\0abstract-{TOKEN}')", "ECONNREFUSED"),
    *(
        Attempt(f"files of {folder}", f"print({TOKEN!r} in os.listdir({folder!r}))", "False")
        for folder in ("/dev/shm", "/tmp", "/workspace")
    ),
    Attempt("POSIX queues", "rt = ctypes.CDLL('librt.so.1', use_errno=True)\n"
            f"say(rt.mq_open(b'/{TOKEN}', 2, 0, None))", "ENOENT"),
    Attempt("System V memory by key", "call('shmget', 0x5eed, 512, 0)", "ENOENT"),
    Attempt("named pipes", f"print(os.path.exists('/tmp/fifo-{TOKEN}'))", "False"),
    Attempt("terminals", "print(sum(n.isdigit() for n in os.listdir('/dev/pts')))", "0"),
    Attempt("processes", "print(sum(b'abstract-' in open(f'/proc/{p}/cmdline', 'rb').read()"
            " for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()))", "0"),
    Attempt("the name of the host", "print(os.uname().nodename)", "sandbox"),
    Attempt("kernel keys", "call('keyctl', 0, -4, 0)", "EPERM"),
)  # fmt: skip
async def test_nothing_is_shared(site: Site, held: dict[str, Execution], attempt: Attempt) -> None:
    execution = await sharing(site, held)
    await is_contained(site.box, attempt)
    assert not execution._result.done()


async def test_no_signal_crosses_over(site: Site, held: dict[str, Execution]) -> None:
    execution = await sharing(site, held)
    box = await site.make()
    program = """
sent = 0
for pid in (*range(2, 5000), *range(5000, 4_000_000, 4999)):
    try:
        if pid not in (os.getpid(), os.getppid()):
            os.kill(pid, signal.SIGTERM)
            sent += 1
    except OSError:
        pass
print(sent <= 2)
"""
    await is_contained(box, Attempt("", program, "True"))
    assert not execution._result.done()
    _, out, _ = await site.other.run("echo here")
    assert out == b"here\n"


async def test_full_disks_and_limits_are_not_shared(site: Site) -> None:
    box = await site.make()
    result, _, _ = await box.run("cat /dev/zero > /workspace/a; cat /dev/zero > /tmp/a; true")
    assert result.exit_code == 0
    result, _, _ = await site.other.run("head -c 4000000 /dev/zero > b && rm b")
    assert result.exit_code == 0
