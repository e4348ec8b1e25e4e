"""A server that makes one bubblewrap sandbox and then waits; a test decides how it ends.

Arguments: state directory, user id to become (or -), what to do: `wait`, `exercise` or `report`.
"""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sandbox.base import SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import SandboxClient
from sandbox.errors import PolicyUnsupportedError
from sandbox.limits import Limits

MIB = 1024 * 1024


async def wait(driver: BubblewrapDriver) -> None:
    await driver.create(SandboxSpec("left", "host", labels={"who": "tests"}))
    client = await SandboxClient.connect(await driver.open_channel("left"))
    await client.execute("sleep 4242", timeout_s=600, output_limit_bytes=1)
    print("READY", flush=True)
    await asyncio.Event().wait()


async def run(client: SandboxClient, command: list[str]) -> tuple[str, str, int | None]:
    execution = await client.execute(command, timeout_s=20, output_limit_bytes=MIB)
    out = b"".join([chunk.data async for chunk in execution.output()])
    result = await execution.result()
    return out.decode(), result.reason.value, result.exit_code


async def exercise(driver: BubblewrapDriver) -> None:
    limits = Limits(memory_bytes=256 * MIB, disk_bytes=16 * MIB, pids=32)
    await driver.create(SandboxSpec("box", "host", limits))
    client = await SandboxClient.connect(await driver.open_channel("box"))
    await client.files.write("f", b"data")
    forks = (
        "import os,time\nn=0\ntry:\n  while n<99:\n    if os.fork()==0: time.sleep(99)\n    n+=1\n"
    )
    forks += "except OSError: print(n)"
    hungry = "try:\n  x=b'1'*(600<<20)\nexcept MemoryError: print('MemoryError')"
    answers: dict[str, Any] = {
        "hello": await run(client, ["cat", "f"]),
        "forks": await run(client, ["python3", "-c", forks]),
        "hungry": await run(client, ["python3", "-c", hungry]),
        "unshare": await run(client, ["unshare", "-U", "true"]),
        "write": await run(client, ["sh", "-c", "head -c 99999999 /dev/zero > big; echo $?"]),
        "shadow": await run(client, ["cat", "/etc/shadow"]),
        "uid": os.getuid(),
    }
    refused: dict[str, str] = {}
    for item in ("cpu", "memory", "inodes", "disk_image", "disk", "pids"):
        spec = SandboxSpec("more", "host", limits, demanded=frozenset({item}))
        try:
            await driver.create(spec)
            await driver.remove("more")
        except PolicyUnsupportedError as error:
            refused[item] = error.message
    try:
        await driver.update("box", limits=replace(limits, disk_bytes=8 * MIB))
    except PolicyUnsupportedError as error:
        refused["update"] = error.message
    answers["refused"] = refused
    answers["stats"] = (await driver.stats("box")).disk_bytes
    capabilities = await driver.capabilities()
    answers["items"] = dict(capabilities.items)
    await client.aclose()
    await driver.remove("box")
    answers["left"] = [info.sandbox_id for info in await driver.list({})]
    print(json.dumps(answers), flush=True)


async def main() -> None:
    folder, uid, what = sys.argv[1:4]
    if uid != "-":
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    driver = BubblewrapDriver(state_dir=Path(folder))
    try:
        await (wait if what == "wait" else exercise)(driver)
    finally:
        await driver.aclose()


if __name__ == "__main__":
    asyncio.run(main())
