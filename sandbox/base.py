"""The protocol of sandbox drivers, and the values that pass through it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from sandbox.errors import InvalidArgumentError, PolicyUnsupportedError

MIB = 1024 * 1024
WORKSPACE = "/workspace"
TMP_BYTES = 64 * MIB
HEADROOM_BYTES = 64 * MIB
LABEL_PREFIX = "noosphere."


class Enforcement(StrEnum):
    """How far a driver holds a limit on this machine."""

    ENFORCED = "ENFORCED"  # For the sandbox as a whole.
    PER_PROCESS = "PER_PROCESS"  # For each process alone: many processes together exceed it.
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one driver enforces here, by item: memory, cpu, pids, disk, inodes, network, …"""

    driver: str
    items: Mapping[str, Enforcement]
    notes: Sequence[str] = ()
    unavailable: str | None = None  # Why the driver cannot work here at all.


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one sandbox. `disk_bytes` is the size of the workspace; /tmp has its own 64 MiB."""

    cpu_millis: int = 1000
    memory_bytes: int = 512 * MIB
    pids: int = 128
    disk_bytes: int = 256 * MIB
    inodes: int = 65536
    network_bytes_per_s: int | None = None
    output_bytes: int = 16 * MIB  # Per execution and stream, unless the execution says less.

    def check(self) -> None:
        """Raise InvalidArgumentError for limits that no sandbox can live in."""
        floors = {
            "cpu_millis": (self.cpu_millis, 10),
            "memory_bytes": (self.memory_bytes, 64 * MIB),
            "pids": (self.pids, 8),
            "disk_bytes": (self.disk_bytes, MIB),
            "inodes": (self.inodes, 64),
            "output_bytes": (self.output_bytes, 1),
        }
        for name, (value, least) in floors.items():
            if value < least:
                raise InvalidArgumentError(f"{name} is {value}; the least is {least}.")
        # Files live in memory: were they as large as it, filling the disk would kill process 1.
        files = self.disk_bytes + self.tmp_bytes
        if files + HEADROOM_BYTES > self.memory_bytes:
            most = self.memory_bytes - HEADROOM_BYTES - self.tmp_bytes
            raise InvalidArgumentError(
                f"disk_bytes is {self.disk_bytes}; with memory_bytes {self.memory_bytes} the most"
                f" is {max(0, most)}, because files count as memory."
            )

    @property
    def tmp_bytes(self) -> int:
        """Size of /tmp: 64 MiB, less in a small sandbox."""
        return min(TMP_BYTES, self.memory_bytes // 8)


@dataclass(frozen=True, slots=True)
class Policy:
    """What code in the sandbox may reach, and the environment of every execution."""

    network: str = "none"
    env: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise PolicyUnsupportedError for anything no driver here can enforce."""
        if self.network != "none":
            raise PolicyUnsupportedError(
                f"The network policy {self.network!r} is not supported; use 'none'."
            )


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A sandbox to create. `image` is a Docker image, or 'host' for bubblewrap's own /usr."""

    sandbox_id: str
    image: str
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    labels: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InvalidArgumentError or PolicyUnsupportedError when the spec cannot be met."""
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        if not 0 < len(self.sandbox_id) <= 64 or not set(self.sandbox_id) <= allowed:
            raise InvalidArgumentError(
                "A sandbox id has 1 to 64 letters, digits, hyphens and underscores."
            )
        self.limits.check()
        self.policy.check()
        check_env(self.policy.env)


def check_env(env: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError for names or values that no process can be given."""
    total = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidArgumentError(f"The environment variable {name[:64]!r} is malformed.")
        total += len(name) + len(value)
    if total > 64 * 1024:
        raise InvalidArgumentError("The environment is larger than 64 KB.")


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
    end. Of a sandbox: totals of its cgroup; None where nothing counts them.
    """

    cpu_ms: float | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    wall_ms: float | None = None
    pids: int | None = None
    oom_kills: int | None = None


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

    async def update(self, sandbox_id: str, *, limits: Limits) -> None:
        """Change memory, CPU and process limits of a running sandbox."""
        ...

    async def stats(self, sandbox_id: str) -> ResourceUsage: ...

    def events(self) -> AsyncIterator[DriverEvent]:
        """Events from now on, of all sandboxes of this driver; close it with `aclosing`."""
        ...

    async def open_channel(self, sandbox_id: str) -> Channel:
        """A fresh channel; it takes the sandbox over from any earlier one."""
        ...
