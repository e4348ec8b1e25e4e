"""Sandboxes against their bars: starts, executions, lines, timeouts, streams, memory, leaks.

    python -m benchmarks.sandboxes bubblewrap [--image IMAGE] [--url unix:///…]
    python -m benchmarks.sandboxes docker --image IMAGE [--url unix:///…] [--full] [--cycles 10000]

The bars are for a quiet machine with two cores; each line prints the ratio to its bar, above 1
being better. Where an engine and an image in it are named, `docker exec` is measured in the same
run, in turn with our executions, whichever driver runs them. `--full` takes so many samples that a
99th percentile means something; without it the worst of a few is printed. `--check` fails where a
bar is missed. Something that goes wrong in a sandbox fails in any case.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from aiodocker.containers import DockerContainer

from app import memory
from benchmarks import sandbox_cycles
from sandbox import docker_config
from sandbox.base import SandboxDriver, SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import SandboxClient
from sandbox.docker import DockerDriver
from services.sandboxes.pool import Wanted, WarmPool

# Milliseconds of half, and of 99 in 100: (bubblewrap, Docker).
TIMES = {
    "warm start to first result": ((5.0, 5.0), (15.0, 15.0)),
    "cold start to first result": ((40.0, 160.0), (80.0, 250.0)),
    "execution": ((1.5, 1.5), (4.0, 4.0)),
    "line written to received": ((0.5, 0.5), (2.0, 2.0)),
    "overshoot of a timeout": ((10.0, 10.0), (50.0, 50.0)),
}
RATES = {"output, MB/s": (400.0, 200.0), "executions/s, 8 at once": (500.0, 500.0)}
MOST = {"memory for 8 stalled readers, MB": (64.0, 64.0), "traces of cycles": (0.0, 0.0)}
_ENOUGH = 100
_ENGINE_RUNS = 50
_STREAM_BYTES = 500_000_000
_LINES = """
import sys, time
for _ in range(int(sys.argv[1])):
    sys.stdout.write(f"{time.monotonic_ns()}\\n")
    sys.stdout.flush()
    time.sleep(0.002)
"""


@dataclass
class Sizes:
    """How many samples of each are taken."""

    warm: int = 20
    cold: int = 20
    executions: int = 300
    lines: int = 500
    timeouts: int = 10
    stream_bytes: int = _STREAM_BYTES
    workers: int = 50
    stall_s: float = 2.0
    cycles: int = 0


FULL = Sizes(warm=200, cold=200, executions=2000, lines=3000, timeouts=100, workers=250)


@dataclass
class Result:
    """What was measured: seconds by name, and numbers that are none."""

    times: dict[str, list[float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


async def execute(client: SandboxClient, command: str) -> bytes:
    execution = await client.execute(command, timeout_s=60, output_limit_bytes=1 << 40)
    out = b"".join([chunk.data async for chunk in execution.output()])
    require((await execution.result()).exit_code == 0, f"{command} failed")
    return out


def require(holds: bool, why: str) -> None:
    """Raise RuntimeError, with optimisation too, where a measurement measures nothing."""
    if not holds:
        raise RuntimeError(why)


async def timed(action: Callable[[], Awaitable[object]]) -> float:
    """Give the seconds an action takes."""
    started = time.perf_counter()
    await action()
    return time.perf_counter() - started


async def cold(driver: SandboxDriver, image: str) -> float:
    started = time.perf_counter()
    sandbox_id = uuid.uuid4().hex
    await driver.create(SandboxSpec(sandbox_id, image))
    client = await SandboxClient.connect(await driver.open_channel(sandbox_id))
    require(await execute(client, "echo hi") == b"hi\n", "a cold sandbox said nothing")
    elapsed = time.perf_counter() - started
    await client.aclose()
    await driver.remove(sandbox_id)
    return elapsed


async def warm(driver: SandboxDriver, image: str, count: int) -> list[float]:
    """Seconds from asking a pool of four until the first result; it refills meanwhile."""
    spec = SandboxSpec("wish", image)
    pool = WarmPool(driver)
    running = asyncio.ensure_future(pool.run())
    times = []
    try:
        await pool.want([Wanted(spec, 4)])
        for _ in range(count):
            async with asyncio.timeout(120):
                await pool.wait_filled()
            started = time.perf_counter()
            ready = await pool.claim(spec)
            if ready is None:
                raise RuntimeError("a full pool gave nothing")
            require(await execute(ready.client, "echo hi") == b"hi\n", "it said nothing")
            times.append(time.perf_counter() - started)
            await ready.client.aclose()
            await driver.remove(ready.driver_id)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pool.aclose()
    require(pool.stats.hits == count, "not every start was warm")
    return times


async def lines(client: SandboxClient, count: int) -> list[float]:
    """Seconds from a line's writing inside until it is here, by the kernel's one clock."""
    execution = await client.execute(
        ["python3", "-c", _LINES, str(count)], timeout_s=120, output_limit_bytes=1 << 30
    )
    times: list[float] = []
    held = b""
    async with aclosing(execution.output()) as output:  # type: ignore[type-var]
        async for chunk in output:
            at = time.monotonic_ns()
            *whole, held = (held + chunk.data).split(b"\n")
            times += [(at - int(line)) / 1e9 for line in whole]
    require(len(times) == count and min(times) > 0, "lines were lost, or clocks differ")
    return times


async def overshoot(client: SandboxClient, timeout_s: float = 0.2) -> float:
    """Seconds beyond its time until an execution has ended with all that it started."""
    started = time.perf_counter()
    execution = await client.execute(
        "(setsid sleep 600 &); trap '' TERM; sleep 600",
        timeout_s=timeout_s,
        output_limit_bytes=1000,
    )
    result = await execution.result()
    beyond = time.perf_counter() - started - timeout_s
    require(result.reason.value == "TIMED_OUT", f"it ended as {result.reason}")
    require(await client.processes() == [], "a process survived its execution's timeout")
    return max(0.0, beyond)


async def throughput(client: SandboxClient, size: int) -> float:
    """Megabytes a second that one program writes."""
    started = time.perf_counter()
    execution = await client.execute(
        f"head -c {size} /dev/zero", timeout_s=60, output_limit_bytes=1 << 40
    )
    total = sum([len(chunk.data) async for chunk in execution.output()])
    require(total == size, f"{total} of {size} bytes came")
    return total / 1e6 / (time.perf_counter() - started)


async def stalled(client: SandboxClient, stall_s: float) -> float:
    """Megabytes this process grows by while eight readers read once and then no more."""
    before = _resident()
    most = before
    executions = []
    for _ in range(8):
        execution = await client.execute("cat /dev/zero", timeout_s=60, output_limit_bytes=1 << 40)
        executions.append((execution, execution.output()))
    for _, output in executions:
        require(len((await anext(output)).data) > 0, "nothing was written")
    until = time.perf_counter() + stall_s
    while time.perf_counter() < until:
        await asyncio.sleep(0.05)
        most = max(most, _resident())
    for execution, output in executions:
        await execution.cancel()
        await output.aclose()  # type: ignore[attr-defined]
        await execution.result()
    return (most - before) / 1e6


def _resident() -> int:
    """Bytes of memory this process has in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell the memory of a process")


async def rate(client: SandboxClient, count: int) -> float:
    """Executions a second by eight who each wait for their own."""

    async def worker() -> None:
        for number in range(count):
            require(await execute(client, f"echo {number}") == f"{number}\n".encode(), "mixed up")

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(worker())
    return 8 * count / (time.perf_counter() - started)


async def engine_execution(container: DockerContainer) -> None:
    """Run a command as `docker exec` does, through the engine."""
    execution = await container.exec(["/bin/sh", "-c", "exit 0"])
    async with execution.start(detach=False) as stream:
        while await stream.read_out() is not None:
            continue
    # An engine tells the end of the output a little before that of the program.
    async with asyncio.timeout(10):
        while (ended := await execution.inspect())["Running"]:  # noqa: ASYNC110 - as its client does.
            await asyncio.sleep(0.001)
    require(ended["ExitCode"] == 0, f"the engine's execution ended with {ended['ExitCode']}")


@asynccontextmanager
async def engine_container(driver: DockerDriver, image: str) -> AsyncIterator[DockerContainer]:
    """A sandbox in an engine, with the container that `docker exec` runs commands in."""
    sandbox_id = f"beside-{uuid.uuid4().hex}"
    await driver.create(SandboxSpec(sandbox_id, image))
    try:
        name = docker_config.container_name(sandbox_id)
        yield await driver._engine.containers.get(name)
    finally:
        await driver.remove(sandbox_id)


async def executions(
    client: SandboxClient, beside: DockerContainer | None, count: int
) -> tuple[list[float], list[float]]:
    """Seconds of executions, and of those through the engine in between."""
    ours, engine = [], []
    every = max(1, count // _ENGINE_RUNS)
    for number in range(count):
        if beside is not None and number % every == 0:
            engine.append(await timed(lambda: engine_execution(beside)))
        ours.append(await timed(lambda: execute(client, "exit 0")))
    return ours, engine


async def measure(
    driver: SandboxDriver, image: str, sizes: Sizes, beside: DockerContainer | None = None
) -> Result:
    """Take every measure. `beside` is a container to compare `docker exec` in."""
    found = Result()
    times, numbers = found.times, found.numbers
    times["warm start to first result"] = await warm(driver, image, sizes.warm)
    times["cold start to first result"] = [await cold(driver, image) for _ in range(sizes.cold)]
    await driver.create(SandboxSpec("benchmark", image))
    client = await SandboxClient.connect(await driver.open_channel("benchmark"))
    try:
        times["execution"], engine = await executions(client, beside, sizes.executions)
        if engine:
            numbers["docker exec, p50 ms"] = statistics.median(engine) * 1000
        times["line written to received"] = await lines(client, sizes.lines)
        times["overshoot of a timeout"] = [await overshoot(client) for _ in range(sizes.timeouts)]
        numbers["output, MB/s"] = await throughput(client, sizes.stream_bytes)
        numbers["executions/s, 8 at once"] = await rate(client, sizes.workers)
        numbers["memory for 8 stalled readers, MB"] = await stalled(client, sizes.stall_s)
        require(await execute(client, "echo still") == b"still\n", "it does not answer any more")
    finally:
        await client.aclose()
        await driver.remove("benchmark")
    if sizes.cycles:
        leaks = await sandbox_cycles.leaks(driver, image, sizes.cycles)
        numbers["traces of cycles"] = sum(leaks.values())
        print(f"{sizes.cycles} cycles left {dict(leaks)}")
    return found


@dataclass(frozen=True)
class Line:
    """One measure, its bar, and the ratio: above 1 it is better than the bar."""

    name: str
    value: float
    bar: float | None
    ratio: float | None

    def __str__(self) -> str:
        if self.bar is None or self.ratio is None:
            return f"{self.name:40} {self.value:10.2f}"
        return f"{self.name:40} {self.value:10.2f}   bar {self.bar:7.1f}   {self.ratio:6.2f} of it"


def judged(found: Result, column: int) -> list[Line]:
    """Put every measure beside its bar; `column` 0 is bubblewrap's, 1 is Docker's.

    Raises RuntimeError when something was not measured.
    """
    told = []
    for name, (half, most) in TIMES.items():
        values = sorted(found.times.get(name, ()))
        require(bool(values), f"{name} was not measured")
        middle = statistics.median(values) * 1000
        told.append(Line(f"{name}, p50 ms", middle, half[column], _ratio(half[column], middle)))
        if len(values) < _ENOUGH:
            told.append(Line(f"{name}, worst of {len(values)} ms", values[-1] * 1000, None, None))
            continue
        late = statistics.quantiles(values, n=100)[98] * 1000
        told.append(Line(f"{name}, p99 ms", late, most[column], _ratio(most[column], late)))
    for name, bars in RATES.items():
        value = found.numbers.get(name, 0.0)
        require(value > 0, f"{name} was not measured")
        told.append(Line(name, value, bars[column], value / bars[column]))
    for name, bars in MOST.items():
        if name in found.numbers:
            value = found.numbers[name]
            told.append(Line(name, value, bars[column], _ratio(bars[column], value)))
    if (engine := found.numbers.get("docker exec, p50 ms")) is not None:
        ours = statistics.median(found.times["execution"]) * 1000
        told.append(Line("docker exec beside it, p50 ms", engine, None, None))
        told.append(Line("docker exec / execution", engine / ours, 1.0, engine / ours))
    return told


def _ratio(bar: float, value: float) -> float:
    if value <= 0:
        return float("inf")
    return bar / value


async def run(options: argparse.Namespace, sizes: Sizes) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            engine = beside = None
            if options.image is not None:
                engine = DockerDriver(url=options.url)
                stack.push_async_callback(engine.aclose)
                await engine.check()
                beside = await stack.enter_async_context(engine_container(engine, options.image))
            if engine is not None and options.driver == "docker":
                found = await measure(engine, options.image, sizes, beside)
            else:
                driver = BubblewrapDriver(state_dir=Path(folder))
                stack.push_async_callback(driver.aclose)
                await driver.check()
                found = await measure(driver, "host", sizes, beside)
    return judged(found, int(options.driver == "docker"))


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver", choices=["bubblewrap", "docker"])
    parser.add_argument("--image", help="what containers are made of; Docker needs one")
    parser.add_argument("--url", help="where the engine listens")
    parser.add_argument("--full", action="store_true", help="enough samples for percentiles")
    parser.add_argument("--cycles", type=int, help="make and remove so many, and look for traces")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    options = parser.parse_args(arguments)
    if options.driver == "docker" and options.image is None:
        parser.error("Docker needs an --image.")
    chosen = sizes or (FULL if options.full else Sizes())
    chosen.cycles = options.cycles or chosen.cycles
    told = uvloop.run(run(options, chosen))
    for line in told:
        print(line)
    missed = [line.name for line in told if line.ratio is not None and line.ratio < 1]
    if options.check and missed:
        print(f"missed: {', '.join(missed)}")
        return 1
    return 0


if __name__ == "__main__":
    # As a process that serves.
    memory.settle()
    sys.exit(main())
