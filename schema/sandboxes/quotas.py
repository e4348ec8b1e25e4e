"""What a person's sandboxes may have in all."""

import strawberry

from schema.base import BigInt, attr


@strawberry.type(description="An amount of sandboxes and of what they have, added up.")
class SandboxAllowance:
    count: int = attr("Live sandboxes.")
    cpu_millis: int = attr("Their CPU time, in thousandths of a core.")
    memory_bytes: BigInt = attr("Their memory.")
    disk_bytes: BigInt = attr("Their workspaces, and snapshots of workspaces.")


@strawberry.type(
    description="What a person's live sandboxes may have in all, and have. Of each thing it is the "
    "most that one of the person's roles says, or as the server is configured."
)
class SandboxQuota:
    limit: SandboxAllowance = attr("What they may have.")
    used: SandboxAllowance = attr("What they have.")


@strawberry.type(
    description="What a role says of quotas; null: nothing, so that another role or the server's "
    "configuration decides."
)
class SandboxQuotaRule:
    count: int | None = attr("Live sandboxes.")
    cpu_millis: int | None = attr("Their CPU time, in thousandths of a core.")
    memory_bytes: BigInt | None = attr("Their memory.")
    disk_bytes: BigInt | None = attr("Their workspaces, and snapshots of workspaces.")


@strawberry.input(description="What a role shall say of quotas; what is left out, it does not say.")
class SandboxQuotaInput:
    count: int | None = attr("Live sandboxes, at most 10,000.", default=None)
    cpu_millis: int | None = attr("Their CPU time, in thousandths of a core.", default=None)
    memory_bytes: BigInt | None = attr("Their memory.", default=None)
    disk_bytes: BigInt | None = attr("Their workspaces, and snapshots of workspaces.", default=None)
