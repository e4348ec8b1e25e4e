"""Servers inside sandboxes, reached over HTTP and WebSocket by their owners."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app import sandbox_port_http as bridge
from app.sandbox_port_headers import Place, location, set_cookie
from services.errors import UserError, UserErrorCode
from services.sandboxes import lifecycle, ports, relay
from tests.api.people import sign_up
from tests.services.sandboxes.ports.conftest import Site


async def test_owners_reach_a_server_inside(site: Site) -> None:
    told = await site.told(
        "GET",
        "/a%20b/%2e%2e/c?x=1&y=%00",
        headers={
            **site.signed_in,
            "Cookie": "noosphere_token=secret; other=2; sandbox-port-8080.mine=3",
            "Referer": "http://elsewhere/secret",
            "Origin": site.origin,
            "X-Custom": "kept",
            "X-Hop": "dropped",
            "Connection": "X-Hop",
        },
    )
    assert told["path"] == "/a%20b/%2e%2e/c?x=1&y=%00"
    fields = told["fields"]
    assert fields["cookie"] == "mine=3"
    assert fields["host"] == "localhost:8080"
    assert fields["origin"] == "http://localhost:8080"
    assert fields["x-custom"] == "kept"
    assert fields["x-forwarded-prefix"] == site.path
    assert not {"authorization", "referer", "x-hop"} & fields.keys()
    assert site.ada.token not in json.dumps(told)
    body = bytes(range(256)) * 4096
    sent = await site.told("POST", "/up", content=body)
    assert (sent["method"], sent["length"]) == ("POST", len(body))

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    streamed = await site.told("PUT", "/up", content=parts())
    assert (streamed["length"], streamed["digest"]) == (len(body), sent["digest"])
    assert len((await site.ask("GET", "/big")).content) == 8_000_000
    head = await site.ask("HEAD", "/x")
    assert (head.status_code, head.content) == (200, b"")
    assert (await site.ask("GET", "/open")).text == "until the end"


async def test_a_server_inside_may_sign_its_visitors_in_itself(wrapped: Site) -> None:
    deps, ada, http = wrapped.server.deps, wrapped.ada, wrapped.http
    link = (await ports.share(deps, ada.viewer, port_id=wrapped.port.id)).path
    eve = await sign_up(deps, "eve")
    page = {"Cookie": f"noosphere_token={ada.token}", "Origin": wrapped.origin}
    ours = [f"Bearer {ada.token}", f"bearer  {eve.token}"]
    theirs = ["Basic YWRhOmVuaWdtYQ==", f"Bearer {'x' * 43}", "Bearer a.b.c", "Digest x"]
    for given in theirs:
        for path, more in ((link, {}), (f"{wrapped.path}/", page)):
            answer = await http.get(path, headers={**more, "Authorization": given})
            told = dict(answer.json()["headers"])
            assert told["authorization"] == given
            assert ada.token not in answer.text
        # Without a cookie or a link it is us that it must sign in to.
        assert (await wrapped.ask("GET", "/", headers={"Authorization": given})).status_code == 401
    for given in ours:
        answer = await http.get(link, headers={"Authorization": given})
        assert (answer.status_code, "authorization" in dict(answer.json()["headers"])) == (
            200,
            False,
        )
    answer = await wrapped.ask("GET", "/", headers={**page, "Authorization": ours[0]})
    assert "authorization" not in dict(answer.json()["headers"])
    # A sign-in of ours that is another's is no help of the cookie.
    answer = await wrapped.ask("GET", "/", headers={**page, "Authorization": ours[1]})
    assert answer.status_code == 404
    # What the server inside asks for comes out where it can be answered.
    asked = await http.get(f"{link}headers")
    assert asked.headers["www-authenticate"] == "Basic"
    async with (
        asyncio.timeout(60),
        wrapped.socket("ws", link, headers={"Authorization": theirs[0]}) as socket,
    ):
        assert dict(json.loads(await socket.recv()))["authorization"] == theirs[0]


async def test_messages_pass_both_ways(site: Site) -> None:
    async with asyncio.timeout(60), site.socket(subprotocols=["chat"]) as socket:
        assert socket.subprotocol == "chat"
        fields = dict(json.loads(await socket.recv()))
        assert "authorization" not in fields
        await socket.send("héllo")
        assert await socket.recv() == "héllo"
        await socket.send(b"\0\xff")
        assert await socket.recv() == b"\0\xff"
        await socket.close(4000)
    await site.printed("closed 4000")
    async with asyncio.timeout(60), site.socket() as socket:
        await socket.recv()
        await socket.send("bye")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4321


async def test_nothing_of_an_answer_speaks_for_the_whole_site(wrapped: Site) -> None:
    answer = await wrapped.ask("GET", "/headers")
    cookies = answer.headers.get_list("set-cookie")
    assert cookies == [
        f"sandbox-port-8080.a=1; HttpOnly; Path={wrapped.path}/x",
        f"sandbox-port-8080.noosphere_token=evil; Path={wrapped.path}/",
    ]
    policies = answer.headers.get_list("content-security-policy")
    assert policies[0].startswith("default-src")
    assert policies[1].startswith("sandbox ")
    assert "same-origin" not in policies[1]
    assert "top-navigation" not in policies[1]
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == '"x"'
    gone = ("clear-site-data", "x-accel-redirect", "strict-transport-security")
    for name in (*gone, "service-worker-allowed", "www-authenticate"):
        assert name not in answer.headers
    moved = await wrapped.ask("GET", "/move", headers={**wrapped.signed_in, "X-To": "/there"})
    assert moved.headers["location"] == f"{wrapped.path}/there"
    bare = await wrapped.ask("GET", "?x=1")
    assert (bare.status_code, bare.headers["location"]) == (308, f"{wrapped.path}/?x=1")


PLACE = Place("/p", "/p/~t", 8080, "https", "site.test", "::1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a?b#c", "/p/~t/a?b#c"),
        ("a", "a"),
        ("http://localhost:8080/a", "/p/~t/a"),
        ("http://127.0.0.1:8080", "/p/~t/"),
        ("https://site.test/a", "/p/~t/a"),
        ("http://localhost:9/a", "http://localhost:9/a"),
        ("//elsewhere.test/a", "//elsewhere.test/a"),
        ("https://elsewhere.test/a", "https://elsewhere.test/a"),
        ("/p/~t/a", "/p/~t/a"),
        ("http://localhost:8080//elsewhere.test/", "/p/~t//elsewhere.test/"),
        ("http://[", "/p/~t/"),
    ],
)
def test_redirects_stay_where_they_belong(value: str, expected: str) -> None:
    assert location(value, PLACE) == expected


def test_cookies_are_a_ports_own() -> None:
    assert set_cookie("a=b=c; path=relative; SameSite=None; Secure; Partitioned", PLACE) == (
        "sandbox-port-8080.a=b=c; SameSite=None; Secure; Path=/p/"
    )
    assert set_cookie("nothing", PLACE) is None
    assert set_cookie("__Host-a=1; Path=/", PLACE) == "sandbox-port-8080.__Host-a=1; Path=/p/"


async def test_what_goes_wrong_inside_is_told(
    wrapped: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8081)
    nothing = await wrapped.http.get(
        f"/sandboxes/{wrapped.box.id}/ports/8081/", headers=wrapped.signed_in
    )
    assert nothing.status_code == 502
    assert "Nothing listens" in nothing.text
    assert (await wrapped.ask("GET", "/junk")).status_code == 502
    assert (await wrapped.ask("POST", "/early", content=b"x" * 3_000_000)).status_code == 413
    with pytest.raises(httpx.RemoteProtocolError):
        await wrapped.ask("GET", "/cut")
    monkeypatch.setattr(bridge, "HEAD_S", 0.2)
    assert (await wrapped.ask("GET", "/silent")).status_code == 504
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket(headers={**wrapped.signed_in, "X-Refuse": "1"}):
            pass
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket("/"):
            pass
    assert refused.value.response.status_code == 502
    assert (await wrapped.ask("TRACE", "/")).status_code == 404
    monkeypatch.setattr(ports, "CONNECTIONS_PER_SANDBOX", 0)
    full = await wrapped.ask("GET", "/")
    assert (full.status_code, full.headers["retry-after"]) == (503, "1")
    await lifecycle.pause(deps, ada, sandbox_id=wrapped.box.id)
    assert (await wrapped.ask("GET", "/")).status_code == 409
    await lifecycle.stop(deps, ada, sandbox_id=wrapped.box.id)
    assert (await wrapped.ask("GET", "/")).status_code == 409


async def test_a_client_that_leaves_is_noticed_inside(wrapped: Site) -> None:
    async with wrapped.http.stream(
        "GET", f"{wrapped.path}/hold", headers=wrapped.signed_in
    ) as answer:
        assert await anext(answer.aiter_raw()) == b"hi"
    await wrapped.printed("left")
    socket: ClientConnection
    async with wrapped.socket() as socket:
        await socket.recv()
        socket.transport.abort()
    await wrapped.printed("closed 1")


async def test_a_sandbox_of_another_node_is_reached_over_the_bus(
    wrapped: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "open", relay.open_remote)
    body = bytes(range(256)) * 2048
    sent = await wrapped.told("POST", "/up?over=bus", content=body)
    assert (sent["path"], sent["length"]) == ("/up?over=bus", len(body))
    assert len((await wrapped.ask("GET", "/big")).content) == 8_000_000
    async with asyncio.timeout(60), wrapped.socket() as socket:
        await socket.recv()
        await socket.send("over the bus")
        assert await socket.recv() == "over the bus"


async def test_a_client_that_does_not_read_stalls_the_server_inside(wrapped: Site) -> None:
    port = int(wrapped.origin.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    request = f"GET {wrapped.path}/flood HTTP/1.1\r\nHost: x\r\n"
    writer.write(f"{request}Authorization: Bearer {wrapped.ada.token}\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    await wrapped.printed("stalled")
    writer.transport.abort()


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 4\r\nContent-Length: 60",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length: 4\r\nX: y\rTransfer-Encoding: chunked",
        "Content-Length: +4",
    ],
)
async def test_requests_are_not_smuggled_past_the_sign_in(wrapped: Site, lengths: str) -> None:
    port = int(wrapped.origin.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {wrapped.path}/up HTTP/1.1\r\nHost: x\r\n{lengths}\r\n"
    head += f"Authorization: Bearer {wrapped.ada.token}\r\n\r\n"
    second = f"GET {wrapped.path}/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(f"{head}0\r\n\r\n{second}".encode())
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"/smuggled" not in answer


async def test_a_sandbox_has_few_open_ports(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    for port in (0, 65536):
        with pytest.raises(UserError) as refused:
            await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=port)
        assert refused.value.code is UserErrorCode.INVALID
    for port in range(1, ports.PORTS_PER_SANDBOX):
        await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=port)
    same = await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8080)
    assert same.id == wrapped.port.id
    with pytest.raises(UserError) as refused:
        await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=9999)
    assert refused.value.code is UserErrorCode.LIMIT
