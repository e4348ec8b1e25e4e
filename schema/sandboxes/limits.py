"""Limits of sandboxes, as they are asked for."""

import strawberry

from schema.base import BigInt, attr
from services.sandboxes.wishes import Resources


@strawberry.input(description="Limits of a sandbox; what is left out is as the template says.")
class SandboxResourcesInput:
    cpu_millis: int | None = attr("CPU time in thousandths of a core, 50 to 4,000.", default=None)
    memory_bytes: BigInt | None = attr(
        "Memory of all processes and files, 96 MiB to 4 GiB.", default=None
    )
    disk_bytes: BigInt | None = attr(
        "Size of the workspace, from 1 MiB; it lies in memory, so less than that.", default=None
    )
    pids: int | None = attr("Processes and threads at once, 8 to 4,096.", default=None)
    network_bytes_per_second: BigInt | None = attr(
        "Bytes a second over the network. Refused where it cannot be enforced.", default=None
    )


def resources(wish: SandboxResourcesInput | None) -> Resources:
    """Give the wish as services know it."""
    return Resources() if wish is None else Resources(**vars(wish))
