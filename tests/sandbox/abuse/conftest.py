"""Where hostile code is tried: one driver, a sandbox to attack from, and another beside it.

After every attempt, and every quarter of a second while it lasts, the fixture `neighbour` asks the
attacked sandbox, the one beside it, the driver and the server's event loop whether they still
answer. Names of all attempts stand in `attempts.txt`.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from sandbox.base import Enforcement, SandboxDriver, SandboxState
from sandbox.errors import PolicyUnsupportedError
from tests.sandbox.conftest import BOTH, Box, Boxes, make_driver

# Far beyond what a loaded machine needs: a loop that stood still for so long was blocked.
LOOP_STALL_S = 5.0
ANSWER_S = 30.0


class Site(Boxes):
    """One driver with two standing sandboxes, and the ones that a single attempt makes."""

    box: Box
    other: Box

    def __init__(self, driver: SandboxDriver, image: str) -> None:
        super().__init__(driver, image)
        self.made: list[Box] = []

    async def open(self) -> None:
        self.box = await super().make()
        self.other = await super().make()

    async def make(self, **changes: Any) -> Box:
        made = await super().make(**changes)
        self.made.append(made)
        return made

    def give_up(self, box: Box) -> None:
        """Expect no more answers of a sandbox that the attempt made."""
        self.made.remove(box)

    async def clear(self) -> None:
        """Remove what the attempt made."""
        kept = {self.box.id, self.other.id}
        for sandbox_id in self.ids - kept:
            await self.driver.remove(sandbox_id)
        self.ids &= kept
        self.made.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BOTH)
async def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    folder: Path = tmp_path_factory.mktemp("abuse")
    driver, image = await make_driver(request.param, folder / "state")
    made = Site(driver, image)
    try:
        await made.open()
        yield made
    finally:
        await made.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def box(site: Site) -> Box:
    """The sandbox to attack from."""
    return site.box


async def holds(site: Site, item: str) -> bool:
    """Whether a limit holds here; where it does not, raise unless a demand of it is refused."""
    if (await site.driver.capabilities()).items[item] is Enforcement.ENFORCED:
        return True
    with pytest.raises(PolicyUnsupportedError, match=item):
        await site.driver.create(site.spec(demanded=frozenset({item})))
    return False


class Neighbour:
    """Those who must not notice: the event loop, the driver and the sandboxes."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.rounds = 0
        self.worst_stall_s = 0.0
        self._stop = asyncio.Event()
        self._tasks = [asyncio.ensure_future(self._tick()), asyncio.ensure_future(self._ask())]

    async def _pause(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return True
        return False

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while await self._pause(0.02):
            now = loop.time()
            self.worst_stall_s = max(self.worst_stall_s, now - before - 0.02)
            before = now

    async def _ask(self) -> None:
        while await self._pause(0.25):
            await answers(self.site.other)
            self.rounds += 1

    async def finish(self) -> None:
        """Raise AssertionError unless all of them answer, and answered all the time."""
        self._stop.set()
        async with asyncio.timeout(2 * ANSWER_S):
            await asyncio.gather(*self._tasks)
        standing = (self.site.box, self.site.other)
        for box in (*standing, *self.site.made):
            await answers(box)
        assert self.worst_stall_s < LOOP_STALL_S
        infos = {info.sandbox_id: info for info in await self.site.driver.list(self.site.run_label)}
        assert {infos[box.id].state for box in standing} == {SandboxState.RUNNING}


async def answers(box: Box) -> None:
    """Raise AssertionError unless programs run and files can be written in a sandbox."""
    async with asyncio.timeout(ANSWER_S):
        result, out, err = await box.run("echo $((6 * 7))")
        assert (out, result.exit_code) == (b"42\n", 0), (result, err)
        await box.client.files.make_dir(".answers", parents=True)
        await box.client.files.remove(".answers")


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def neighbour(site: Site) -> AsyncIterator[Neighbour]:
    watch = Neighbour(site)
    yield watch
    try:
        await watch.finish()
    finally:
        await site.clear()
