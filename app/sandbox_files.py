"""Files and archives of sandboxes over HTTP, in pieces of a few hundred kilobytes both ways.

`GET`, `HEAD` and `PUT /sandboxes/{id}/files/{path}`, `GET` and `PUT
/sandboxes/{id}/archive/{path}?format=tar|tar.gz|zip`, with the sign-in of GraphQL. What a sandbox
holds is its user's: browsers are told to store it, never to show it as a page of ours.
"""

from collections.abc import Callable, Collection
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from app.sandbox_paths import REST, read_path
from app.sandbox_ranges import is_met, read_condition, read_range
from app.sandbox_transfer import Handler, Places, Transfer, answer
from resolvers.base import Context
from sandbox.archives import ArchiveFormat
from services.base import Deps
from services.errors import UserError, UserErrorCode
from services.sandboxes import transfers
from services.sandboxes.conditions import version
from services.sandboxes.files import Entry

_TYPES = {
    ArchiveFormat.TAR: "application/x-tar",
    ArchiveFormat.TAR_GZ: "application/gzip",
    ArchiveFormat.ZIP: "application/zip",
}


class SandboxFiles:
    """The endpoints. `deps` gives what the running application works with."""

    def __init__(self, deps: Callable[[], Deps], *, allowed_origins: Collection[str] = ()) -> None:
        self._deps = deps
        self._allowed_origins = frozenset(allowed_origins)
        self.places = Places()

    def routes(self) -> list[BaseRoute]:
        """Give the routes."""
        file = self._endpoint({"GET": _get_file, "HEAD": _get_file, "PUT": _put_file})
        archive = self._endpoint({"GET": _get_archive, "PUT": _put_archive})
        return [
            Route("/sandboxes/{id}/files", file),
            Route(f"/sandboxes/{{id}}/files/{REST}", file),
            Route("/sandboxes/{id}/archive", archive),
            Route(f"/sandboxes/{{id}}/archive/{REST}", archive),
        ]

    def _endpoint(self, handlers: dict[str, Handler]) -> "_Endpoint":
        return _Endpoint(self._deps, self._allowed_origins, self.places, handlers)


class _Endpoint:
    """An ASGI application that answers some methods."""

    def __init__(
        self,
        deps: Callable[[], Deps],
        allowed_origins: Collection[str],
        places: Places,
        handlers: dict[str, Handler],
    ) -> None:
        self._deps = deps
        self._allowed_origins = allowed_origins
        self._places = places
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        transfer = Transfer(scope, receive, send)
        handler = self._handlers.get(transfer.method)
        if handler is None:
            await transfer.refuse_method(self._handlers)
            return
        await answer(transfer, self._deps(), self._allowed_origins, self._places, handler)


# Files.


async def _get_file(transfer: Transfer, context: Context) -> None:
    deps, viewer, names = context.deps, context.viewer, _names(transfer)
    if transfer.method == "HEAD":
        entry = await transfers.look(deps, viewer, **names)
        _require(transfer, entry)
        headers = {**_described(entry), "content-length": str(entry.size_bytes)}
        status = 304 if is_met(transfer.headers, _tag(entry)) is False else 200
        await transfer.empty(status, headers)
        return
    part = read_range(transfer.headers)
    async with transfers.download(deps, viewer, part=part, **names) as found:
        entry, span, headers = found.entry, found.span, _described(found.entry)
        _require(transfer, entry)
        if is_met(transfer.headers, _tag(entry)) is False:
            await transfer.empty(304, headers)
        elif span is None:
            await transfer.refuse(
                416,
                "INVALID",
                f"The file has {entry.size_bytes:,} bytes; nothing of it lies in that range.",
                {"content-range": f"bytes */{entry.size_bytes}"},
            )
        else:
            if found.is_part:
                last = span.start + span.length - 1
                headers["content-range"] = f"bytes {span.start}-{last}/{entry.size_bytes}"
            status = 206 if found.is_part else 200
            await transfer.send_all(status, headers, found.chunks, length=span.length)


def _require(transfer: Transfer, entry: Entry) -> None:
    """Raise UserError CONFLICT unless the file is the one that is asked for."""
    condition = read_condition(transfer.headers, is_write=False)
    if condition is not None:
        condition.require((entry.size_bytes, entry.modified_at))


async def _put_file(transfer: Transfer, context: Context) -> None:
    condition = read_condition(transfer.headers, is_write=True)
    chunks = transfer.body(context.deps.options.sandbox_upload_max_bytes or None)
    entry, is_new = await transfers.upload(
        context.deps, context.viewer, chunks=chunks, condition=condition, **_names(transfer)
    )
    told = {
        "path": entry.path,
        "name": entry.name,
        "sizeBytes": entry.size_bytes,
        "mimeType": entry.mime_type,
        "contentHash": entry.content_hash,
        "modifiedAt": entry.modified_at.isoformat(),
    }
    await transfer.json(201 if is_new else 200, {"file": told}, {"etag": _tag(entry)})


def _tag(entry: Entry) -> str:
    return f'"{version(entry.size_bytes, entry.modified_at)}"'


def _described(entry: Entry) -> dict[str, str]:
    return {
        "content-type": entry.mime_type or "application/octet-stream",
        "content-disposition": _attachment(entry.name),
        "accept-ranges": "bytes",
        "etag": _tag(entry),
        "last-modified": format_datetime(entry.modified_at, usegmt=True),
        "cache-control": "private, no-cache",
    }


def _attachment(name: str) -> str:
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


# Archives.


async def _get_archive(transfer: Transfer, context: Context) -> None:
    style, names = _style(transfer), _names(transfer)
    async with transfers.archive(context.deps, context.viewer, style=style, **names) as chunks:
        name = names["path"].rstrip("/").rpartition("/")[2]
        headers = {
            "content-type": _TYPES[style],
            "content-disposition": _attachment(
                f"{'workspace' if name in ('', '.') else name}.{style}"
            ),
        }
        await transfer.send_all(200, headers, chunks)


async def _put_archive(transfer: Transfer, context: Context) -> None:
    style = _style(transfer)
    if read_condition(transfer.headers, is_write=True) is not None:
        raise UserError(
            UserErrorCode.INVALID,
            "Directories have no versions: archives are unpacked without conditions.",
            ("version",),
        )
    made = await transfers.unpack(
        context.deps, context.viewer, style=style, chunks=transfer.body(None), **_names(transfer)
    )
    await transfer.json(200, {"archive": {"sizeBytes": made.bytes, "entries": made.entries}})


def _style(transfer: Transfer) -> ArchiveFormat:
    given = transfer.query.get("format", ArchiveFormat.TAR.value)
    try:
        return ArchiveFormat(given)
    except ValueError:
        known = ", ".join(ArchiveFormat)
        raise UserError(
            UserErrorCode.INVALID,
            f"There is no format of that name; there are {known}.",
            ("format",),
        ) from None


def _names(transfer: Transfer) -> dict[str, Any]:
    scope = transfer.scope
    return {"sandbox_id": scope["path_params"]["id"], "path": read_path(scope)}


__all__ = ["SandboxFiles"]
