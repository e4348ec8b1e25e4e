"""Images of a Docker engine."""

from typing import Any

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

from sandbox.base import SandboxSpec
from sandbox.docker_engine import answers
from sandbox.errors import DriverUnavailableError, NotFoundError, TemplateError


async def inspect(engine: aiodocker.Docker, image: str) -> dict[str, Any] | None:
    """What the engine has under this name, digest or id; None if nothing."""
    try:
        async with answers("inspect the image"):
            return dict(await engine.images.inspect(image))
    except NotFoundError:
        return None


def digest(found: dict[str, Any]) -> str:
    """The digest by which registries know an image; of one that was never in any, its id."""
    digests = found.get("RepoDigests") or []
    return str(digests[0]).rpartition("@")[2] if digests else str(found["Id"])


async def resolve(engine: aiodocker.Docker, spec: SandboxSpec) -> str:
    """What to call the image of a sandbox, so that exactly the version asked for runs.

    Raises TemplateError if the engine does not have it.
    """
    if spec.image_digest is None:
        return spec.image
    for name in (f"{repository(spec.image)}@{spec.image_digest}", spec.image_digest):
        if await inspect(engine, name) is not None:
            return name
    raise TemplateError(f"There is no image {spec.image!r} with the digest {spec.image_digest!r}.")


def repository(image: str) -> str:
    """The name without tag and digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


async def pull(engine: aiodocker.Docker, image: str) -> None:
    """Fetch an image. Raises TemplateError, DriverUnavailableError."""
    name, _, tag = image.partition("@")
    if not tag:
        last = name.rpartition("/")[2]
        tag = "" if ":" in last else "latest"
    try:
        async for _ in engine.images.pull(name, tag=tag or None, stream=True):
            pass
    except DockerError as error:
        raise TemplateError(
            f"The image {image!r} cannot be pulled.", engine=error.message
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise DriverUnavailableError("The Docker engine does not answer.") from error
