"""The protocol of sandbox drivers, and the values that pass through it."""

import ipaddress
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol, Self

from sandbox.errors import (
    DriverUnavailableError,
    InvalidArgumentError,
    PolicyUnsupportedError,
)

MIB = 1024 * 1024
WORKSPACE = "/workspace"
TMP_BYTES = 64 * MIB
HEADROOM_BYTES = 64 * MIB
SHM_BYTES = MIB
SHM_INODES = 1024  # Empty files take memory too, which no size counts.
AGENT_BYTES = 32 * MIB  # What the agent and a small program need beside files that fill all room.
# Most that the kernel keeps of one file with a name of 255 bytes, or of 1,024 bytes of extended
# attributes, which count as one. Measured on Linux 6.18: 1,480 bytes.
INODE_BYTES = 1536
LABEL_PREFIX = "noosphere."
# What holds for every sandbox, asked for or not; no driver may do with less.
ALWAYS = frozenset({"isolation", "network", "syscalls"})
# Fields of `Limits` that every driver can change while a sandbox runs; the agent, not a driver,
# holds the output to its limit.
CHANGEABLE = frozenset({"cpu_millis", "memory_bytes", "pids", "output_bytes"})
MAX_RULES = 1000


class Enforcement(StrEnum):
    """How far a driver holds a limit on this machine."""

    ENFORCED = "ENFORCED"  # For the sandbox as a whole.
    PER_PROCESS = "PER_PROCESS"  # For each process alone: many processes together exceed it.
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one driver enforces here, by item.

    Items are isolation, network (nothing is reachable but by the channel), syscalls, uid, memory,
    cpu, pids, disk, disk_image, inodes, network_bandwidth and pause; an item that is not there is
    UNAVAILABLE.
    """

    driver: str
    items: Mapping[str, Enforcement]
    notes: Sequence[str] = ()
    unavailable: str | None = None  # Why the driver cannot work here at all.


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one sandbox. `disk_bytes` is the size of the workspace; /tmp has its own 64 MiB.

    `inodes` is the most files of the workspace; in a small memory fewer fit (`mounted_inodes`).
    """

    cpu_millis: int = 1000
    memory_bytes: int = 512 * MIB
    pids: int = 128
    disk_bytes: int = 256 * MIB
    inodes: int = 65536
    network_bytes_per_s: int | None = None
    output_bytes: int = 16 * MIB  # Per execution and stream, unless the execution says less.

    def demands(self) -> dict[str, int]:
        """What is limited, by the item of `Capabilities` that tells whether the limit holds."""
        demands = {
            "cpu": self.cpu_millis,
            "memory": self.memory_bytes,
            "pids": self.pids,
            "disk": self.disk_bytes,
            "inodes": self.inodes,
        }
        if self.network_bytes_per_s is not None:
            demands["network_bandwidth"] = self.network_bytes_per_s
        return demands

    def changed(self, wanted: "Limits", changeable: Collection[str]) -> None:
        """Raise PolicyUnsupportedError where `wanted` differs in more than what can change."""
        fixed = [
            name
            for name in self.__dataclass_fields__
            if name not in changeable and getattr(self, name) != getattr(wanted, name)
        ]
        if fixed:
            raise PolicyUnsupportedError(
                f"A running sandbox cannot change {', '.join(fixed)} here; create another one."
            )

    def check(self, *, disk: "Disk" = "memory") -> None:
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
        files = self.tmp_bytes + (self.disk_bytes if disk == "memory" else 0)
        if files + HEADROOM_BYTES > self.memory_bytes:
            # So there is room left for several thousand inodes, which `mounted_inodes` counts.
            most = self.memory_bytes - HEADROOM_BYTES - self.tmp_bytes
            raise InvalidArgumentError(
                f"disk_bytes is {self.disk_bytes}; with memory_bytes {self.memory_bytes} the most"
                f" is {max(0, most)}, because files count as memory."
            )

    def mounted_inodes(self, *, disk: "Disk" = "memory") -> int:
        """Files that the workspace takes: `inodes`, or as many as memory has room for.

        Were there more, empty files alone could fill the memory and kill process 1.
        """
        if disk != "memory":
            return self.inodes
        room = self.memory_bytes - self.disk_bytes - self.tmp_bytes - SHM_BYTES - AGENT_BYTES
        return min(self.inodes, room // INODE_BYTES - self.tmp_inodes - SHM_INODES)

    @property
    def tmp_inodes(self) -> int:
        """Files that /tmp takes: one for each 8 KiB of its size."""
        return min(self.inodes, self.tmp_bytes // 8192)

    @property
    def socket_bytes(self) -> int:
        """What may wait in sockets of networks, where it is counted apart from memory."""
        return self.memory_bytes // 8

    @property
    def tmp_bytes(self) -> int:
        """Size of /tmp: 64 MiB, less in a small sandbox."""
        return min(TMP_BYTES, self.memory_bytes // 8)


def files_bytes(size_bytes: int, inodes: int) -> int:
    """Least memory of a sandbox whose filesystems in memory have these sizes and inodes in all."""
    kept = INODE_BYTES * (inodes + SHM_INODES) + SHM_BYTES + AGENT_BYTES
    return size_bytes + max(HEADROOM_BYTES, kept)


Disk = Literal["memory", "image"]  # Where the workspace lies: in memory, or in a file of its own.
NetworkMode = Literal["none", "allow"]


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """What a sandbox may connect to: a name, `*.` before one, an address or a range of addresses.

    Addresses that are none of the public Internet (private, loopback, link-local and others) are
    reached only where a rule names them or a range of such, and the operator lets it.
    """

    host: str
    ports: tuple[int, ...] = (80, 443)

    def check(self) -> None:
        """Raise InvalidArgumentError for what names no host or no port."""
        if not self.ports or not all(1 <= port <= 65535 for port in self.ports):
            raise InvalidArgumentError(f"The rule for {self.host[:253]!r} needs ports 1 to 65535.")
        try:
            ipaddress.ip_network(self.host)
        except ValueError:
            if not is_name(self.host.removeprefix("*.")):
                raise InvalidArgumentError(
                    f"{self.host[:253]!r} is neither a host name, an address nor a range."
                ) from None


def is_name(host: str) -> bool:
    """Whether this is a DNS name in ASCII, as resolvers are asked for it."""
    labels = host.split(".")
    return (
        0 < len(host) <= 253
        and not labels[-1].isdigit()  # 127.1 is a way to write an address.
        and all(
            0 < len(label) <= 63
            and label.isascii()
            and label.replace("-", "").replace("_", "").isalnum()
            and not label.startswith("-")
            and not label.endswith("-")
            for label in labels
        )
    )


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What code may reach: nothing, or what the rules name, by a proxy of the server.

    The network of the sandbox itself is empty in both modes; `allow` adds a way out through the
    channel, so drivers have nothing to do for it.
    """

    mode: NetworkMode = "none"
    rules: tuple[NetworkRule, ...] = ()

    def check(self) -> None:
        """Raise PolicyUnsupportedError for an unknown mode, InvalidArgumentError for bad rules."""
        if self.mode not in ("none", "allow"):
            raise PolicyUnsupportedError(
                f"The network policy {self.mode!r} is not supported; use 'none' or 'allow'."
            )
        if self.mode == "none" and self.rules:
            raise InvalidArgumentError("Rules for a network need the network policy 'allow'.")
        if len(self.rules) > MAX_RULES:
            raise InvalidArgumentError(f"A network policy has at most {MAX_RULES} rules.")
        for rule in self.rules:
            rule.check()


@dataclass(frozen=True, slots=True)
class Policy:
    """What code in the sandbox may reach, and the environment of every execution.

    `required` are items of `Capabilities` that must hold, whatever limits were asked for.
    """

    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    env: Mapping[str, str] = field(default_factory=dict)
    required: frozenset[str] = ALWAYS

    def check(self) -> None:
        """Raise PolicyUnsupportedError or InvalidArgumentError for what no driver can enforce."""
        self.network.check()
        check_env(self.env)

    def to_json(self, *, with_env: bool = True) -> dict[str, Any]:
        """Plain values for `from_json`; without the environment where others may read them."""
        rules = [{"host": rule.host, "ports": list(rule.ports)} for rule in self.network.rules]
        value: dict[str, Any] = {
            "network": {"mode": self.network.mode, "rules": rules},
            "required": sorted(self.required),
        }
        if with_env:
            value["env"] = dict(self.env)
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The policy that `to_json` told of; an absent part is the default.

        Raises InvalidArgumentError for anything else.
        """
        try:
            network = value.get("network", {})
            policy = cls(
                NetworkPolicy(
                    network.get("mode", "none"),
                    tuple(
                        NetworkRule(str(rule["host"]), tuple(map(int, rule["ports"])))
                        for rule in network.get("rules", ())
                    ),
                ),
                dict(value.get("env", {})),
                frozenset(value.get("required", ALWAYS)),
            )
            policy.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError("The policy is malformed.") from error
        return policy


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
