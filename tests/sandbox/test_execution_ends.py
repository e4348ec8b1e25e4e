"""How executions end, with all they started; what bounds them; and that none reaches another."""

import asyncio
import signal
from contextlib import aclosing

import pytest

from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import Reason
from sandbox.inside.processes import REPORT
from sandbox.limits import Limits
from tests.sandbox.conftest import MIB, Box, Boxes

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        sys.argv[0] = 'daemon'
        open('/workspace/daemon', 'w').write(str(os.getpid()))
        while True:
            time.sleep(0.01)
    os._exit(0)
os.wait()
while not os.path.exists('/workspace/daemon') or not open('/workspace/daemon').read():
    time.sleep(0.01)
print('ready', flush=True)
"""


async def processes(box: Box) -> set[bytes]:
    """Command lines of all processes but process 1, its shims and the one that looks."""
    program = (
        "import os\n"
        "for p in os.listdir('/proc'):\n"
        "    if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid()):\n"
        "        try: line = open(f'/proc/{p}/cmdline').read()\n"
        "        except OSError: continue  # It has just ended.\n"
        "        if line: print(p, line.replace('\\0', ' ')[:60])\n"
    )
    result, out, err = await box.python(program)
    assert result.exit_code == 0, err
    # A shim that has just reported may still be on its way out; it holds the agent's own text.
    return {line for line in out.splitlines() if b"-I -S -B -c" not in line}


async def test_a_timeout_kills_daemons_that_left_their_session(box: Box) -> None:
    result, out, _ = await box.python(DAEMON + "time.sleep(600)", timeout_s=1.5)
    assert out == b"ready\n"
    assert result.reason is Reason.TIMED_OUT
    assert result.signal == signal.SIGKILL
    assert await processes(box) == set()


async def test_the_end_of_a_program_ends_its_daemons_too(box: Box) -> None:
    result, out, _ = await box.python(DAEMON)
    assert (out, result.exit_code, result.reason) == (b"ready\n", 0, Reason.EXITED)
    assert await processes(box) == set()


async def test_ending_one_execution_leaves_the_others(box: Box) -> None:
    other = await box.start("echo up; read line; echo $line", keep_stdin_open=True)
    async with aclosing(other.output()) as output:
        assert (await anext(output)).data == b"up\n"
        victim = await box.start("sleep 600 & sleep 600")
        await victim.cancel()
        assert (await victim.result()).reason is Reason.KILLED
        await other.write_stdin(b"still here\n")
        assert (await anext(output)).data == b"still here\n"
    assert (await other.result()).exit_code == 0


async def test_cancelling_kills_the_tree_and_may_be_repeated(box: Box) -> None:
    execution = await box.start("echo go; (sleep 600 & sleep 600); echo never")
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"go\n"
        await execution.cancel()
        await execution.cancel()
        assert [chunk async for chunk in output] == []
    result = await execution.result()
    assert result.reason is Reason.KILLED
    await execution.cancel()
    assert await processes(box) == set()


async def test_killing_ones_guardian_does_not_outlive_it(box: Box) -> None:
    # The shim has the program's uid, so the program can kill or stop it.
    result, _, _ = await box.run("(setsid sleep 600 &) ; kill -9 $PPID; sleep 600", timeout_s=20)
    assert result.reason is Reason.KILLED
    assert await processes(box) == set()
    result, _, _ = await box.run("kill -STOP $PPID; sleep 600", timeout_s=0.5)
    assert result.reason is Reason.TIMED_OUT
    assert await processes(box) == set()


FORGER = """
import os, struct, sys, time
forged, streams = bytes.fromhex(sys.argv[1]), sys.argv[2]
if os.fork():
    if streams == 'closed':
        os.closerange(0, 3)
    time.sleep(600)
def parent(pid):
    return int(open('/proc/%d/stat' % pid).read().rpartition(')')[2].split()[1])
shim = os.getpid()
while parent(shim) != 1:
    shim = parent(shim)
for what, flags in (('fd/3', os.O_WRONLY), ('mem', os.O_RDWR)):
    try:
        fd = os.open('/proc/%d/%s' % (shim, what), flags)
        if what == 'fd/3':
            open('/workspace/opened', 'w').close()
            os.write(fd, forged)
        print(what, 'OPENED', flush=True)
    except OSError:
        print(what, 'refused', flush=True)
if streams == 'closed':
    os.closerange(0, 3)
if streams == 'killed':
    os.kill(shim, 9)
time.sleep(600)
"""
FORGED = [
    pytest.param(REPORT.pack(b"E", 0, 0, 0), id="end"),
    pytest.param(REPORT.pack(b"X", 2, 0, 0), id="no start"),
    pytest.param(REPORT.pack(b"S", 1, 0, 0), id="another start"),
    pytest.param(REPORT.pack(b"E", 1 << 31, 0, 0), id="a status beyond all"),
    pytest.param(REPORT.pack(b"?", 0, 0, 0), id="nonsense"),
    pytest.param(b"E", id="short"),
    pytest.param(b"", id="nothing"),
    pytest.param(REPORT.pack(b"E", 0, 0, 0) * 500, id="flood"),
]


@pytest.mark.parametrize("streams", ["open", "closed"])
async def test_nobody_reports_in_the_name_of_the_guardian(box: Box, streams: str) -> None:
    forged = REPORT.pack(b"E", 0, 0, 0).hex()
    result, out, _ = await box.run(["python3", "-c", FORGER, forged, streams], timeout_s=2)
    assert out == b"fd/3 refused\nmem refused\n"
    assert result.reason is Reason.TIMED_OUT
    assert await processes(box) == set()


@pytest.mark.bubblewrap
@pytest.mark.parametrize("streams", ["open", "closed", "killed"])
@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_report_ends_nothing_but_its_own_tree(
    wrapped: Boxes, forged: bytes, streams: str
) -> None:
    # The moment in which a shim can be opened is too short to be met, so here it lasts.
    driver = wrapped.driver
    assert isinstance(driver, BubblewrapDriver)
    line = " finally:\n  prctl(PR_SET_DUMPABLE, 0)\n"
    assert driver._source.count(line) == 1
    driver._source = driver._source.replace(line, " finally:\n  pass\n")
    box = await wrapped.make()
    command = ["python3", "-c", FORGER, forged.hex(), streams]
    async with asyncio.timeout(30):
        result, _, _ = await box.run(command, timeout_s=1.5)
        assert not (await box.client.files.stat("opened")).is_directory
        assert result.reason in (Reason.TIMED_OUT, Reason.KILLED) or streams == "killed"
        assert await processes(box) == set()
        assert (await box.run("echo well"))[1] == b"well\n"


HOLDER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind('/tmp/taken')
server.listen()
os.write(1, b'ready\\n')
held = socket.recv_fds(server.accept()[0], 1, 1)
os.write(1, b'held\\n')
sys.stdin.read()
"""
GIVER = """
import socket
link = socket.socket(socket.AF_UNIX)
link.connect('/tmp/taken')
socket.send_fds(link, [b'x'], [1])
"""


async def test_output_held_open_by_another_execution_ends_with_the_deadline(box: Box) -> None:
    holder = await box.start(["python3", "-c", HOLDER], keep_stdin_open=True)
    async with aclosing(holder.output()) as output:
        assert (await anext(output)).data == b"ready\n"
        command = f"echo mine; python3 -c '{GIVER.replace(chr(39), chr(34))}'; exit 1"
        execution = await box.start(command, timeout_s=3)
        assert (await anext(output)).data == b"held\n"
        async with asyncio.timeout(30):
            result = await execution.result()
        assert (result.reason, result.exit_code, result.truncated) == (Reason.EXITED, 1, True)
        await holder.cancel()
    assert await processes(box) == set()


async def test_an_execution_looks_into_no_process_of_another(box: Box) -> None:
    kept = await box.start("exec sleep 600")
    async with aclosing(kept.output()):
        program = f"""
import os, time
while open('/proc/{kept.pid}/comm').read() != 'sleep\\n':
    time.sleep(0.01)
for name in ('fd/1', 'mem', 'environ'):
    try:
        os.open('/proc/{kept.pid}/' + name, os.O_RDONLY)
    except PermissionError:
        print(name, 'refused')
print(open('/proc/{kept.pid}/cmdline').read().split('\\0'))
"""
        _, out, _ = await box.python(program)
        told = ["fd/1 refused", "mem refused", "environ refused", "['sleep', '600', '']"]
        assert out.decode().splitlines() == told
        await kept.cancel()


async def test_output_beyond_the_limit_ends_the_execution(box: Box) -> None:
    result, out, err = await box.run("yes", output_limit_bytes=100_001)
    assert (len(out), err) == (100_001, b"")
    assert result.reason is Reason.OUTPUT_LIMIT
    assert (result.truncated, result.stdout_bytes) == (True, 100_001)
    exact, out, _ = await box.run("head -c 5000 /dev/zero", output_limit_bytes=5000)
    assert (exact.reason, exact.truncated, len(out)) == (Reason.EXITED, False, 5000)


async def test_each_stream_has_its_own_limit(box: Box) -> None:
    command = "head -c 900 /dev/zero; head -c 900 /dev/zero >&2"
    result, out, err = await box.run(command, output_limit_bytes=1000)
    assert (len(out), len(err), result.truncated) == (900, 900, False)


async def test_memory_beyond_the_limit_is_told_as_such(boxes: Boxes) -> None:
    if (await boxes.driver.capabilities()).items["memory"] != "ENFORCED":
        pytest.skip("Memory is not enforced for the whole sandbox here.")
    limits = Limits(memory_bytes=96 * MIB, disk_bytes=4 * MIB)
    box = await boxes.make(limits=limits)
    result, _, _ = await box.python("x = [bytearray(1 << 20) for _ in range(400)]")
    assert (result.reason, result.signal) == (Reason.OOM_KILLED, signal.SIGKILL)
    # Its child, not itself: the program lives to fail by itself.
    result, _, _ = await box.run("python3 -c 'x = b\"1\" * (300 << 20)'; exit 1")
    assert result.reason is Reason.OOM_KILLED
    result, out, _ = await box.run("echo alive")
    assert (out, result.reason) == (b"alive\n", Reason.EXITED)


async def test_the_number_of_processes_is_limited(boxes: Boxes) -> None:
    box = await boxes.make(limits=Limits(memory_bytes=192 * MIB, disk_bytes=MIB, pids=24))
    program = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    for _ in range(100):\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "        made += 1\n"
        "except OSError as error:\n"
        "    print(made, error.errno)\n"
    )
    _, out, _ = await box.python(program)
    made, number = map(int, out.split())
    assert 10 <= made <= 24
    assert number == 11
    result, _, _ = await box.run("exit 0")
    assert result.exit_code == 0


async def test_a_full_disk_fails_the_writer_alone(box: Box) -> None:
    result, _, err = await box.run("head -c 100000000 /dev/zero > big; s=$?; rm big; exit $s")
    assert result.exit_code != 0
    assert b"No space left" in err
    result, out, _ = await box.run("echo fine > small; cat small")
    assert out == b"fine\n"
