"""Scans of what programs wrote, and of what came by other ways, behind their backs."""

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from models.base import now
from models.sandboxes import SandboxFile
from models.states import FileVerdict
from sandbox.client import SandboxClient
from sandbox.errors import FileError, SandboxError, SandboxLostError, TimeoutError_
from services.base import Deps, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import drafts, findings
from services.sandboxes.entries import PATH_CHARS
from services.sandboxes.findings import shown
from services.sandboxes.scanning import Verdict, scanner

if TYPE_CHECKING:
    from services.sandboxes.changed import Writing

log = logging.getLogger("noosphere.sandboxes")
MOST_SCANS = 5000
_SCANS_TOLD = 50
_REST_MAX_S = 5.0
# Before what could not be scanned is tried again.
_AGAIN_S = 5.0
_AGAIN_MAX_S = 60.0


class _LaterError(Exception):
    """A file cannot be scanned now, but may be soon."""


class Scanning:
    """Scans the files of one sandbox that changed, one after the other.

    It rests for as long as it took, so that a program that writes without end costs half a
    processor's time at most. While nothing can be scanned it tries again, ever less often.
    """

    def __init__(
        self, deps: Deps, sandbox_id: str, client: SandboxClient, writing: "Writing"
    ) -> None:
        self._deps = deps
        self._id = sandbox_id
        self._client = client
        self._writing = writing
        self._waiting: dict[str, int] = {}
        self._news = asyncio.Event()
        self._again_s = _AGAIN_S

    def add(self, sizes: dict[str, int]) -> None:
        """Scan files soon; those that find no room stay unscanned."""
        most = self._deps.options.scan_max_bytes
        for path, size in sizes.items():
            if drafts.are_brought(self._id, path):
                continue
            if 0 < size <= most and (path in self._waiting or len(self._waiting) < MOST_SCANS):
                self._waiting[path] = size
        if self._waiting:
            self._news.set()

    async def run(self) -> None:
        """Scan what is added, until cancelled. Raises SandboxLostError when it is gone."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            began = loop.time()
            verdicts, is_late = await self._some()
            if not self._waiting:
                self._news.clear()
            await self._note(verdicts)
            rest_s = min(loop.time() - began, _REST_MAX_S)
            if is_late:
                rest_s = max(rest_s, self._again_s)
                self._again_s = min(2 * self._again_s, _AGAIN_MAX_S)
            await asyncio.sleep(rest_s)

    async def _some(self) -> tuple[dict[str, Verdict], bool]:
        """Scan some of what waits; gives what came of it, and whether the rest has to wait."""
        verdicts: dict[str, Verdict] = {}
        while self._waiting and len(verdicts) < _SCANS_TOLD:
            path = next(iter(self._waiting))
            size = self._waiting.pop(path)
            try:
                verdict = await self._try(path)
            except _LaterError:
                self._waiting.setdefault(path, size)
                return verdicts, True
            self._again_s = _AGAIN_S
            if verdict is not None:
                verdicts[path] = verdict
        return verdicts, False

    async def _try(self, path: str) -> Verdict | None:
        """Scan one file; None if that cannot be. Raises _LaterError, SandboxLostError."""
        try:
            return await self._scan(path)
        except SandboxLostError:
            raise
        except TimeoutError_ as error:
            raise _LaterError from error  # Paused, most of the time.
        except UserError as error:
            if error.code is UserErrorCode.UNAVAILABLE:
                raise _LaterError from error
            log.info("a file is not scanned: %r", error, extra={"sandbox_id": self._id})
            return None
        except (SandboxError, OSError, SQLAlchemyError, TimeoutError) as error:
            log.info("a file is not scanned: %r", error, extra={"sandbox_id": self._id})
            return None

    async def _scan(self, path: str) -> Verdict:
        """Scan one file; a harmful one is removed. Raises FileError and others."""
        known = scanner(self._deps)
        async with known.intake() as intake:
            async with aclosing(self._client.files.stream(path, 0, known.most_bytes + 1)) as chunks:
                async for chunk in chunks:
                    await intake.add(chunk)
            verdict = await intake.judge()
            if verdict.is_infected:
                noting = findings.note(self._deps, self._id, path, intake, verdict)
                await self._writing.whole(noting)
                try:
                    await self._client.files.remove(path)
                except FileError:
                    log.warning("a harmful file resists", extra={"sandbox_id": self._id})
        return verdict

    async def _note(self, verdicts: dict[str, Verdict]) -> None:
        """Note what was found out, unless the files have changed since."""
        noted = {
            path: verdict
            for path, verdict in verdicts.items()
            if len(shown(path)) <= PATH_CHARS and path not in self._waiting
        }
        if not noted:
            return
        try:
            await self._writing.whole(self._note_all(noted))
        except SQLAlchemyError:
            log.warning("verdicts are not noted", extra={"sandbox_id": self._id}, exc_info=True)

    async def _note_all(self, noted: dict[str, Verdict]) -> None:
        async with work(self._deps) as unit:
            for path, verdict in noted.items():
                await unit.session.execute(
                    update(SandboxFile)
                    .where(
                        SandboxFile.sandbox_id == self._id,
                        SandboxFile.path == shown(path),
                        SandboxFile.size_bytes == verdict.size_bytes,
                    )
                    .values(
                        verdict=verdict.verdict,
                        finding=verdict.rule,
                        content_hash=verdict.sha256,
                        scanned_at=None if verdict.verdict is FileVerdict.UNSCANNED else now(),
                    )
                )
