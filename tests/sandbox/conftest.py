"""Both drivers under one contract.

bubblewrap is tried where it is installed. Docker's engine and image come from the variables
NOOSPHERE_TEST_DOCKER_URL and NOOSPHERE_TEST_DOCKER_IMAGE.
"""

import os
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox.base import SandboxDriver, SandboxHandle, SandboxSpec
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.client import Execution, ExecutionResult, SandboxClient
from sandbox.docker import DockerDriver
from sandbox.errors import DriverUnavailableError
from sandbox.limits import Limits
from sandbox.policy import Policy
from tests.servers import give_up

MIB = 1024 * 1024
BOTH = [
    pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
    pytest.param("docker", marks=pytest.mark.docker),
]


def docker_settings() -> tuple[str, str]:
    url = os.environ.get("NOOSPHERE_TEST_DOCKER_URL")
    image = os.environ.get("NOOSPHERE_TEST_DOCKER_IMAGE")
    if not url or not image:
        give_up("docker", "NOOSPHERE_TEST_DOCKER_URL and NOOSPHERE_TEST_DOCKER_IMAGE are not set")
    return url, image


@dataclass
class Box:
    """One sandbox with its client."""

    driver: SandboxDriver
    handle: SandboxHandle
    client: SandboxClient

    @property
    def id(self) -> str:
        return self.handle.sandbox_id

    async def start(self, command: str | Sequence[str], **options: Any) -> Execution:
        options = {"timeout_s": 30.0, "output_limit_bytes": 64 * MIB, **options}
        return await self.client.execute(command, **options)

    async def run(
        self, command: str | Sequence[str], **options: Any
    ) -> tuple[ExecutionResult, bytes, bytes]:
        """The result, standard output and standard error of a command."""
        execution = await self.start(command, **options)
        streams = {"stdout": bytearray(), "stderr": bytearray()}
        async for chunk in execution.output():
            streams[chunk.stream] += chunk.data
        return await execution.result(), bytes(streams["stdout"]), bytes(streams["stderr"])

    async def python(self, program: str, **options: Any) -> tuple[ExecutionResult, bytes, bytes]:
        return await self.run(["python3", "-c", program], **options)


class Boxes:
    """Makes sandboxes and removes them all at the end."""

    def __init__(self, driver: SandboxDriver, image: str) -> None:
        self.driver = driver
        self.image = image
        self.run_label = {"test": uuid.uuid4().hex}
        self.ids: set[str] = set()
        self.clients: list[SandboxClient] = []

    def spec(self, **changes: Any) -> SandboxSpec:
        values: dict[str, Any] = {
            "sandbox_id": uuid.uuid4().hex,
            "image": self.image,
            "limits": Limits(memory_bytes=192 * MIB, disk_bytes=32 * MIB, pids=64),
            "policy": Policy(),
            "labels": {},
        }
        values |= changes
        values["labels"] = {**values["labels"], **self.run_label}
        self.ids.add(values["sandbox_id"])
        return SandboxSpec(**values)

    async def make(self, **changes: Any) -> Box:
        handle = await self.driver.create(self.spec(**changes))
        return Box(self.driver, handle, await self.client(handle.sandbox_id))

    async def client(self, sandbox_id: str) -> SandboxClient:
        client = await SandboxClient.connect(await self.driver.open_channel(sandbox_id))
        self.clients.append(client)
        return client

    async def aclose(self) -> None:
        for client in self.clients:
            await client.aclose()
        for sandbox_id in self.ids:
            await self.driver.remove(sandbox_id)
        await self.driver.aclose()


async def make_driver(name: str, state_dir: Path) -> tuple[SandboxDriver, str]:
    driver: SandboxDriver
    if name == "docker":
        url, image = docker_settings()
        driver = DockerDriver(url=url)
    else:
        driver, image = BubblewrapDriver(state_dir=state_dir), "host"
    try:
        await driver.check()
    except DriverUnavailableError as error:
        await driver.aclose()
        give_up(name, error.message)
    return driver, image


@pytest.fixture(params=BOTH)
async def boxes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Boxes]:
    driver, image = await make_driver(request.param, tmp_path / "state")
    made = Boxes(driver, image)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def box(boxes: Boxes) -> Box:
    return await boxes.make()


@pytest.fixture
async def wrapped(tmp_path: Path) -> AsyncIterator[Boxes]:
    """bubblewrap alone."""
    driver, image = await make_driver("bubblewrap", tmp_path / "state")
    made = Boxes(driver, image)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
async def docked(tmp_path: Path) -> AsyncIterator[Boxes]:
    """Docker alone."""
    driver, image = await make_driver("docker", tmp_path / "state")
    made = Boxes(driver, image)
    try:
        yield made
    finally:
        await made.aclose()
