"""How much one sandbox may take, and what the memory it may take has room for."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from sandbox.errors import InvalidArgumentError, PolicyUnsupportedError

MIB = 1024 * 1024
TMP_BYTES = 64 * MIB
HEADROOM_BYTES = 64 * MIB
SHM_BYTES = MIB
SHM_INODES = 1024  # Empty files take memory too, which no size counts.
AGENT_BYTES = 32 * MIB  # What the agent and a small program need beside files that fill all room.
# Most that the kernel keeps of one file with a name of 255 bytes, or of 1,024 bytes of extended
# attributes, which count as one. Measured on Linux 6.18: 1,480 bytes.
INODE_BYTES = 1536
# Fields of `Limits` that every driver can change while a sandbox runs; the agent, not a driver,
# holds the output to its limit.
OF_AGENT = frozenset({"output_bytes"})
CHANGEABLE = OF_AGENT | {"cpu_millis", "memory_bytes", "pids"}

Disk = Literal["memory", "image"]  # Where the workspace lies: in memory, or in a file of its own.


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

    def check(self, *, disk: Disk = "memory") -> None:
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

    def mounted_inodes(self, *, disk: Disk = "memory") -> int:
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
