"""What scans found in sandboxes."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from models.sandboxes import Sandbox, SandboxFinding
from models.states import FileVerdict
from resolvers.base import Info, Order, Page, PageArgs
from services.sandboxes import verdicts
from services.sandboxes.files import Entry
from services.sandboxes.verdicts import Scan


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


class _Known:
    """What one operation has asked of scans: several fields show parts of the same."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.scans: dict[Entry, Scan] = {}


async def _of(entries: Sequence[Entry], info: Info) -> list[Scan]:
    known: _Known = info.context.kept.setdefault("scans", _Known())
    async with known.lock:
        fresh = [entry for entry in entries if entry not in known.scans]
        if fresh:
            found = await verdicts.of(info.context.deps, fresh)
            known.scans.update(zip(fresh, found, strict=True))
    return [known.scans[entry] for entry in entries]


async def verdict(entries: Sequence[Entry], info: Info) -> list[FileVerdict]:
    """What the last scans said of files."""
    return [scan.verdict for scan in await _of(entries, info)]


async def finding(entries: Sequence[Entry], info: Info) -> list[str | None]:
    """The rules by which something was found in files."""
    return [scan.finding for scan in await _of(entries, info)]


async def scanned_at(entries: Sequence[Entry], info: Info) -> list[datetime | None]:
    """When files were scanned."""
    return [scan.scanned_at for scan in await _of(entries, info)]
