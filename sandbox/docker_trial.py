"""A sandbox made to see whether a runtime with a kernel of its own runs any, and what holds there.

What such a runtime lacks here shows only when it runs: a platform that this machine has not, a
network that it cannot make, a filter that lets no program start. The engine does not know.
"""

import asyncio
import contextlib
import uuid
from datetime import UTC, datetime, timedelta

from sandbox.base import SandboxDriver, SandboxSpec
from sandbox.client import SandboxClient
from sandbox.errors import DriverUnavailableError, SandboxError
from sandbox.limits import MIB, Limits

TRIAL_TIMEOUT_S = 45.0
UNDO_TIMEOUT_S = 30.0
LABELS = {"trial": "1"}
LIMITS = Limits(memory_bytes=160 * MIB, disk_bytes=16 * MIB, pids=32)
# Whether code of the same user gets at the descriptors of process 1, its channel among them.
PROGRAM = """
import os
def opens(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
try:
    found = os.listdir('/proc/1/fd')
except OSError:
    found = map(str, range(64))
print('open' if any([opens('/proc/1/fd/' + name) for name in found]) else 'shut')
"""


async def keeps_agent(driver: SandboxDriver, image: str, runtime: str) -> bool:
    """Whether sandboxes of this runtime keep their agent from their own code.

    Raises DriverUnavailableError, with what the engine said, where the runtime runs no sandbox
    here, within 75 seconds. Leaves nothing behind; what an earlier trial left, killed with its
    server, is removed.
    """
    sandbox_id = f"trial-{uuid.uuid4().hex}"
    try:
        async with asyncio.timeout(TRIAL_TIMEOUT_S):
            await _sweep(driver)
            return await _try(driver, SandboxSpec(sandbox_id, image, LIMITS, labels=LABELS))
    except (SandboxError, TimeoutError) as error:
        why = error.message if isinstance(error, SandboxError) else "It did not answer in time."
        raise DriverUnavailableError(
            f"The runtime {runtime} runs no sandboxes here. {why}{_advice(why)}"
        ) from error
    finally:
        with contextlib.suppress(SandboxError, TimeoutError):
            async with asyncio.timeout(UNDO_TIMEOUT_S):
                await driver.remove(sandbox_id)


async def _sweep(driver: SandboxDriver) -> None:
    """Remove what trials left that cannot be at work any more."""
    latest = datetime.now(UTC) - timedelta(seconds=2 * (TRIAL_TIMEOUT_S + UNDO_TIMEOUT_S))
    for info in await driver.list(LABELS):
        if info.created_at is None or info.created_at < latest:
            await driver.remove(info.sandbox_id)


async def _try(driver: SandboxDriver, spec: SandboxSpec) -> bool:
    await driver.create(spec)
    client = await SandboxClient.connect(await driver.open_channel(spec.sandbox_id))
    try:
        execution = await client.execute(
            ["python3", "-c", PROGRAM], timeout_s=TRIAL_TIMEOUT_S, output_limit_bytes=4096
        )
        said = b"".join([chunk.data async for chunk in execution.output()])
        result = await execution.result()
    finally:
        await client.aclose()
    if result.exit_code != 0:
        raise DriverUnavailableError(
            f"A program that only prints ended as {result.reason.value}, and the sandbox with it."
            if result.exit_code is None
            else f"A program that only prints ended with {result.exit_code}."
        )
    return said.strip() == b"shut"


def _advice(why: str) -> str:
    """What is to be done about what runsc says; "" for what is not known."""
    if "network" in why:
        return (
            " Sandboxes have no network: give runsc the option --network=none in the engine's"
            " daemon.json, for this version cannot make one of its own on this kernel."
        )
    return (
        " Look at the runtime's options in the engine's daemon.json: runsc takes --platform=kvm"
        " only where there is /dev/kvm, and ptrace (or systrap, from 2023 on) everywhere else."
    )
