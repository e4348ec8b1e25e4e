"""Images of Docker, and how their containers get the agent."""

import io
import tarfile
from importlib.util import MAGIC_NUMBER

import aiodocker
import pytest

from sandbox import docker_config, docker_images
from sandbox.agent_file import code_arguments
from sandbox.docker import DockerDriver
from sandbox.errors import PolicyUnsupportedError, TemplateError
from tests.sandbox.conftest import Boxes, docker_settings
from tests.sandbox.docker_containers import command_line, shown

pytestmark = pytest.mark.docker


async def test_an_image_without_python_is_refused(docked: Boxes) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    name = f"noosphere-test-{docked.run_label['test'][:12]}"
    async with aiodocker.Docker(url=docker_settings()[0]) as docker:
        await docker._query_json(
            "images/create",
            "POST",
            params={"fromSrc": "-", "repo": name},
            data=archive.getvalue(),
            headers={"Content-Type": "application/x-tar"},
        )
        try:
            assert await docked.driver.has_image(name)
            with pytest.raises(TemplateError, match="python3"):
                await docked.make(image=name)
            assert await docked.driver.list(docked.run_label) == []
        finally:
            await docker.images.delete(name, force=True)


async def test_an_image_whose_python_is_of_our_version_gets_the_agent_compiled(
    docked: Boxes,
) -> None:
    driver = docked.driver
    assert isinstance(driver, DockerDriver)
    text = docker_config.SOURCE.encode()
    assert text in await command_line(await docked.make())
    magic = driver._magic[docked.image]
    assert len(magic) == len(MAGIC_NUMBER)
    line = await command_line(await docked.make())
    assert (text in line) is (magic != MAGIC_NUMBER)


async def test_an_image_that_runs_no_compiled_agent_gets_its_text(
    docked: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = docked.driver
    assert isinstance(driver, DockerDriver)
    driver._magic[docked.image] = MAGIC_NUMBER
    boot, _, *code = code_arguments(docker_config.SOURCE)
    monkeypatch.setattr("sandbox.docker.code_arguments", lambda _: (boot, "00000000", *code))
    for _ in range(2):
        box = await docked.make()
        assert docker_config.SOURCE.encode() in await command_line(box)
        assert driver._magic[docked.image] == b""
    assert len(await driver.list(docked.run_label)) == 2


async def test_an_image_has_a_digest(docked: Boxes) -> None:
    digest = await docked.driver.image_digest(docked.image)
    assert digest is not None
    assert digest.startswith("sha256:")
    assert await docked.driver.image_digest("noosphere-no-such-image") is None


async def test_exactly_the_version_asked_for_runs(docked: Boxes) -> None:
    digest = await docked.driver.image_digest(docked.image)
    box = await docked.make(image_digest=digest)
    assert (await shown(box))["Image"] == digest
    assert box.handle.image == docked.image
    with pytest.raises(TemplateError, match="with the digest"):
        await docked.make(image_digest="sha256:" + "0" * 64)
    assert len(await docked.driver.list(docked.run_label)) == 1


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("python", "python"),
        ("python:3.11", "python"),
        ("registry:5000/team/python:3.11", "registry:5000/team/python"),
        ("registry:5000/python@sha256:" + "0" * 64, "registry:5000/python"),
    ],
)
def test_a_repository_is_the_name_without_its_version(image: str, repository: str) -> None:
    assert docker_images.repository(image) == repository


async def test_a_disk_image_is_refused(docked: Boxes) -> None:
    with pytest.raises(PolicyUnsupportedError, match="disk_image"):
        await docked.make(disk="image")
