"""The index of what is in workspaces, brought up to date by verbs that change them.

Every function expects the sandbox's row to be locked: that keeps two writers from adding a path
twice.
"""

import mimetypes
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from models.base import now
from models.sandboxes import Sandbox, SandboxFile, SandboxWorkspace
from models.states import FileVerdict
from services.base import Work

PATH_CHARS = 255
_MIME_CHARS = 100
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Found:
    """A file or directory as it was just written or seen; the path is relative to the workspace.

    `content_hash` is None where the content is not known. `verdict` and `finding` are what a scan
    of it said, if there was one.
    """

    path: str
    is_directory: bool
    size_bytes: int = 0
    content_hash: str | None = None
    modified_at: datetime | None = None
    verdict: FileVerdict = FileVerdict.UNSCANNED
    finding: str | None = None


def mime_type(path: str) -> str | None:
    """Give what the name of a file says of its content."""
    return (mimetypes.guess_type(posixpath.basename(path))[0] or "")[:_MIME_CHARS] or None


def above(path: str) -> list[str]:
    """Give the directories above a path, the outermost first, without the workspace itself."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def below(path: str) -> ColumnElement[bool]:
    """Select what is below a directory; `.` is the workspace."""
    if path == ".":
        return SandboxFile.path != ""
    return SandboxFile.path.startswith(f"{path}/", autoescape=True)


async def put(unit: Work, sandbox_id: str, found: Sequence[Found]) -> None:
    """Note files and directories, and the directories above them.

    Paths of more than 255 characters are not indexed.
    """
    wanted = {folder: Found(folder, True) for each in found for folder in above(each.path)}
    wanted.update((each.path, each) for each in found if each.path not in ("", "."))
    paths = [path for path in wanted if len(path) <= PATH_CHARS]
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        rows = await unit.session.scalars(
            select(SandboxFile).where(
                SandboxFile.sandbox_id == sandbox_id, SandboxFile.path.in_(batch)
            )
        )
        known = {row.path: row for row in rows}
        for path in batch:
            _note(unit, sandbox_id, known.get(path), wanted[path])
        await unit.session.flush()
    await weigh(unit, sandbox_id)


def _note(unit: Work, sandbox_id: str, row: SandboxFile | None, found: Found) -> None:
    if row is None:
        row = SandboxFile(sandbox_id=sandbox_id, path=found.path)
        unit.session.add(row)
    elif (found.is_directory and row.is_directory) or (
        found.content_hash is None and not found.is_directory and _is_same(row, found)
    ):
        return
    row.is_directory, row.size_bytes = found.is_directory, found.size_bytes
    row.mime_type = None if found.is_directory else mime_type(found.path)
    row.modified_at = found.modified_at or now()
    if row.content_hash != found.content_hash or found.content_hash is None:
        row.verdict, row.scanned_at, row.finding = FileVerdict.UNSCANNED, None, None
    row.content_hash = found.content_hash
    if found.verdict is not FileVerdict.UNSCANNED:
        row.verdict, row.scanned_at, row.finding = found.verdict, now(), found.finding


def _is_same(row: SandboxFile, found: Found) -> bool:
    """Tell whether nothing seems to have been written since the row was."""
    if found.is_directory or row.is_directory or found.content_hash is not None:
        return found.is_directory and row.is_directory
    is_older = found.modified_at is not None and found.modified_at <= row.modified_at
    return row.size_bytes == found.size_bytes and is_older


async def drop(unit: Work, sandbox_id: str, path: str) -> None:
    """Forget a file, or a directory with all below it."""
    await unit.session.execute(
        delete(SandboxFile).where(
            SandboxFile.sandbox_id == sandbox_id, or_(SandboxFile.path == path, below(path))
        )
    )
    await weigh(unit, sandbox_id)


async def move(unit: Work, sandbox_id: str, source: str, target: str) -> None:
    """Note that a file, or a directory with all below it, has another path now."""
    if source == target:
        return
    await drop(unit, sandbox_id, target)
    of_source = or_(SandboxFile.path == source, below(source))
    where = (SandboxFile.sandbox_id == sandbox_id, of_source)
    longest = PATH_CHARS - len(target) + len(source)
    await unit.session.execute(
        delete(SandboxFile).where(*where, func.char_length(SandboxFile.path) > longest)
    )
    moved = await unit.session.execute(
        select(SandboxFile.id, SandboxFile.path, SandboxFile.is_directory).where(*where)
    )
    changes = [
        {
            "id": id_,
            "path": target + path[len(source) :],
            "mime_type": None if is_directory else mime_type(target + path[len(source) :]),
        }
        for id_, path, is_directory in moved
    ]
    if changes:
        await unit.session.execute(update(SandboxFile), changes)
    await put(unit, sandbox_id, [Found(folder, True) for folder in above(target)])


async def replace(
    unit: Work,
    sandbox_id: str,
    path: str,
    found: Iterable[Found],
    *,
    since: datetime | None = None,
) -> None:
    """Note all that was found below a directory, and forget what was not.

    What was written from `since` on, when the look began, may have come behind it: it stays.
    """
    seen = {each.path: each for each in found}
    known: Mapping[str, str] = {
        row_path: id_
        for id_, row_path in await unit.session.execute(
            select(SandboxFile.id, SandboxFile.path).where(
                SandboxFile.sandbox_id == sandbox_id,
                below(path),
                *([SandboxFile.modified_at < since] if since is not None else []),
            )
        )
    }
    gone = [id_ for row_path, id_ in known.items() if row_path not in seen]
    for start in range(0, len(gone), _BATCH):
        await unit.session.execute(
            delete(SandboxFile).where(SandboxFile.id.in_(gone[start : start + _BATCH]))
        )
    await put(unit, sandbox_id, [Found(path, True), *seen.values()])


async def weigh(unit: Work, sandbox_id: str) -> None:
    """Bring the size of the workspace up to date with the index, and note that it was used."""
    size = await unit.session.scalar(
        select(func.sum(SandboxFile.size_bytes)).where(SandboxFile.sandbox_id == sandbox_id)
    )
    at = now()
    await unit.session.execute(
        update(SandboxWorkspace)
        .where(SandboxWorkspace.sandbox_id == sandbox_id)
        .values(size_bytes=int(size or 0), modified_at=at)
    )
    await unit.session.execute(
        update(Sandbox).where(Sandbox.id == sandbox_id).values(last_active_at=at)
    )
