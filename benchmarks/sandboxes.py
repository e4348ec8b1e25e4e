"""Sandboxes against their bars: cold start, executions, first bytes, throughput.

    python -m benchmarks.sandboxes bubblewrap
    python -m benchmarks.sandboxes docker --image IMAGE [--url unix:///…]

The bars are for a quiet machine with two cores; each line prints the ratio to its bar.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import uuid
from contextlib import aclosing
from pathlib import Path

from sandbox.base import SandboxDriver, SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import SandboxClient
from sandbox.docker import DockerDriver

BARS = {  # name: (bubblewrap, docker), milliseconds unless said otherwise
    "cold start to first result, p50": (40.0, 160.0),
    "cold start to first result, p99": (80.0, 250.0),
    "execution, p50": (1.5, 1.5),
    "execution, p99": (4.0, 4.0),
    "echo of a line, p50": (1.0, 1.0),
    "echo of a line, p99": (4.0, 4.0),
}
RATES = {"output, MB/s": (400.0, 200.0), "executions/s, 8 at once": (500.0, 500.0)}


async def execute(client: SandboxClient, command: str) -> bytes:
    execution = await client.execute(command, timeout_s=60, output_limit_bytes=1 << 40)
    out = b"".join([chunk.data async for chunk in execution.output()])
    assert (await execution.result()).exit_code == 0
    return out


async def cold(driver: SandboxDriver, image: str) -> float:
    started = time.perf_counter()
    sandbox_id = uuid.uuid4().hex
    await driver.create(SandboxSpec(sandbox_id, image))
    client = await SandboxClient.connect(await driver.open_channel(sandbox_id))
    assert await execute(client, "echo hi") == b"hi\n"
    elapsed = time.perf_counter() - started
    await client.aclose()
    await driver.remove(sandbox_id)
    return elapsed


async def echoes(client: SandboxClient, count: int) -> list[float]:
    """Seconds from a line written to the program until its copy is here."""
    times = []
    execution = await client.execute(
        ["cat"], timeout_s=60, output_limit_bytes=1 << 30, keep_stdin_open=True
    )
    async with aclosing(execution.output()) as output:  # type: ignore[type-var]
        for _ in range(count):
            started = time.perf_counter()
            await execution.write_stdin(b"line\n")
            assert (await anext(output)).data == b"line\n"
            times.append(time.perf_counter() - started)
    await execution.cancel()
    return times


async def measure(driver: SandboxDriver, image: str) -> dict[str, float]:
    found: dict[str, float] = {}

    def keep(name: str, times: list[float]) -> None:
        found[f"{name}, p50"] = statistics.median(times) * 1000
        found[f"{name}, p99"] = statistics.quantiles(times, n=100)[98] * 1000

    keep("cold start to first result", [await cold(driver, image) for _ in range(20)])
    await driver.create(SandboxSpec("benchmark", image))
    client = await SandboxClient.connect(await driver.open_channel("benchmark"))
    times = []
    for _ in range(300):
        started = time.perf_counter()
        await execute(client, "exit 0")
        times.append(time.perf_counter() - started)
    keep("execution", times)
    keep("echo of a line", await echoes(client, 500))

    started = time.perf_counter()
    execution = await client.execute(
        "head -c 500000000 /dev/zero", timeout_s=60, output_limit_bytes=1 << 40
    )
    total = sum([len(chunk.data) async for chunk in execution.output()])
    assert total == 500_000_000
    found["output, MB/s"] = total / 1e6 / (time.perf_counter() - started)

    async def worker() -> None:
        for number in range(50):
            assert await execute(client, f"echo {number}") == f"{number}\n".encode()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(worker())
    found["executions/s, 8 at once"] = 400 / (time.perf_counter() - started)
    await client.aclose()
    await driver.remove("benchmark")
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("driver", choices=["bubblewrap", "docker"])
    parser.add_argument("--image", default="host")
    parser.add_argument("--url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        driver: SandboxDriver
        if options.driver == "docker":
            driver = DockerDriver(url=options.url)
        else:
            driver = BubblewrapDriver(state_dir=Path(folder))
        await driver.check()
        try:
            found = await measure(driver, options.image)
        finally:
            await driver.aclose()
    column = int(options.driver == "docker")
    for name, value in found.items():
        bar = (BARS.get(name) or RATES[name])[column]
        ratio = value / bar if name in RATES else bar / value
        print(f"{name:36} {value:9.2f}   bar {bar:7.1f}   {ratio:5.2f} of the bar")


if __name__ == "__main__":
    asyncio.run(main())
