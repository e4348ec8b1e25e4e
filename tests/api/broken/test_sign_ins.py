"""Sign-ins that are wrong, used up or revoked, and sockets that begin badly."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Subprotocol

from tests.api.broken.conftest import VIEWER
from tests.api.hostile import assert_decent
from tests.product import Client, Product, errors_of

REFRESH = """
mutation($t: String!) { sessionRefresh(refreshToken: $t) {
  session { token refreshToken } errors { code message path } } }
"""


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
    short = Product(
        tmp_path / "data", NOOSPHERE_SANDBOX_DRIVER="off", NOOSPHERE_ACCESS_TOKEN_TTL="3"
    )
    with short.started() as server:
        async with Client(server.url) as client:
            await client.register("ephemeral")
            socket = await open_socket(server)
            await socket.send(json.dumps({"type": "connection_init", "payload": client.headers}))
            assert await closing(socket) == (4403, "Session expired")

            answer: dict[str, Any] = await client.raw(VIEWER)

            (error,) = answer["errors"]
            assert error["extensions"]["code"] == "UNAUTHENTICATED"
            assert "expired" in error["message"]
            assert "data" not in answer
