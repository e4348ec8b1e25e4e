"""Requests that are broken on the wire: the running server answers each and lives on."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from tests.api import operations as op
from tests.api.hostile import assert_decent
from tests.product import Client, Product, errors_of

JSON_TYPE = {"Content-Type": "application/json"}
VIEWER = "{ viewer { id username } }"
REFRESH = """
mutation($t: String!) { sessionRefresh(refreshToken: $t) {
  session { token refreshToken } errors { code message path } } }
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    server = Product(
        tmp_path_factory.mktemp("product") / "data",
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_EMBEDDED_WORD_DELAY_MS="0",
    )
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(autouse=True)
async def the_server_lives_and_logs_no_bug(product: Product) -> AsyncIterator[None]:
    logged = len(product.output())
    yield
    async with httpx.AsyncClient(base_url=product.url, timeout=60) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        answer = await http.post("/graphql", json={"query": VIEWER})
        assert answer.json()["data"] == {"viewer": None}
    assert product.process is not None
    assert product.process.poll() is None
    # The last is what uvicorn says, with a traceback of its own, when it closes with 1007.
    said = "\n".join(
        line
        for line in product.output()[logged:].splitlines()
        if "Invalid UTF-8 sequence received from client" not in line
    )
    assert "Traceback" not in said, said[-4000:]
    assert '"error"' not in said.lower(), said[-4000:]


@pytest.fixture
async def client(product: Product, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    made = Client(product.url)
    await made.register(f"u{abs(hash(request.node.nodeid)) % 10**12}")
    try:
        yield made
    finally:
        await made.aclose()


async def conversation_of(client: Client) -> str:
    data = await client.run(op.CREATE_CONVERSATION)
    return str(data["conversationCreate"]["conversation"]["id"])


def body_of(content: bytes) -> bytes:
    """Give a request whose message text is these very bytes."""
    head = json.dumps({"query": op.SEND, "variables": {"id": "cnv_1", "content": "@"}}).encode()
    return head.replace(b"@", content)


BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "BAD_REQUEST"),
    "no JSON": (b"{", 400, "BAD_REQUEST"),
    "invalid UTF-8": (body_of(b"\xff\xfe"), 400, "BAD_REQUEST"),
    "overlong UTF-8": (body_of(b"\xc0\xaf"), 400, "BAD_REQUEST"),
    "a surrogate in UTF-8": (body_of(b"\xed\xa0\x80"), 400, "BAD_REQUEST"),
    "half a surrogate pair": (body_of(b"\\ud800"), 400, "BAD_REQUEST"),
    "a pair the wrong way round": (body_of(b"\\udc00\\ud800"), 400, "BAD_REQUEST"),
    "raw NUL": (body_of(b"\x00"), 400, "BAD_REQUEST"),
    "UTF-16": (json.dumps({"query": VIEWER}).encode("utf-16"), 400, "BAD_REQUEST"),
    "NaN": (b'{"query": "{ viewer { id } }", "variables": {"a": NaN}}', 400, "BAD_REQUEST"),
    "a list": (b"[]", 400, "BAD_REQUEST"),
    "a number": (b"7", 400, "BAD_REQUEST"),
    "null": (b"null", 400, "BAD_REQUEST"),
    "no query": (b"{}", 400, "BAD_REQUEST"),
    "a query that is a number": (b'{"query": 7}', 400, "BAD_REQUEST"),
    "variables that are a list": (
        b'{"query": "{ viewer { id } }", "variables": []}',
        400,
        "BAD_REQUEST",
    ),
    "5,000 levels of JSON": (
        b'{"query": "{ viewer { id } }", "variables": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        400,
        "BAD_REQUEST",
    ),
    "more than may be sent": (b" " * 2_200_000, 413, "LIMIT"),
    "a NUL in the document": (b'{"query": "{ viewer \\u0000 { id } }"}', 400, ""),
    "half a pair in the document": (
        b'{"query": "{ node(id: \\"\\\\ud800\\") { id } }"}',
        400,
        "GRAPHQL_PARSE_FAILED",
    ),
    "deep selections": (
        json.dumps({"query": "{ viewer " * 2000 + "{ id }" + " }" * 2000}).encode(),
        400,
        "",
    ),
    "deep lists in the document": (
        json.dumps({"query": "{ nodes(ids: " + "[" * 2000 + "]" * 2000 + ") { id } }"}).encode(),
        400,
        "",
    ),
}


@pytest.mark.parametrize("what", BODIES)
async def test_a_broken_body_is_refused(product: Product, what: str) -> None:
    body, status, code = BODIES[what]
    for accept in ("application/graphql-response+json", "application/json"):
        async with httpx.AsyncClient(base_url=product.url, timeout=60) as http:
            answer = await http.post(
                "/graphql", content=body, headers={**JSON_TYPE, "Accept": accept}
            )
        assert_decent(answer.text)
        if accept != "application/json" or code in ("BAD_REQUEST", "LIMIT"):
            assert answer.status_code == status, answer.text
        (error,) = answer.json()["errors"]
        assert error["message"]
        assert error["extensions"]["code"] == code or not code, error


async def test_the_same_text_with_a_nul_that_json_allows_is_told_as_such(client: Client) -> None:
    id_ = await conversation_of(client)

    data = await client.run(op.SEND, id=id_, content="a\x00b")

    assert errors_of(data["messageSend"]) == [("INVALID", "input.content")]


async def test_a_message_of_a_megabyte_is_told_its_limit(client: Client) -> None:
    id_ = await conversation_of(client)

    answer = await client.raw(op.SEND, id=id_, content="é" * 1_000_000)

    assert_decent(answer)
    if answer.get("data"):
        assert errors_of(answer["data"]["messageSend"]) == [("LIMIT", "input.content")]
    else:
        assert answer["errors"][0]["extensions"]["code"] == "LIMIT"
    data = await client.run(op.SEND, id=id_, content="x" * 1_048_576)
    assert errors_of(data["messageSend"]) == [("LIMIT", "input.content")]
    kept = await client.run(op.MESSAGES, id=id_)
    assert kept["conversation"]["messages"]["nodes"] == []


@pytest.mark.parametrize("levels", [40, 500, 1000])
async def test_deep_json_in_the_arguments_of_a_step_is_refused(client: Client, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    body = {
        "query": op.CREATE_PLAN,
        "variables": {
            "input": {
                "title": "Deep",
                "steps": [{"description": "a", "tool": "recall", "arguments": {"query": "DEEP"}}],
            }
        },
    }
    raw = json.dumps(body).replace('"DEEP"', deep)

    answer = await client.http.post(
        "/graphql", content=raw, headers={**JSON_TYPE, **client.headers}
    )

    assert_decent(answer.text)
    found = answer.json()
    if "errors" in found:
        assert found["errors"][0]["extensions"]["code"] == "BAD_REQUEST"
    else:
        ((code, path),) = errors_of(found["data"]["planCreate"])
        assert code == "INVALID"
        assert path.startswith("input.steps.0.arguments.query")


async def test_deep_json_written_in_the_document_is_refused(client: Client) -> None:
    for levels in (40, 400, 2000, 20_000):
        deep = "[" * levels + "]" * levels
        answer = await client.raw(
            'mutation { planCreate(input: {title: "Deep", steps: [{description: "a",'
            f' tool: "recall", arguments: {{query: {deep}}}}}]}}) {{ errors {{ code path }} }} }}'
        )
        assert_decent(answer)
        if answer.get("errors"):
            code = answer["errors"][0]["extensions"]["code"]
            assert code in ("LIMIT", "GRAPHQL_PARSE_FAILED", "BAD_USER_INPUT"), answer
        else:
            assert answer["data"]["planCreate"]["errors"][0]["code"] == "INVALID"


# ---- tokens

WRONG_TOKENS = {
    "garbage": "Bearer garbage",
    "empty": "Bearer",
    "another scheme": "Basic dXNlcjpwYXNz",
    "no scheme": "token",
    "long": "Bearer " + "x" * 6000,
    "not ASCII": "Bearer \xe9\xe8",
}


@pytest.mark.parametrize("what", WRONG_TOKENS)
async def test_a_wrong_token_is_refused_over_http(product: Product, what: str) -> None:
    async with httpx.AsyncClient(base_url=product.url, timeout=60) as http:
        answer = await http.post(
            "/graphql",
            json={"query": VIEWER},
            headers=[
                (b"authorization", WRONG_TOKENS[what].encode("latin-1")),
                (b"accept", b"application/graphql-response+json"),
            ],
        )
    assert answer.status_code == 401
    assert_decent(answer.text)
    assert answer.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    assert "data" not in answer.json()


async def open_socket(product: Product) -> ClientConnection:
    return await connect(
        product.url.replace("http", "ws") + "/graphql",
        subprotocols=[Subprotocol("graphql-transport-ws")],
        open_timeout=30,
    )


async def closing(socket: ClientConnection) -> tuple[int, str]:
    """Give the code and reason with which the server closes."""
    with contextlib.suppress(ConnectionClosedError):
        async with asyncio.timeout(30):
            async for message in socket:
                assert_decent(json.loads(message))
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


@pytest.mark.parametrize("what", WRONG_TOKENS)
async def test_a_wrong_token_is_refused_over_a_socket(product: Product, what: str) -> None:
    socket = await open_socket(product)
    payload = {"Authorization": WRONG_TOKENS[what]}
    await socket.send(json.dumps({"type": "connection_init", "payload": payload}))

    assert await closing(socket) == (4403, "Forbidden")


INITS: dict[str, tuple[str | bytes, int]] = {
    "no JSON": ("{", 4400),
    "a list": ("[]", 4400),
    "null": ("null", 4400),
    "no type": ("{}", 4400),
    "an unknown type": ('{"type": "hello"}', 4400),
    "a type that is a number": ('{"type": 7}', 4400),
    "a payload that is a list": ('{"type": "connection_init", "payload": []}', 4400),
    "a payload that is a text": ('{"type": "connection_init", "payload": "token"}', 4400),
    "a token that is a number": (
        '{"type": "connection_init", "payload": {"Authorization": 7}}',
        4403,
    ),
    "a token that is a map": (
        '{"type": "connection_init", "payload": {"Authorization": {"a": 1}}}',
        4403,
    ),
    "half a surrogate pair": (
        '{"type": "connection_init", "payload": {"Authorization": "Bearer \\ud800"}}',
        4400,
    ),
    "deep JSON": ('{"type": "connection_init", "payload": ' + "[" * 5000 + "]" * 5000 + "}", 4400),
    "a binary frame": (b'{"type": "connection_init"}', 4400),
    "an operation before it": (
        json.dumps({"id": "1", "type": "subscribe", "payload": {"query": VIEWER}}),
        4401,
    ),
}


@pytest.mark.parametrize("what", INITS)
async def test_a_malformed_beginning_closes_the_socket(product: Product, what: str) -> None:
    message, code = INITS[what]
    socket = await open_socket(product)
    await socket.send(message)

    found, reason = await closing(socket)

    assert found == code, reason
    assert_decent(reason)


async def test_invalid_utf8_in_a_text_frame_closes_the_socket(product: Product) -> None:
    socket = await open_socket(product)
    await socket.send(b'{"type": "connection_init", "x": "\xff"}', text=True)

    code, _ = await closing(socket)

    assert code in (1007, 4400)


async def test_two_beginnings_close_the_socket(product: Product) -> None:
    socket = await open_socket(product)
    for _ in range(2):
        await socket.send('{"type": "connection_init"}')

    assert (await closing(socket))[0] == 4429


async def test_a_used_refresh_token_ends_the_sign_in_everywhere(client: Client) -> None:
    signed_in = await client.run(
        "mutation($l: String!) { sessionCreate(input: {login: $l, password: $p}) {"
        " session { token refreshToken } } }".replace("$p", '"correct horse"'),
        l=(await client.run(VIEWER))["viewer"]["username"],
    )
    first = signed_in["sessionCreate"]["session"]
    second = (await client.run(REFRESH, t=first["refreshToken"]))["sessionRefresh"]["session"]
    assert second["token"] != first["token"]
    old, new = Client(client.url, first["token"]), Client(client.url, second["token"])
    try:
        assert (await old.raw(VIEWER))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        assert (await new.run(VIEWER))["viewer"]["username"]

        reused = (await client.run(REFRESH, t=first["refreshToken"]))["sessionRefresh"]

        assert reused["session"] is None
        assert errors_of(reused) == [("INVALID", "refreshToken")]
        assert (await new.raw(VIEWER))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        for token in (first["refreshToken"], second["refreshToken"]):
            again = (await client.run(REFRESH, t=token))["sessionRefresh"]
            assert errors_of(again) == [("INVALID", "refreshToken")]
    finally:
        await old.aclose()
        await new.aclose()


async def test_a_revoked_sign_in_closes_its_sockets_and_no_others(
    product: Product, client: Client
) -> None:
    other = Client(client.url)
    await other.register(f"other{abs(hash(client.token)) % 10**9}")
    sockets = []
    try:
        for headers in (client.headers, other.headers):
            socket = await open_socket(product)
            await socket.send(json.dumps({"type": "connection_init", "payload": headers}))
            assert json.loads(await socket.recv())["type"] == "connection_ack"
            sockets.append(socket)

        await client.run("mutation { sessionRevoke { errors { code } } }")

        # Without the signal it would be found after 20 seconds only.
        async with asyncio.timeout(15):
            assert await closing(sockets[0]) == (4403, "Session revoked")
        await sockets[1].send(
            json.dumps({"id": "1", "type": "subscribe", "payload": {"query": VIEWER}})
        )
        answer = json.loads(await sockets[1].recv())
        assert answer["payload"]["data"]["viewer"]["username"].startswith("other")
        assert (await client.raw(VIEWER))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    finally:
        for socket in sockets:
            await socket.close()
        await other.aclose()


async def test_an_expired_token_is_told_as_expired_and_its_socket_closed(tmp_path: Path) -> None:
    server = Product(
        tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="off", NOOSPHERE_ACCESS_TOKEN_TTL="3"
    ).start()
    client = Client(server.url)
    try:
        await client.register("ephemeral")
        socket = await open_socket(server)
        await socket.send(json.dumps({"type": "connection_init", "payload": client.headers}))
        assert await closing(socket) == (4403, "Session expired")

        answer: dict[str, Any] = await client.raw(VIEWER)

        (error,) = answer["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"
        assert "expired" in error["message"]
        assert "data" not in answer
    finally:
        await client.aclose()
        server.close()
