"""A private Docker engine with the sandbox image in it, made without any registry."""

import asyncio
import hashlib
import http.client
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.servers.base import Place, UnavailableError, program, run_once
from tests.servers.packages import find, install, installable

PER_WORKER = False

IMAGE = "noosphere-sandbox:test"
_RECIPE = Path(__file__).parents[2] / "deploy" / "sandbox-image"
_SCRIPT = _RECIPE / "build-without-registry"
_BUILD_TIMEOUT_S = 600.0


async def start(place: Place) -> dict[str, str]:
    """Give the URL of an engine and the name of an image in it that has Python."""
    url = os.environ.get("NOOSPHERE_TEST_DOCKER_URL") or await _engine(place)
    image = os.environ.get("NOOSPHERE_TEST_DOCKER_IMAGE")
    if not image:
        await provide_image(place, url)
        image = IMAGE
    return {"NOOSPHERE_TEST_DOCKER_URL": url, "NOOSPHERE_TEST_DOCKER_IMAGE": image}


async def _engine(place: Place) -> str:
    try:
        return await private_engine(place, {})
    except UnavailableError as error:
        url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if await asyncio.to_thread(_pings, url):
            return url
        raise UnavailableError(f"{error}; nor does an engine answer at {url}") from error


async def private_engine(place: Place, configured: Mapping[str, Any]) -> str:
    """Give the URL of an engine with this `daemon.json`."""
    if os.geteuid() != 0:
        raise UnavailableError("only root may start a private Docker engine")
    programs = await find(place, dict.fromkeys(("dockerd", "containerd", "runc"), "docker.io"))
    if _has_apparmor() and program("apparmor_parser") is None and installable() is None:
        await install(place, ["apparmor"], "apparmor_parser not found")
    home = place.directory
    configuration = home / "daemon.json"
    configuration.write_text(json.dumps(configured))
    url = f"unix://{home}/docker.sock"
    place.undo.append(lambda: _unmount_below(home))
    process = await place.run(
        *("dockerd", programs["dockerd"], "--config-file", configuration, "--host", url),
        *("--data-root", home / "data", "--exec-root", home / "run"),
        *("--pidfile", home / "docker.pid", "--shutdown-timeout", "2"),
        # Sandboxes have no network, so the machine's is left alone.
        *("--bridge=none", "--iptables=false", "--ip-forward=false", "--userland-proxy=false"),
    )
    await process.answer(lambda: asyncio.to_thread(_pings, url))
    return url


def _has_apparmor() -> bool:
    """Whether the kernel has it; the engine then wants its parser to start a container."""
    return Path("/sys/kernel/security/apparmor").exists()


async def provide_image(place: Place, url: str) -> None:
    """Have `IMAGE` in the engine, unless it was made there by this very recipe."""
    digest = hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:16]
    if await asyncio.to_thread(_image_digest, url) == digest:
        return
    try:
        archive = await archived_image(place, digest)
    except UnavailableError as error:
        await _build_from_registry(url, digest, error)
        return
    await asyncio.to_thread(_import, url, archive, digest)


async def archived_image(place: Place, digest: str | None = None) -> Path:
    """Give the image's file system as a tar archive, from the cache or made by debootstrap."""
    digest = digest or hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:16]
    archive = cache() / f"sandbox-image-{platform.machine()}-{digest}.tar"
    if archive.exists():
        return archive
    if os.geteuid() != 0:
        raise UnavailableError("only root may make the sandbox image by debootstrap")
    await find(place, {"debootstrap": "debootstrap"})
    place.say("making the sandbox image by debootstrap (once, about a minute)")
    unfinished = archive.with_suffix(f".{os.getpid()}")
    try:
        code, output = await run_once(_SCRIPT, unfinished, timeout_s=_BUILD_TIMEOUT_S)
        if code != 0:
            raise UnavailableError(f"{_SCRIPT.name} failed: {output[-2000:].strip()}")
        unfinished.rename(archive)
    finally:
        unfinished.unlink(missing_ok=True)
    return archive


async def _build_from_registry(url: str, digest: str, reason: UnavailableError) -> None:
    client = program("docker")
    if client is None:
        raise reason
    label = f"noosphere.recipe={digest}"
    code, output = await run_once(
        *(client, "--host", url, "build", "--quiet", "--tag", IMAGE, "--label", label, _RECIPE),
        timeout_s=_BUILD_TIMEOUT_S,
    )
    if code != 0:
        raise UnavailableError(f"{reason}; docker build failed: {output[-1000:].strip()}")


def cache() -> Path:
    """Give the directory of what later runs need not make again."""
    default = Path.home() / ".cache" / "noosphere-tests"
    path = Path(os.environ.get("NOOSPHERE_TEST_CACHE") or default)
    path.mkdir(parents=True, exist_ok=True)
    return path


class _Connection(http.client.HTTPConnection):
    """HTTP to an engine, over TCP or its Unix socket."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        super().__init__(parts.hostname or "localhost", parts.port or 2375, timeout=timeout_s)
        self._path = parts.path if parts.scheme == "unix" else None

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _ask(
    url: str, method: str, path: str, body: Any = None, *, timeout_s: float = 10
) -> tuple[int, bytes]:
    connection = _Connection(url, timeout_s)
    try:
        kind = {"Content-Type": "application/x-tar"} if body else {}
        connection.request(method, path, body, headers=kind)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _pings(url: str) -> bool:
    try:
        return _ask(url, "GET", "/_ping")[0] == 200
    except OSError:
        return False


def _image_digest(url: str) -> str | None:
    status, answer = _ask(url, "GET", f"/images/{IMAGE}/json", timeout_s=60)
    if status != 200:
        return None
    labels: dict[str, str] = json.loads(answer)["Config"].get("Labels") or {}
    return labels.get("noosphere.recipe")


def _import(url: str, archive: Path, digest: str) -> None:
    name, tag = IMAGE.split(":")
    changes = [f"LABEL noosphere.recipe={digest}", 'CMD ["python3"]', "ENV LANG=C.UTF-8"]
    query = urlencode({"fromSrc": "-", "repo": name, "tag": tag, "changes": changes}, doseq=True)
    with archive.open("rb") as body:
        status, answer = _ask(url, "POST", f"/images/create?{query}", body, timeout_s=300)
    # The engine answers 200 before it has read the archive, and tells of errors in the body.
    if status != 200 or b'"error"' in answer:
        raise UnavailableError(f"the engine refused the image: {answer.decode(errors='replace')}")


def _unmount_below(directory: Path) -> None:
    """Release the mounts that an engine leaves when it is ended by force."""
    table = Path("/proc/self/mounts").read_text().splitlines()
    for line in reversed(table):
        target = line.split()[1]
        if target.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", target], check=False, timeout=10)
