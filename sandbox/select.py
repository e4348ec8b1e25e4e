"""Which driver this machine gets, and what each could enforce here."""

import asyncio
import os
from pathlib import Path
from typing import Literal

from sandbox import docker_config
from sandbox.base import Capabilities, Enforcement, SandboxDriver
from sandbox.bubblewrap import BubblewrapDriver
from sandbox.errors import DriverUnavailableError, PolicyUnsupportedError, SandboxError
from sandbox.kubernetes_pod import KubernetesOptions
from sandbox.limits import Disk

Kind = Literal["auto", "docker", "bubblewrap", "kubernetes", "off"]
PULL_TIMEOUT_S = 120.0
NOTHING = (
    "Sandboxes are off, because code never runs on the host without isolation. Install bubblewrap"
    " (Debian, Ubuntu: apt install bubblewrap) or Docker (apt install docker.io), then start again."
)


async def choose(
    kind: Kind,
    *,
    docker_image: str,
    docker_url: str | None,
    state_dir: Path,
    docker_runtime: str = "",
    disk: Disk = "memory",
    pull_timeout_s: float = PULL_TIMEOUT_S,
    kubernetes: KubernetesOptions | None = None,
) -> tuple[SandboxDriver | None, str]:
    """A started driver that has proved to work, or None; and a sentence that says why.

    `auto` takes Docker if an engine answers and has the image or can pull it in time, else
    bubblewrap. A driver asked for by name is never replaced by another, nor is Docker
    where a runtime of it is named. None is taken that cannot keep workspaces where `disk` says.
    A cluster is only ever taken by name: what a kubeconfig points to may be anybody's.
    """
    if kind == "off":
        return None, "Sandboxes are turned off by configuration."
    reasons: list[str] = []
    if kind == "kubernetes":
        options = kubernetes or KubernetesOptions()
        try:
            pods = await _kubernetes(options, disk)
        except SandboxError as error:
            return None, f"Sandboxes are off. Kubernetes: {error.message}"
        return pods, f"Kubernetes runs the sandboxes, in the namespace {options.namespace}."
    if kind in ("auto", "docker"):
        try:
            driver = await _docker(docker_image, docker_url, docker_runtime, disk, pull_timeout_s)
        except SandboxError as error:
            reasons.append(f"Docker: {error.message}")
        else:
            by = f" by {docker_runtime}" if docker_runtime else ""
            return driver, f"Docker runs the sandboxes{by}, with the image {docker_image}."
    if kind == "bubblewrap" or (kind == "auto" and not docker_runtime):
        try:
            embedded = await _bubblewrap(state_dir, disk)
        except SandboxError as error:
            reasons.append(f"bubblewrap: {error.message}")
        else:
            return embedded, _instead_of_docker(reasons, docker_url)
    return None, " ".join([NOTHING, *reasons])


def _instead_of_docker(reasons: list[str], docker_url: str | None) -> str:
    """Say that bubblewrap is at work; why Docker is not, where somebody may think that it is."""
    if not reasons:
        return "bubblewrap runs the sandboxes."
    if docker_url is None and not engine_is_likely():
        return "bubblewrap runs the sandboxes; Docker is not installed, and not needed."
    return f"bubblewrap runs the sandboxes, in place of Docker, which is not usable. {reasons[0]}"


def engine_is_likely() -> bool:
    """Whether anything here points to a Docker engine: the places its own clients look at."""
    places = ("/run/docker.sock", "/var/run/docker.sock")
    homes = (".docker/run/docker.sock", ".docker/config.json")
    return (
        any(name in os.environ for name in ("DOCKER_HOST", "DOCKER_CONTEXT"))
        or any(Path(place).exists() for place in places)
        or any((Path.home() / place).exists() for place in homes)
    )


async def _docker(
    image: str, url: str | None, runtime: str, disk: Disk, pull_timeout_s: float
) -> SandboxDriver:
    # Its client takes a fifth of a second to load, which a machine without an engine need not pay.
    if url is None and not engine_is_likely():
        raise DriverUnavailableError(f"No Docker engine was found. {docker_config.INSTALL}")
    from sandbox.docker import DockerDriver

    driver = DockerDriver(url=url, runtime=runtime)
    try:
        await driver.check()
        await _require_disk(driver, disk)
        if not await driver.has_image(image):
            try:
                async with asyncio.timeout(pull_timeout_s):
                    await driver.pull(image)
            except TimeoutError as error:
                raise DriverUnavailableError(
                    f"The image {image} is absent and could not be pulled in"
                    f" {pull_timeout_s:.0f} s."
                ) from error
        await driver.prove(image)
    except BaseException:
        await driver.aclose()
        raise
    return driver


def kubernetes_driver(options: KubernetesOptions) -> SandboxDriver:
    """The driver, not started. Raises DriverUnavailableError where its client is absent."""
    try:
        from sandbox.kubernetes import KubernetesDriver
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes_asyncio":
            raise
        raise DriverUnavailableError(
            "The client for Kubernetes is not installed. Install it:"
            " python -m pip install 'kubernetes-asyncio>=36.1' (the extra `kubernetes`)."
        ) from error
    return KubernetesDriver(options)


async def _kubernetes(options: KubernetesOptions, disk: Disk) -> SandboxDriver:
    driver = kubernetes_driver(options)
    try:
        await driver.check()
        await _require_disk(driver, disk)
    except BaseException:
        await driver.aclose()
        raise
    return driver


async def _bubblewrap(state_dir: Path, disk: Disk) -> SandboxDriver:
    driver = BubblewrapDriver(state_dir=state_dir)
    try:
        await driver.check()
        await _require_disk(driver, disk)
    except BaseException:
        await driver.aclose()
        raise
    return driver


async def _require_disk(driver: SandboxDriver, disk: Disk) -> None:
    """Raise PolicyUnsupportedError unless the driver can keep workspaces there."""
    if disk == "memory":
        return
    found = await driver.capabilities()
    if found.items.get("disk_image") is not Enforcement.ENFORCED:
        notes = [note for note in found.notes if note.startswith("Workspaces")]
        why = " ".join(notes) or f"The driver {driver.name} keeps workspaces in memory alone."
        raise PolicyUnsupportedError(why)


async def report(
    *,
    docker_url: str | None,
    state_dir: Path,
    docker_runtime: str = "",
    kubernetes: KubernetesOptions | None = None,
) -> list[Capabilities]:
    """What each driver enforces here, or why it cannot work here at all.

    Kubernetes is asked only where options for it are given.
    """
    from sandbox.docker import DockerDriver

    drivers: list[SandboxDriver] = [
        DockerDriver(url=docker_url, runtime=docker_runtime),
        BubblewrapDriver(state_dir=state_dir),
    ]
    found = []
    if kubernetes is not None:
        try:
            drivers.append(kubernetes_driver(kubernetes))
        except DriverUnavailableError as error:
            found.append(Capabilities("kubernetes", {}, unavailable=error.message))
    for driver in drivers:
        try:
            found.append(await driver.capabilities())
        finally:
            await driver.aclose()
    return found
