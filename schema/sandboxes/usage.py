"""What sandboxes use."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, cast

import strawberry

from resolvers.base import Info
from schema.base import BigInt, arg, attr
from services.sandboxes import usage as service


@strawberry.type(description="What a sandbox had used at some time; null where nothing counts it.")
class SandboxUsage:
    at: datetime = attr("When it was sampled.", name="sampledAt")
    cpu_ms: BigInt | None = attr(
        "CPU time of all its processes since it was made.", name="cpuMilliseconds"
    )
    memory_bytes: BigInt | None = attr("Memory in use, files in memory included.")
    pids: int | None = attr("Processes and threads there are.")
    disk_bytes: BigInt | None = attr("Use of its workspace.")
    rx: BigInt | None = attr(
        "Bytes received over its network since it was made.", name="receivedBytes"
    )
    tx: BigInt | None = attr("Bytes sent over its network since it was made.", name="sentBytes")


@strawberry.type
class SandboxUsageSubscription:
    @strawberry.subscription(
        description="What a sandbox of yours uses: at once, and again every few seconds, until it "
        "ends; the last that is known when it has ended. Samples that somebody follows are kept, "
        "see `Sandbox.usage`; of others one in twelve is. There is no cursor: subscribe again "
        "after a break."
    )
    async def sandbox_usage(
        self,
        info: Info,
        sandbox_id: Annotated[strawberry.ID, arg("Id of the sandbox.")],
    ) -> AsyncGenerator[SandboxUsage, None]:
        context = info.context
        samples = service.follow(context.deps, context.viewer, sandbox_id)
        async with aclosing(samples):
            async for sample in samples:
                # A sample has what the type says, by the same names.
                yield cast("SandboxUsage", sample)
