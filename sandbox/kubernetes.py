"""The Kubernetes driver: one hardened Pod per sandbox, the attach stream as its channel.

Pods carry labels and outlive the server, so that a restarted one finds them. The manifest starts
`kubernetes_boot`, which waits until it is attached to, reports what it measures and reads the
agent from its standard input: any image with Python serves, and the first word cannot be missed.
"""

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

from sandbox import agent as wire
from sandbox import kubernetes_checks as checks
from sandbox import kubernetes_cluster as clusters
from sandbox import kubernetes_pod as pods
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
from sandbox.errors import (
    ConflictError,
    DriverUnavailableError,
    NotFoundError,
    PolicyUnsupportedError,
    SandboxError,
    SandboxLostError,
    TemplateError,
    TimeoutError_,
)
from sandbox.events import Broadcast
from sandbox.kubernetes_api import answers
from sandbox.kubernetes_channel import AttachChannel
from sandbox.kubernetes_pod import KubernetesOptions, Pod
from sandbox.limits import Limits

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 20.0
REMOVE_TIMEOUT_S = 25.0
LOOK_S = 3.0  # A watch may be silent and dead: so often its word is not waited for.
RESIZE_TIMEOUT_S = 25.0
CHANGEABLE = frozenset({"cpu_millis", "memory_bytes", "output_bytes"})


@dataclass(slots=True)
class _Sandbox:
    handle: SandboxHandle
    fresh: AttachChannel | None = None
    channels: list[AttachChannel] = field(default_factory=list)


class KubernetesDriver:
    """See `sandbox.base.SandboxDriver`."""

    name = pods.DRIVER
    survives_server = True
    has_images = True

    def __init__(self, options: KubernetesOptions | None = None) -> None:
        self._options = options or KubernetesOptions()
        self._cluster: clusters.Cluster | None = None
        self._sandboxes: dict[str, _Sandbox] = {}
        self._events = Broadcast()
        self._faults: Mapping[str, str] = {}
        self._reserved: set[int] = set()
        self._starting = asyncio.Lock()

    # Life of the driver.

    async def start(self) -> None:
        async with self._starting:
            if self._cluster is None:
                cluster = clusters.Cluster(self._options, self._events)
                try:
                    await cluster.start()
                except BaseException:
                    await cluster.aclose()
                    raise
                self._cluster = cluster

    async def aclose(self) -> None:
        """Let go of the cluster; Pods live on, for `connect` or `list` and `remove`."""
        for sandbox in self._sandboxes.values():
            await self._close_channels(sandbox)
        self._sandboxes.clear()
        if self._cluster is not None:
            await self._cluster.aclose()
            self._cluster = None
        self._events.close()

    async def check(self) -> None:
        await self.start()
        await self._started.check()

    @property
    def _started(self) -> clusters.Cluster:
        if self._cluster is None:
            raise DriverUnavailableError("The Kubernetes driver is not started.")
        return self._cluster

    async def capabilities(self) -> Capabilities:
        try:
            await self.start()
            cluster = self._started
            is_closed = await cluster.is_closed()
            return checks.capabilities(
                self._options,
                is_closed=is_closed,
                faults=self._faults,
                can_resize=cluster.can_resize,
                version=cluster.version,
            )
        except SandboxError as error:
            return Capabilities(self.name, {}, unavailable=error.message)

    # Images. The nodes fetch them when a Pod needs them; nobody can be asked beforehand.

    async def has_image(self, image: str) -> bool:
        """Whether the name is one that nodes can be asked for. Creation tells of the rest."""
        return clusters.is_image_name(image)

    async def pull(self, image: str) -> None:
        if not clusters.is_image_name(image):
            raise TemplateError(f"{image!r} is no name of an image.")

    async def image_digest(self, image: str) -> str | None:
        """The digest in the name, or of the version a node ran last; None before the first."""
        await self.start()
        return self._started.digest(image)

    # Life of a sandbox.

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        """See the protocol. What the Pod measures before any user code runs decides as well."""
        spec.check()
        if spec.disk != "memory":
            raise PolicyUnsupportedError("Pods keep their workspaces in memory alone.")
        await self.pull(spec.image)
        require(await self.capabilities(), spec)
        cluster = self._started
        uid = self._draw_uid()
        creation = secrets.token_hex(16)
        body = pods.manifest(spec, self._options, uid=uid, creation=creation)
        name = body["metadata"]["name"]
        sandbox: _Sandbox | None = None
        self._reserved.add(uid)
        creating = asyncio.ensure_future(cluster.create(body))
        try:
            async with answers("create sandboxes"):
                pod = await asyncio.shield(creating)
            sandbox = _Sandbox(replace(pods.handle(pod), policy=spec.policy))
            await self._launch(sandbox, spec, name, uid)
        except BaseException as error:
            if sandbox is not None:
                await self._close_channels(sandbox)
            if sandbox is not None or not isinstance(error, ConflictError):
                await asyncio.shield(asyncio.ensure_future(self._abandon(creating, name, creation)))
            raise
        finally:
            self._reserved.discard(uid)
        self._sandboxes[spec.sandbox_id] = sandbox
        return sandbox.handle

    def _draw_uid(self) -> int:
        """A user that no other sandbox known here has: its number of processes is its own."""
        if self._options.user_namespaces:
            return pods.NAMESPACED_UID  # Another one of the node for each Pod.
        taken = {pods.uid_of(pod) for pod in self._started.pods.values()} | self._reserved
        while True:
            uid = pods.UID_BASE + int.from_bytes(os.urandom(4), "big") % pods.UID_COUNT
            if uid not in taken:
                return uid

    async def _abandon(self, creating: "asyncio.Future[Pod]", name: str, creation: str) -> None:
        """Remove what a failed creation made, which may not be known, and nobody else's Pod.

        The server finishes a creation even if nobody waits for it; only then remove it.
        """
        await asyncio.wait({creating}, timeout=REMOVE_TIMEOUT_S)
        if not creating.done():
            creating.cancel()
        elif not creating.cancelled():
            creating.exception()  # Retrieved: the caller has it, or is gone.
        try:
            async with answers("remove the sandbox"):
                pod = await self._started.get(name)
                if pod is not None and pods.annotations(pod).get(pods.CREATION) == creation:
                    await self._end(name, pod)
        except SandboxError:
            log.warning("A sandbox that failed to start may be left.", exc_info=True)

    async def _launch(self, sandbox: _Sandbox, spec: SandboxSpec, name: str, uid: int) -> None:
        """Wait until the container runs, hear what it found, and send it the agent."""
        await self._until_running(name)
        channel = await self._attach(sandbox, serves_agent=False)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                found = checks.parse(await channel.report())
                faults = checks.broken(found, spec.limits, self._options, uid=uid)
                self._note(faults)
                checks.refuse(faults, spec)
                await channel.begin(_source(), wire.HEADER.size + 2)
        except TimeoutError as error:
            raise TimeoutError_("The sandbox did not start in time.") from error
        except (SandboxLostError, ValueError) as error:
            raise self._stillborn(channel) from error
        sandbox.fresh = channel

    def _stillborn(self, channel: AttachChannel) -> SandboxError:
        said = channel.complaints.decode("utf-8", "replace").strip().splitlines()
        if not said:
            return SandboxLostError("The sandbox was lost while it started.", engine=channel.status)
        return TemplateError(
            "The agent does not run in this image; it needs Python 3.8 or newer with its whole"
            " standard library (Debian: python3, not python3-minimal).",
            engine=said[-1][:200],
        )

    def _note(self, faults: Mapping[str, str]) -> None:
        for item, why in faults.items():
            if item not in self._faults:
                log.error("The cluster does not enforce %s: %s", item, why)
        self._faults = dict(faults)

    async def _until_running(self, name: str) -> None:
        deadline = time.monotonic() + self._options.start_timeout_s
        pod = self._started.pods.get(name)
        while pod is None or pods.state(pod) is not SandboxState.RUNNING:
            if pod is not None and (failure := pods.failure(pod)) is not None:
                raise failure
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                late = TimeoutError_("The cluster did not start the sandbox in time.")
                raise (pods.standstill(pod) if pod is not None else None) or late
            async with answers("start the sandbox"):
                pod = await self._started.next(name, pod, min(LOOK_S, left_s))
            if pod is None:
                raise SandboxLostError("The sandbox was removed while it started.")

    async def _attach(self, sandbox: _Sandbox, *, serves_agent: bool = True) -> AttachChannel:
        name = pods.pod_name(sandbox.handle.sandbox_id)
        async with answers("attach to sandboxes"):
            socket = await self._started.attach(name)
            channel = AttachChannel(socket, serves_agent=serves_agent)
        sandbox.channels.append(channel)
        return channel

    async def connect(self, sandbox_id: str) -> SandboxHandle:
        """See the protocol. The environment is not kept in the cluster; the handle has none."""
        sandbox, pod = await self._find(sandbox_id)
        if pods.state(pod) is not SandboxState.RUNNING:
            raise NotFoundError("The sandbox has ended.")
        return sandbox.handle

    async def _find(self, sandbox_id: str) -> tuple[_Sandbox, Pod]:
        """The sandbox and its Pod as it is now. Raises NotFoundError."""
        await self.start()
        async with answers("look at sandboxes"):
            pod = await self._started.get(pods.pod_name(sandbox_id))
        if pod is None or pods.annotations(pod).get(pods.ID) != sandbox_id:
            raise NotFoundError("There is no such sandbox.")
        known = self._sandboxes.get(sandbox_id)
        if known is None:
            known = self._sandboxes.setdefault(sandbox_id, _Sandbox(pods.handle(pod)))
        return known, pod

    async def open_channel(self, sandbox_id: str) -> Channel:
        known = self._sandboxes.get(sandbox_id)
        if known is not None and known.fresh is not None:
            channel, known.fresh = known.fresh, None
            return channel
        sandbox, pod = await self._find(sandbox_id)
        if pods.state(pod) is not SandboxState.RUNNING:
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
        async with answers("list sandboxes"):
            found = await self._started.find(pods.selector(labels))
        infos = []
        for pod in found:
            given = pods.labels_of(pod)
            # Labels of the cluster may be digests; the annotations are what was given.
            if any(given.get(key) != value for key, value in labels.items()):
                continue
            notes = pods.annotations(pod)
            if (sandbox_id := notes.get(pods.ID)) is None:
                continue
            infos.append(
                SandboxInfo(
                    sandbox_id=sandbox_id,
                    state=pods.state(pod),
                    labels=given,
                    image=notes.get(pods.IMAGE, ""),
                    created_at=pods.created_at(pod),
                    owned=sandbox_id in self._sandboxes,
                )
            )
        return infos

    async def pause(self, sandbox_id: str) -> None:
        """Kubernetes cannot freeze a Pod. Raises PolicyUnsupportedError."""
        await self._find(sandbox_id)
        raise PolicyUnsupportedError("Kubernetes cannot pause a sandbox.")

    async def resume(self, sandbox_id: str) -> None:
        """As nothing is ever paused, a running sandbox goes on. Raises ConflictError."""
        _, pod = await self._find(sandbox_id)
        if pods.state(pod) is not SandboxState.RUNNING:
            raise ConflictError("The sandbox has ended.", state=SandboxState.STOPPED)

    async def stop(self, sandbox_id: str, grace_s: float = 0) -> None:
        """See the protocol. The cluster ends processes only by deleting the Pod."""
        await self._find(sandbox_id)
        await self.remove(sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        """See the protocol. Returns once the node has said that no process is left.

        Raises TimeoutError_ where the node does not answer: the cluster knows that the Pod is to
        go, and whoever removes it again waits on.
        """
        await self.start()
        name = pods.pod_name(sandbox_id)
        async with answers("remove sandboxes"):
            pod = await self._started.get(name)
            if pod is not None:
                if not pods.annotations(pod).get(pods.ID):
                    raise NotFoundError("There is no such sandbox.")
                await self._end(name, pod)
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is not None:
            await self._close_channels(sandbox)

    async def _end(self, name: str, pod: Pod) -> None:
        """Delete a Pod, and wait until it is gone. Raises TimeoutError_."""
        uid = pod["metadata"]["uid"]
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        await self._started.delete(name, uid=uid)
        left: Pod | None = pod
        while left is not None and left["metadata"]["uid"] == uid:
            if (left_s := deadline - time.monotonic()) <= 0:
                raise TimeoutError_("The node did not end the sandbox in time.")
            left = await self._started.next(name, left, min(LOOK_S, left_s))

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """See the protocol. Only memory and CPU change, in clusters of version 1.33 and later."""
        limits.check()
        sandbox, pod = await self._find(sandbox_id)
        cluster = self._started
        changeable = CHANGEABLE if cluster.can_resize else frozenset({"output_bytes"})
        sandbox.handle.limits.changed(limits, changeable)
        if limits.tmp_bytes != sandbox.handle.limits.tmp_bytes:
            raise PolicyUnsupportedError(
                "The size of /tmp follows the memory and cannot change here; ask for more memory."
            )
        name = pods.pod_name(sandbox_id)
        if pods.resources(limits) != pods.resources(sandbox.handle.limits):
            async with answers("resize sandboxes"):
                await cluster.resize(name, pod, limits, timeout_s=RESIZE_TIMEOUT_S)
        async with answers("note the limits of sandboxes"):
            await cluster.annotate(name, limits)
        sandbox.handle = replace(sandbox.handle, limits=limits)
        return limits

    async def stats(self, sandbox_id: str) -> ResourceUsage:
        """Memory where the cluster has a metrics server, some seconds old; else nothing."""
        await self._find(sandbox_id)
        async with answers("measure sandboxes"):
            return await self._started.usage(pods.pod_name(sandbox_id))

    def events(self) -> AsyncIterator[DriverEvent]:
        return self._events.subscribe()


def _source() -> str:
    return wire.source()
