"""Executions in containers while the server is killed or stopped, and begins again."""

import asyncio
import base64
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from tests.api import operations as op
from tests.api.following import Follower
from tests.product import Client, Product, errors_of

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

CANCEL = """
mutation($id: ID!) { sandboxExecutionCancel(id: $id) { errors { code message path } } }
"""
DETAILS = """
query($id: ID!) { sandboxExecution(id: $id) {
  status reason exitCode signal stdout stderr stdoutBytes stderrBytes isTruncated pid
  resourceUsage { wallMilliseconds } } }
"""
PROCESSES = """
query($id: ID!) { sandbox(id: $id) { status processes { pid execution { id } } } }
"""
# Lines until it is told to stop, as fast as anybody takes them; some to standard error.
COUNTS = """
import os, sys
n = 0
while not os.path.exists("stop"):
    n += 1
    os.write(1, b"line %d \\xe4\\xb8\\xad\\xff\\n" % n)
    if n % 10 == 0:
        os.write(2, b"error %d\\n" % n)
        open("lines", "w").write(str(n))
sys.exit(3)
"""
# As many blocks as are asked for, and how many were taken already, in a file.
FLOOD = """
import os, sys
for n in range(int(sys.argv[1])):
    data = b"%07d\\n" % n * 8192
    while data:
        data = data[os.write(1, data):]
    open("blocks", "w").write(str(n))
"""


class Output(Follower):
    """Everything an execution wrote, byte by byte; whatever is told twice or not at all fails."""

    query = op.OUTPUT

    def __init__(self, place: "Place", execution_id: str) -> None:
        super().__init__(lambda: place.product.url, place.client.token, id=execution_id)
        self.id = execution_id
        self.streams = {"STDOUT": bytearray(), "STDERR": bytearray()}
        self.end: dict[str, Any] | None = None

    @property
    def stdout(self) -> bytes:
        return bytes(self.streams["STDOUT"])

    def take(self, event: dict[str, Any]) -> None:
        assert self.end is None, f"after the end: {event}"
        assert event["__typename"] != "SandboxOutputReset", "something was missed"
        if event["__typename"] == "SandboxOutputChunk":
            self.streams[event["stream"]] += base64.b64decode(event["bytes"])
        else:
            self.end = event["execution"]


class Place:
    """A server with one sandbox in a container, and who follows what runs there."""

    def __init__(self, product: Product, docker_url: str, group: asyncio.TaskGroup) -> None:
        self.product = product
        self.client = Client(product.url)
        self.sandbox_id = ""
        self._docker_url = docker_url
        self._group = group
        self.outputs: list[Output] = []
        self.following: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        await asyncio.to_thread(self.product.start)
        await self.client.register("ada")
        made = (await self.client.run(op.CREATE_SANDBOX, input={}))["sandboxCreate"]
        assert made["errors"] == []
        self.sandbox_id = made["sandbox"]["id"]

    async def begin(self, *argv: str, **more: Any) -> Output:
        """Execute something and follow it from now on, whatever becomes of the server."""
        wish = {"sandboxId": self.sandbox_id, "argv": argv, "timeoutSeconds": 600, **more}
        made = (await self.client.run(op.EXECUTE, input=wish))["sandboxExecute"]
        assert made["errors"] == []
        output = Output(self, made["execution"]["id"])
        self.outputs.append(output)
        self.following.append(self._group.create_task(output.run()))
        return output

    async def ran(self, command: str) -> str:
        output = await self.begin("/bin/sh", "-c", command)
        await output.until_over()
        return output.stdout.decode()

    async def ask(self, query: str, **variables: Any) -> None:
        (payload,) = (await self.client.run(query, **variables)).values()
        assert errors_of(payload) == []

    async def kill(self) -> None:
        await asyncio.to_thread(self.product.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self.product.start)
        token = self.client.token
        await self.client.aclose()
        self.client = Client(self.product.url, token)

    async def inside(self, command: str) -> None:
        """Run a command by the engine itself, which needs no server."""
        async with aiodocker.Docker(url=self._docker_url) as docker, asyncio.timeout(60):
            container = await docker.containers.get(f"noosphere-{self.sandbox_id}")
            run = await container.exec(["/bin/sh", "-c", command], workdir="/workspace")
            async with run.start(detach=False) as stream:
                while await stream.read_out() is not None:
                    continue
            assert (await run.inspect())["ExitCode"] == 0

    async def pids(self) -> dict[str, set[int]]:
        """The processes inside, by execution."""
        sandbox = (await self.client.run(PROCESSES, id=self.sandbox_id))["sandbox"]
        found: dict[str, set[int]] = {}
        for process in sandbox["processes"]:
            found.setdefault(process["execution"]["id"], set()).add(process["pid"])
        return found

    async def details(self, output: Output) -> dict[str, Any]:
        """The row of an execution that has ended; it says what those who followed were told."""
        await output.until_over()
        row = (await self.client.run(DETAILS, id=output.id))["sandboxExecution"]
        assert output.end is not None
        assert (output.end["reason"], output.end["exitCode"]) == (row["reason"], row["exitCode"])
        sizes = [len(data) for data in output.streams.values()]
        assert [row["stdoutBytes"], row["stderrBytes"]] == sizes
        assert row["resourceUsage"]["wallMilliseconds"] > 0
        return dict(row)


@asynccontextmanager
async def opened(tmp_path: Path, docker_url: str, image: str) -> AsyncIterator[Place]:
    product = Product(
        tmp_path / "data",
        NOOSPHERE_SANDBOX_DRIVER="docker",
        NOOSPHERE_DOCKER_URL=docker_url,
        NOOSPHERE_SANDBOX_IMAGE=image,
    )
    try:
        async with asyncio.TaskGroup() as group:
            place = Place(product, docker_url, group)
            await place.open()
            yield place
            for task in place.following:
                task.cancel()
            await place.ask(DELETE, id=place.sandbox_id)
            await place.client.aclose()
    finally:
        await asyncio.to_thread(product.close)


DELETE = "mutation($id: ID!) { sandboxDelete(id: $id) { errors { code message path } } }"


@pytest.fixture
async def place(tmp_path: Path, docker_url: str, docker_image: str) -> AsyncIterator[Place]:
    async with opened(tmp_path, docker_url, docker_image) as place:
        yield place


def lines(count: int) -> bytes:
    return b"".join(b"line %d \xe4\xb8\xad\xff\n" % n for n in range(1, count + 1))


async def test_lines_are_told_once_over_any_number_of_kills(place: Place) -> None:
    output = await place.begin("python3", "-c", COUNTS)
    for pause in (True, False, True):
        if pause:
            seen = len(output.kinds)
            await output.until_told(seen + 20)
        # Without one, killed again as soon as it answers.
        await place.kill()
        await place.start()
    await output.until_told(len(output.kinds) + 20)
    count = int(await place.ran("touch stop; cat lines"))
    row = await place.details(output)
    assert (row["status"], row["reason"], row["exitCode"]) == ("FAILED", "EXITED", 3)
    written = output.stdout.count(b"\n")
    assert written >= count
    assert output.stdout == lines(written)
    errors = b"".join(b"error %d\n" % n for n in range(10, written + 1, 10))
    assert bytes(output.streams["STDERR"]) == errors
    assert output.resets == 0


async def test_a_server_that_stops_in_good_order_lets_it_go_on_too(place: Place) -> None:
    output = await place.begin("python3", "-c", COUNTS)
    await output.until_told(10)
    assert await asyncio.to_thread(place.product.stop) == 0
    await place.inside("touch stop")
    await place.start()
    row = await place.details(output)
    assert (row["reason"], row["exitCode"]) == ("EXITED", 3)
    assert output.stdout == lines(output.stdout.count(b"\n"))


async def test_what_happens_while_the_server_is_away_is_told_later(place: Place) -> None:
    waits = "echo $$ > {0}; echo waiting; until [ -e go ]; do sleep 0.01; done; {1}"
    ended = await place.begin("/bin/sh", "-c", waits.format("ended", "echo over; exit 4"))
    late = await place.begin(
        "/bin/sh", "-c", "echo $$ > late; echo waiting; sleep 600", timeoutSeconds=3
    )
    python = shlex.join(["python3", "-c", FLOOD, "64"])
    flood = await place.begin("/bin/sh", "-c", waits.format("flood", f"exec {python}"))
    for output in (ended, late, flood):
        await output.until_told(1)
    await place.kill()
    gone = "until ! kill -0 $(cat {0}) 2>/dev/null; do sleep 0.01; done"
    # More blocks than a window of output has: from then on it waits.
    full = "until [ -e blocks ] && [ 0$(cat blocks) -ge 15 ]; do sleep 0.01; done"
    await place.inside(f"touch go; {gone.format('ended')}; {gone.format('late')}; {full}")
    await place.start()
    row = await place.details(ended)
    assert (row["reason"], row["exitCode"], row["stdout"]) == ("EXITED", 4, "waiting\nover\n")
    row = await place.details(late)
    assert (row["status"], row["reason"], row["stdout"]) == ("TIMED_OUT", "TIMED_OUT", "waiting\n")
    row = await place.details(flood)
    assert (row["status"], row["exitCode"], row["isTruncated"]) == ("COMPLETED", 0, True)
    assert flood.stdout == b"waiting\n" + b"".join(b"%07d\n" % n * 8192 for n in range(64))


async def test_what_went_on_is_fed_signalled_resized_and_canceled(place: Place) -> None:
    cat = await place.begin("cat", keepStdinOpen=True)
    script = "echo begun; until [ \"$(stty size)\" = '30 90' ]; do sleep 0.01; done; echo resized"
    shell = await place.begin("/bin/sh", "-c", script, terminal={"rows": 24, "cols": 80})
    traps = "trap 'echo told; exit 6' USR1; echo ready; while :; do sleep 0.01; done"
    trap = await place.begin("/bin/sh", "-c", traps)
    canceled = await place.begin("/bin/sh", "-c", "echo begun; sleep 600")
    server = await place.begin(
        "/bin/sh", "-c", "sleep 600 & echo begun", isBackground=True, timeoutSeconds=None
    )
    unheard = await place.begin("/bin/sh", "-c", "echo begun; sleep 600")
    await place.ask(
        op.EXECUTION_WRITE, input={"executionId": cat.id, "text": "before\n", "isLast": False}
    )
    for output in (cat, shell, trap, canceled, server, unheard):
        await output.until_told(1)
    before = await place.pids()
    pid = (await place.client.run(DETAILS, id=server.id))["sandboxExecution"]["pid"]
    await place.kill()
    await place.start()
    after = await place.pids()
    assert after.keys() == before.keys() == {o.id for o in place.outputs}
    for output in (cat, canceled, server, unheard):
        assert after[output.id] == before[output.id]
    write = {"executionId": cat.id, "text": "after\n", "isLast": True}
    await place.ask(op.EXECUTION_WRITE, input=write)
    await place.ask(
        op.EXECUTION_RESIZE, input={"executionId": shell.id, "terminal": {"rows": 30, "cols": 90}}
    )
    await place.ask(op.EXECUTION_SIGNAL, input={"executionId": trap.id, "signal": "USR1"})
    await place.ask(CANCEL, id=canceled.id)
    assert (await place.details(cat))["stdout"] == "before\nafter\n"
    assert (await place.details(shell))["stdout"] == "begun\r\nresized\r\n"
    row = await place.details(trap)
    assert (row["exitCode"], row["stdout"]) == (6, "ready\ntold\n")
    row = await place.details(canceled)
    assert (row["status"], row["reason"]) == ("CANCELED", "KILLED")
    row = (await place.client.run(DETAILS, id=server.id))["sandboxExecution"]
    assert (row["status"], row["pid"], row["stdout"]) == ("RUNNING", pid, "begun\n")
    await place.ask(DELETE, id=place.sandbox_id)
    for output in (server, unheard):
        assert (await place.details(output))["reason"] == "KILLED"
