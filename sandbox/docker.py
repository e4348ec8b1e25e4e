"""The Docker driver: one hardened container per sandbox, the attach stream as its channel.

Containers are created detached and carry labels, so they outlive the server and a restarted one
finds them. The agent travels in the command line: no bind mount, so the engine may be remote.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.util import MAGIC_NUMBER
from typing import Any

import aiodocker
from aiodocker.containers import DockerContainer

from sandbox import (
    docker_config,
    docker_engine,
    docker_images,
    docker_start,
    docker_stats,
    docker_trial,
)
from sandbox.agent_file import TEXT_BOOT, code_arguments
from sandbox.base import (
    Capabilities,
    Channel,
    DriverEvent,
    ResourceUsage,
    SandboxHandle,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    require,
)
from sandbox.changes import require_change
from sandbox.docker_channel import AttachChannel, listen
from sandbox.docker_engine import answers
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SandboxError,
    TemplateError,
)
from sandbox.events import Broadcast
from sandbox.limits import CHANGEABLE, OF_AGENT, Limits

_STATES = {
    "created": SandboxState.STOPPED,
    "running": SandboxState.RUNNING,
    "restarting": SandboxState.RUNNING,
    "paused": SandboxState.PAUSED,
}


@dataclass(slots=True)
class _Sandbox:
    handle: SandboxHandle
    container: DockerContainer
    least_memory: int
    fresh: AttachChannel | None = None
    channels: list[AttachChannel] = field(default_factory=list)
    place: docker_stats.Place | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class DockerDriver:
    """See `sandbox.base.SandboxDriver`. `runtime` is one of the engine's, "" for its default."""

    name = "docker"
    survives_server = True
    has_images = True

    def __init__(self, *, url: str | None = None, runtime: str = "") -> None:
        self._url = url
        self._runtime = runtime
        self._docker: aiodocker.Docker | None = None
        self._sandboxes: dict[str, _Sandbox] = {}
        self._events = Broadcast()
        self._listener: asyncio.Task[None] | None = None
        self._info: dict[str, Any] = {}
        self._starting = asyncio.Lock()
        # The version of byte code that the Python of an image runs; b"" where the text is to go.
        self._magic: dict[str, bytes] = {}
        self._keeps_agent: bool | None = None  # Nobody has tried.

    # Life of the driver.

    async def start(self) -> None:
        async with self._starting:
            if self._docker is None:
                self._docker, self._info = await docker_engine.reach(self._url)
                self._listener = asyncio.create_task(listen(self._docker, self._events))

    async def aclose(self) -> None:
        """Let go of the engine; containers live on, for `connect` or `list` and `remove`."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
        for sandbox in self._sandboxes.values():
            await self._close_channels(sandbox)
        self._sandboxes.clear()
        if self._docker is not None:
            await self._docker.close()
            self._docker = None
        self._events.close()

    @property
    def _engine(self) -> aiodocker.Docker:
        if self._docker is None:
            raise DriverUnavailableError("The Docker driver is not started.")
        return self._docker

    async def check(self) -> None:
        await self.start()
        docker_engine.check(self._info, self._runtime)

    async def prove(self, image: str) -> None:
        """Make a sandbox where the runtime has a kernel of its own, and see what holds in it.

        Raises DriverUnavailableError where that runs none on this machine.
        """
        await self.check()
        used = docker_engine.runtime_of(self._info, self._runtime)
        if used.has_own_kernel:
            self._keeps_agent = await docker_trial.keeps_agent(self, image, used.name)

    async def capabilities(self) -> Capabilities:
        try:
            await self.check()
        except DriverUnavailableError as error:
            return Capabilities(self.name, {}, unavailable=error.message)
        return docker_engine.report(
            self.name, self._info, self._runtime, keeps_agent=self._keeps_agent
        )

    # Images.

    async def has_image(self, image: str) -> bool:
        await self.start()
        return await docker_images.inspect(self._engine, image) is not None

    async def image_digest(self, image: str) -> str | None:
        await self.start()
        found = await docker_images.inspect(self._engine, image)
        return None if found is None else docker_images.digest(found)

    async def pull(self, image: str) -> None:
        """See the protocol. Takes as long as the download does; cancel to give up."""
        await self.start()
        await docker_images.pull(self._engine, image)

    # Life of a sandbox.

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        spec.check()
        require(await self.capabilities(), spec)
        image = await docker_images.resolve(self._engine, spec)
        if self._magic.get(image) == MAGIC_NUMBER:
            boot = await asyncio.to_thread(code_arguments, docker_config.SOURCE)
            try:
                return await self._create(spec, image, boot)
            except TemplateError:
                # The name is another image's by now, or its Python lacks what unpacks the code.
                self._magic[image] = b""
        return await self._create(spec, image, (TEXT_BOOT, docker_config.SOURCE))

    async def _create(self, spec: SandboxSpec, image: str, boot: Sequence[str]) -> SandboxHandle:
        container = await docker_start.reserve(
            self._engine, spec, image, boot,
            runtime=self._runtime,
            has_own_kernel=docker_engine.runtime_of(self._info, self._runtime).has_own_kernel,
            has_own_uid=docker_engine.has_own_uids(self._info),
        )  # fmt: skip
        handle = SandboxHandle(
            spec.sandbox_id, self.name, spec.image, spec.limits, spec.policy,
            dict(spec.labels), datetime.now(UTC),
        )  # fmt: skip
        least = docker_config.least_memory(docker_config.host_config(spec))
        sandbox = _Sandbox(handle, container, least)
        self._sandboxes[spec.sandbox_id] = sandbox
        try:
            sandbox.fresh, magic = await docker_start.launch(container, sandbox.channels)
        except BaseException:
            await docker_start.undo(self._engine, spec.sandbox_id)
            await self._close_channels(sandbox)
            self._sandboxes.pop(spec.sandbox_id, None)
            raise
        self._magic.setdefault(image, magic)
        return handle

    async def connect(self, sandbox_id: str) -> SandboxHandle:
        sandbox = await self._find(sandbox_id)
        if not (await self._look(sandbox))["State"]["Running"]:
            raise NotFoundError("The sandbox has ended.")
        return sandbox.handle

    async def _look(self, sandbox: _Sandbox) -> dict[str, Any]:
        async with answers("look at the sandbox"):
            return dict(await sandbox.container.show())

    async def _find(self, sandbox_id: str) -> _Sandbox:
        """The sandbox, known or found by its name. Raises NotFoundError."""
        known = self._sandboxes.get(sandbox_id)
        if known is not None:
            return known
        await self.start()
        name = docker_config.container_name(sandbox_id)
        async with answers("look for the sandbox"):
            container = await self._engine.containers.get(name)
            shown = await container.show()
        labels = shown["Config"]["Labels"] or {}
        if labels.get(docker_config.ID_LABEL) != sandbox_id:
            raise NotFoundError("There is no such sandbox.")
        handle = docker_config.handle(shown, self.name)
        found = _Sandbox(handle, container, docker_config.least_memory(shown["HostConfig"]))
        return self._sandboxes.setdefault(sandbox_id, found)

    async def open_channel(self, sandbox_id: str) -> Channel:
        sandbox = await self._find(sandbox_id)
        if sandbox.fresh is not None:
            channel, sandbox.fresh = sandbox.fresh, None
            return channel
        if not (await self._look(sandbox))["State"]["Running"]:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
        await self._close_channels(sandbox)
        channel = await AttachChannel.open(sandbox.container)
        sandbox.channels.append(channel)
        return channel

    async def _close_channels(self, sandbox: _Sandbox) -> None:
        channels, sandbox.channels = sandbox.channels, []
        sandbox.fresh = None
        for channel in channels:
            await channel.aclose()

    async def list(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        await self.start()
        wanted = [docker_config.ID_LABEL]
        wanted += [f"{docker_config.USER_LABEL}{key}={value}" for key, value in labels.items()]
        rows = await docker_start.labelled(self._engine, wanted)
        return [
            SandboxInfo(
                sandbox_id=row["Labels"][docker_config.ID_LABEL],
                state=_STATES.get(row["State"], SandboxState.STOPPED),
                labels=docker_config.user_labels(row["Labels"]),
                image=row["Image"],
                created_at=datetime.fromtimestamp(row["Created"], UTC),
                owned=row["Labels"][docker_config.ID_LABEL] in self._sandboxes,
            )
            for row in rows
        ]

    async def pause(self, sandbox_id: str) -> None:
        sandbox = await self._find(sandbox_id)
        if await self._state(sandbox) is not SandboxState.PAUSED:
            async with answers("pause the sandbox"):
                await sandbox.container.pause()

    async def resume(self, sandbox_id: str) -> None:
        sandbox = await self._find(sandbox_id)
        if await self._state(sandbox) is SandboxState.PAUSED:
            async with answers("resume the sandbox"):
                await sandbox.container.unpause()

    async def _state(self, sandbox: _Sandbox) -> SandboxState:
        shown = await self._look(sandbox)
        state = _STATES.get(shown["State"]["Status"], SandboxState.STOPPED)
        if state is SandboxState.STOPPED:
            raise ConflictError("The sandbox has ended.", state=state)
        return state

    async def stop(self, sandbox_id: str, grace_s: float = 0) -> None:
        """See the protocol. The agent ignores SIGTERM, so `grace_s` changes nothing here."""
        sandbox = await self._find(sandbox_id)
        try:
            state = await self._state(sandbox)
        except ConflictError:
            return
        with contextlib.suppress(ConflictError, NotFoundError):
            # Engines refuse to kill what is frozen, and frozen processes do not die.
            if state is SandboxState.PAUSED:
                await self.resume(sandbox_id)
            async with answers("stop the sandbox"):
                await sandbox.container.kill(signal="SIGKILL")
                await sandbox.container.wait()
        await self._close_channels(sandbox)

    async def remove(self, sandbox_id: str) -> None:
        await self.start()
        sandbox = self._sandboxes.get(sandbox_id)
        await docker_start.discard(self._engine, docker_config.container_name(sandbox_id))
        if sandbox is not None:
            await self._close_channels(sandbox)
            self._sandboxes.pop(sandbox_id, None)

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """Memory, CPU and processes change at once; what else differs is refused."""
        limits.check()
        sandbox = await self._find(sandbox_id)
        capabilities = await self.capabilities()
        async with sandbox.changing:
            require_change(capabilities, sandbox.handle, limits, self._changeable)
            await self._change(sandbox, limits)
        return limits

    @property
    def _changeable(self) -> frozenset[str]:
        used = docker_engine.runtime_of(self._info, self._runtime)
        return OF_AGENT if used.is_gvisor else CHANGEABLE

    async def _change(self, sandbox: _Sandbox, limits: Limits) -> None:
        """Have the engine change all limits, or put back those there were."""
        if sandbox.least_memory > limits.memory_bytes:
            raise InvalidArgumentError(
                f"memory_bytes is {limits.memory_bytes}; this sandbox needs at least"
                f" {sandbox.least_memory}, because its files count as memory."
            )
        before = sandbox.handle.limits
        if replace(before, output_bytes=limits.output_bytes) == limits:
            # The agent alone holds to it; not every runtime can change what the engine does.
            sandbox.handle = replace(sandbox.handle, limits=limits)
            return
        await self._require_room(sandbox, limits.memory_bytes)
        try:
            await self._post_limits(sandbox, limits)
        except (TemplateError, ResourceExhaustedError) as error:
            with contextlib.suppress(SandboxError):
                await self._post_limits(sandbox, before)
            raise ConflictError(error.message, state=SandboxState.RUNNING) from error
        sandbox.handle = replace(sandbox.handle, limits=limits)

    async def _require_room(self, sandbox: _Sandbox, memory_bytes: int) -> None:
        """Raise ConflictError where a lower limit would kill: version 2 does, 1 refuses."""
        if memory_bytes >= sandbox.handle.limits.memory_bytes:
            return
        used = await docker_stats.working_set(self._engine, sandbox.container.id)
        if used is not None and used > memory_bytes:
            raise ConflictError(
                f"The sandbox uses {used} bytes of memory; it cannot have {memory_bytes}.",
                state=SandboxState.RUNNING,
            )

    async def _post_limits(self, sandbox: _Sandbox, limits: Limits) -> None:
        host = (await self._look(sandbox))["HostConfig"]
        async with answers("change the limits"):
            await self._engine._query_json(
                f"containers/{sandbox.container.id}/update",
                "POST",
                data=docker_config.changeable(limits) | docker_config.cpu_share(limits, host),
            )

    async def stats(self, sandbox_id: str) -> ResourceUsage:
        """From the container's cgroup files where it runs on this machine, else by the engine."""
        sandbox = await self._find(sandbox_id)
        if sandbox.place is None:
            shown = await self._look(sandbox)
            sandbox.place = await asyncio.to_thread(docker_stats.find, shown)
        if sandbox.place is not None:
            usage = await docker_stats.read(sandbox.place)
            if sandbox.place.is_there:
                return usage
            sandbox.place = None
        return await docker_stats.ask(self._engine, sandbox.container.id)

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._events.subscribe()
