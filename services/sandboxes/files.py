"""Files of a sandbox's workspace: written and read by the agent inside, indexed here."""

import asyncio
import base64
import binascii
import hashlib
import mimetypes
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, or_, select, update

from models.base import now, row_columns, rows_of
from models.sandboxes import Sandbox, SandboxFile, SandboxWorkspace
from sandbox.base import WORKSPACE
from sandbox.files import FileInfo
from services import access
from services.base import Deps, Viewer, Work, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import rows
from services.sandboxes.operations import operation

if TYPE_CHECKING:
    from services.sandboxes.node import Node

PATH_CHARS = 255


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

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def mime_type(self) -> str | None:
        """What the name says of the content."""
        return None if self.is_directory else mimetypes.guess_type(self.name)[0]


def inside(path: str) -> str:
    """Give a path relative to the workspace, in its shortest form; `.` is the workspace.

    Raises UserError REQUIRED, LIMIT, or INVALID for NUL bytes and for what lies outside. Links are
    followed, and judged, by the agent inside.
    """
    if not path:
        raise UserError(UserErrorCode.REQUIRED, "The path must not be empty.", ("path",))
    if len(path) > PATH_CHARS:
        raise UserError(
            UserErrorCode.LIMIT,
            f"The path has {len(path):,} characters; at most {PATH_CHARS} are allowed.",
            ("path",),
        )
    if "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise UserError(
            UserErrorCode.INVALID, "The path contains a NUL or invalid character.", ("path",)
        )
    whole = posixpath.normpath(posixpath.join(WORKSPACE, path))
    if whole == WORKSPACE:
        return "."
    if not whole.startswith(f"{WORKSPACE}/"):
        raise UserError(
            UserErrorCode.INVALID,
            f"The path leads out of the workspace; stay below {WORKSPACE}.",
            ("path",),
        )
    return whole[len(WORKSPACE) + 1 :]


def _named(path: str) -> str:
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
    wanted = _named(path)
    data = await asyncio.to_thread(_bytes, content, encoding, deps.options.file_max_bytes)
    host = await _running(deps, viewer, sandbox_id)
    encoded = (await asyncio.to_thread(base64.b64encode, data)).decode("ascii")
    await deps.sandboxes.ask(host, "write", path=wanted, content=encoded)
    digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
    at = now()
    entry = Entry(host.id, wanted, False, len(data), at, digest, host)
    async with work(deps) as unit:
        # The lock of the sandbox's row keeps two writers of one path from adding it twice.
        if await unit.lock(Sandbox, host.id) is not None:
            await _index(unit, entry)
    return entry


def _bytes(content: str, encoding: FileEncoding, most: int) -> bytes:
    too_large = UserError(
        UserErrorCode.LIMIT, f"A file may have at most {most:,} bytes.", ("content",)
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


async def _index(unit: Work, entry: Entry) -> None:
    session, at = unit.session, now()
    row = await session.scalar(
        select(SandboxFile).where(
            SandboxFile.sandbox_id == entry.sandbox_id, SandboxFile.path == entry.path
        )
    )
    if row is None:
        row = SandboxFile(sandbox_id=entry.sandbox_id, path=entry.path)
        session.add(row)
    row.content_hash, row.size_bytes, row.modified_at = entry.content_hash, entry.size_bytes, at
    row.mime_type, row.is_directory = (entry.mime_type or "")[:100] or None, False
    await session.flush()
    await _weigh(unit, entry.sandbox_id)
    await session.execute(
        update(Sandbox).where(Sandbox.id == entry.sandbox_id).values(last_active_at=at)
    )


async def _weigh(unit: Work, sandbox_id: str) -> None:
    """Bring the size of the workspace up to date with the index."""
    size = await unit.session.scalar(
        select(func.sum(SandboxFile.size_bytes)).where(SandboxFile.sandbox_id == sandbox_id)
    )
    await unit.session.execute(
        update(SandboxWorkspace)
        .where(SandboxWorkspace.sandbox_id == sandbox_id)
        .values(size_bytes=int(size or 0), modified_at=now())
    )


async def remove(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str, is_recursive: bool = False
) -> Entry:
    """Remove a file, or a directory (an empty one, unless `is_recursive`); gives what it was."""
    viewer.require("sandboxes:write")
    wanted = inside(path)
    if wanted == ".":
        raise UserError(UserErrorCode.INVALID, "The workspace itself cannot be removed.", ("path",))
    host = await _running(deps, viewer, sandbox_id)
    (entry,) = await _entries(deps, host, "stat", wanted)
    await deps.sandboxes.ask(host, "remove", path=wanted, recursive=is_recursive)
    async with work(deps) as unit:
        if await unit.lock(Sandbox, host.id) is not None:
            await unit.session.execute(
                delete(SandboxFile).where(
                    SandboxFile.sandbox_id == host.id,
                    or_(
                        SandboxFile.path == wanted,
                        SandboxFile.path.startswith(f"{wanted}/", autoescape=True),
                    ),
                )
            )
            await _weigh(unit, host.id)
    return entry


async def read(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> bytes:
    """Give the content of a file of a running sandbox, at most `options.file_max_bytes`.

    Raises UserError NOT_FOUND, CONFLICT unless it is RUNNING, LIMIT when it is larger.
    """
    wanted = _named(path)
    return await content(deps, await _running(deps, viewer, sandbox_id, may_look=True), wanted)


async def content(deps: Deps, host: Sandbox, path: str) -> bytes:
    """Give the content of a file of a sandbox whose row the viewer was shown."""
    answer = await deps.sandboxes.ask(host, "read", path=path, most=deps.options.file_max_bytes)
    return await asyncio.to_thread(base64.b64decode, answer["content"])


async def stat(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> Entry:
    """Give a file or directory of a running sandbox. Raises as `read` does."""
    wanted = inside(path)
    host = await _running(deps, viewer, sandbox_id, may_look=True)
    (entry,) = await _entries(deps, host, "stat", wanted)
    return entry


async def listing(deps: Deps, host: Sandbox, path: str) -> list[Entry]:
    """Give the entries of a directory of a running sandbox whose row the viewer was shown."""
    return await _entries(deps, host, "list", inside(path))


async def indexed(deps: Deps, hosts: Sequence[Sandbox], path: str) -> dict[str, list[Entry]]:
    """Give what is known of a directory of sandboxes that do not run, in one statement."""
    wanted = inside(path)
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
            entries = found[row.sandbox_id]
            if slash:
                entries.setdefault(place, Entry(row.sandbox_id, place, True, 0, row.modified_at))
            else:
                entries[place] = Entry(
                    row.sandbox_id, place, False, row.size_bytes, row.modified_at, row.content_hash
                )
    return {sandbox_id: list(entries.values()) for sandbox_id, entries in found.items()}


async def _entries(deps: Deps, host: Sandbox, operation: str, path: str) -> list[Entry]:
    answer = await deps.sandboxes.ask(host, operation, path=path)
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


@operation("write")
async def _write(node: "Node", sandbox_id: str, request: Json) -> None:
    files = node.client(sandbox_id).files
    path = request["path"]
    folder = path.rpartition("/")[0]
    if folder:
        await files.make_dir(folder, parents=True)
    await files.write(path, base64.b64decode(request["content"]))


@operation("read")
async def _read(node: "Node", sandbox_id: str, request: Json) -> Json:
    data = await node.client(sandbox_id).files.read(request["path"], most=request["most"])
    return {"content": base64.b64encode(data).decode("ascii")}


@operation("stat")
async def _stat(node: "Node", sandbox_id: str, request: Json) -> Json:
    found = await node.client(sandbox_id).files.stat(request["path"])
    return {"entries": [_entry(found)]}


@operation("list")
async def _list(node: "Node", sandbox_id: str, request: Json) -> Json:
    found = await node.client(sandbox_id).files.list(request["path"])
    return {"entries": [_entry(info) for info in found]}


def _entry(info: FileInfo) -> list[Any]:
    # Names need not be UTF-8 inside; outside they are text.
    path = info.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [path, info.is_directory, info.size_bytes, info.modified_at.isoformat()]


@operation("remove")
async def _remove(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.client(sandbox_id).files.remove(request["path"], recursive=request["recursive"])


async def _running(
    deps: Deps, viewer: Viewer, sandbox_id: str, *, may_look: bool = False
) -> Sandbox:
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
