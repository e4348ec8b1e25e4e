"""Which driver is chosen, and what is said about it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sandbox import bubblewrap_command, disk_images, select
from sandbox.docker import DockerDriver
from sandbox.select import Kind, choose, report
from tests.sandbox.conftest import Boxes, docker_settings


def nowhere(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/none.sock"


async def test_off_is_off(tmp_path: Path) -> None:
    driver, why = await choose("off", docker_image="x", docker_url=None, state_dir=tmp_path)
    assert driver is None
    assert "turned off" in why


@pytest.mark.docker
async def test_auto_takes_docker_where_it_has_the_image(tmp_path: Path) -> None:
    url, image = docker_settings()
    driver, why = await choose("auto", docker_image=image, docker_url=url, state_dir=tmp_path)
    assert driver is not None
    try:
        assert driver.name == "docker"
        assert image in why
    finally:
        await driver.aclose()


@pytest.mark.docker
async def test_docker_without_the_image_is_not_replaced(tmp_path: Path) -> None:
    url, _ = docker_settings()
    async with asyncio.timeout(60):
        driver, why = await choose(
            "docker",
            docker_image="localhost:1/noosphere-absent:1",
            docker_url=url,
            state_dir=tmp_path,
            pull_timeout_s=20,
        )
    assert driver is None
    assert "noosphere-absent" in why


@pytest.mark.bubblewrap
async def test_auto_takes_bubblewrap_where_no_engine_answers(
    wrapped: Boxes, tmp_path: Path
) -> None:
    driver, why = await choose(
        "auto", docker_image="x", docker_url=nowhere(tmp_path), state_dir=tmp_path / "s"
    )
    assert driver is not None
    try:
        assert driver.name == "bubblewrap"
        assert "No Docker engine answers" in why
    finally:
        await driver.aclose()


@pytest.mark.bubblewrap
async def test_a_machine_that_never_had_docker_is_told_of_no_error(
    wrapped: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "engine_is_likely", lambda: False)
    driver, why = await choose("auto", docker_image="x", docker_url=None, state_dir=tmp_path / "s")
    assert driver is not None
    try:
        assert why == "bubblewrap runs the sandboxes; Docker is not installed, and not needed."
    finally:
        await driver.aclose()


async def test_with_neither_sandboxes_are_refused_with_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap_command.shutil, "which", lambda name: None)
    monkeypatch.setattr(bubblewrap_command, "_wheel", lambda: None)
    driver, why = await choose(
        "auto", docker_image="x", docker_url=nowhere(tmp_path), state_dir=tmp_path / "s"
    )
    assert driver is None
    assert "apt install bubblewrap" in why
    assert "apt install docker.io" in why


async def test_the_report_names_both_drivers(tmp_path: Path) -> None:
    docker, bubblewrap = await report(docker_url=nowhere(tmp_path), state_dir=tmp_path / "s")
    assert (docker.driver, bubblewrap.driver) == ("docker", "bubblewrap")
    assert docker.unavailable is not None
    assert bool(bubblewrap.items) != bool(bubblewrap.unavailable)


@pytest.mark.docker
@pytest.mark.parametrize("kind", ["docker", "auto"])
async def test_a_runtime_that_is_not_there_is_not_replaced(kind: Kind, tmp_path: Path) -> None:
    url, image = docker_settings()
    driver, why = await choose(
        kind,
        docker_image=image,
        docker_url=url,
        state_dir=tmp_path,
        docker_runtime="noosphere-absent",
    )
    assert driver is None
    assert "noosphere-absent" in why
    assert "daemon.json" in why


@pytest.mark.docker
async def test_the_runtime_reaches_the_driver(tmp_path: Path) -> None:
    url, image = docker_settings()
    driver, why = await choose(
        "docker", docker_image=image, docker_url=url, state_dir=tmp_path, docker_runtime="runc"
    )
    assert isinstance(driver, DockerDriver)
    assert driver._runtime == "runc"
    assert "by runc" in why
    await driver.aclose()


@pytest.mark.docker
async def test_workspaces_on_disk_are_not_put_into_memory(tmp_path: Path) -> None:
    url, image = docker_settings()
    driver, why = await choose(
        "docker", docker_image=image, docker_url=url, state_dir=tmp_path, disk="image"
    )
    assert driver is None
    assert "in memory alone" in why


class Cluster(DockerDriver):
    """A driver that works, and keeps workspaces in memory alone."""

    name = "kubernetes"
    is_closed = False

    async def check(self) -> None:
        """It works."""

    async def aclose(self) -> None:
        self.is_closed = True


async def test_a_cluster_is_not_taken_for_workspaces_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    monkeypatch.setattr(select, "kubernetes_driver", lambda options: cluster)
    wish: dict[str, Any] = {"docker_image": "x", "docker_url": None, "state_dir": tmp_path}
    assert (await choose("kubernetes", **wish))[0] is cluster
    assert not cluster.is_closed
    driver, why = await choose("kubernetes", **wish, disk="image")
    assert driver is None
    assert "The driver kubernetes keeps workspaces in memory alone." in why
    assert cluster.is_closed


@pytest.mark.bubblewrap
async def test_a_machine_without_mkfs_says_what_workspaces_on_disk_need(
    wrapped: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_images, "find_mkfs", lambda: None)
    driver, why = await choose(
        "bubblewrap", docker_image="x", docker_url=None, state_dir=tmp_path / "s", disk="image"
    )
    assert driver is None
    assert "mkfs.ext4" in why or "root" in why


@pytest.mark.bubblewrap
async def test_workspaces_on_disk_are_tried_before_they_are_promised(
    wrapped: Boxes, tmp_path: Path
) -> None:
    could = (await wrapped.driver.capabilities()).items["disk_image"] == "ENFORCED"
    driver, why = await choose(
        "bubblewrap", docker_image="x", docker_url=None, state_dir=tmp_path / "s", disk="image"
    )
    assert (driver is not None) == could, why
    if driver is not None:
        await driver.aclose()
