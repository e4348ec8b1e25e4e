"""Who may ask for files of sandboxes, and what cannot be done."""

import io
import tarfile
import zipfile
from typing import Any

import httpx
import pytest

from services.sandboxes import lifecycle
from tests.api.sandbox_files.conftest import MIB, Site, in_pieces, tarred, until_only

pytestmark = pytest.mark.bubblewrap


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
