"""What scans found in sandboxes."""

from collections.abc import Sequence

from models.sandboxes import Sandbox, SandboxFinding
from resolvers.base import Info, Order, Page, PageArgs


async def findings(
    sandboxes: Sequence[Sandbox], info: Info, page: PageArgs
) -> list[Page[SandboxFinding]]:
    """Harmful files of sandboxes, the newest first."""
    return await info.context.load.page(
        SandboxFinding,
        SandboxFinding.sandbox_id,
        [sandbox.id for sandbox in sandboxes],
        page,
        order=Order(is_descending=True),
    )


async def finding_sandbox(findings: Sequence[SandboxFinding], info: Info) -> list[Sandbox | None]:
    """Sandboxes that harmful files were in."""
    ids = [finding.sandbox_id for finding in findings]
    return await info.context.load.one(Sandbox, Sandbox.id, ids)
