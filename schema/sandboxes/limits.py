"""Limits of sandboxes, as they are asked for."""

import strawberry

from schema.base import BigInt
from services.sandboxes.wishes import Resources


@strawberry.input(description="Limits of a sandbox; what is left out is as the template says.")
class SandboxResourcesInput:
    cpu_millis: int | None = strawberry.field(
        default=None, description="CPU time in thousandths of a core, 50 to 4,000."
    )
    memory_bytes: BigInt | None = strawberry.field(
        default=None, description="Memory of all processes and files, 96 MiB to 4 GiB."
    )
    disk_bytes: BigInt | None = strawberry.field(
        default=None,
        description="Size of the workspace, from 1 MiB; it lies in memory, so less than that.",
    )
    pids: int | None = strawberry.field(
        default=None, description="Processes and threads at once, 8 to 4,096."
    )
    network_bytes_per_second: BigInt | None = strawberry.field(
        default=None,
        description="Bytes a second over the network. Refused where it cannot be enforced.",
    )


def resources(wish: SandboxResourcesInput | None) -> Resources:
    """Give the wish as services know it."""
    return Resources() if wish is None else Resources(**vars(wish))
