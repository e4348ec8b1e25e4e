"""Whatever a program starts ends with its execution, however it hides."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from sandbox.client import Reason
from tests.sandbox.abuse.attack import PROLOGUE, tries
from tests.sandbox.abuse.conftest import Site
from tests.sandbox.conftest import Box

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Each makes a process that means to live on, then prints `hidden`.
HIDING = {
    "a child of its own session": "if os.fork() == 0: os.setsid(); lurk()",
    "a double fork": "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: lurk()\n"
                     "    os._exit(0)\nos.wait()",
    "a daemon without descriptors": "if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: report(); os.closerange(0, 1024); wait()\n"
        "    os._exit(0)\nos.wait()",
    "a sibling": "if raw(NUMBERS['clone'], 0x8000 | 17, 0, 0, 0, 0) == 0: lurk()",
    "a child that reaps for itself": "if os.fork() == 0:\n    libc.prctl(36, 1, 0, 0, 0)\n"
                                     "    if os.fork() == 0: lurk()\n    wait()",
    "a stopped child": "if os.fork() == 0: report(); os.kill(os.getpid(), signal.SIGSTOP); wait()",
    "a child that ignores every signal": "if os.fork() == 0:\n    for n in range(1, 32):\n"
        "        try: signal.signal(n, signal.SIG_IGN)\n        except OSError: pass\n    lurk()",
    "a child that nobody may open": "if os.fork() == 0: libc.prctl(4, 0, 0, 0, 0); lurk()",
    "a child with the name of a shim": "if os.fork() == 0:\n"
        "    libc.prctl(15, b'python3', 0, 0, 0)\n    report()\n"
        "    os.execv(sys.executable, ['python3', '-I', '-S', '-B', '-c', 'import time;"
        " time.sleep(600)'])",
    "a child in another group": "if os.fork() == 0: os.setpgid(0, 0); lurk()",
    "a child of a thread": "import threading\ndef work():\n    if os.fork() == 0: lurk()\n"
        "    wait()\nthreading.Thread(target=work, daemon=True).start()",
    "a child that is born again and again": "if os.fork() == 0:\n    report()\n    while True:\n"
        "        if os.fork(): os._exit(0)\n        os.setsid()",
    "a shell's background job": "report()\n"
        "subprocess.Popen('(setsid nohup sleep 600 &) &', shell=True)",
    "an idle child": "if os.fork() == 0: os.sched_setscheduler(0, os.SCHED_IDLE,"
        " os.sched_param(0)); os.nice(19); lurk()",
    "a child that waits for the timer": "if os.fork() == 0: report(); signal.alarm(600); wait()",
}  # fmt: skip
TOOLS = """
def report():
    open('/workspace/hidden', 'a').close()
def wait():
    while True:
        time.sleep(600)
def lurk():
    report()
    wait()
try: os.unlink('/workspace/hidden')
except OSError: pass
"""
HIDDEN = """
while not os.path.exists('/workspace/hidden'):
    time.sleep(0.002)
print('hidden', flush=True)
"""


async def survivors(box: Box) -> list[str]:
    """Processes beside process 1, the one that looks, its shim, and shims ahead of need."""
    program = """
def told(pid):
    with open(f'/proc/{pid}/cmdline', 'rb') as line, open(f'/proc/{pid}/stat') as stat:
        return line.read(), int(stat.read().rpartition(')')[2].split()[1])
spares = 0
for pid in sorted(int(p) for p in os.listdir('/proc') if p.isdigit()):
    if pid in (1, os.getpid(), os.getppid()):
        continue
    line, parent = told(pid)
    if parent == 1 and line == told(1)[0] and spares < 4:
        spares += 1
    else:
        print(pid)
"""
    return await tries(box, program)


@pytest.mark.parametrize("trick", HIDING.values(), ids=HIDING.keys())
async def test_nothing_survives_the_program(box: Box, trick: str) -> None:
    result, out, _ = await box.python(f"{PROLOGUE}{TOOLS}{trick}\n{HIDDEN}os._exit(0)")
    assert (result.reason, out) == (Reason.EXITED, b"hidden\n")
    assert await survivors(box) == []


ENDINGS = {
    "a timeout": ("wait()", Reason.TIMED_OUT),
    "a cancellation": ("wait()", Reason.KILLED),
    "too much output": ("while True: os.write(1, bytes(65536))", Reason.OUTPUT_LIMIT),
}


@pytest.mark.parametrize("how", ENDINGS)
async def test_nothing_survives_being_ended(box: Box, how: str) -> None:
    ending, reason = ENDINGS[how]

    async def one(trick: str, number: int, timeout_s: float) -> Reason | None:
        """How it ended; None where its time was over before it had hidden anything."""
        program = f"{PROLOGUE}{TOOLS}{trick}\n{HIDDEN}{ending}".replace("hidden", f"hid{number}")
        execution = await box.start(
            ["python3", "-c", program], timeout_s=timeout_s, output_limit_bytes=100_000
        )
        async with aclosing(execution.output()) as output, asyncio.timeout(60):
            first = await anext(output, None)
            if how == "a cancellation":
                await execution.cancel()
        ended = (await execution.result()).reason
        if first is None and ended is Reason.TIMED_OUT:
            return None
        assert first is not None
        assert first.data.startswith(f"hid{number}".encode())
        return ended

    # All of them at once. Time runs from the start: a busy machine needs more of it until all hide.
    for timeout_s in (4.0, 8.0, 16.0, 32.0) if how == "a timeout" else (40.0,):
        tricks = [one(trick, n, timeout_s) for n, trick in enumerate(HIDING.values())]
        ended = await asyncio.gather(*tricks)
        assert await survivors(box) == []
        if None not in ended:
            break
    assert dict(zip(HIDING, ended, strict=True)) == dict.fromkeys(HIDING, reason)


@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
@pytest.mark.parametrize("whom", ["guardian", "both"])
async def test_guardians_are_taken_out(site: Site, whom: str, signal_name: str) -> None:
    box = await site.make()
    program = f"""
whom = [os.getppid()]
if {whom!r} == 'both':  # Shims ahead of need as well.
    whom += [int(p) for p in os.listdir('/proc')
             if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid())]
if os.fork() == 0:
    os.setsid()
    wait()
for pid in whom:
    os.kill(pid, signal.SIG{signal_name})
wait()
"""
    text = PROLOGUE + TOOLS + program
    result, _, _ = await box.run(["python3", "-c", text], timeout_s=1)
    assert result.reason in (Reason.TIMED_OUT, Reason.KILLED)
    for _ in range(3):
        assert (await box.run("echo well"))[1] == b"well\n"
    assert await survivors(box) == []


async def test_a_sandbox_that_is_removed_leaves_no_process(site: Site) -> None:
    box = await site.make()
    execution = await box.start("for i in 1 2 3 4; do setsid sleep 31415926 & done; echo on; wait")
    async with aclosing(execution.output()) as output:
        assert (await anext(output)).data == b"on\n"
    site.give_up(box)
    await site.driver.remove(box.id)
    assert (await execution.result()).reason is Reason.SANDBOX_LOST
    assert box.id not in {info.sandbox_id for info in await site.driver.list(site.run_label)}
    assert not sleeping(b"31415926")


def sleeping(mark: bytes) -> list[str]:
    """Processes of this machine with a word in their command; an engine elsewhere has its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"sleep"] and mark in words:
            found.append(path.parent.name)
    return found
