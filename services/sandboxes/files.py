"""Files of a sandbox's workspace: written and read by the agent inside, indexed here."""

import asyncio
import base64
import binascii
import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select

from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxFile
from models.states import FileVerdict
from sandbox.base import WORKSPACE
from sandbox.files import LIST_LIMIT
from services import access
from services.base import Deps, Viewer, work
from services.errors import UserError, UserErrorCode
from services.sandboxes import entries, rows
from services.sandboxes.entries import PATH_CHARS, Found


class FileEncoding(StrEnum):
    """How bytes stand in text."""

    UTF8 = "UTF8"
    BASE64 = "BASE64"


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A file or directory of a workspace; `path` is relative to it.

    Compared and hashed by identity: it is the parent of fields, and its host cannot be hashed.
    """

    sandbox_id: str
    path: str
    is_directory: bool
    size_bytes: int
    modified_at: datetime
    content_hash: str | None = None
    host: Sandbox | None = None
    verdict: FileVerdict = FileVerdict.UNSCANNED

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def mime_type(self) -> str | None:
        """What the name says of the content."""
        return None if self.is_directory else entries.mime_type(self.path)


def inside(path: str, *, name: str = "path") -> str:
    """Give a path relative to the workspace, in its shortest form; `.` is the workspace.

    Raises UserError REQUIRED, LIMIT, or INVALID for NUL bytes and for what lies outside. Links are
    followed, and judged, by the agent inside. `name` is that of the argument at fault.
    """
    if not path:
        raise UserError(UserErrorCode.REQUIRED, "The path must not be empty.", (name,))
    if len(path) > PATH_CHARS:
        raise UserError(
            UserErrorCode.LIMIT,
            f"The path has {len(path):,} characters; at most {PATH_CHARS} are allowed.",
            (name,),
        )
    if "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise UserError(
            UserErrorCode.INVALID, "The path contains a NUL or invalid character.", (name,)
        )
    whole = posixpath.normpath(posixpath.join(WORKSPACE, path))
    if whole == WORKSPACE:
        return "."
    if not whole.startswith(f"{WORKSPACE}/"):
        raise UserError(
            UserErrorCode.INVALID,
            f"The path leads out of the workspace; stay below {WORKSPACE}.",
            (name,),
        )
    return whole[len(WORKSPACE) + 1 :]


def named(path: str) -> str:
    """Give a path as `inside` does, which names a file. Raises UserError INVALID if it cannot."""
    found = inside(path)
    if found == "." or path.endswith("/"):
        raise UserError(UserErrorCode.INVALID, "The path names a directory, not a file.", ("path",))
    return found


async def write(
    deps: Deps,
    viewer: Viewer,
    *,
    sandbox_id: str,
    path: str,
    content: str,
    encoding: FileEncoding = FileEncoding.UTF8,
) -> Entry:
    """Replace a file of a running sandbox as a whole, making directories above it where needed.

    Raises UserError NOT_FOUND, CONFLICT unless the sandbox is RUNNING, INVALID for path or content,
    LIMIT for a file too large or a full disk.
    """
    viewer.require("sandboxes:write")
    wanted = named(path)
    data = await asyncio.to_thread(_bytes, content, encoding, deps.options.file_max_bytes)
    host = await running(deps, viewer, sandbox_id)
    encoded = (await asyncio.to_thread(base64.b64encode, data)).decode("ascii")
    answer = await deps.sandboxes.ask(host, "write", path=wanted, content=encoded)
    digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
    verdict = FileVerdict(answer["verdict"])
    entry = Entry(host.id, wanted, False, len(data), now(), digest, host, verdict)
    await note(deps, entry)
    return entry


async def note(deps: Deps, entry: Entry) -> None:
    """Index what was just written, with the directories above it."""
    found = Found(
        entry.path,
        entry.is_directory,
        entry.size_bytes,
        entry.content_hash,
        entry.modified_at,
        entry.verdict,
    )
    async with work(deps) as unit:
        if await unit.lock(Sandbox, entry.sandbox_id) is not None:
            await entries.put(unit, entry.sandbox_id, [found])


def _bytes(content: str, encoding: FileEncoding, most: int) -> bytes:
    too_large = UserError(
        UserErrorCode.LIMIT,
        f"A file may have at most {most:,} bytes here; PUT larger ones to "
        "/sandboxes/{id}/files/{path}.",
        ("content",),
    )
    if len(content) > most * 2:
        raise too_large
    try:
        if encoding is FileEncoding.BASE64:
            data = base64.b64decode("".join(content.split()), validate=True)
        else:
            data = content.encode()
    except (binascii.Error, ValueError) as error:
        raise UserError(
            UserErrorCode.INVALID, f"The content is not valid {encoding}.", ("content",)
        ) from error
    if len(data) > most:
        raise too_large
    return data


async def remove(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str, is_recursive: bool = False
) -> Entry:
    """Remove a file, a link (not its target), or a directory (an empty one, unless `is_recursive`).

    Gives what it was.
    """
    viewer.require("sandboxes:write")
    wanted = inside(path)
    if wanted == ".":
        raise UserError(UserErrorCode.INVALID, "The workspace itself cannot be removed.", ("path",))
    host = await running(deps, viewer, sandbox_id)
    (entry,) = await _entries(deps, host, "stat", wanted, follow=False)
    await deps.sandboxes.ask(host, "remove", path=wanted, recursive=is_recursive)
    async with work(deps) as unit:
        if await unit.lock(Sandbox, host.id) is not None:
            await entries.drop(unit, host.id, wanted)
    return entry


async def make_directory(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> Entry:
    """Make a directory, and those above it; one that is there already stays as it is.

    Raises UserError as `write` does, CONFLICT where a file stands in the way.
    """
    viewer.require("sandboxes:write")
    wanted = inside(path)
    host = await running(deps, viewer, sandbox_id)
    (entry,) = await _entries(deps, host, "make_directory", wanted)
    await note(deps, entry)
    return entry


async def rename(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str, new_path: str) -> Entry:
    """Give a file or directory another path, replacing a file that stands there.

    A link is renamed itself. Directories above the new path are made. Raises UserError as `write`
    does, NOT_FOUND when there is nothing at `path`, CONFLICT when a directory that is not empty
    stands at `new_path`.
    """
    viewer.require("sandboxes:write")
    source, target = inside(path), inside(new_path, name="new_path")
    for name, found in (("path", source), ("new_path", target)):
        if found == ".":
            raise UserError(
                UserErrorCode.INVALID, "The workspace itself cannot be renamed.", (name,)
            )
    host = await running(deps, viewer, sandbox_id)
    (entry,) = await _entries(deps, host, "rename", source, target=target)
    async with work(deps) as unit:
        if await unit.lock(Sandbox, host.id) is not None:
            await entries.move(unit, host.id, source, target)
            moved = Found(target, entry.is_directory, entry.size_bytes, None, entry.modified_at)
            await entries.put(unit, host.id, [moved])
    return entry


async def read(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> bytes:
    """Give the content of a file of a running sandbox, at most `options.file_max_bytes`.

    Raises UserError NOT_FOUND, CONFLICT unless it is RUNNING, LIMIT when it is larger.
    """
    wanted = named(path)
    return await content(deps, await running(deps, viewer, sandbox_id, may_look=True), wanted)


async def content(deps: Deps, host: Sandbox, path: str) -> bytes:
    """Give the content of a file of a sandbox whose row the viewer was shown."""
    answer = await deps.sandboxes.ask(host, "read", path=path, most=deps.options.file_max_bytes)
    return await asyncio.to_thread(base64.b64decode, answer["content"])


async def stat(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> Entry:
    """Give a file or directory of a running sandbox. Raises as `read` does."""
    wanted = inside(path)
    host = await running(deps, viewer, sandbox_id, may_look=True)
    (entry,) = await _entries(deps, host, "stat", wanted)
    return entry


async def listing(
    deps: Deps, host: Sandbox, path: str, *, first: int | None = None, after: str | None = None
) -> list[Entry]:
    """Give the entries of a directory of a running sandbox whose row the viewer was shown.

    By name: the `first` ones that come `after` a name. Raises UserError as `inside` does,
    NOT_FOUND, and LIMIT for more than 10,000 of which no page was asked for.
    """
    wanted = inside(path)
    check_page(first)
    after = None if after is None else after.encode("utf-8", "replace").decode()
    try:
        return await _entries(deps, host, "list", wanted, first=first, after=after)
    except UserError as error:
        if error.code is not UserErrorCode.LIMIT:
            raise
        raise UserError(
            error.code,
            f"{error.message} Ask for them in pages, by `first` and `after`.",
            error.path,
        ) from error


def check_page(first: int | None) -> None:
    """Refuse a page that cannot be. Raises UserError INVALID."""
    if first is not None and not 1 <= first <= LIST_LIMIT:
        raise UserError(
            UserErrorCode.INVALID,
            f"`first` must be between 1 and {LIST_LIMIT:,}; {first:,} is not.",
            ("first",),
        )


async def indexed(
    deps: Deps,
    hosts: Sequence[Sandbox],
    path: str,
    *,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, list[Entry]]:
    """Give what is known of a directory of sandboxes that do not run, in one statement.

    `first` and `after` are as those of `listing`.
    """
    wanted = inside(path)
    check_page(first)
    prefix = "" if wanted == "." else f"{wanted}/"
    found: dict[str, dict[str, Entry]] = {host.id: {} for host in hosts}
    async with deps.db.reading() as connection:
        selected = await connection.execute(
            select(*row_columns(SandboxFile))
            .where(
                SandboxFile.sandbox_id.in_(found),
                SandboxFile.path.startswith(prefix, autoescape=True),
            )
            .order_by(SandboxFile.path)
        )
        for row in rows_of(SandboxFile, selected):
            name, slash, _ = row.path[len(prefix) :].partition("/")
            place = prefix + name
            known = found[row.sandbox_id]
            if slash:
                known.setdefault(place, Entry(row.sandbox_id, place, True, 0, row.modified_at))
            else:
                known[place] = Entry(
                    row.sandbox_id,
                    place,
                    row.is_directory,
                    row.size_bytes,
                    row.modified_at,
                    row.content_hash,
                )
    return {
        sandbox_id: sorted(
            (entry for entry in known.values() if entry.name > (after or "")),
            key=lambda entry: entry.name,
        )[:first]
        for sandbox_id, known in found.items()
    }


async def _entries(
    deps: Deps, host: Sandbox, operation: str, path: str, **more: Any
) -> list[Entry]:
    answer = await deps.sandboxes.ask(host, operation, path=path, **more)
    return [
        Entry(
            host.id,
            posixpath.normpath(name),
            is_directory,
            size_bytes,
            datetime.fromisoformat(modified_at),
            host=host,
        )
        for name, is_directory, size_bytes, modified_at in answer["entries"]
    ]


async def running(
    deps: Deps, viewer: Viewer, sandbox_id: str, *, may_look: bool = False
) -> Sandbox:
    """Give a sandbox that runs: the viewer's own, or with `may_look` one that may be seen.

    Raises UserError NOT_FOUND, CONFLICT when it does not run.
    """
    async with deps.db.reading() as connection:
        is_theirs = access.visible(Sandbox, viewer) if may_look else Sandbox.user_id == viewer.id
        found = await connection.execute(
            select(*row_columns(Sandbox)).where(Sandbox.id == sandbox_id, is_theirs)
        )
        row = next(iter(rows_of(Sandbox, found)), None)
    if row is None:
        raise rows.absent("sandbox_id")
    rows.require_running(row, path="sandbox_id")
    return row
