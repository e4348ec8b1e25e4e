"""Making, starting and removing the containers that sandboxes are."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import aiodocker
from aiodocker.containers import DockerContainer

from sandbox import agent as wire
from sandbox import docker_config
from sandbox.base import SandboxSpec
from sandbox.docker_channel import AttachChannel
from sandbox.docker_engine import ENGINE_TIMEOUT_S, answers
from sandbox.errors import (
    ConflictError,
    NotFoundError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
    TimeoutError_,
)
from sandbox.inside.wire import READY_BODY

READY_TIMEOUT_S = 20.0
UID_TRIES = 16
REMOVE_TRIES = 5


async def reserve(
    engine: aiodocker.Docker,
    spec: SandboxSpec,
    image: str,
    boot: Sequence[str],
    *,
    runtime: str,
    has_own_kernel: bool,
    has_own_uid: bool,
) -> DockerContainer:
    """A container, not started, whose user no other container of the engine has.

    Whoever finds the user taken gives way: of two servers that drew the same one, the second to
    create its container is bound to see the first. Raises ConflictError (the id is taken),
    TemplateError, ResourceExhaustedError, TimeoutError_, DriverUnavailableError.
    """
    config = partial(
        docker_config.config,
        spec, image=image, boot=boot, runtime=runtime, has_own_kernel=has_own_kernel,
    )  # fmt: skip
    if not has_own_uid:
        return await _make(engine, spec, config())
    for _ in range(UID_TRIES):
        uid = docker_config.random_uid()
        body = config(uid=uid)
        container = await _make(engine, spec, body)
        try:
            holders = await labelled(engine, [f"{docker_config.UID_LABEL}={uid}"])
        except BaseException:
            await undo(engine, spec.sandbox_id)
            raise
        if [row["Id"] for row in holders] == [container.id]:
            return container
        await undo(engine, spec.sandbox_id)
    raise ResourceExhaustedError("Every user is taken.", resource=Resource.HOST)


async def _make(
    engine: aiodocker.Docker, spec: SandboxSpec, body: dict[str, Any]
) -> DockerContainer:
    name = docker_config.container_name(spec.sandbox_id)
    creating = asyncio.ensure_future(engine.containers.create(body, name=name))
    try:
        async with answers("create the sandbox"):
            return await asyncio.shield(creating)
    except NotFoundError as error:
        raise TemplateError(f"There is no image {spec.image!r}.") from error
    except ConflictError:
        raise
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_abandon(engine, creating, name)))
        raise


async def _abandon(
    engine: aiodocker.Docker, creating: "asyncio.Future[DockerContainer]", name: str
) -> None:
    """The engine finishes a creation even if nobody waits for it; only then remove it."""
    await asyncio.wait({creating}, timeout=ENGINE_TIMEOUT_S)
    if not creating.done():
        creating.cancel()
    elif not creating.cancelled() and creating.exception() is not None:
        return
    await discard(engine, name)


async def launch(
    container: DockerContainer, channels: list[AttachChannel]
) -> tuple[AttachChannel, bytes]:
    """Attach, start, and hear the agent's first word, which the channel gives once more.

    Gives the channel, and the version of byte code that the interpreter inside runs. The channel
    is added to `channels` at once, for the caller to close whatever happens. Raises TemplateError
    where the image has no Python that serves, TimeoutError_.
    """
    channel = await AttachChannel.open(container)
    channels.append(channel)
    try:
        async with answers("start the sandbox"):
            await container.start()
    except SandboxError as error:
        if "python3" in error.message:
            raise TemplateError(
                "The image has no python3, which every template must have."
            ) from error
        raise
    wanted = wire.HEADER.size + READY_BODY.size
    heard = b""
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while len(heard) < wanted and (data := await channel.read()):
                heard += data
    except TimeoutError as error:
        raise TimeoutError_("The sandbox did not start in time.") from error
    if len(heard) < wanted:
        said = channel.complaints.decode("utf-8", "replace").strip().splitlines()
        raise TemplateError(
            "The agent does not run in this image; it needs Python 3.8 or newer with its"
            " whole standard library (Debian: python3, not python3-minimal).",
            engine=said[-1][:200] if said else "",
        )
    channel.put_back(heard)
    _, magic = READY_BODY.unpack_from(heard, wire.HEADER.size)
    return channel, magic


async def labelled(engine: aiodocker.Docker, labels: Sequence[str]) -> Sequence[dict[str, Any]]:
    """Containers that carry all the labels, started or not."""
    filters = json.dumps({"label": labels})
    async with answers("list the sandboxes"):
        found: Sequence[dict[str, Any]] = await engine._query_json(
            "containers/json", params={"all": "1", "filters": filters}
        )
    return found


async def undo(engine: aiodocker.Docker, sandbox_id: str) -> None:
    """Remove what was made so far, even while being cancelled."""
    name = docker_config.container_name(sandbox_id)
    await asyncio.shield(asyncio.ensure_future(discard(engine, name)))


async def discard(engine: aiodocker.Docker, name: str) -> None:
    """Remove a container with its processes; absent ones are fine."""
    for attempt in range(REMOVE_TRIES):
        try:
            async with answers("remove the sandbox"):
                await engine.containers.container(name).delete(force=True, v=True)
        except NotFoundError:
            return
        except ConflictError:
            # Someone else is removing it already: look again whether it is gone.
            await asyncio.sleep(0.2 * (attempt + 1))
            continue
        except TemplateError:
            # It still wrote to what it was to remove, and says so once: its programs were slow to
            # end. What is left of the container is removed like a whole one.
            if attempt == REMOVE_TRIES - 1:
                raise
            await asyncio.sleep(0.2 * (attempt + 1))
            continue
        return
