"""The Docker driver: one hardened container per sandbox, the attach stream as its channel.

Containers are created detached and carry labels, so they outlive the server and a restarted one
finds them. The agent travels in the command line: no bind mount, so the engine may be remote.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import aiodocker
import aiohttp  # The transport of aiodocker, whose errors it lets through.
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError
from aiodocker.stream import Stream

from sandbox import agent as wire
from sandbox import docker_config
from sandbox.base import (
    CHANGEABLE,
    Capabilities,
    Channel,
    DriverEvent,
    DriverEventKind,
    Enforcement,
    Limits,
    Policy,
    ResourceUsage,
    SandboxHandle,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
)
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    Resource,
    ResourceExhaustedError,
    SandboxError,
    SandboxLostError,
    TemplateError,
    TimeoutError_,
)
from sandbox.events import Broadcast

log = logging.getLogger(__name__)

_BROKEN = (DockerError, aiohttp.ClientError, OSError, TimeoutError)
_CONNECTION_FAILED = 900  # aiodocker's own status: no answer came at all.
ENGINE_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 20.0
_STATES = {
    "created": SandboxState.STOPPED,
    "running": SandboxState.RUNNING,
    "restarting": SandboxState.RUNNING,
    "paused": SandboxState.PAUSED,
}
_EVENTS = {
    "oom": DriverEventKind.OOM,
    "die": DriverEventKind.DIED,
    "pause": DriverEventKind.PAUSED,
    "unpause": DriverEventKind.RESUMED,
}


class AttachChannel:
    """Docker's hijacked attach stream as a channel."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._closed = False
        self._first = b""
        self.complaints = b""

    async def read(self) -> bytes:
        first, self._first = self._first, b""
        if first:
            return first
        while not self._closed:
            try:
                message = await self._stream.read_out()
            except _BROKEN:
                break
            if message is None:
                break
            if message.stream == 1:
                return message.data
            self.complaints = (self.complaints + message.data)[-4096:]
        return b""

    def put_back(self, data: bytes) -> None:
        self._first = data + self._first

    def write(self, data: bytes) -> None:
        response = self._stream._resp
        connection = None if response is None else response.connection
        transport = None if connection is None else connection.transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    async def drain(self) -> None:
        if self._closed:
            raise SandboxLostError("The sandbox is gone.")
        try:
            await self._stream.write_in(b"")
        except (RuntimeError, AssertionError, *_BROKEN) as error:
            raise SandboxLostError("The sandbox is gone.") from error

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(AssertionError, OSError):
                await self._stream.close()


@dataclass(slots=True)
class _Sandbox:
    handle: SandboxHandle
    container: DockerContainer
    fresh: AttachChannel | None = None
    channels: list[AttachChannel] = field(default_factory=list)


class DockerDriver:
    """See `sandbox.base.SandboxDriver`."""

    name = "docker"
    survives_server = True
    has_images = True

    def __init__(self, *, url: str | None = None) -> None:
        self._url = url
        self._docker: aiodocker.Docker | None = None
        self._sandboxes: dict[str, _Sandbox] = {}
        self._events = Broadcast()
        self._listener: asyncio.Task[None] | None = None
        self._info: dict[str, Any] = {}

    # Life of the driver.

    async def start(self) -> None:
        if self._docker is not None:
            return
        try:
            docker = aiodocker.Docker(url=self._url)
        except (AssertionError, ValueError, OSError, DockerError) as error:
            raise DriverUnavailableError(
                f"No Docker engine was found. {docker_config.INSTALL}"
            ) from error
        # Every sandbox holds one connection, and the client would stop at a hundred.
        docker.session.connector._limit = 0  # type: ignore[union-attr]
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await docker.version()
                self._info = dict(await docker.system.info())
        except _BROKEN as error:
            await docker.close()
            raise DriverUnavailableError(
                f"No Docker engine answers. {docker_config.INSTALL}"
            ) from error
        except BaseException:
            await docker.close()
            raise
        self._docker = docker
        self._listener = asyncio.create_task(self._listen())

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

    @property
    def _security(self) -> str:
        return " ".join(self._info.get("SecurityOptions") or ())

    async def check(self) -> None:
        await self.start()
        if self._info.get("OSType") != "linux":
            raise DriverUnavailableError("The Docker engine does not run Linux containers.")
        if "seccomp" not in self._security:
            raise DriverUnavailableError(
                "The Docker engine was built without seccomp, so system calls cannot be filtered."
            )

    async def capabilities(self) -> Capabilities:
        try:
            await self.check()
        except DriverUnavailableError as error:
            return Capabilities(self.name, {}, unavailable=error.message)
        full, none = Enforcement.ENFORCED, Enforcement.UNAVAILABLE

        def told(key: str) -> Enforcement:
            return full if self._info.get(key) else none

        freezes = self._info.get("CgroupDriver") != "none"
        items = {
            "isolation": full,
            "network": full,
            "syscalls": full,
            "disk": full,
            "inodes": full,
            "uid": full if self._own_uid else none,
            "memory": told("MemoryLimit"),
            "cpu": told("CpuCfsQuota"),
            "pids": told("PidsLimit"),
            "pause": full if freezes else none,
            "network_bandwidth": none,
        }
        notes = (
            f"Docker {self._info.get('ServerVersion', '?')}",
            f"cgroups version {self._info.get('CgroupVersion', '1')}",
        )
        return Capabilities(self.name, items, notes)

    @property
    def _own_uid(self) -> bool:
        """Remapped engines have only the first 65,536 users."""
        return "userns" not in self._security and "rootless" not in self._security

    # Images.

    async def has_image(self, image: str) -> bool:
        return await self._inspect_image(image) is not None

    async def image_digest(self, image: str) -> str | None:
        found = await self._inspect_image(image)
        if found is None:
            return None
        digests = found.get("RepoDigests") or []
        return str(digests[0]).rpartition("@")[2] if digests else str(found["Id"])

    async def _inspect_image(self, image: str) -> dict[str, Any] | None:
        await self.start()
        try:
            async with _answers("inspect the image"):
                return dict(await self._engine.images.inspect(image))
        except NotFoundError:
            return None

    async def pull(self, image: str) -> None:
        """See the protocol. Takes as long as the download does; cancel to give up."""
        await self.start()
        name, _, tag = image.partition("@")
        if not tag:
            last = name.rpartition("/")[2]
            tag = "" if ":" in last else "latest"
        try:
            async for _ in self._engine.images.pull(name, tag=tag or None, stream=True):
                pass
        except DockerError as error:
            raise TemplateError(
                f"The image {image!r} cannot be pulled.", engine=error.message
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise DriverUnavailableError("The Docker engine does not answer.") from error

    # Life of a sandbox.

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        spec.check()
        if spec.limits.network_bytes_per_s is not None:
            raise PolicyUnsupportedError("The Docker driver cannot limit network bandwidth.")
        if spec.disk != "memory":
            raise PolicyUnsupportedError("The Docker driver keeps workspaces in memory alone.")
        await self.start()
        body = docker_config.config(spec, own_uid=self._own_uid)
        name = docker_config.container_name(spec.sandbox_id)
        creating = asyncio.ensure_future(self._engine.containers.create(body, name=name))
        try:
            async with _answers("create the sandbox"):
                container = await asyncio.shield(creating)
        except NotFoundError as error:
            raise TemplateError(f"There is no image {spec.image!r}.") from error
        except ConflictError:
            raise
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._abandon(creating, name)))
            raise
        handle = SandboxHandle(
            spec.sandbox_id, self.name, spec.image, spec.limits, spec.policy,
            dict(spec.labels), datetime.now(UTC),
        )  # fmt: skip
        sandbox = _Sandbox(handle, container)
        self._sandboxes[spec.sandbox_id] = sandbox
        try:
            await self._launch(sandbox)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._discard(name)))
            await self._close_channels(sandbox)
            self._sandboxes.pop(spec.sandbox_id, None)
            raise
        return handle

    async def _abandon(self, creating: "asyncio.Future[DockerContainer]", name: str) -> None:
        """The engine finishes a creation even if nobody waits for it; only then remove it."""
        await asyncio.wait({creating}, timeout=ENGINE_TIMEOUT_S)
        if not creating.done():
            creating.cancel()
        elif not creating.cancelled() and creating.exception() is not None:
            return
        await self._discard(name)

    async def _launch(self, sandbox: _Sandbox) -> None:
        """Attach, start, and hear the agent's first word."""
        channel = await self._attach(sandbox)
        try:
            async with _answers("start the sandbox"):
                await sandbox.container.start()
        except SandboxError as error:
            if "python3" in error.message:
                raise TemplateError(
                    "The image has no python3, which every template must have."
                ) from error
            raise
        wanted = wire.HEADER.size + 2
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
        sandbox.fresh = channel

    async def _attach(self, sandbox: _Sandbox) -> AttachChannel:
        stream = sandbox.container.attach(stdin=True, stdout=True, stderr=True)
        try:
            async with _answers("attach to the sandbox"):
                await stream._init()
        except BaseException:
            await stream.close()
            raise
        channel = AttachChannel(stream)
        sandbox.channels.append(channel)
        return channel

    async def connect(self, sandbox_id: str) -> SandboxHandle:
        sandbox = await self._find(sandbox_id)
        async with _answers("look at the sandbox"):
            shown = await sandbox.container.show()
        if not shown["State"]["Running"]:
            raise NotFoundError("The sandbox has ended.")
        return sandbox.handle

    async def _find(self, sandbox_id: str) -> _Sandbox:
        """The sandbox, known or found by its name. Raises NotFoundError."""
        known = self._sandboxes.get(sandbox_id)
        if known is not None:
            return known
        await self.start()
        name = docker_config.container_name(sandbox_id)
        async with _answers("look for the sandbox"):
            container = await self._engine.containers.get(name)
            shown = await container.show()
        labels = shown["Config"]["Labels"] or {}
        if labels.get(docker_config.ID_LABEL) != sandbox_id:
            raise NotFoundError("There is no such sandbox.")
        handle = SandboxHandle(
            sandbox_id=sandbox_id,
            driver=self.name,
            image=shown["Config"]["Image"],
            limits=Limits(**json.loads(labels[docker_config.LIMITS_LABEL])),
            policy=Policy(env=json.loads(labels[docker_config.ENV_LABEL])),
            labels=_user_labels(labels),
            created_at=datetime.fromisoformat(shown["Created"][:19] + "+00:00"),
        )
        return self._sandboxes.setdefault(sandbox_id, _Sandbox(handle, container))

    async def open_channel(self, sandbox_id: str) -> Channel:
        sandbox = await self._find(sandbox_id)
        if sandbox.fresh is not None:
            channel, sandbox.fresh = sandbox.fresh, None
            return channel
        async with _answers("look at the sandbox"):
            shown = await sandbox.container.show()
        if not shown["State"]["Running"]:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)
        await self._close_channels(sandbox)
        return await self._attach(sandbox)

    async def _close_channels(self, sandbox: _Sandbox) -> None:
        channels, sandbox.channels = sandbox.channels, []
        sandbox.fresh = None
        for channel in channels:
            await channel.aclose()

    async def list(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        await self.start()
        wanted = [docker_config.ID_LABEL]
        wanted += [f"{docker_config.USER_LABEL}{key}={value}" for key, value in labels.items()]
        async with _answers("list the sandboxes"):
            rows = await self._engine._query_json(
                "containers/json", params={"all": "1", "filters": json.dumps({"label": wanted})}
            )
        return [
            SandboxInfo(
                sandbox_id=row["Labels"][docker_config.ID_LABEL],
                state=_STATES.get(row["State"], SandboxState.STOPPED),
                labels=_user_labels(row["Labels"]),
                image=row["Image"],
                created_at=datetime.fromtimestamp(row["Created"], UTC),
                owned=row["Labels"][docker_config.ID_LABEL] in self._sandboxes,
            )
            for row in rows
        ]

    async def pause(self, sandbox_id: str) -> None:
        sandbox = await self._find(sandbox_id)
        if await self._state(sandbox) is not SandboxState.PAUSED:
            async with _answers("pause the sandbox"):
                await sandbox.container.pause()

    async def resume(self, sandbox_id: str) -> None:
        sandbox = await self._find(sandbox_id)
        if await self._state(sandbox) is SandboxState.PAUSED:
            async with _answers("resume the sandbox"):
                await sandbox.container.unpause()

    async def _state(self, sandbox: _Sandbox) -> SandboxState:
        async with _answers("look at the sandbox"):
            shown = await sandbox.container.show()
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
            async with _answers("stop the sandbox"):
                await sandbox.container.kill(signal="SIGKILL")
                await sandbox.container.wait()
        await self._close_channels(sandbox)

    async def remove(self, sandbox_id: str) -> None:
        await self.start()
        sandbox = self._sandboxes.get(sandbox_id)
        await self._discard(docker_config.container_name(sandbox_id))
        if sandbox is not None:
            await self._close_channels(sandbox)
            self._sandboxes.pop(sandbox_id, None)

    async def _discard(self, name: str) -> None:
        """Remove a container with its processes; absent ones are fine."""
        for attempt in range(3):
            try:
                async with _answers("remove the sandbox"):
                    container = self._engine.containers.container(name)
                    await container.delete(force=True, v=True)
            except NotFoundError:
                return
            except ConflictError:
                # Someone else is removing it already: look again whether it is gone.
                await asyncio.sleep(0.2 * (attempt + 1))
                continue
            return

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """Memory, CPU and processes change at once; what else differs is refused."""
        limits.check()
        sandbox = await self._find(sandbox_id)
        sandbox.handle.limits.changed(limits, CHANGEABLE)
        body = {
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "PidsLimit": limits.pids,
            "NanoCpus": limits.cpu_millis * 1_000_000,
        }
        async with _answers("change the limits"):
            await self._engine._query_json(
                f"containers/{sandbox.container.id}/update", "POST", data=body
            )
        sandbox.handle = replace(sandbox.handle, limits=limits)
        return limits

    async def stats(self, sandbox_id: str) -> ResourceUsage:
        """One reading of the cgroup's files by the engine, without its one-second sampling."""
        sandbox = await self._find(sandbox_id)
        async with _answers("measure the sandbox"):
            stats = await self._engine._query_json(
                f"containers/{sandbox.container.id}/stats",
                params={"stream": "0", "one-shot": "1"},
            )
        memory = stats.get("memory_stats") or {}
        cpu = (stats.get("cpu_stats") or {}).get("cpu_usage", {}).get("total_usage")
        return ResourceUsage(
            cpu_ms=None if cpu is None else cpu / 1e6,
            memory_bytes=memory.get("usage"),
            memory_peak_bytes=memory.get("max_usage"),
            pids=(stats.get("pids_stats") or {}).get("current"),
        )

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._events.subscribe()

    async def _listen(self) -> None:
        """Pass the engine's events on; come back when the connection breaks."""
        filters = json.dumps({"label": [docker_config.ID_LABEL], "event": list(_EVENTS)})
        delay_s = 0.1
        while True:
            events: Any = self._engine.events  # Without annotations of its own.
            subscriber = events.subscribe(create_task=False)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(events.run(filters=filters))
                    while (event := await subscriber.get()) is not None:
                        delay_s = 0.1
                        self._pass_on(event)
            except* _BROKEN as broken:
                log.warning("The Docker engine's events broke off: %s", broken.exceptions[0])
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 10.0)

    def _pass_on(self, event: dict[str, Any]) -> None:
        sandbox_id = event.get("Actor", {}).get("Attributes", {}).get(docker_config.ID_LABEL)
        kind = _EVENTS.get(event.get("Action", ""))
        if sandbox_id and kind:
            self._events.emit(DriverEvent(kind, sandbox_id, datetime.now(UTC)))


def _user_labels(labels: Mapping[str, str]) -> dict[str, str]:
    size = len(docker_config.USER_LABEL)
    return {k[size:]: v for k, v in labels.items() if k.startswith(docker_config.USER_LABEL)}


class _answers:  # noqa: N801 - reads as a verb where it is used.
    """Bounds a wait for the engine and puts its complaints into our words."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._timeout = asyncio.timeout(ENGINE_TIMEOUT_S)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise TimeoutError_(f"The Docker engine did not {self._what} in time.") from late
        if isinstance(error, DockerError):
            raise self._translate(error) from error
        if isinstance(error, aiohttp.ClientError | OSError):
            raise DriverUnavailableError("The Docker engine does not answer.") from error

    def _translate(self, error: DockerError) -> SandboxError:
        message = str(error.message)
        if error.status == _CONNECTION_FAILED:
            return DriverUnavailableError("The Docker engine does not answer.")
        if error.status == 404:
            return NotFoundError("There is no such sandbox or image.")
        if error.status in (304, 409):
            return ConflictError(
                f"The Docker engine cannot {self._what}.", state="conflict", engine=message
            )
        if "no space left" in message or "cannot allocate memory" in message:
            return ResourceExhaustedError(
                "The host has no room for the sandbox.", resource=Resource.HOST
            )
        return TemplateError(f"The Docker engine refuses to {self._what}.", engine=message)
