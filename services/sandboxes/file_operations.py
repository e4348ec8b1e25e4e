"""What the node that hosts a sandbox does with its files, as `files` and `transfers` ask for."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sandbox.files import FileInfo, Files
from services.events.base import Json
from services.sandboxes import findings
from services.sandboxes.findings import shown
from services.sandboxes.operations import operation

if TYPE_CHECKING:
    from services.sandboxes.node import Node


@operation("write")
async def _write(node: "Node", sandbox_id: str, request: Json) -> Json:
    path = request["path"]
    data = await asyncio.to_thread(base64.b64decode, request["content"])
    await make_folders(node.client(sandbox_id).files, path)
    verdict = await findings.write(node, sandbox_id, path, _whole(data))
    return {"verdict": verdict.verdict.value}


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def make_folders(files: Files, path: str) -> None:
    """Make the directories above a path, on the node that hosts it."""
    folder = path.rpartition("/")[0]
    if folder:
        await files.make_dir(folder, parents=True)


@operation("make_directory")
async def _make_directory(node: "Node", sandbox_id: str, request: Json) -> Json:
    files = node.client(sandbox_id).files
    await files.make_dir(request["path"], parents=True)
    return {"entries": [_entry(await files.stat(request["path"]))]}


@operation("rename")
async def _rename(node: "Node", sandbox_id: str, request: Json) -> Json:
    files = node.client(sandbox_id).files
    # Nothing is made for what is not there.
    await files.stat(request["path"], follow=False)
    await make_folders(files, request["target"])
    await files.rename(request["path"], request["target"])
    return {"entries": [_entry(await files.stat(request["target"], follow=False))]}


@operation("read")
async def _read(node: "Node", sandbox_id: str, request: Json) -> Json:
    data = await node.client(sandbox_id).files.read(request["path"], most=request["most"])
    return {"content": base64.b64encode(data).decode("ascii")}


@operation("stat")
async def _stat(node: "Node", sandbox_id: str, request: Json) -> Json:
    files = node.client(sandbox_id).files
    found = await files.stat(request["path"], follow=request.get("follow", True))
    return {"entries": [_entry(found)]}


@operation("list")
async def _list(node: "Node", sandbox_id: str, request: Json) -> Json:
    found = await node.client(sandbox_id).files.list(
        request["path"], first=request["first"], after=request["after"]
    )
    return {"entries": [_entry(info) for info in found]}


def _entry(info: FileInfo) -> list[Any]:
    return [shown(info.path), info.is_directory, info.size_bytes, info.modified_at.isoformat()]


@operation("remove")
async def _remove(node: "Node", sandbox_id: str, request: Json) -> None:
    await node.client(sandbox_id).files.remove(request["path"], recursive=request["recursive"])
