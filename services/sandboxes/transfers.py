"""Whole files and archives into and out of sandboxes, in pieces, wherever they are hosted."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from models.sandboxes import Sandbox
from models.states import FileVerdict
from sandbox.archives import ArchiveFormat, ArchiveLimits, Unpacked
from sandbox.errors import FileError, FileErrorCode
from sandbox.files import FileInfo, Files, moment
from services.base import Deps, Viewer, work
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.sandboxes import entries, file_operations, files, findings, relay, staged
from services.sandboxes.conditions import Condition, version
from services.sandboxes.entries import Found
from services.sandboxes.files import Entry
from services.sandboxes.flows import Inflow, Outflow

if TYPE_CHECKING:
    from services.sandboxes.node import Node

log = logging.getLogger("noosphere.sandboxes")
_TRIES = 3
_WHY_S = 10.0


class TransferError(UserError):
    """What went wrong inside; `reason` says it more exactly where it is about files."""

    def __init__(self, error: UserError, reason: FileErrorCode | None) -> None:
        super().__init__(error.code, error.message, error.path)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Part:
    """What of a file is asked for: from byte `first` to `last`, or its `last` bytes alone.

    `only_of` names the version it is of; of another one the whole file is given.
    """

    first: int | None
    last: int | None
    only_of: str | None = None

    def span(self, size: int) -> "Span | None":
        """Give where it lies in a file of so many bytes; None if nothing of it is there."""
        if self.first is None:
            length = min(self.last or 0, size)
            return Span(size - length, length) if length else None
        if self.first >= size:
            return None
        last = size - 1 if self.last is None else min(self.last, size - 1)
        return Span(self.first, last - self.first + 1)


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes of a file from byte `start`."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is being read.

    `chunks` gives its `span`, or less if it is cut short meanwhile. `is_part` says that the span
    is what was asked for; without a span nothing of that is there.
    """

    entry: Entry
    span: Span | None
    is_part: bool
    chunks: AsyncIterator[bytes]


# Down.


async def look(deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str) -> Entry:
    """Give a file that can be read. Raises as `files.stat` does; INVALID for a directory."""
    entry = await files.stat(deps, viewer, sandbox_id=sandbox_id, path=path)
    if entry.is_directory:
        raise _no_file()
    return entry


def _no_file() -> UserError:
    return UserError(
        UserErrorCode.INVALID, "The path names a directory; ask for its archive.", ("path",)
    )


@asynccontextmanager
async def download(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str, part: Part | None = None
) -> AsyncIterator[Download]:
    """Read a file, or a part of it, as it is read; a slow reader makes the sandbox wait.

    Raises as `look` does.
    """
    wanted = files.inside(path)
    host = await files.running(deps, viewer, sandbox_id, may_look=True)
    asked = None if part is None else [part.first, part.last, part.only_of]
    pipe = await relay.open(deps, host, "download", path=wanted, part=asked)
    async with aclosing(pipe):
        head = pipe.head
        at = datetime.fromisoformat(head["modified_at"])
        entry = Entry(host.id, wanted, False, head["size"], at, host=host)
        span = None if head["span"] is None else Span(*head["span"])
        yield Download(entry, span, head["is_part"], _chunks(pipe))


async def _chunks(pipe: relay.Pipe) -> AsyncIterator[bytes]:
    while data := await pipe.read():
        yield data


@relay.kind("download")
async def _download(node: "Node", sandbox_id: str, request: Json) -> Outflow:
    inside = node.client(sandbox_id).files
    part = None if request["part"] is None else Part(*request["part"])
    left = _TRIES
    while True:
        found = await inside.stat(request["path"])
        if found.is_directory:
            raise _no_file()
        flow = _opened(inside, request["path"], found, part)
        try:
            await flow.begun()
            after = await inside.stat(request["path"])
        except BaseException:
            await flow.aclose()
            raise
        left -= 1
        if version(after.size_bytes, after.modified_at) == flow.head["version"] or left == 0:
            # A file that is written to all the time is given as long as it was.
            return flow
        await flow.aclose()


def _opened(inside: Files, path: str, found: FileInfo, part: Part | None) -> Outflow:
    named = version(found.size_bytes, found.modified_at)
    if part is not None and part.only_of not in (None, named):
        part = None
    whole = Span(0, found.size_bytes)
    span = whole if part is None else part.span(found.size_bytes)
    head = {
        "size": found.size_bytes,
        "modified_at": found.modified_at.isoformat(),
        "version": named,
        "span": None if span is None else [span.start, span.length],
        "is_part": part is not None,
    }
    given = span or Span(0, 0)
    return Outflow(head, inside.stream(path, given.start, given.length))


@asynccontextmanager
async def archive(
    deps: Deps, viewer: Viewer, *, sandbox_id: str, path: str, style: ArchiveFormat
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Pack a directory, or a file, as it is read. Raises as `files.stat` does."""
    wanted = files.inside(path)
    host = await files.running(deps, viewer, sandbox_id, may_look=True)
    pipe = await relay.open(deps, host, "pack", path=wanted, style=style.value)
    async with aclosing(pipe):
        yield _chunks(pipe)


@relay.kind("pack")
async def _pack(node: "Node", sandbox_id: str, request: Json) -> Outflow:
    inside = node.client(sandbox_id).files
    flow = Outflow({}, inside.pack(request["path"], ArchiveFormat(request["style"])))
    try:
        await flow.begun()
    except BaseException:
        await flow.aclose()
        raise
    return flow


# Up.


async def upload(
    deps: Deps,
    viewer: Viewer,
    *,
    sandbox_id: str,
    path: str,
    chunks: AsyncIterator[bytes],
    condition: Condition | None = None,
) -> tuple[Entry, bool]:
    """Replace a file as a whole, however large; gives it, and whether there was none before.

    Directories above it are made. Nothing is left of an upload that ends early, by whatever
    error of `chunks`. The condition must hold at the beginning and when all has come. Raises
    TransferError, with `conditions.PATH` where it does not, and UserError as `files.write` does.
    """
    viewer.require("sandboxes:write")
    wanted = files.named(path)
    host = await files.running(deps, viewer, sandbox_id)
    asked = None if condition is None else condition.to_json()
    outcome = await _send(deps, host, "upload", chunks, path=wanted, condition=asked)
    at = datetime.fromisoformat(outcome["modified_at"])
    verdict = FileVerdict(outcome["verdict"])
    entry = Entry(host.id, wanted, False, outcome["size"], at, outcome["sha256"], host, verdict)
    await files.note(deps, entry)
    return entry, outcome["is_new"]


async def bounded(chunks: AsyncIterator[bytes], most: int | None) -> AsyncIterator[bytes]:
    """Pass chunks on. Raises UserError LIMIT beyond `most` bytes, if that is given."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if most is not None and size > most:
            raise UserError(
                UserErrorCode.LIMIT,
                f"The file is larger than {most:,} bytes, which is the limit.",
                ("file",),
            )
        yield chunk


@relay.kind("upload")
async def _upload(node: "Node", sandbox_id: str, request: Json) -> Inflow:
    inside = node.client(sandbox_id).files
    path, asked = request["path"], request["condition"]
    condition = Condition() if asked is None else Condition.from_json(asked)
    is_new = True

    async def allow() -> None:
        nonlocal is_new
        there = await _there(inside, path)
        condition.require(there)
        is_new = there is None

    async def consume(chunks: AsyncIterator[bytes]) -> Mapping[str, Any]:
        await allow()
        await file_operations.make_folders(inside, path)
        verdict = await findings.write(node, sandbox_id, path, chunks, allow=allow)
        found = await inside.stat(path)
        return {
            "size": verdict.size_bytes,
            "sha256": verdict.sha256,
            "verdict": verdict.verdict.value,
            "modified_at": found.modified_at.isoformat(),
            "is_new": is_new,
        }

    return Inflow(consume)


async def _there(inside: Files, path: str) -> tuple[int, datetime] | None:
    try:
        found = await inside.stat(path)
    except FileError as error:
        if error.code is FileErrorCode.NOT_FOUND:
            return None
        raise
    return found.size_bytes, found.modified_at


async def unpack(
    deps: Deps,
    viewer: Viewer,
    *,
    sandbox_id: str,
    path: str,
    style: ArchiveFormat,
    chunks: AsyncIterator[bytes],
) -> Unpacked:
    """Unpack an archive into a directory, which is made if it is not there.

    All of it or nothing is: see `sandbox.files.Files.unpack`. Its files are scanned before any is
    in its place, and one that is harmful refuses all of it: see `staged.hold`. Symbolic links are
    kept as they are, wherever they lead, as programs inside may make them too: what is packed here
    comes back the same. Nothing is ever unpacked through a link, of the archive or one that was
    there, and no file is read or written later through one that leads out of the workspace. Raises
    as `upload` does.
    """
    viewer.require("sandboxes:write")
    wanted = files.inside(path)
    host = await files.running(deps, viewer, sandbox_id)
    outcome = await _send(deps, host, "unpack", chunks, path=wanted, style=style.value)
    try:
        await reindex(deps, host, wanted)
    except UserError:
        # It is in its place all the same; the index is looked after by other ways as well.
        log.info("an archive was not indexed", extra={"sandbox_id": host.id}, exc_info=True)
    return Unpacked(outcome["bytes"], outcome["entries"])


@relay.kind("unpack")
async def _unpack(node: "Node", sandbox_id: str, request: Json) -> Inflow:
    inside = node.client(sandbox_id).files
    options = node.deps.options
    limits = ArchiveLimits(
        options.archive_max_bytes, options.archive_max_entries, options.archive_max_ratio
    )

    async def consume(chunks: AsyncIterator[bytes]) -> Mapping[str, Any]:
        style = ArchiveFormat(request["style"])
        target = request["path"]
        with staged.hold(node, sandbox_id, target) as hold:
            made = await inside.unpack(target, chunks, style, limits, keep_links=True, hold=hold)
        return {"bytes": made.bytes, "entries": made.entries}

    return Inflow(consume)


async def _send(
    deps: Deps, host: Sandbox, kind: str, chunks: AsyncIterator[bytes], **arguments: Any
) -> Json:
    """Pass bytes on to the node that hosts a sandbox; gives what came of it."""
    pipe = await relay.open(deps, host, kind, **arguments)
    async with aclosing(pipe):
        async for chunk in chunks:
            await _pass(pipe, pipe.write(chunk))
        await _pass(pipe, pipe.end())
        return dict((await _outcome(pipe))["result"])


async def _pass(pipe: relay.Pipe, sending: Any) -> None:
    try:
        await sending
    except UserError as error:
        reason = None
        try:
            async with asyncio.timeout(_WHY_S):
                reason = (await _outcome(pipe)).get("error")
        except (UserError, TimeoutError, ValueError):
            raise error from None  # The way there is gone as well.
        raise TransferError(error, FileErrorCode(reason) if reason else None) from error


async def _outcome(pipe: relay.Pipe) -> Json:
    data = b""
    while part := await pipe.read():
        data += part
    return dict(json.loads(data))


# The index.


async def reindex(deps: Deps, host: Sandbox, path: str) -> None:
    """Bring the index of a directory up to date with what is there."""
    pipe = await relay.open(deps, host, "walk", path=path)
    data = b""
    async with aclosing(pipe):
        while part := await pipe.read():
            data += part
    found = [
        Found(name, is_directory, size, modified_at=moment(modified_s))
        for name, is_directory, size, modified_s in map(json.loads, data.splitlines())
    ]
    async with work(deps) as unit:
        if await unit.lock(Sandbox, host.id) is not None:
            await entries.replace(unit, host.id, path, found)


@relay.kind("walk")
async def _walk(node: "Node", sandbox_id: str, request: Json) -> Outflow:
    inside = node.client(sandbox_id).files

    async def lines() -> AsyncGenerator[bytes, None]:
        async with aclosing(inside.walk(request["path"])) as batches:
            async for batch in batches:
                yield b"".join(
                    json.dumps(
                        [findings.shown(e.path), e.is_directory, e.size_bytes, e.modified_s]
                    ).encode()
                    + b"\n"
                    for e in batch
                )

    return Outflow({}, lines())
