"""What scans said of files that are listed, as far as they are still what was scanned."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, tuple_

from models.sandboxes import SandboxFile
from models.states import FileVerdict
from services.base import Deps
from services.sandboxes.files import Entry

_BATCH = 400


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan said of a file, and when; `finding` names the rule that it matched."""

    verdict: FileVerdict = FileVerdict.UNSCANNED
    finding: str | None = None
    scanned_at: datetime | None = None


async def of(deps: Deps, entries: Sequence[Entry]) -> list[Scan]:
    """Give what is known of each, one statement for some hundreds of them.

    Who is given them must have been shown their sandboxes.
    """
    known: dict[tuple[str, str], tuple[int, datetime, Scan]] = {}
    wanted = list({(entry.sandbox_id, entry.path) for entry in entries if not entry.is_directory})
    async with deps.db.reading() as connection:
        for start in range(0, len(wanted), _BATCH):
            found = await connection.execute(
                select(
                    SandboxFile.sandbox_id,
                    SandboxFile.path,
                    SandboxFile.size_bytes,
                    SandboxFile.modified_at,
                    SandboxFile.verdict,
                    SandboxFile.finding,
                    SandboxFile.scanned_at,
                ).where(
                    tuple_(SandboxFile.sandbox_id, SandboxFile.path).in_(
                        wanted[start : start + _BATCH]
                    ),
                    SandboxFile.scanned_at.is_not(None),
                )
            )
            for sandbox_id, path, size, modified_at, verdict, finding, scanned_at in found:
                scan = Scan(verdict, finding, scanned_at)
                known[sandbox_id, path] = (size, modified_at, scan)
    return [_still(known.get((entry.sandbox_id, entry.path)), entry) for entry in entries]


def _still(known: tuple[int, datetime, Scan] | None, entry: Entry) -> Scan:
    if known is None or known[0] != entry.size_bytes or known[1] < entry.modified_at:
        return Scan()
    return known[2]
