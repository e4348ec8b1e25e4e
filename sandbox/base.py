"""The protocol of sandbox drivers, and the values that pass through it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from sandbox.errors import DriverUnavailableError, InvalidArgumentError, PolicyUnsupportedError
from sandbox.limits import Disk, Limits
from sandbox.policy import Policy

WORKSPACE = "/workspace"
LABEL_PREFIX = "noosphere."


class Enforcement(StrEnum):
    """How far a driver holds a limit on this machine."""

    ENFORCED = "ENFORCED"  # For the sandbox as a whole.
    PER_PROCESS = "PER_PROCESS"  # For each process alone: many processes together exceed it.
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one driver enforces here, by item.

    Items are isolation, network (nothing is reachable but by the channel), syscalls, agent (code
    reaches neither the agent beside it nor its channel), uid, memory, cpu, pids, disk, disk_image,
    inodes, network_bandwidth and pause; an item that is not there is UNAVAILABLE.
    """

    driver: str
    items: Mapping[str, Enforcement]
    notes: Sequence[str] = ()
    unavailable: str | None = None  # Why the driver cannot work here at all.


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A sandbox to create. `image` is a Docker image, or 'host' for bubblewrap's own /usr.

    `demanded` names items of `Capabilities` that somebody asked for, as against defaults:
    `require` refuses what does not hold. `accepts_per_process` lets a limit pass that holds for
    each process alone. With an `image_digest` exactly that version of the image is run.
    """

    sandbox_id: str
    image: str
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    labels: Mapping[str, str] = field(default_factory=dict)
    demanded: frozenset[str] = frozenset()
    accepts_per_process: bool = False
    disk: Disk = "memory"
    image_digest: str | None = None

    def check(self) -> None:
        """Raise InvalidArgumentError or PolicyUnsupportedError when the spec cannot be met."""
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        if not 0 < len(self.sandbox_id) <= 64 or not set(self.sandbox_id) <= allowed:
            raise InvalidArgumentError(
                "A sandbox id has 1 to 64 letters, digits, hyphens and underscores."
            )
        if self.disk not in ("memory", "image"):
            raise InvalidArgumentError("disk is 'memory' or 'image'.")
        self.limits.check(disk=self.disk)
        self.policy.check()


def require(capabilities: Capabilities, spec: SandboxSpec) -> None:
    """Refuse a sandbox of which something would not hold; a limit is never ignored.

    Raises PolicyUnsupportedError that names each item that is required or demanded and not
    enforced, DriverUnavailableError where the driver cannot work at all.
    """
    if capabilities.unavailable is not None:
        raise DriverUnavailableError(capabilities.unavailable)
    asked = spec.policy.required | spec.demanded
    asked |= spec.limits.demands().keys() & {"network_bandwidth"}  # Has no default.
    if spec.disk == "image":
        asked |= {"disk_image"}
    missing = []
    for item in sorted(asked):
        found = capabilities.items.get(item, Enforcement.UNAVAILABLE)
        if found is Enforcement.PER_PROCESS and not spec.accepts_per_process:
            missing.append(f"{item} (here for each process alone)")
        elif found is Enforcement.UNAVAILABLE:
            missing.append(item)
    if missing:
        raise PolicyUnsupportedError(
            f"The driver {capabilities.driver} cannot enforce {', '.join(missing)} on this machine."
        )


class SandboxState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SandboxHandle:
    """A created sandbox, ready for `open_channel`."""

    sandbox_id: str
    driver: str
    image: str
    limits: Limits
    policy: Policy
    labels: Mapping[str, str]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """One sandbox as `list` finds it, this server's or a leftover of another."""

    sandbox_id: str
    state: SandboxState
    labels: Mapping[str, str]
    image: str
    created_at: datetime | None
    owned: bool  # This driver object holds its channel.


@dataclass(frozen=True, slots=True)
class ResourceUsage:
    """Use of resources by an execution or a sandbox.

    Of an execution: CPU of all its processes, peak of its largest process, time from start to
    end. Of a sandbox: totals of its cgroup, use of its workspace, bytes over its network since it
    was made; None where nothing counts them.
    """

    cpu_ms: float | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    wall_ms: float | None = None
    pids: int | None = None
    oom_kills: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    net_rx: int | None = None
    net_tx: int | None = None
    cpu_throttled_ms: float | None = None


class DriverEventKind(StrEnum):
    OOM = "oom"
    DIED = "died"
    PAUSED = "paused"
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True)
class DriverEvent:
    kind: DriverEventKind
    sandbox_id: str
    at: datetime


class Channel(Protocol):
    """Duplex bytes to the agent: the only data path a driver supplies."""

    async def read(self) -> bytes:
        """Some bytes, or b"" once the way to the sandbox is gone. Cancellation loses nothing."""
        ...

    def write(self, data: bytes) -> None:
        """Queue bytes; follow with `drain` before queueing more than a few frames."""
        ...

    async def drain(self) -> None:
        """Wait until the queue is short. Raises SandboxLostError if the way is gone."""
        ...

    async def aclose(self) -> None:
        """Let go of the channel; the sandbox lives on."""
        ...


class SandboxDriver(Protocol):
    """Creates and ends sandboxes. Everything done inside them goes through `open_channel`."""

    name: str
    survives_server: bool  # Sandboxes outlive the server, and `connect` finds them again.
    has_images: bool  # Images are names in a registry; else there is one, `host`.

    async def start(self) -> None:
        """Make ready. Raises DriverUnavailableError."""
        ...

    async def aclose(self) -> None:
        """Let go of everything held; bubblewrap's sandboxes end, Docker's live on."""
        ...

    async def check(self) -> None:
        """Raise DriverUnavailableError, with what to install, unless sandboxes can be made."""
        ...

    async def capabilities(self) -> Capabilities: ...

    async def has_image(self, image: str) -> bool: ...

    async def pull(self, image: str) -> None:
        """Fetch an image. Raises TemplateError."""
        ...

    async def image_digest(self, image: str) -> str | None: ...

    async def create(self, spec: SandboxSpec) -> SandboxHandle:
        """Make a sandbox with its agent answering.

        Raises InvalidArgumentError, PolicyUnsupportedError, ConflictError (the id is taken),
        TemplateError, ResourceExhaustedError, TimeoutError_. A failed or cancelled creation
        leaves nothing behind.
        """
        ...

    async def connect(self, sandbox_id: str) -> SandboxHandle:
        """Attach to a running sandbox, after a restart too where the driver's sandboxes survive.

        Raises NotFoundError.
        """
        ...

    async def list(self, labels: Mapping[str, str]) -> list[SandboxInfo]:
        """All sandboxes with these labels, leftovers of dead servers among them."""
        ...

    async def pause(self, sandbox_id: str) -> None: ...

    async def resume(self, sandbox_id: str) -> None: ...

    async def stop(self, sandbox_id: str, grace_s: float = 0) -> None:
        """End all processes; files in the sandbox are gone. Stopped already: nothing happens."""
        ...

    async def remove(self, sandbox_id: str) -> None:
        """Stop, and take away everything that is left. Unknown ids: nothing happens."""
        ...

    async def update(self, sandbox_id: str, *, limits: Limits) -> Limits:
        """Change limits of a running sandbox; the limits then in force, as its handle has them.

        Raises PolicyUnsupportedError, having changed nothing, where one of those that differ
        cannot change, or cannot be enforced; ConflictError where the kernel refuses.
        """
        ...

    async def stats(self, sandbox_id: str) -> ResourceUsage: ...

    def events(self) -> AsyncIterator[DriverEvent]:
        """Events from now on, of all sandboxes of this driver; close it with `aclosing`."""
        ...

    async def open_channel(self, sandbox_id: str) -> Channel:
        """A fresh channel; it takes the sandbox over from any earlier one."""
        ...
