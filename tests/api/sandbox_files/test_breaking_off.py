"""Transfers that break off, stall, or end with their sign-in."""

import asyncio
import contextlib
import gc
import os
import socket
from pathlib import Path

import httpx
import pytest

from app.sandbox_transfer import MAX_TRANSFERS
from services.accounts import sessions
from services.sandboxes import lifecycle
from services.sandboxes.flows import AHEAD_BYTES, Outflow
from tests.api.sandbox_files.conftest import (
    MIB,
    SMALL,
    Site,
    broken_off,
    site_in,
    tarred,
    until_only,
)

pytestmark = pytest.mark.bubblewrap


async def test_an_upload_that_breaks_off_leaves_the_old_file(site: Site) -> None:
    await site.ask("PUT", "file", content=b"old")
    await broken_off(site, f"PUT /sandboxes/{site.box}/files/file", os.urandom(3 * MIB))
    await until_only(site, "file")
    data = tarred(("a", os.urandom(MIB)), ("b", os.urandom(8 * MIB)))
    await broken_off(site, f"PUT /sandboxes/{site.box}/archive/out", data[: 3 * MIB])
    await until_only(site, "file")
    assert (await site.ask("GET", "file")).content == b"old"


async def test_downloads_that_break_off_end_inside(site: Site) -> None:
    await site.ask("PUT", "file", content=bytes(16 * MIB))
    for kind, path in (("files", "file"), ("archive", ".")) * 20:
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("GET", site.url(path, kind), headers=site.token) as found,
        ):
            await anext(found.aiter_raw())
    # Had the work inside gone on, there would be no room for one more.
    assert len((await site.ask("GET", ".", "archive")).content) > 16 * MIB


async def test_who_reads_nothing_makes_the_sandbox_wait(site: Site) -> None:
    await site.ask("PUT", "file", content=os.urandom(16 * MIB))
    async with contextlib.AsyncExitStack() as stack:
        for kind, path in (("files", "file"), ("archive", ".")) * 3:
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
            asked = client.stream("GET", site.url(path, kind), headers=site.token)
            await stack.enter_async_context(asked)
        # As long as they read nothing, what is held of each grows to a bound and no further.
        gc.collect()
        flows = [found for found in gc.get_objects() if isinstance(found, Outflow)]
        assert len(flows) == 6
        async with asyncio.timeout(60):
            while any(flow._size < AHEAD_BYTES for flow in flows):  # noqa: ASYNC110 - it is told to nobody.
                await asyncio.sleep(0.02)
        assert all(flow._size < 2 * AHEAD_BYTES for flow in flows)
    assert len((await site.ask("GET", "file")).content) == 16 * MIB


async def test_who_reads_slowly_is_given_the_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aclose = Outflow.aclose

    async def slowly(flow: Outflow) -> None:
        # As to let go of a pipe of another node is; the server has been given all of it by then.
        await asyncio.sleep(0.5)
        await aclose(flow)

    monkeypatch.setattr(Outflow, "aclose", slowly)
    data = os.urandom(2 * MIB)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as connection:
        # The system takes little of it, so that some waits in the server.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with site_in(tmp_path, listener) as site:
            await site.ask("PUT", "file", content=data)
            found = await _read_slowly(connection, site, f"/sandboxes/{site.box}/files/file")
    assert (len(found), found == data) == (len(data), True)


async def _read_slowly(connection: socket.socket, site: Site, target: str) -> bytes:
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    await loop.sock_connect(connection, ("127.0.0.1", site.port))
    fields = f"Host: a\r\nConnection: close\r\nAuthorization: Bearer {site.ada.token}\r\n\r\n"
    await loop.sock_sendall(connection, f"GET {target} HTTP/1.1\r\n{fields}".encode())
    read = b""
    while piece := await loop.sock_recv(connection, 4096):
        read += piece
        await asyncio.sleep(0)
    return read.partition(b"\r\n\r\n")[2]


async def test_what_cannot_be_packed_to_its_end_is_broken_off(site: Site) -> None:
    await site.ask("PUT", "a/file", content=os.urandom(2 * MIB))
    inside = (await site.node()).client(site.box)
    run = await inside.execute("mkdir z; chmod 0 z", timeout_s=30, output_limit_bytes=1000)
    await run.result()
    with pytest.raises(httpx.RemoteProtocolError):
        await site.ask("GET", ".", "archive")
    # Where nothing is sent yet, it is said.
    await site.ask("PUT", "b/file", content=b"1")
    run = await inside.execute("mkdir b/z; chmod 0 b/z", timeout_s=30, output_limit_bytes=1000)
    await run.result()
    found = await site.ask("GET", "b", "archive")
    assert (found.status_code, found.json()["error"]["code"]) == (400, "INVALID")
    assert "may not be read: z" in found.json()["error"]["message"]


async def test_what_is_broken_off_is_no_error_of_the_server(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for path, kind in (("file", "files"), (".", "archive")):
        await site.ask("PUT", "file", content=bytes(16 * MIB))
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("GET", site.url(path, kind), headers=site.token) as found,
        ):
            chunks = found.aiter_raw(65_536)
            await anext(chunks)
            await lifecycle.delete(site.deps, site.ada.viewer, sandbox_id=site.box)
            with pytest.raises(httpx.TransportError):
                async for _ in chunks:
                    pass
        site.box = (await lifecycle.create(site.deps, site.ada.viewer, resources=SMALL)).id
    errors = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert [record.getMessage() for record in errors] == []


async def test_a_download_ends_with_the_sign_in(site: Site) -> None:
    await site.ask("PUT", "file", content=bytes(16 * MIB))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1024)
    path = f"/sandboxes/{site.box}/files/file"
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.ada.token}\r\n\r\n".encode()
    )
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await sessions.revoke(site.deps, site.ada.viewer, session_id=site.ada.viewer.session_id or "")
    size = 0
    with contextlib.suppress(ConnectionResetError):
        async with asyncio.timeout(60):
            while data := await reader.read(65536):
                size += len(data)
    assert size < 16 * MIB
    writer.close()
    assert (await site.ask("GET", "file")).status_code == 401


async def test_a_person_has_only_so_many_transfers(site: Site) -> None:
    await site.ask("PUT", "file", content=bytes(16 * MIB))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_TRANSFERS):
            client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
            asked = client.stream("GET", site.url("file"), headers=site.token)
            assert (await stack.enter_async_context(asked)).status_code == 200
        found = await site.ask("GET", "file")
        assert (found.status_code, found.json()["error"]["code"]) == (429, "RATE_LIMITED")
        assert found.headers["retry-after"] == "1"
    async with asyncio.timeout(60):
        while (await site.ask("HEAD", "file")).status_code == 429:  # noqa: ASYNC110 - as above.
            await asyncio.sleep(0.05)
    assert len((await site.ask("GET", "file")).content) == 16 * MIB
