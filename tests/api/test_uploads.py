"""Files that come with a mutation in a form."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

import schema
from app import graphql_upload
from app.graphql_http import GraphQLHTTP
from app.graphql_request import BadRequestError, Params, RequestInfo
from app.graphql_stream import Streams
from app.graphql_upload import Upload
from resolvers.uploads import UploadedFile
from schema.execution import Engine, Result
from services.errors import RequestError
from tests.api.sandbox_files.conftest import MIB, Site, site
from tests.api.serving import served

__all__ = ["site"]

UPLOAD = """mutation($input: SandboxFileUploadInput!) { sandboxFileUpload(input: $input) {
  file { path sizeBytes contentHash } errors { code message path } } }"""
GUARD = {"x-graphql-preflight": "1"}


def form(box: str, path: str, **more: Any) -> dict[str, str]:
    """Give the fields of a form that come before its file."""
    given = {"sandboxId": box, "path": path, "file": None}
    operations = {"query": UPLOAD, "variables": {"input": given}, **more}
    return {"operations": json.dumps(operations), "map": '{"0": ["variables.input.file"]}'}


async def send(site: Site, path: str, data: bytes, **more: Any) -> httpx.Response:
    more.setdefault("headers", site.token)
    more.setdefault("data", form(site.box, path))
    async with httpx.AsyncClient(timeout=120) as client:
        return await client.post(f"{site.origin}/graphql", files={"0": ("name.bin", data)}, **more)


@pytest.mark.bubblewrap
async def test_a_file_larger_than_any_body_comes_into_a_sandbox(site: Site) -> None:
    data = secrets.token_bytes(8 * MIB)
    answer = await send(site, "some/where.bin", data)
    assert answer.status_code == 200
    payload = answer.json()["data"]["sandboxFileUpload"]
    assert payload["errors"] == []
    assert payload["file"]["path"] == "some/where.bin"
    assert payload["file"]["sizeBytes"] == len(data)
    assert (await site.ask("GET", "some/where.bin")).content == data


@pytest.mark.bubblewrap
async def test_a_file_beyond_what_may_come_leaves_nothing(site: Site) -> None:
    answer = await send(site, "large", b"x" * (61 * MIB))
    (error,) = answer.json()["data"]["sandboxFileUpload"]["errors"]
    assert error["code"] in ("LIMIT", "QUOTA")
    assert "large" not in await site.names()


@pytest.mark.bubblewrap
async def test_a_file_that_stops_midway_leaves_nothing(site: Site) -> None:
    boundary = "b0undary"
    fields = form(site.box, "half")
    head = "".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += f'--{boundary}\r\ncontent-disposition: form-data; name="0"; filename="f"\r\n\r\n'
    body = head.encode() + b"x" * MIB
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        (
            "POST /graphql HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: {site.token['authorization']}\r\n"
            f"content-type: multipart/form-data; boundary={boundary}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode()
        + body
    )
    async with asyncio.timeout(60):
        answer = (await reader.read()).decode()
    writer.close()
    assert "The file did not come to its end." in answer
    assert "INTERNAL" not in answer
    assert "half" not in await site.names()


@pytest.mark.bubblewrap
async def test_who_may_not_write_there_is_told_so(site: Site) -> None:
    bob = await site.api.person("bob")
    answer = await send(site, "f", b"x", headers={"authorization": f"Bearer {bob.token}"})
    (error,) = answer.json()["data"]["sandboxFileUpload"]["errors"]
    assert error["code"] == "NOT_FOUND"
    anonymous = await send(site, "f", b"x", headers=GUARD)
    assert anonymous.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    # A page of another site can send nothing but this.
    forged = await send(site, "f", b"x", headers={"cookie": f"noosphere_token={site.ada.token}"})
    assert (forged.status_code, forged.json()["errors"][0]["extensions"]["code"]) == (
        403,
        "FORBIDDEN",
    )
    assert "f" not in await site.names()


async def test_what_is_no_request_with_a_file_is_told_what_is_wrong(tmp_path: Path) -> None:
    query = '{"query": "query($f: Upload) { viewer { id } }", "variables": {"f": null}}'
    cases: list[tuple[dict[str, str], str]] = [
        ({"operations": "{", "map": "{}"}, "`operations` is not valid JSON"),
        ({"operations": "[]", "map": "{}"}, "`operations` must be a map"),
        ({"map": "{}", "operations": "{}"}, "must have `operations` here; this is 'map'"),
        ({"operations": query, "map": "[]"}, "`map` must be a map"),
        ({"operations": query, "map": '{"0": ["variables.f", "x"]}'}, "One file in one place"),
        ({"operations": query, "map": '{"0": ["variables.g"]}'}, "where null stands"),
        ({"operations": query, "map": '{"0": ["query"]}'}, "a place below `variables`"),
        ({"operations": query, "map": '{"0": [7]}'}, "a place below `variables`"),
        ({"operations": query, "map": '{"1": ["variables.f"]}'}, "must have the file '1'"),
        ({"operations": query, "map": '{"0": ["variables.f"]}'}, "Unused|never used|not used"),
        ({"operations": " " * (3 * MIB), "map": "{}"}, "larger than 2,097,152 bytes"),
    ]
    async with served(tmp_path) as server, httpx.AsyncClient(timeout=60) as client:
        for fields, words in cases:
            answer = await client.post(
                f"{server.url}/graphql", data=fields, files={"0": ("f", b"x")}, headers=GUARD
            )
            (error,) = answer.json()["errors"]
            assert any(word in error["message"] for word in words.split("|")), error
        used = json.dumps(
            {"query": "query($f: [ID!]!) { nodes(ids: $f) { id } }", "variables": {"f": None}}
        )
        fields = {"operations": used, "map": '{"0": ["variables.f"]}'}
        answer = await client.post(
            f"{server.url}/graphql", data=fields, files={"0": ("f", b"x")}, headers=GUARD
        )
        assert answer.json()["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        plain = await client.post(
            f"{server.url}/graphql",
            json={
                "query": UPLOAD,
                "variables": {"input": {"sandboxId": "s", "path": "p", "file": 7}},
            },
        )
        assert "a file that comes with the operation" in plain.json()["errors"][0]["message"]


def received(body: bytes, size: int, *, ends: bool = True) -> Any:
    """Give an ASGI `receive` of a body that comes in pieces of a size."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or not ends}

    return receive


CONTENT = b"one\r\n--bound\r\n-two--boundary-\r\n\r\n--boundar\x00\xff"


def body_of(content: bytes) -> bytes:
    parts = [
        b'content-disposition: form-data; name="operations"\r\n\r\n{"variables": {"f": [null]}}',
        b'Content-Disposition: form-data; name=map\r\n\r\n{"0": ["variables.f.0"]}',
        b'content-disposition: form-data; name="0"; filename="a \\"b\\";.txt"\r\n'
        b"content-type: text/plain\r\n\r\n" + content,
    ]
    return b"".join(b"--boundary\r\n" + part + b"\r\n" for part in parts) + b"--boundary--\r\n"


def upload_of(receive: Any) -> Upload:
    headers = {**GUARD, "content-type": 'multipart/form-data; boundary="boundary"'}
    return Upload(Headers(headers), receive, 1000)


async def whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("content", [CONTENT, b"", b"x" * 5000, b"\r\n" * 40])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 64, 100_000])
async def test_a_form_is_read_whatever_the_pieces_it_comes_in(content: bytes, size: int) -> None:
    data = await upload_of(received(body_of(content), size)).operation()
    (file,) = data["variables"]["f"]
    assert isinstance(file, UploadedFile)
    assert (file.name, file.content_type) == ('a "b";.txt', "text/plain")
    assert await whole(file.chunks) == content


@pytest.mark.parametrize("ends", [True, False])
async def test_a_form_that_ends_early_is_no_form(ends: bool) -> None:
    body = body_of(CONTENT)
    start = body.index(b"one")
    for cut in (1, 20, 80, 150, start - 1):
        with pytest.raises(Exception) as refused:  # noqa: PT011 - either says so in its own way.
            await upload_of(received(body[:cut], 16, ends=ends)).operation()
        assert type(refused.value).__name__ in ("BadRequestError", "ClientGoneError")
    data = await upload_of(received(body[: start + 9], 16, ends=ends)).operation()
    with pytest.raises(RequestError, match="did not come to its end"):
        await whole(data["variables"]["f"][0].chunks)


async def test_the_parts_before_the_file_are_bounded() -> None:
    long = b'--boundary\r\ncontent-disposition: form-data; name="operations"\r\n\r\n' + b" " * 5000
    with pytest.raises(BadRequestError, match="larger than 1,000 bytes"):
        await upload_of(received(long, 64, ends=False)).operation()
    head = b"--boundary\r\n" + b"x: y\r\n" * 3000
    with pytest.raises(BadRequestError, match="larger than 8,192 bytes"):
        await upload_of(received(head, 64, ends=False)).operation()


@pytest.mark.parametrize("is_file", [True, False])
async def test_a_form_of_a_byte_now_and_then_ends(
    monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    monkeypatch.setattr(graphql_upload, "_PACE_S", 0.3)
    whole_form = body_of(b"")
    cut = whole_form.index(b"\r\n--boundary--") if is_file else 30
    read = received(whole_form[:cut], 100_000, ends=False)
    begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            begun.set()
            return await read()
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async with asyncio.timeout(60):
        if is_file:
            data = await upload_of(receive).operation()
            with pytest.raises(RequestError, match="did not come to its end"):
                await whole(data["variables"]["f"][0].chunks)
        else:
            with pytest.raises(BadRequestError, match="did not arrive in time"):
                await upload_of(receive).operation()


async def test_the_files_of_one_viewer_keep_nobody_else_waiting() -> None:
    release = asyncio.Event()
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def make_context(info: RequestInfo) -> str:
        return info.headers["authorization"]

    class Held(GraphQLHTTP):
        async def prepare(self, params: Params, context: Any, id_: str) -> Result:
            begun.put_nowait(context)
            await release.wait()
            return Result.refused([{"message": "ended"}])

    streams = Streams(viewer_id=str)
    http = Held(Engine(schema.build()._schema), make_context, streams=streams, max_uploads=1)

    async def ask(who: str) -> dict[str, Any]:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = {
            **GUARD,
            "authorization": who,
            "content-type": "multipart/form-data; boundary=boundary",
        }
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/graphql",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
        body = body_of(b"").replace(b'{"variables', b'{"query": "mutation { x }", "variables')
        await http(scope, received(body, 100_000), send)
        return dict(json.loads(b"".join(m.get("body", b"") for m in sent))["errors"][0])

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        alice = group.create_task(ask("alice"))
        assert await begun.get() == "alice"
        refused = await ask("alice")
        assert refused["extensions"]["code"] == "RATE_LIMITED"
        bob = group.create_task(ask("bob"))
        assert await begun.get() == "bob"
        release.set()
    assert alice.result()["message"] == bob.result()["message"] == "ended"
    assert (await ask("alice"))["message"] == "ended"
