"""Who may reach a server inside a sandbox, by links and by signing in, and how long."""

import asyncio
import json
from datetime import timedelta

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from models.base import now
from services.accounts import sessions
from services.errors import UserError, UserErrorCode
from services.sandboxes import links, ports
from tests.api.people import sign_up
from tests.services.sandboxes.ports.conftest import Site


async def test_foreign_ports_are_as_absent_ones(wrapped: Site) -> None:
    deps = wrapped.server.deps
    eve = await sign_up(deps, "eve")
    theirs = {"Authorization": f"Bearer {eve.token}"}
    absent = f"/sandboxes/{wrapped.box.id[:-4]}zzzz/ports/8080/"
    other = f"/sandboxes/{wrapped.box.id}/ports/8081/"
    answers = [
        await wrapped.ask("GET", "/", headers=theirs),
        await wrapped.http.get(absent, headers=theirs),
        await wrapped.http.get(absent, headers=wrapped.signed_in),
        await wrapped.http.get(other, headers=wrapped.signed_in),
        await wrapped.http.get(f"/sandboxes/{wrapped.box.id}/ports/99999/", headers=theirs),
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {
        (404, '{"error": {"code": "NOT_FOUND", "message": "There is no such port."}}')
    }
    nobody = await wrapped.ask("GET", "/", headers={})
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"] == "Bearer"
    cookie = {"Cookie": f"noosphere_token={wrapped.ada.token}"}
    assert (await wrapped.ask("GET", "/", headers=cookie)).status_code == 403
    page = {**cookie, "Origin": wrapped.origin}
    told = await wrapped.told("GET", "/", headers=page)
    assert wrapped.ada.token not in json.dumps(told)
    # A page of the sandbox itself has no origin, and nothing of its visitor's.
    inner = {**cookie, "Origin": "null", "Sec-Fetch-Site": "cross-site"}
    assert (await wrapped.ask("GET", "/", headers=inner)).status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        async with wrapped.socket(headers=theirs):
            pass
    assert refused.value.response.status_code == 404
    for verb in (ports.close, ports.share):
        with pytest.raises(UserError) as denied:
            await verb(deps, eve.viewer, port_id=wrapped.port.id)
        assert denied.value.code is UserErrorCode.NOT_FOUND
    with pytest.raises(UserError) as denied:
        await ports.open(deps, eve.viewer, sandbox_id=wrapped.box.id, port=1)
    assert denied.value.code is UserErrorCode.NOT_FOUND


async def test_links_let_anybody_in_until_they_are_void(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada.viewer
    shared = await ports.share(deps, ada, port_id=wrapped.port.id, seconds=60)
    other = await ports.share(deps, ada, port_id=wrapped.port.id)
    assert shared.expires_at <= now() + timedelta(seconds=60)
    told = (await wrapped.http.get(f"{shared.path}deep?x=1", headers={"Authorization": "x"})).json()
    assert told["path"] == "/deep?x=1"
    fields = dict(told["headers"])
    assert fields["x-forwarded-prefix"] == shared.path.rstrip("/")
    assert fields["authorization"] == "x"
    moved = await wrapped.http.get(f"{shared.path}move", headers={"X-To": "/there"})
    assert moved.headers["location"] == f"{shared.path}there"
    token = shared.path.rstrip("/").rpartition("~")[2]
    for bad in (token[:-1] + ("A" if token[-1] != "A" else "B"), "1" + token, token + "A"):
        answer = await wrapped.http.get(shared.path.replace(token, bad))
        assert answer.status_code in (401, 404)
    async with asyncio.timeout(60), wrapped.socket("ws", other.path, headers={}) as socket:
        await socket.recv()
        async with wrapped.socket() as own:
            await own.recv()
            last = await ports.share(deps, ada, port_id=wrapped.port.id, revokes_earlier=True)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            await own.send("still here")
            assert await own.recv() == "still here"
    for void in (shared, other):
        assert (await wrapped.http.get(void.path)).status_code == 404
    assert (await wrapped.http.get(last.path)).status_code == 200
    await ports.close(deps, ada, port_id=wrapped.port.id)
    assert (await wrapped.http.get(last.path)).status_code == 404
    again = await ports.open(deps, ada, sandbox_id=wrapped.box.id, port=8080)
    assert again.id != wrapped.port.id
    # What was given before is void although the port is open again.
    assert (await wrapped.http.get(last.path)).status_code == 404


async def test_links_expire_and_what_came_by_them_ends(wrapped: Site) -> None:
    deps, port = wrapped.server.deps, wrapped.port
    secret = deps.options.link_secret
    past = links.sign(secret, port_id=port.id, expires_at=now() - timedelta(seconds=5), epoch=0)
    answer = await wrapped.http.get(f"{wrapped.path}/~{past}/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN")
    soon = links.sign(secret, port_id=port.id, expires_at=now() + timedelta(seconds=3), epoch=0)
    path = f"{wrapped.path}/~{soon}/"
    async with asyncio.timeout(60), wrapped.socket("ws", path, headers={}) as held:
        await held.recv()
        with pytest.raises(ConnectionClosed):
            await held.recv()
    for seconds, code in ((0, UserErrorCode.INVALID), (3601, UserErrorCode.LIMIT)):
        with pytest.raises(UserError) as refused:
            await ports.share(deps, wrapped.ada.viewer, port_id=port.id, seconds=seconds)
        assert refused.value.code is code


def test_tokens_are_of_one_port_and_secret() -> None:
    at = now().replace(microsecond=0)
    token = links.sign(b"a", port_id="spt_1", expires_at=at, epoch=3)
    assert links.is_token(token)
    assert links.verify(b"a", token, port_id="spt_1") == links.Link(at, 3)
    assert links.verify(b"b", token, port_id="spt_1") is None
    assert links.verify(b"a", token, port_id="spt_2") is None
    later = f"{int(at.timestamp()) + 1:x}{token[token.index('.') :]}"
    assert links.verify(b"a", later, port_id="spt_1") is None
    with pytest.raises(RuntimeError):
        links.sign(b"", port_id="spt_1", expires_at=at, epoch=0)


async def test_connections_end_with_the_sign_in_and_with_the_port(wrapped: Site) -> None:
    deps, ada = wrapped.server.deps, wrapped.ada
    async with asyncio.timeout(60), wrapped.socket() as socket:
        await socket.recv()
        assert ada.viewer.session_id is not None
        async with wrapped.http.stream(
            "GET", f"{wrapped.path}/hold", headers=wrapped.signed_in
        ) as answer:
            chunks = answer.aiter_raw()
            assert await anext(chunks) == b"hi"
            await sessions.revoke(deps, ada.viewer, session_id=ada.viewer.session_id)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)
    await wrapped.printed("left")
