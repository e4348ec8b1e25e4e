"""Who a cookie signs in, over streams, requests and sockets."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.auth import cookie_token
from services.errors import ForbiddenError
from tests.api import operations as op
from tests.api.http_streams.readers import (
    PAGE,
    conversation,
    person,
    told,
)
from tests.api.transport.streams import reading
from tests.product import Client, Product

pytestmark = pytest.mark.timeout(240)


async def ask(server: Product, query: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post(f"{server.url}/graphql", json={"query": query}, headers=names)


async def open_stream(server: Product, id_: str, **headers: str) -> tuple[httpx.Response, bytes]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with reading(
        f"{server.url}/graphql",
        op.CONVERSATION_EVENTS,
        method="GET",
        variables={"id": id_},
        headers=names,
    ) as body:
        if body.response.status_code != 200:
            await body.rest()
        else:
            await body.until(b"event: next")
        return body.response, body.seen


async def test_a_plain_event_source_signs_in_by_the_cookie_of_its_own_page(
    server: Product, ann: Client
) -> None:
    id_ = await conversation(ann)
    cookie = f"theme=dark; noosphere_token={ann.token}"
    response, text = await open_stream(server, id_, cookie=cookie, sec_fetch_site="same-origin")
    assert response.status_code == 200
    assert told(text)[0]["__typename"] == "ConversationReset"
    assert "set-cookie" not in response.headers
    # Browsers before Sec-Fetch-Site name the origin of what is not a plain GET.
    own = await ask(server, "{ viewer { id } }", cookie=cookie, origin=server.url)
    assert own.json()["data"]["viewer"] is not None
    # A page of an origin that is listed by name, and may read the answer.
    listed, text = await open_stream(
        server, id_, cookie=cookie, sec_fetch_site="cross-site", origin=PAGE
    )
    assert told(text)[0]["__typename"] == "ConversationReset"
    assert listed.headers["access-control-allow-origin"] == PAGE
    assert listed.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "origin": "https://evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site", "x_graphql_preflight": "1"},
    ],
)
async def test_a_cookie_signs_nobody_in_for_a_page_not_known_to_be_ours(
    server: Product, ann: Client, headers: dict[str, str]
) -> None:
    id_ = await conversation(ann)
    cookie = f"noosphere_token={ann.token}"
    change = f'conversationUpdate(id: "{id_}", input: {{title: "Mine"}}) {{ errors {{ code }} }}'
    rename = f"mutation {{ {change} }}"
    posted = await ask(server, rename, cookie=cookie, **headers)
    assert posted.status_code == 403
    assert posted.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    got, _ = await open_stream(server, id_, cookie=cookie, **headers)
    assert got.status_code == 403
    async with httpx.AsyncClient() as client:
        form = await client.post(
            f"{server.url}/graphql",
            content=json.dumps({"query": rename}),
            headers={
                "cookie": cookie,
                "sec-fetch-site": "same-origin",
                "content-type": "text/plain",
            },
        )
        assert form.status_code == 415
    data = await ann.run(op.MESSAGES, id=id_)
    assert data["conversation"]["title"] == "Talk"


async def test_a_header_comes_before_the_cookie_and_needs_no_page(
    server: Product, ann: Client
) -> None:
    async with person(server) as bob:
        mixed = {"cookie": f"noosphere_token={bob.token}", **ann.headers}
        mine = await ask(server, "{ viewer { id } }", **mixed)
        plain = await ask(server, "{ viewer { id } }", **ann.headers)
    assert mine.json()["data"] == plain.json()["data"]


async def test_a_cookie_that_has_ended_stops_streams_but_not_signing_in_anew(
    server: Product, ann: Client
) -> None:
    id_ = await conversation(ann)
    stale = {"cookie": "noosphere_token=ended", "sec_fetch_site": "same-origin"}
    response, _ = await open_stream(server, id_, **stale)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    single = await ask(server, "{ viewer { id } }", **stale)
    assert (single.status_code, single.json()["data"]) == (200, {"viewer": None})


@pytest.mark.parametrize(
    ("origin", "is_let_in"), [("own", True), (PAGE, True), (None, False), ("null", False)]
)
async def test_a_socket_signs_in_by_the_cookie_of_its_own_page(
    server: Product, ann: Client, origin: str | None, is_let_in: bool
) -> None:
    async with person(server) as bob:
        headers = {"cookie": f"noosphere_token={ann.token}"}
        page = server.url if origin == "own" else origin
        address = server.url.replace("http", "ws") + "/graphql"

        async def who(payload: dict[str, str] | None) -> Any:
            async with connect(
                address,
                subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
                additional_headers=headers,
                origin=page,  # type: ignore[arg-type]
            ) as socket:
                await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
                await asyncio.wait_for(socket.recv(), 30)
                query = {"query": "{ viewer { username } }"}
                await socket.send(json.dumps({"id": "1", "type": "subscribe", "payload": query}))
                answer = json.loads(await asyncio.wait_for(socket.recv(), 30))
                return answer["payload"]["data"]["viewer"]["username"]

        if origin == "null":
            # Not even the handshake: no page of unknown origin gets a socket.
            with pytest.raises(InvalidStatus):
                await who(None)
            return
        if is_let_in:
            mine = await ann.run("{ viewer { username } }")
            assert await who(None) == mine["viewer"]["username"]
        else:
            with pytest.raises(ConnectionClosed) as closed:
                await who(None)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4403
        theirs = await bob.run("{ viewer { username } }")
        assert await who(bob.headers) == theirs["viewer"]["username"]


def test_letting_every_page_in_lets_none_use_cookies() -> None:
    headers = Headers({"host": "here", "origin": PAGE, "cookie": "noosphere_token=t"})
    assert cookie_token(headers, [PAGE]) == "t"
    with pytest.raises(ForbiddenError):
        cookie_token(headers, ["*"])
    assert cookie_token(Headers({"origin": PAGE, "cookie": "a=noosphere_token"}), ["*"]) is None
    assert cookie_token(Headers({"origin": PAGE, "cookie": "noosphere_token="}), ["*"]) is None


async def test_other_pages_may_send_what_streams_need(server: Product) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.options(
            f"{server.url}/graphql",
            headers={
                "origin": PAGE,
                "access-control-request-method": "POST",
                "access-control-request-headers": "last-event-id, traceparent, x-graphql-preflight",
            },
        )
        for method in ("PUT", "DELETE"):
            single = await client.options(
                f"{server.url}/graphql",
                headers={
                    "origin": PAGE,
                    "access-control-request-method": method,
                    "access-control-request-headers": "x-graphql-event-stream-token",
                },
            )
            assert single.status_code == 200
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
