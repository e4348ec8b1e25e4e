"""What an image is: its digest, and the Python within. Told by a sandbox made for the moment."""

import asyncio
import re
import secrets
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.base import SandboxSpec
from sandbox.client import SandboxClient
from sandbox.errors import SandboxError, TemplateError
from sandbox.limits import MIB, Limits
from services.events.calls import TaskSet
from services.sandboxes.live import INSTALLATION_LABEL, installation

if TYPE_CHECKING:
    from services.sandboxes.node import Node

_PULL_S = 900.0
_TRY_S = 120.0
_DRIVER_S = 30.0
_LIMITS = Limits(cpu_millis=1000, memory_bytes=256 * MIB, disk_bytes=16 * MIB, pids=32)
_VERSION = re.compile(r"Python (\d{1,4}(?:\.\d{1,4}){1,2}\S{0,8})\s*\Z")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found: the digest, where the driver knows it, and the version of Python."""

    digest: str | None
    python_version: str


class Probes:
    """The probes of a node. Those of one image at the same time are one."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._tasks = TaskSet()
        self._under_way: dict[str, asyncio.Task[Probe]] = {}
        # Names of sandboxes that are nobody's, and none the less no leftovers.
        self.names: set[str] = set()

    async def probe(self, image: str) -> Probe:
        """Fetch an image where it is newer elsewhere, and look into it.

        Goes on when the caller is cancelled: whoever asks again finds it further. Raises
        TemplateError without the image or without python3 in it, and other SandboxErrors.
        """
        task = self._under_way.get(image)
        if task is None:
            task = self._tasks.start(self._probe(image), name=f"probe {image}")
            self._under_way[image] = task
            task.add_done_callback(lambda _: self._under_way.pop(image, None))
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Give up what is under way."""
        await self._tasks.aclose()

    async def _probe(self, image: str) -> Probe:
        driver = self._node.driver
        try:
            async with asyncio.timeout(_PULL_S):
                await driver.pull(image)
        except (SandboxError, TimeoutError) as error:
            # Images that were built here are in no registry.
            if not await driver.has_image(image):
                raise TemplateError(
                    f"There is no image {image}, and it cannot be fetched."
                ) from error
        digest = await driver.image_digest(image)
        version = await self.version(image, digest)
        # Some drivers learn the digest from what they ran.
        return Probe(digest or await driver.image_digest(image), version)

    async def version(self, image: str, digest: str | None) -> str:
        """Give the version of Python in an image that is there. Raises SandboxErrors as `probe`."""
        driver, name = self._node.driver, f"probe-{secrets.token_hex(8)}"
        labels = {INSTALLATION_LABEL: installation(self._node.deps)}
        self.names.add(name)
        try:
            async with asyncio.timeout(_TRY_S):
                await driver.create(
                    SandboxSpec(name, image, _LIMITS, labels=labels, image_digest=digest)
                )
                client = await SandboxClient.connect(await driver.open_channel(name))
                async with aclosing(client):
                    return await _ask(client, image)
        except TimeoutError as error:
            raise TemplateError(f"A sandbox of the image {image} was not ready in time.") from error
        finally:
            try:
                async with asyncio.timeout(_DRIVER_S):
                    await driver.remove(name)
            except (SandboxError, TimeoutError):
                self._node.is_untidy = True
            self.names.discard(name)


async def _ask(client: SandboxClient, image: str) -> str:
    execution = await client.execute(
        ["python3", "--version"], timeout_s=30.0, output_limit_bytes=4096
    )
    text = b""
    async with aclosing(execution.output()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            text = (text + chunk.data)[:1000]
    found = _VERSION.search(text.decode("utf-8", "replace"))
    if found is None or (await execution.result()).exit_code != 0:
        raise TemplateError(f"The image {image} has no python3 that runs.")
    return found[1][:20]
