"""A pool over a driver that is watched, and a clock that stands still."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from sandbox.base import Capabilities, SandboxDriver, SandboxSpec
from sandbox.errors import Resource, ResourceExhaustedError
from sandbox.limits import MIB, Limits
from services.sandboxes.pool import Wanted, WarmPool

SMALL = Limits(memory_bytes=128 * MIB, disk_bytes=4 * MIB, pids=16)
SPEC = SandboxSpec("mine", "host", SMALL)
WAIT_S = 60


class Watched:
    """A real driver whose creations can be held up or refused, and are counted."""

    def __init__(self, driver: SandboxDriver) -> None:
        self.driver = driver
        self.is_refusing = False
        self.may_create = asyncio.Event()
        self.may_create.set()
        self.tries = 0
        self.at_once = 0
        self.most_at_once = 0
        self.crowded = asyncio.Event()
        self.report: Capabilities | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    async def create(self, spec: SandboxSpec) -> object:
        self.tries += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.at_once == 2:
            self.crowded.set()
        try:
            await self.may_create.wait()
            if self.is_refusing:
                raise ResourceExhaustedError("No room.", resource=Resource.HOST)
            return await self.driver.create(spec)
        finally:
            self.at_once -= 1

    async def capabilities(self) -> Capabilities:
        return self.report or await self.driver.capabilities()

    async def names(self) -> set[str]:
        return {info.sandbox_id for info in await self.driver.list({})}


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@asynccontextmanager
async def pooled(driver: Watched, *kinds: Wanted, **options: Any) -> AsyncIterator[WarmPool]:
    pool = WarmPool(cast("SandboxDriver", driver), **options)
    running = asyncio.ensure_future(pool.run())
    try:
        async with asyncio.timeout(WAIT_S):
            await pool.want(kinds)
            yield pool
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pool.aclose()


async def until(pool: WarmPool, is_so: Callable[[], bool]) -> None:
    """Wait until the pool has come so far; looked at whenever it makes or fails to make one."""
    while not is_so():
        pool._filled.clear()
        await pool._filled.wait()
