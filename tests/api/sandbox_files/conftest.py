"""A server with a sandbox whose files are asked for over HTTP."""

import asyncio
import contextlib
import io
import socket
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.config import Settings
from app.server import create_app
from services.base import Deps
from services.sandboxes import lifecycle
from services.sandboxes.node import Node
from services.sandboxes.wishes import Resources
from tests.fixtures import Api, Person, settings_for

MIB = 1024 * 1024


SMALL = Resources(disk_bytes=24 * MIB)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass
class Site:
    """A server that listens, and a sandbox of somebody."""

    deps: Deps
    port: int
    api: Api
    ada: Person
    box: str

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, path: str, kind: str = "files") -> str:
        return f"{self.origin}/sandboxes/{self.box}/{kind}/{path}"

    @property
    def token(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.ada.token}"}

    async def ask(self, method: str, path: str, kind: str = "files", **more: Any) -> httpx.Response:
        more.setdefault("headers", {})
        more["headers"] = {**self.token, **more["headers"]}
        async with httpx.AsyncClient(timeout=120) as client:
            return await client.request(method, self.url(path, kind), **more)

    async def node(self) -> Node:
        return await self.deps.sandboxes.node()

    async def names(self) -> list[str]:
        files = (await self.node()).client(self.box).files
        return [entry.name for entry in await files.list()]


@asynccontextmanager
async def listening(
    settings: Settings, listener: socket.socket | None = None
) -> AsyncIterator[tuple[Deps, int]]:
    """A server of this process, on a port of its own unless it is given a socket."""
    app = create_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = _Server(config)
    async with app.state.server.opened() as deps:
        serving = asyncio.ensure_future(server.serve([listener] if listener else None))
        try:
            async with asyncio.timeout(60):
                while not server.started:  # noqa: ASYNC110 - uvicorn tells of it by a flag alone.
                    await asyncio.sleep(0.01)
            yield deps, server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def site_in(
    folder: Path, listener: socket.socket | None = None, **more: Any
) -> AsyncIterator[Site]:
    given = {"sandbox_driver": "bubblewrap", "sandbox_upload_max_bytes": 60 * MIB, **more}
    settings = settings_for(folder, **given)
    async with listening(settings, listener) as (deps, port):
        api = Api(deps)
        ada = await api.person("ada")
        box = await lifecycle.create(deps, ada.viewer, resources=SMALL)
        yield Site(deps, port, api, ada, box.id)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with site_in(tmp_path) as made:
        yield made


async def in_pieces(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def tarred(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def until_only(site: Site, *names: str) -> None:
    async with asyncio.timeout(60):
        while await site.names() != list(names):  # noqa: ASYNC110 - whoever clears tells nobody.
            await asyncio.sleep(0.05)


async def curl(*words: str, given: bytes | None = None) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "100", *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(given)
    return process.returncode or 0, out


async def broken_off(site: Site, head: str, data: bytes) -> None:
    """Send the beginning of a request, and be gone."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        f"{head} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.ada.token}\r\n".encode()
    )
    writer.write(b"Content-Length: 20000000\r\n\r\n" + data)
    await writer.drain()
    async with asyncio.timeout(60):
        while len(await site.names()) < 2:  # noqa: ASYNC110 - until it has begun inside.
            await asyncio.sleep(0.02)
    writer.transport.abort()
    del reader
