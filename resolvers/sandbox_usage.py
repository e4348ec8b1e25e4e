"""What sandboxes used, as it was sampled."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import strawberry

from models.sandboxes import Sandbox, SandboxUsage
from resolvers.base import Info, Order, Page, PageArgs


async def history(
    sandboxes: Sequence[Sandbox],
    info: Info,
    page: PageArgs,
    since: Annotated[
        datetime | None, strawberry.argument(description="Only what was sampled since then.")
    ] = None,
) -> list[Page[SandboxUsage]]:
    """Samples of sandboxes, the newest first."""
    return await info.context.load.page(
        SandboxUsage,
        SandboxUsage.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        page,
        order=Order(("at",), is_descending=True),
        where=[] if since is None else [SandboxUsage.at >= since],
    )
