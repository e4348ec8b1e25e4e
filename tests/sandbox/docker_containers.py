"""Containers as the engine shows them."""

from typing import Any

import aiodocker

from tests.sandbox.conftest import Box, docker_settings


async def command_line(box: Box) -> bytes:
    """What the agent was started with."""
    _, out, _ = await box.run("cat /proc/1/cmdline")
    return out


async def shown(box: Box) -> dict[str, Any]:
    """What the engine tells everybody who may ask it about the container of a sandbox."""
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        return dict(await (await docker.containers.get(f"noosphere-{box.id}")).show())
