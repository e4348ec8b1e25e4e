"""Files and archives of sandboxes over HTTP, as programs and pages ask for them."""

import hashlib
import io
import json
import secrets
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest

from services.sandboxes import lifecycle
from tests.api.sandbox_files.conftest import MIB, SMALL, Site, curl, in_pieces, listening, tarred
from tests.fixtures import Api, settings_for

pytestmark = pytest.mark.bubblewrap


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
