"""What was cleared away."""

from datetime import datetime

import strawberry

from models import sandboxes as tables
from resolvers import sandboxes
from resolvers.base import Info, PageArgs, reads
from schema.base import After, Before, Connection, First, Last, Node, attr


@strawberry.type(description="Something of sandboxes that was cleared away (admin).")
class SandboxRemoval(Node, row=tables.SandboxRemoval):
    kind: str = attr("`container`, `sandbox`, `execution`, `snapshot` or `quarantine`.")
    name: str = attr("What it was called.")
    reason: str = attr("Why it was cleared away.")
    node_id: str = attr("The process that did it.", name="node")
    sandbox_id: str | None = attr("Id of the sandbox it belonged to.", name="sandbox")
    removed_at: datetime = attr("When.")


@strawberry.type
class SandboxRemovalsQuery:
    @strawberry.field(
        description="What of sandboxes was cleared away, newest first; none unless you see "
        "everything."
    )
    @reads()
    async def sandbox_removals(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
    ) -> Connection[SandboxRemoval]:
        page = PageArgs(first, after, last, before)
        return await sandboxes.removals(info, page)  # type: ignore[return-value]
