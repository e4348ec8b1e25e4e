"""A server of an ordinary user whose sandbox makes attempts; its parent says what they must get.

Arguments: state directory, user to become, file of attempts (JSON: name, program, expected).
"""

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sandbox.base import SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import SandboxClient
from sandbox.limits import Limits

MIB = 1024 * 1024


async def attempt(client: SandboxClient, program: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """What a program said, and how it ended."""
    command = ["python3", "-c", program]
    execution = await client.execute(command, timeout_s=timeout_s, output_limit_bytes=MIB)
    out = b"".join([chunk.data async for chunk in execution.output()])
    result = asdict(await execution.result())
    told = {key: result[key] for key in ("reason", "exit_code", "signal")}
    return {"out": out.decode("utf-8", "replace"), **told}


def become(uid: int) -> None:
    """Be an ordinary user for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


async def main(folder: Path, wanted: list[tuple[str, str, float]]) -> None:
    driver = BubblewrapDriver(state_dir=folder)
    answers: dict[str, Any] = {}
    try:
        limits = Limits(memory_bytes=512 * MIB, disk_bytes=16 * MIB, pids=64)
        for name in ("box", "beside"):
            await driver.create(SandboxSpec(name, "host", limits))
        client = await SandboxClient.connect(await driver.open_channel("box"))
        beside = await SandboxClient.connect(await driver.open_channel("beside"))
        for number, (name, program, timeout_s) in enumerate(wanted):
            answers[name] = await attempt(client, program, timeout_s)
            if number % 10 == 0 or len(wanted) < 10:
                answers[name]["beside"] = (await attempt(beside, "print('well')"))["out"]
        await client.aclose()
        await beside.aclose()
    finally:
        await driver.aclose()
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    listed = json.loads(Path(sys.argv[3]).read_text())
    become(int(sys.argv[2]))
    asyncio.run(main(Path(sys.argv[1]), listed))
