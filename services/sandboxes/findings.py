"""Harmful files: into quarantine, on record, and told to whom they belong."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from models.base import new_id, now
from models.sandboxes import Sandbox, SandboxFinding
from services import changes
from services.base import Deps, work
from services.changes import ChangeKind
from services.errors import UserError, UserErrorCode
from services.events.base import BusUnavailableError
from services.sandboxes import conditions, drafts, removals
from services.sandboxes.counts import TOTALS
from services.sandboxes.removals import Kind
from services.sandboxes.scanning import Intake, Scanner, Verdict, scanner

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
PATH_CHARS = 255
_INCOMING_S = 3600.0
_OLD = "It was kept in quarantine for as long as it is to be."


def topic(sandbox_id: str) -> str:
    """Name the topic of what happens to the files of a sandbox."""
    return f"sandbox-files:{sandbox_id}"


async def write(
    node: "Node",
    sandbox_id: str,
    path: str,
    chunks: AsyncIterator[bytes],
    mode: int = 0o644,
    *,
    allow: Callable[[], Awaitable[None]] | None = None,
) -> Verdict:
    """Write a file of a live sandbox, if a scan lets it: nothing appears before.

    Once all of it has come, `allow` may raise what keeps it from being written; nobody else writes
    that file between then and the end. Raises what `Files.write_stream` and `chunks` raise;
    UserError INVALID, naming the rule, for what is harmful, which then is in quarantine; UserError
    UNAVAILABLE as `Scanner.find` does.
    """
    files = node.client(sandbox_id).files
    async with scanner(node.deps).intake() as intake, AsyncExitStack() as held:
        judged: list[Verdict] = []

        async def passing() -> AsyncGenerator[bytes, None]:
            async for chunk in chunks:
                await intake.add(chunk)
                yield chunk
            # What is raised from here on, before the end is told inside, leaves all as it was.
            await held.enter_async_context(conditions.alone(sandbox_id, path))
            if allow is not None:
                await allow()
            judged.append(await intake.judge())
            if judged[0].is_infected:
                await note(node.deps, sandbox_id, path, intake, judged[0])
                raise refusal(judged[0])

        passed = passing()
        with drafts.writing(sandbox_id, path):
            async with aclosing(passed):
                await files.write_stream(path, passed, mode)
        return judged[0]


def refusal(verdict: Verdict) -> UserError:
    """Give the answer to who wrote something harmful."""
    return UserError(
        UserErrorCode.INVALID,
        f"The file was taken for harmful ({verdict.engine}: {verdict.rule}) and put in quarantine; "
        "nothing was written. If you think that it is not, ask an administrator.",
        ("content",),
    )


async def note(
    deps: Deps, sandbox_id: str, path: str, intake: Intake, verdict: Verdict
) -> SandboxFinding | None:
    """Put harmful bytes in quarantine, and say so; None when the sandbox has no row any more."""
    id_ = new_id(SandboxFinding.prefix)
    finding = SandboxFinding(
        id=id_,
        sandbox_id=sandbox_id,
        path=shown(path)[:PATH_CHARS],
        rule=verdict.rule or "",
        engine=verdict.engine or "",
        sha256=verdict.sha256,
        size_bytes=verdict.size_bytes,
        quarantine_path=id_,
        created_at=now(),
    )
    log.warning(
        "a harmful file: %s, by %s", verdict.rule, verdict.engine, extra={"sandbox_id": sandbox_id}
    )
    # First the file: a record without one would promise what is not there.
    await asyncio.shield(asyncio.to_thread(intake.keep, id_))
    async with work(deps) as unit:
        row = await unit.session.get(Sandbox, sandbox_id)
        if row is None:
            return None
        finding.user_id = row.user_id
        unit.session.add(finding)
        change = {"id": sandbox_id, "change": ChangeKind.UPDATED.value}
        unit.record(changes.topic(row.user_id), "SandboxChanged", change)
        unit.session.expunge(row)
    TOTALS.quarantined(verdict.engine or "")
    await tell(deps, finding)
    return finding


async def tell(deps: Deps, finding: SandboxFinding) -> None:
    """Tell those who follow the files of the sandbox."""
    told = {
        "id": finding.id,
        "path": finding.path,
        "rule": finding.rule,
        "engine": finding.engine,
        "sha256": finding.sha256,
        "size_bytes": finding.size_bytes,
        "created_at": finding.created_at.isoformat(),
    }
    try:
        await deps.bus.append(topic(finding.sandbox_id), {"found": told})
    except BusUnavailableError:
        log.warning("bus unavailable, a finding was not told", extra={"id": finding.id})


def shown(path: str) -> str:
    """Give a path as text: names need not be UTF-8 inside."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def clear(deps: Deps) -> int:
    """Remove from this server what was in quarantine long enough; gives how many files."""
    kept_s = deps.options.quarantine_retention_s
    gone, TOTALS.quarantine_files = await asyncio.to_thread(_clear, scanner(deps), kept_s)
    if gone:
        await removals.note(deps, Kind.QUARANTINE, gone, _OLD)
    return len(gone)


def _clear(known: Scanner, kept_s: float) -> tuple[list[str], int]:
    """Remove what is old; gives the names of that, and how many files stay."""
    at = time.time()
    for place in _older(known.quarantine / "incoming", at - _INCOMING_S):
        place.unlink(missing_ok=True)  # Of a process that died.
    gone = _older(known.quarantine, at - kept_s)
    for place in gone:
        place.unlink(missing_ok=True)
    return [place.name for place in gone], len(_older(known.quarantine, math.inf))


def _older(folder: Path, cutoff: float) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for place in folder.iterdir():
        try:
            if place.is_file() and place.stat().st_mtime < cutoff:
                found.append(place)
        except FileNotFoundError:
            continue
    return found
