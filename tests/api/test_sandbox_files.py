"""Files and archives of sandboxes over HTTP, as programs and pages ask for them."""

import asyncio
import contextlib
import gc
import hashlib
import io
import json
import os
import secrets
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.config import Settings
from app.runtime import running
from app.sandbox_transfer import MAX_TRANSFERS
from app.server import create_app
from services.accounts import sessions
from services.base import Deps
from services.sandboxes import lifecycle
from services.sandboxes.flows import AHEAD_BYTES, Outflow
from services.sandboxes.node import Node
from services.sandboxes.wishes import Resources
from tests.fixtures import Api, Person, settings_for

pytestmark = pytest.mark.bubblewrap
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
async def listening(settings: Settings) -> AsyncIterator[tuple[Deps, int]]:
    """A server of this process on a port of its own."""
    app = create_app(settings)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
    server = _Server(config)
    async with app.state.server.opened() as deps:
        serving = asyncio.ensure_future(server.serve())
        try:
            async with asyncio.timeout(60):
                while not server.started:  # noqa: ASYNC110 - uvicorn tells of it by a flag alone.
                    await asyncio.sleep(0.01)
            yield deps, server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    settings = settings_for(
        tmp_path, sandbox_driver="bubblewrap", sandbox_upload_max_bytes=60 * MIB
    )
    async with listening(settings) as (deps, port):
        api = Api(deps)
        ada = await api.person("ada")
        box = await lifecycle.create(deps, ada.viewer, resources=SMALL)
        yield Site(deps, port, api, ada, box.id)


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


async def test_a_file_goes_up_and_down_whole(site: Site) -> None:
    data = secrets.token_bytes(12 * MIB + 5)
    made = await site.ask("PUT", "a/deep one/héllo.bin", content=in_pieces(data))
    digest = hashlib.sha256(data).hexdigest()
    assert made.status_code == 201
    file = made.json()["file"]
    assert (file["path"], file["sizeBytes"], file["contentHash"]) == (
        "a/deep one/héllo.bin", len(data), digest,
    )  # fmt: skip
    found = await site.ask("GET", "a/deep one/héllo.bin")
    assert (found.status_code, found.content == data) == (200, True)
    told = found.headers
    assert told["content-length"] == str(len(data))
    assert told["content-type"] == "application/octet-stream"
    assert told["etag"] == made.headers["etag"]
    assert told["content-disposition"].startswith('attachment; filename="h_llo.bin"; filename*=')
    assert told["content-disposition"].endswith("UTF-8''h%C3%A9llo.bin")
    assert told["x-content-type-options"] == "nosniff"
    assert "sandbox" in told["content-security-policy"]
    assert told["cache-control"].startswith("private")
    head = await site.ask("HEAD", "a/deep one/héllo.bin")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "last-modified", "accept-ranges"):
        assert head.headers[name] == told[name]
    again = await site.ask("PUT", "a/deep one/héllo.bin", content=b"<script>alert(1)</script>")
    assert again.status_code == 200
    assert again.headers["etag"] != told["etag"]
    assert (await site.ask("PUT", "page.html", content=b"<script>")).status_code == 201
    page = await site.ask("GET", "page.html")
    assert page.headers["content-disposition"].startswith("attachment")
    assert page.headers["content-security-policy"] == "default-src 'none'; sandbox"
    listed = await site.api.run(
        "query($id: ID!) { sandbox(id: $id) { files { path isDirectory sizeBytes } } }",
        site.ada,
        id=site.box,
    )
    assert {"path": "page.html", "isDirectory": False, "sizeBytes": 8} in listed["files"]


@pytest.mark.parametrize(
    ("asked", "status", "expected", "place"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("Bytes = 0 - 0", 206, b"0", "bytes 0-0/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=999999999999999999-", 416, None, "bytes */10"),
        # What is not understood, or too much, is answered with all of it.
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("bytes=" + "9" * 400 + "-", 200, b"0123456789", None),
    ],
)
async def test_ranges(
    site: Site, asked: str, status: int, expected: bytes | None, place: str | None
) -> None:
    await site.ask("PUT", "f", content=b"0123456789")
    found = await site.ask("GET", "f", headers={"range": asked})
    assert (found.status_code, found.headers.get("content-range")) == (status, place)
    if expected is not None:
        assert found.content == expected
        assert found.headers["content-length"] == str(len(expected))
    else:
        assert found.json()["error"]["code"] == "INVALID"


async def test_conditions(site: Site) -> None:
    tag = (await site.ask("PUT", "f", content=b"0123456789")).headers["etag"]

    async def get(method: str = "GET", **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        found = await site.ask(method, "f", headers=named)
        assert found.headers["etag"] == tag
        return found.status_code, found.content

    assert await get(if_none_match=tag) == (304, b"")
    assert await get("HEAD", if_none_match=f'"x", W/{tag}') == (304, b"")
    assert await get(if_none_match="*") == (304, b"")
    assert await get(if_none_match='"other"') == (200, b"0123456789")
    assert await get(range="bytes=1-2", if_range=tag) == (206, b"12")
    assert await get(range="bytes=1-2", if_range='"other"') == (200, b"0123456789")
    assert await get(range="bytes=1-2", if_range=f"W/{tag}") == (200, b"0123456789")
    await site.ask("PUT", "f", content=b"9876543210")
    changed = await site.ask("GET", "f", headers={"range": "bytes=1-2", "if-range": tag})
    assert (changed.status_code, changed.content) == (200, b"9876543210")


async def test_who_replaces_a_file_may_say_which(site: Site) -> None:
    async def put(content: bytes, path: str = "f", **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        found = await site.ask("PUT", path, content=content, headers=named)
        if found.is_success:
            return found.status_code, found.headers["etag"]
        return found.status_code, found.json()["error"]["code"]

    failed = (412, "CONFLICT")
    assert await put(b"0", if_match="*") == failed
    assert await put(b"0", if_match='"old"') == failed
    assert await site.names() == []
    status, first = await put(b"one", if_none_match="*")
    assert status == 201
    assert await put(b"0", if_none_match="*") == failed
    assert await put(b"0", if_none_match=f'"x", W/{first}') == failed
    for refused in (
        '"old"',
        f"W/{first}",
        '"*"',
        f'"{first}"',
        f'{first}, "',
        first.strip('"'),
        "",
    ):
        assert (await put(b"0", if_match=refused))[0] in (400, 412), refused
    assert await put(b"0", if_none_match="nonsense") == (400, "INVALID")
    assert (await site.ask("GET", "f")).content == b"one"
    status, second = await put(b"second", if_match=f'"x" , {first}')
    assert (status, second != first) == (200, True)
    assert await put(b"0", if_match=first) == failed
    status, third = await put(b"third!", if_match="*", if_none_match=first)
    assert status == 200
    long_ago = "Sat, 01 Jan 2000 00:00:00 GMT"
    assert await put(b"0", if_unmodified_since=long_ago) == failed
    # The tag tells more than the date; what is no date is none.
    assert (await put(b"fourth", if_unmodified_since=long_ago, if_match=third))[0] == 200
    assert (await put(b"fourth", if_unmodified_since="Fri, 31 Dec 9999 23:59:59 -2359"))[0] == 200
    assert (await put(b"fourth", if_unmodified_since="yesterday"))[0] == 200
    assert (await put(b"0", path="new", if_unmodified_since=long_ago))[0] == 201
    assert (await put(b"0", path="f", if_none_match='"x"', if_match="*"))[0] == 200
    tag = (await site.ask("HEAD", "f")).headers["etag"]
    for method in ("GET", "HEAD"):
        assert (await site.ask(method, "f", headers={"if-match": tag})).status_code == 200
        assert (await site.ask(method, "f", headers={"if-match": third})).status_code == 412
    unpacked = await site.ask(
        "PUT", "d", "archive", content=tarred(("a", b"1")), headers={"if-match": "*"}
    )
    assert (unpacked.status_code, unpacked.json()["error"]["code"]) == (400, "INVALID")
    assert sorted(await site.names()) == ["f", "new"]


async def test_of_those_who_replace_one_version_at_once_one_does(site: Site) -> None:
    tag = (await site.ask("PUT", "f", content=b"0")).headers["etag"]
    release = asyncio.Event()

    async def held(data: bytes) -> AsyncIterator[bytes]:
        yield data
        await release.wait()
        yield data

    async def replace(number: int) -> int:
        content = held(b"%d" % number * (number + 1))
        headers = {"if-match": tag}
        return (await site.ask("PUT", "f", content=content, headers=headers)).status_code

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(replace(number)) for number in range(6)]
        # All of them have begun inside, where each found the version that it is for.
        async with asyncio.timeout(60):
            while len(await site.names()) < 7:  # noqa: ASYNC110 - it is told to nobody.
                await asyncio.sleep(0.02)
        release.set()
    codes = [task.result() for task in asked]
    assert sorted(codes) == [200] + [412] * 5
    winner = codes.index(200)
    assert (await site.ask("GET", "f")).content == b"%d" % winner * (winner + 1) * 2
    assert await site.names() == ["f"]
    # One that came before all of an upload did, is not lost either.
    tag = (await site.ask("HEAD", "f")).headers["etag"]
    release.clear()
    late = asyncio.ensure_future(
        site.ask("PUT", "f", content=held(b"l"), headers={"if-match": tag})
    )
    async with asyncio.timeout(60):
        while len(await site.names()) < 2:  # noqa: ASYNC110 - as above.
            await asyncio.sleep(0.02)
    inside = (await site.node()).client(site.box)
    run = await inside.execute("echo inside > f", timeout_s=30, output_limit_bytes=1000)
    await run.result()
    release.set()
    assert (await late).status_code == 412
    assert (await site.ask("GET", "f")).content == b"inside\n"


async def test_who_may_ask(site: Site) -> None:
    await site.ask("PUT", "f", content=b"mine")
    eve = await site.api.person("eve")
    root = await site.api.person("root", "admin", "user")
    archive = "archive"

    def error(found: httpx.Response) -> tuple[int, Any]:
        return found.status_code, found.json()["error"]["code"]

    async with httpx.AsyncClient(timeout=60) as client:

        async def ask(
            method: str, path: str, kind: str = "files", **headers: str
        ) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, site.url(path, kind), headers=named)

        for method, kind in (
            ("GET", "files"),
            ("PUT", "files"),
            ("GET", archive),
            ("PUT", archive),
        ):
            found = await ask(method, "f", kind)
            assert error(found) == (401, "UNAUTHENTICATED")
            assert found.headers["www-authenticate"] == "Bearer"
            assert error(await ask(method, "f", kind, authorization="Bearer no")) == (
                401, "UNAUTHENTICATED",
            )  # fmt: skip
            assert error(await ask(method, "f", kind, authorization="Basic no"))[0] == 401
            theirs = await ask(method, "f", kind, authorization=f"Bearer {eve.token}")
            nobodys = await client.request(
                method,
                f"{site.origin}/sandboxes/sbx_0/{kind}/f",
                headers={"authorization": f"Bearer {eve.token}"},
            )
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.json() == nobodys.json()
            # Nothing about it differs.
            ignored = {"date", "x-request-id"}
            assert {k: v for k, v in theirs.headers.items() if k not in ignored} == {
                k: v for k, v in nobodys.headers.items() if k not in ignored
            }
        admin = {"authorization": f"Bearer {root.token}"}
        assert (await ask("GET", "f", **admin)).content == b"mine"
        assert (await ask("PUT", "f", **admin)).status_code == 404
        # Cookies, which browsers add to what any page asks for.
        cookie = f"noosphere_token={site.ada.token}"
        assert (
            await ask("GET", "f", cookie=cookie, sec_fetch_site="same-origin")
        ).content == b"mine"
        assert (await ask("GET", "f", cookie=cookie, origin=site.origin)).content == b"mine"
        for headers in (
            {},
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "none"},
            {"sec_fetch_site": "same-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
        ):
            for method, kind in (("GET", "files"), ("PUT", "files"), ("PUT", archive)):
                assert error(await ask(method, "f", kind, cookie=cookie, **headers)) == (
                    403, "FORBIDDEN",
                )  # fmt: skip
        put = await ask("PUT", "f", cookie=cookie, sec_fetch_site="same-origin")
        assert put.status_code == 200
        assert error(
            await ask("GET", "f", cookie="noosphere_token=no", sec_fetch_site="same-origin")
        ) == (401, "UNAUTHENTICATED")


async def test_what_cannot_be_done_says_why(site: Site) -> None:
    await site.ask("PUT", "folder/f", content=b"1")

    async def status(method: str, path: str, kind: str = "files", **more: Any) -> tuple[int, str]:
        found = await site.ask(method, path, kind, **more)
        assert found.headers["content-type"].startswith("application/json")
        assert found.headers["x-content-type-options"] == "nosniff"
        error = found.json()["error"]
        assert error["message"]
        assert "/tmp" not in error["message"]
        return found.status_code, error["code"]

    assert await status("GET", "nothing") == (404, "NOT_FOUND")
    assert await status("GET", "nothing", "archive") == (404, "NOT_FOUND")
    assert await status("GET", "folder") == (400, "INVALID")
    assert await status("PUT", "folder", content=b"") == (400, "INVALID")
    assert await status("PUT", "folder/", content=b"") == (400, "INVALID")
    assert await status("PUT", "folder/f/below", content=b"") == (400, "INVALID")
    assert await status("GET", "..%2f..%2fetc/passwd") == (400, "INVALID")
    assert await status("GET", "%2fetc%2fpasswd") == (400, "INVALID")
    assert await status("GET", "a%00b") == (400, "INVALID")
    assert await status("GET", "x" * 256) == (400, "LIMIT")
    assert await status("GET", "folder?format=rar", "archive") == (400, "INVALID")
    assert await status("PUT", "out?format=tar", "archive", content=b"no") == (400, "INVALID")
    assert await status("PUT", "x", content=b"1", headers={"content-encoding": "gzip"}) == (
        415, "INVALID",
    )  # fmt: skip
    assert await status("PUT", "x", content=b"1", headers={"content-range": "bytes 0-0/1"}) == (
        400, "INVALID",
    )  # fmt: skip
    assert await status("POST", "x", content=b"1") == (405, "BAD_REQUEST")
    assert await status("DELETE", "x", "archive") == (405, "BAD_REQUEST")
    options = await site.ask("OPTIONS", "x")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, PUT, OPTIONS")
    missing = await site.ask("HEAD", "nothing")
    assert (missing.status_code, missing.content) == (404, b"")
    assert await site.names() == ["folder"]
    await lifecycle.stop(site.deps, site.ada.viewer, sandbox_id=site.box)
    assert await status("GET", "folder/f") == (409, "CONFLICT")
    assert await status("PUT", "folder/f", content=b"1") == (409, "CONFLICT")
    assert await status("GET", ".", "archive") == (409, "CONFLICT")


async def test_names_that_break_lines_are_names(site: Site) -> None:
    for name in ("new%0aline", "%0a", "a%0d%0ab/c%0a", "tab%09%7f"):
        assert (await site.ask("PUT", name, content=name.encode())).status_code == 201
        assert (await site.ask("GET", name)).content == name.encode()
        head = await site.ask("HEAD", name)
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(name)))
    packed = await site.ask("GET", "a%0d%0ab", "archive")
    with tarfile.open(fileobj=io.BytesIO(packed.content)) as archive:
        assert archive.getnames() == ["c\n"]
    assert sorted(await site.names()) == ["\n", "a\r\nb", "new\nline", "tab\t\x7f"]


@pytest.mark.parametrize("name", ["%ff", "%fe", "a/%c3%28", "%ed%a0%80", "%c0%ae%c0%ae/x"])
async def test_names_that_are_no_text_are_refused(site: Site, name: str) -> None:
    asked = [("GET", "files"), ("HEAD", "files"), ("PUT", "files")]
    for method, kind in [*asked, ("GET", "archive"), ("PUT", "archive")]:
        found = await site.ask(method, name, kind, content=b"1" if method == "PUT" else None)
        assert found.status_code == 400
        if method != "HEAD":
            assert found.json()["error"]["code"] == "INVALID"
            assert "UTF-8" in found.json()["error"]["message"]
    assert await site.names() == []
    # The character that stands for what cannot be read is one like any other.
    assert (await site.ask("PUT", "%ef%bf%bd", content=b"1")).status_code == 201
    assert await site.names() == ["\ufffd"]


async def test_nothing_leads_where_the_host_header_says(site: Site) -> None:
    box = f"/sandboxes/{site.box}"
    evil = {"host": "evil.example"}
    async with httpx.AsyncClient(timeout=60) as client:
        for path, status, code in (
            (f"{box}/files", 401, "UNAUTHENTICATED"),
            (f"{box}/files/", 401, "UNAUTHENTICATED"),
            (f"{box}/archive/", 401, "UNAUTHENTICATED"),
            (f"{box}/ports", 404, "NOT_FOUND"),
            (f"{box}/ports/80/a%0ab", 401, "UNAUTHENTICATED"),
            (f"{box}/", 404, "NOT_FOUND"),
            ("/healthz/", 404, "NOT_FOUND"),
            ("/graphql/", 404, "NOT_FOUND"),
            ("/nothing%0a", 404, "NOT_FOUND"),
        ):
            found = await client.get(f"{site.origin}{path}", headers=evil)
            assert (found.status_code, found.json()["error"]["code"]) == (status, code), path
            assert "location" not in found.headers
            assert "evil" not in str(found.headers) + found.text
        found = await client.get(f"{site.origin}{box}/files", headers={**evil, **site.token})
        assert (found.status_code, found.json()["error"]["code"]) == (400, "INVALID")
        assert "directory" in found.json()["error"]["message"]
        found = await client.post(f"{site.origin}/healthz")
        assert (found.status_code, found.json()["error"]["code"]) == (405, "BAD_REQUEST")
        assert "GET" in found.headers["allow"]
        found = await client.get(f"{site.origin}{box}/ports/80", headers=evil)
        assert found.headers["location"] == f"{box}/ports/80/"


async def test_too_much_is_refused_whoever_still_sends(site: Site) -> None:
    for content in (bytes(61 * MIB), in_pieces(bytes(61 * MIB), MIB)):
        found = await site.ask("PUT", "f", content=content)
        assert found.status_code in (413, 507)
        assert found.json()["error"]["code"] == "LIMIT"
    announced = await site.ask("PUT", "f", content=bytes(61 * MIB))
    assert announced.status_code == 413
    full = await site.ask("PUT", "f", content=in_pieces(bytes(50 * MIB), MIB))
    assert (full.status_code, full.json()["error"]["code"]) == (507, "LIMIT")
    data = tarred(("one", bytes(10 * MIB)), ("two", bytes(40 * MIB)))
    full = await site.ask("PUT", "out", "archive", content=in_pieces(data, MIB))
    assert full.status_code == 507
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(20 * MIB))
    denied = await site.ask("PUT", "out?format=zip", "archive", content=bomb.getvalue())
    assert (denied.status_code, denied.json()["error"]["code"]) == (413, "LIMIT")
    await until_only(site)


async def test_archives_go_up_and_down(site: Site) -> None:
    data = tarred(("a/one", b"1"), ("a/two", b"22"), ("top", b"333"))
    made = await site.ask("PUT", "src", "archive", content=in_pieces(data, 100))
    assert (made.status_code, made.json()) == (200, {"archive": {"sizeBytes": 6, "entries": 4}})
    for style in ("tar", "tar.gz", "zip"):
        found = await site.ask("GET", f"src?format={style}", "archive")
        assert found.status_code == 200
        assert found.headers["content-disposition"].startswith(
            f'attachment; filename="src.{style}"'
        )
        if style == "zip":
            with zipfile.ZipFile(io.BytesIO(found.content)) as archive:
                assert archive.read("a/two") == b"22"
        else:
            with tarfile.open(fileobj=io.BytesIO(found.content)) as opened:
                assert opened.getnames() == ["a", "a/one", "a/two", "top"]
        back = await site.ask("PUT", f"back?format={style}", "archive", content=found.content)
        assert back.json()["archive"]["sizeBytes"] == 6
    everything = await site.ask("GET", "?format=tar.gz", "archive")
    assert 'filename="workspace.tar.gz"' in everything.headers["content-disposition"]
    escape = await site.ask("PUT", ".", "archive", content=tarred(("../evil", b"1")))
    assert (escape.status_code, escape.json()["error"]["code"]) == (400, "INVALID")


async def curl(*words: str, given: bytes | None = None) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "100", *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(given)
    return process.returncode or 0, out


async def test_curl_uploads_downloads_and_goes_on(site: Site, tmp_path: Path) -> None:
    data = secrets.token_bytes(6 * MIB)
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(data)
    sign_in = ("-H", f"Authorization: Bearer {site.ada.token}")
    # It waits for `100 Continue`, and sends from a pipe in chunks.
    code, out = await curl(*sign_in, "-T", str(source), "-H", "Expect: 100-continue", site.url("f"))
    assert (code, json.loads(out)["file"]["sizeBytes"]) == (0, len(data))
    code, out = await curl(*sign_in, "-T", "-", site.url("g"), given=data)
    assert json.loads(out)["file"]["contentHash"] == hashlib.sha256(data).hexdigest()
    target.write_bytes(data[: 2 * MIB])
    code, _ = await curl(*sign_in, "-C", "-", "-o", str(target), site.url("f"))
    assert (code, target.read_bytes() == data) == (0, True)
    code, out = await curl(*sign_in, "-r", "5-9", site.url("f"))
    assert (code, out) == (0, data[5:10])
    # Refused before a byte of it is sent.
    for path in ("../../etc/passwd", "a/../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"):
        code, out = await curl(*sign_in, "--path-as-is", site.url(path))
        assert json.loads(out)["error"]["code"] in ("INVALID", "NOT_FOUND")
        code, out = await curl(
            *sign_in,
            "--path-as-is",
            "-T",
            str(source),
            "-H",
            "Expect: 100-continue",
            site.url(path),
        )
        assert json.loads(out)["error"]["code"] in ("INVALID", "NOT_FOUND")
    assert await site.names() == ["f", "g"]


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


async def test_a_mutation_says_what_it_carries_and_where_more_goes(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, sandbox_driver="bubblewrap", file_max_bytes=1000)
    assert settings.max_body_bytes == 2 * MIB
    write = (
        "mutation($input: SandboxFileWriteInput!)"
        " { sandboxFileWrite(input: $input) { file { sizeBytes } errors { code message path } } }"
    )
    async with listening(settings) as (deps, port), httpx.AsyncClient(timeout=60) as client:
        api = Api(deps)
        ada = await api.person("ada")
        box = await lifecycle.create(deps, ada.viewer, resources=SMALL)
        site = Site(deps, port, api, ada, box.id)

        async def send(size: int) -> httpx.Response:
            given = {"sandboxId": box.id, "path": "f", "content": "x" * size}
            body = {"query": write, "variables": {"input": given}}
            return await client.post(f"{site.origin}/graphql", json=body, headers=site.token)

        kept = (await send(1000)).json()["data"]["sandboxFileWrite"]
        assert kept == {"file": {"sizeBytes": 1000}, "errors": []}
        larger = (await send(1001)).json()["data"]["sandboxFileWrite"]
        assert larger["file"] is None
        assert larger["errors"][0]["code"] == "LIMIT"
        assert "1,000 bytes" in larger["errors"][0]["message"]
        much = await send(3 * MIB)
        assert much.status_code == 413
        told = [larger["errors"][0]["message"], much.json()["errors"][0]["message"]]
        assert "2,097,152 bytes" in told[1]
        asked = '{ __type(name: "SandboxFileWriteInput") { inputFields { name description } } }'
        fields = (await api.run(asked, ada))["inputFields"]
        told += [field["description"] for field in fields if field["name"] == "content"]
        assert "2 MiB" in told[2]
        for words in told:
            # What all of them name is the way that takes it.
            assert "PUT" in words
            assert "/sandboxes/{id}/files/{path}" in words
        assert (await site.ask("PUT", "f", content=b"x" * (3 * MIB))).status_code == 200


@pytest.mark.redis
async def test_either_node_serves_the_sandboxes_of_the_other(
    tmp_path: Path, redis_url: str
) -> None:
    common = {"redis_url": redis_url, "sandbox_driver": "bubblewrap"}
    database = f"sqlite+aiosqlite:///{tmp_path / 'shared.sqlite3'}"
    near = settings_for(tmp_path / "near", database_url=database, node_id="near", **common)
    other = settings_for(tmp_path / "other", database_url=database, node_id="other", **common)
    async with running(other) as hosting, listening(near) as (asking, port):
        api = Api(asking)
        ada = await api.person("ada")
        box = await lifecycle.create(hosting, ada.viewer, resources=SMALL)
        assert box.node_id == "other"
        site = Site(asking, port, api, ada, box.id)
        data = secrets.token_bytes(9 * MIB + 1)
        made = await site.ask("PUT", "a/file", content=in_pieces(data))
        assert made.status_code == 201, made.text
        assert (await site.ask("GET", "a/file")).content == data
        part = await site.ask("GET", "a/file", headers={"range": "bytes=-5"})
        assert (part.status_code, part.content) == (206, data[-5:])
        packed = await site.ask("GET", "a?format=tar.gz", "archive")
        back = await site.ask("PUT", "b?format=tar.gz", "archive", content=packed.content)
        assert back.json()["archive"] == {"sizeBytes": len(data), "entries": 1}
        full = await site.ask("PUT", "c", content=in_pieces(bytes(30 * MIB), MIB))
        assert (full.status_code, full.json()["error"]["code"]) == (507, "LIMIT")
        assert (await site.ask("GET", "nothing")).status_code == 404
        lost = await site.ask("PUT", "a/file", content=b"1", headers={"if-match": '"old"'})
        assert (lost.status_code, lost.json()["error"]["code"]) == (412, "CONFLICT")
        won = {"if-match": made.headers["etag"]}
        assert (await site.ask("PUT", "a/file", content=b"1", headers=won)).status_code == 200
        there = Site(hosting, port, api, ada, box.id)
        await broken_off(there, f"PUT /sandboxes/{box.id}/files/new", os.urandom(3 * MIB))
        await until_only(there, "a", "b")
        node = await there.node()
        async with asyncio.timeout(60):
            while len(node.relays):  # noqa: ASYNC110 - whoever clears tells nobody.
                await asyncio.sleep(0.05)
