"""gVisor as the runtime of Docker's engine: what works there, what holds, and what is refused."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.base import Enforcement
from sandbox.client import Reason
from sandbox.docker import DockerDriver
from sandbox.errors import (
    DriverUnavailableError,
    FileError,
    FileErrorCode,
    PolicyUnsupportedError,
    SandboxLostError,
)
from sandbox.select import choose
from tests.sandbox.conftest import MIB, Box, Boxes
from tests.servers import require

pytestmark = pytest.mark.runsc

ENFORCED = Enforcement.ENFORCED
# Counts the descriptors of the agent that a program opens.
REACH = """
import os
count = 0
for name in os.listdir('/proc/1/fd'):
    try:
        os.close(os.open('/proc/1/fd/' + name, os.O_RDONLY | os.O_NONBLOCK))
        count += 1
    except OSError:
        pass
print(count)
"""
# Writes into them: among these is what the server hears of the agent.
FORGE = """
import os
for number in range(64):
    try:
        fd = os.open(f'/proc/1/fd/{number}', os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b'forged' * 4096)
    except OSError:
        pass
"""
# Looks for the host from inside: its loopback, metadata, files, environment, and what is writable.
SEEK = """
import glob, os, socket
def connects(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True
print([a for a in ('127.0.0.1', '169.254.169.254', '172.17.0.1') if connects(a, PORT)])
secret, found = (FIRST + SECOND).encode(), []
for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/workspace/*') + glob.glob('/tmp/*'):
    try:
        found += [path] if secret in open(path, 'rb').read() else []
    except OSError:
        pass
print(found, glob.glob('/run/docker*') + glob.glob('/var/run/docker*'))
effective = [line for line in open('/proc/self/status') if line.startswith('CapEff')]
print(os.getuid() > 0, int(effective[0].split()[1], 16))
print(len([pid for pid in os.listdir('/proc') if pid.isdigit()]) < 16)
for path in ('/usr/bin/owned', '/etc/owned', '/sys/owned', '/proc/sys/kernel/hostname'):
    try:
        open(path, 'w').write('x')
        print('wrote', path)
    except OSError:
        pass
"""


def settings() -> tuple[str, str]:
    found = require("runsc")
    return found["NOOSPHERE_TEST_RUNSC_URL"], found["NOOSPHERE_TEST_RUNSC_IMAGE"]


@pytest.fixture
async def boxes() -> AsyncIterator[Boxes]:
    url, image = settings()
    made = Boxes(DockerDriver(url=url, runtime="runsc"), image)
    try:
        yield made
    finally:
        await made.aclose()


async def left_behind(boxes: Boxes) -> list[str]:
    infos = [*await boxes.driver.list(boxes.run_label), *await boxes.driver.list({"trial": "1"})]
    return [info.sandbox_id for info in infos]


async def answers(box: Box) -> bool:
    return (await box.run("echo $((6 * 7))"))[1] == b"42\n"


async def count(box: Box, command: str) -> int:
    """How many processes run this command inside."""
    return sum(" ".join(each.command) == command for each in await box.client.processes())


async def test_a_runtime_that_proved_to_work_is_taken_and_told_of(
    boxes: Boxes, tmp_path: Path
) -> None:
    url, image = settings()
    driver, why = await choose(
        "auto", docker_image=image, docker_url=url, docker_runtime="runsc", state_dir=tmp_path
    )
    assert driver is not None, why
    try:
        assert why.startswith("Docker runs the sandboxes by runsc")
        found = await driver.capabilities()
        for item in ("isolation", "network", "syscalls", "disk", "memory", "cpu", "pause"):
            assert found.items[item] is ENFORCED, item
        for item in ("inodes", "pids"):
            assert found.items[item] is not ENFORCED, item
        # Whichever version this is, what a program of a sandbox can do is what is told.
        box = await boxes.make()
        result, out, _ = await box.python(REACH)
        assert result.exit_code == 0
        assert (found.items["agent"] is ENFORCED) == (out == b"0\n")
        assert any("forge" in note for note in found.notes) == (out != b"0\n")
        assert not await driver.list({"trial": "1"})
    finally:
        await driver.aclose()


async def test_programs_run_on_another_kernel_with_input_files_and_a_terminal(
    boxes: Boxes,
) -> None:
    box = await boxes.make()
    _, out, _ = await box.run("uname -rv")
    assert os.uname().version.encode() not in out
    execution = await box.start("cat; echo err >&2; exit 3", keep_stdin_open=True)
    await execution.write_stdin(b"\xff\x00 bytes\n")
    await execution.close_stdin()
    chunks = [(chunk.stream, chunk.data) async for chunk in execution.output()]
    assert sorted(chunks) == [("stderr", b"err\n"), ("stdout", b"\xff\x00 bytes\n")]
    assert (await execution.result()).exit_code == 3
    files = box.client.files
    await files.make_dir("a/b", parents=True)
    await files.write("a/b/file", b"x" * MIB)
    assert (await files.stat("a/b/file")).size_bytes == MIB
    assert (await box.run("wc -c < a/b/file"))[1] == b"%d\n" % MIB
    with pytest.raises(FileError) as caught:
        await files.stat("../etc/passwd")
    assert caught.value.code is FileErrorCode.OUTSIDE
    # Debian 12 has a version whose terminals never end: no program is given one.
    asked = "import os; size = os.get_terminal_size(0); print(size.lines, size.columns)"
    try:
        _, out, _ = await box.python(asked, terminal=(33, 121))
    except PolicyUnsupportedError as error:
        out = error.message.encode()
    assert out in (b"33 121\r\n", b"gVisor before July 2023 has no terminals that serve.")
    assert await answers(box)


async def test_nothing_survives_a_timeout(boxes: Boxes) -> None:
    box = await boxes.make()
    started = "setsid sh -c 'sleep 4711 & sleep 4711 &' ; (sleep 4711 &) ; setsid sleep 4711"
    execution = await box.start(started, timeout_s=2)
    async with asyncio.timeout(30):
        while await count(box, "sleep 4711") < 4:
            pass
    assert (await execution.result()).reason is Reason.TIMED_OUT
    assert await count(box, "sleep 4711") == 0
    # Nor the end of a program that leaves others behind.
    result, out, _ = await box.run("(setsid sleep 4712 >/dev/null 2>&1 &) ; echo done")
    assert (out, result.reason) == (b"done\n", Reason.EXITED)
    assert await count(box, "sleep 4712") == 0


async def test_a_daemon_outlives_other_executions_and_ends_with_its_own(boxes: Boxes) -> None:
    box = await boxes.make()
    daemon = await box.start(
        "(setsid sleep 4713 >/dev/null 2>&1 &) ; echo up", background=True, timeout_s=600
    )
    async with aclosing(daemon.output()) as output:
        assert (await anext(output)).data == b"up\n"
    async with asyncio.timeout(60):
        # What begins before it is there would take it for its own.
        while await count(box, "sleep 4713") != 1:  # noqa: ASYNC110 - it tells nobody.
            await asyncio.sleep(0.1)
    assert await answers(box)
    assert await count(box, "sleep 4713") == 1
    assert not daemon.is_over
    await daemon.cancel()
    assert (await daemon.result()).reason is Reason.KILLED
    assert await count(box, "sleep 4713") == 0


async def test_the_size_of_the_workspace_holds(boxes: Boxes) -> None:
    box = await boxes.make()
    fill = (
        "import errno\nfile = open('full', 'wb', 0)\nwritten = 0\n"
        "try:\n while True: written += file.write(bytes(1 << 20))\n"
        "except OSError as error: print(errno.errorcode[error.errno], written >> 20)"
    )
    assert (await box.python(fill))[1] == b"ENOSPC 32\n"
    await box.client.files.remove("full")
    assert await answers(box)


async def test_a_paused_sandbox_stands_still_and_goes_on(boxes: Boxes) -> None:
    box = await boxes.make()
    execution = await box.start("read line; echo got $line", keep_stdin_open=True)
    await box.driver.pause(box.id)
    await execution.write_stdin(b"it\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), aclosing(execution.output()) as output:
            await anext(output)
    await box.driver.resume(box.id)
    assert [chunk.data async for chunk in execution.output()] == [b"got it\n"]


async def test_what_does_not_hold_is_refused_when_it_is_asked_for(boxes: Boxes) -> None:
    for item in ("pids", "inodes", "network_bandwidth", "disk_image"):
        with pytest.raises(PolicyUnsupportedError, match=item):
            await boxes.make(demanded=frozenset({item}))
    url, image = settings()
    loose = Boxes(DockerDriver(url=url, runtime="runsc-without-cgroups"), image)
    try:
        known = (await loose.driver.capabilities()).unavailable is None
        for item in ("memory", "cpu") if known else ():
            with pytest.raises(PolicyUnsupportedError, match=item):
                await loose.make(demanded=frozenset({item}))
    finally:
        await loose.aclose()
    assert await left_behind(boxes) == []


async def test_limits_of_a_running_sandbox_do_not_change(boxes: Boxes) -> None:
    box = await boxes.make()
    before = box.handle.limits
    for changes in ({"memory_bytes": 256 * MIB}, {"cpu_millis": 500}, {"pids": 32}):
        with pytest.raises(PolicyUnsupportedError, match=next(iter(changes))):
            await box.driver.update(box.id, limits=replace(before, **changes))
    wanted = replace(before, output_bytes=MIB)
    assert await box.driver.update(box.id, limits=wanted) == wanted
    assert await answers(box)


async def test_a_later_driver_finds_the_sandbox_with_its_limits(boxes: Boxes) -> None:
    box = await boxes.make()
    await box.client.files.write("kept", b"1")
    await boxes.driver.aclose()
    later = boxes.driver = DockerDriver(url=settings()[0], runtime="runsc")
    handle = await later.connect(box.id)
    assert handle.limits == box.handle.limits
    again = Box(later, handle, await boxes.client(box.id))
    assert (await again.run("cat kept"))[1] == b"1"


async def test_a_runtime_that_does_not_work_here_is_refused_with_its_words(
    boxes: Boxes, tmp_path: Path
) -> None:
    url, image = settings()
    await boxes.driver.check()
    known = (await boxes.driver._engine.system.info())["Runtimes"]  # type: ignore[attr-defined]
    for runtime, said in (
        ("runsc-broken", "The runtime runsc-broken runs no sandboxes here. .*daemon.json"),
        ("runsc-with-seccomp", "--oci-seccomp"),
    ):
        if runtime not in known:
            pytest.skip(f"this engine has no {runtime}")
        driver = DockerDriver(url=url, runtime=runtime)
        with pytest.raises(DriverUnavailableError, match=said):
            await driver.prove(image)
        await driver.aclose()
        taken, why = await choose(
            "auto", docker_image=image, docker_url=url, docker_runtime=runtime, state_dir=tmp_path
        )
        assert taken is None
        assert runtime in why
    assert await left_behind(boxes) == []


# Attempts to get out of a sandbox, or at others.


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param("x = []\nwhile True: x.append(bytes(1 << 22))", id="memory"),
        pytest.param("import os\nwhile True: os.fork()", id="forks"),
        pytest.param(FORGE, id="the agent's channel"),
    ],
)
async def test_what_breaks_a_sandbox_breaks_no_other(boxes: Boxes, bomb: str) -> None:
    attacked, other = await boxes.make(), await boxes.make()
    # It may end with its sandbox, before it has even begun for its client.
    with contextlib.suppress(SandboxLostError):
        result, _, _ = await attacked.python(bomb, timeout_s=5)
        assert result.reason is not Reason.OUTPUT_LIMIT
    assert await answers(other)
    assert (await other.driver.stats(other.id)).memory_bytes is not None
    await boxes.driver.remove(attacked.id)
    assert await answers(await boxes.make())


async def test_neither_the_host_nor_its_network_nor_other_sandboxes_are_in_reach(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = uuid.uuid4().hex
    monkeypatch.setenv("NOOSPHERE_SECRET_KEY", secret)
    box, other = await boxes.make(), await boxes.make()
    await other.client.files.write("theirs", secret.encode())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        given = f"PORT, FIRST, SECOND = {port}, {secret[:16]!r}, {secret[16:]!r}"
        result, out, err = await box.python(given + SEEK, timeout_s=60)
    assert out.decode().splitlines() == ["[]", "[] []", "True 0", "True"], (result, err)
