"""Subscriptions over HTTP from a server as users run it: resuming, cookies, ends of sign-ins."""

import asyncio
import contextlib
import itertools
import json
import logging
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.auth import cookie_token
from app.graphql_media import EVENT_STREAM, MULTIPART
from services.errors import ForbiddenError
from services.streams import Position
from tests.api import operations as op
from tests.api.following import FINAL, ConversationFollower
from tests.api.transport.streams import Body, answers, events, parts, reading, reserved
from tests.product import Client, Product

pytestmark = pytest.mark.timeout(240)

log = logging.getLogger(__name__)

PAGE = "https://app.example"
_names = (f"person{n}" for n in itertools.count())
CODE = re.compile(rb'"code":"(\w+)"')
REFRESH = """
mutation($t: String!) { sessionRefresh(refreshToken: $t) { session { token } errors { code } } }
"""
SET_ROLES = """
mutation($id: ID!, $roles: [String!]!) { userRolesSet(input: {userId: $id, roles: $roles}) {
  errors { code message } } }
"""


def product(directory: Path, **environment: str) -> Product:
    return Product(
        directory,
        NOOSPHERE_SANDBOX_DRIVER="off",
        NOOSPHERE_SIGN_IN_ATTEMPTS="10000",
        **environment,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    running = product(
        tmp_path_factory.mktemp("server") / "data",
        NOOSPHERE_CORS_ORIGINS=PAGE,
        NOOSPHERE_EMBEDDED_WORD_DELAY_MS="40",
    )
    try:
        yield running.start()
    finally:
        running.close()


@pytest.fixture(scope="module")
def admin_token(server: Product) -> str:
    """The first to register is the administrator."""

    async def register() -> str:
        async with person(server) as client:
            return client.token or ""

    return asyncio.run(register())


@asynccontextmanager
async def person(server: Product) -> AsyncIterator[Client]:
    client = Client(server.url)
    try:
        client.session = (await client.register(next(_names)))["session"]  # type: ignore[attr-defined]
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def ann(server: Product, admin_token: str) -> AsyncIterator[Client]:
    async with person(server) as client:
        yield client


async def conversation(client: Client) -> str:
    data = await client.run(op.CREATE_CONVERSATION, title="Talk")
    return str(data["conversationCreate"]["conversation"]["id"])


def following(
    client: Client, id_: str, *, after: str | None = None, **options: Any
) -> contextlib.AbstractAsyncContextManager[Body]:
    headers = {**client.headers, **options.pop("headers", {})}
    return reading(
        f"{client.url}/graphql",
        op.CONVERSATION_EVENTS,
        variables={"id": id_, "after": after},
        headers=headers,
        **options,
    )


def told(text: bytes, accept: str = EVENT_STREAM) -> list[dict[str, Any]]:
    """Give the events of a conversation."""
    if accept == EVENT_STREAM:
        payloads = [answer for answer in answers(whole(text)) if answer != "complete"]
    else:
        payloads = [part["payload"] for part in parts(text) if part and part != "end"]
    return [payload["data"]["conversationEvents"] for payload in payloads]


def whole(text: bytes) -> bytes:
    """Leave out an event that has come in part."""
    return text[: text.rindex(b"\n\n") + 2] if b"\n\n" in text else b""


# ---- resuming


async def test_a_streamed_answer_is_whole_over_any_number_of_reconnects(
    server: Product, ann: Client
) -> None:
    id_ = await conversation(ann)
    follower = ConversationFollower(lambda: server.url, ann.token, id_)
    last: str | None = None
    sent = await ann.run(op.SEND, id=id_, content="what can you do?")
    reply = sent["messageSend"]["reply"]["id"]
    connections = 0
    while follower.states.get(reply) not in FINAL:
        # The address stays as it was, as in an EventSource: its `after` is none.
        headers = {} if last is None else {"last-event-id": last}
        async with following(ann, id_, method="GET", headers=headers) as body:
            connections += 1
            async with asyncio.timeout(60):
                while len(told(body.seen)) < 3 and follower.states.get(reply) not in FINAL:
                    await body.until(b"\n\n", count=body.seen.count(b"\n\n") + 1)
                    if b"MessageCompleted" in body.seen:
                        break
            complete = events(whole(body.seen))
            for event, parsed in zip(complete, told(body.seen), strict=True):
                assert event["id"] == parsed["cursor"]
                follower.take(parsed)
                last = event["id"]
    assert connections >= 4
    data = await ann.run(op.MESSAGES, id=id_)
    (stored,) = [m for m in data["conversation"]["messages"]["nodes"] if m["id"] == reply]
    assert stored["status"] == follower.states[reply] == "COMPLETED"
    assert stored["content"] == follower.texts[reply]
    assert len(stored["content"]) > 100


async def test_multipart_resumes_by_its_argument(server: Product, ann: Client) -> None:
    id_ = await conversation(ann)
    accept = f"{MULTIPART}, application/json"
    async with following(ann, id_, accept=accept) as body:
        await body.until(b"\r\n--graphql", count=2)
        (reset,) = told(body.seen, MULTIPART)
    assert reset["__typename"] == "ConversationReset"
    await ann.run(op.SEND, id=id_, content="hi")
    async with following(ann, id_, after=reset["cursor"], accept=accept) as body:
        await body.until(b"\r\n--graphql", count=3)
        kinds = [event["__typename"] for event in told(body.seen, MULTIPART)]
    assert kinds[:2] == ["MessageAdded", "MessageAdded"]


async def test_a_cursor_of_elsewhere_or_of_the_future_begins_anew(
    server: Product, ann: Client
) -> None:
    one, other = await conversation(ann), await conversation(ann)
    for id_ in (one, other):
        await ann.run(op.SEND, id=id_, content="hi")
    async with following(ann, one) as body:
        await body.until(b"event: next")
        foreign = told(body.seen)[0]["cursor"]
    future = Position.decode(foreign)
    later = Position(future.epoch, future.seq + 1000, {}).encode()
    for id_, cursor in ((other, foreign), (one, later)):
        for options in ({"after": cursor}, {"headers": {"last-event-id": cursor}}):
            async with following(ann, id_, **options) as body:
                await body.until(b"event: next")
            assert told(body.seen)[0]["__typename"] == "ConversationReset"
            assert told(body.seen)[0]["conversation"]["id"] == id_


@pytest.mark.parametrize("cursor", ["nonsense", "e30", "A" * 5000, "WyJhIiwtMSx7fV0"])
async def test_what_is_no_cursor_is_refused_by_either_name(ann: Client, cursor: str) -> None:
    id_ = await conversation(ann)
    seen = []
    for options in ({"after": cursor}, {"headers": {"last-event-id": cursor}}):
        async with following(ann, id_, **options) as body:
            seen.append(answers(await body.rest()))
    assert seen[0] == seen[1]
    refusal, complete = seen[0]
    assert [error["extensions"]["code"] for error in refusal["errors"]] == ["BAD_USER_INPUT"]
    assert complete == "complete"


async def test_what_one_may_not_see_answers_as_what_is_absent(
    server: Product, ann: Client, admin_token: str
) -> None:
    id_ = await conversation(ann)
    nobody = Client(server.url)
    async with person(server) as bob:
        for client, status in ((bob, 200), (nobody, 401)):
            seen = []
            for asked in (id_, "cnv_00000000000000000000000000"):
                async with following(client, asked) as body:
                    seen.append(await body.rest())
                    assert body.response.status_code == status
            kinds = [CODE.findall(text) for text in seen]
            assert kinds[0] == kinds[1] == [b"NOT_FOUND" if status == 200 else b"UNAUTHENTICATED"]
    await nobody.aclose()


# ---- the cookie


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


# ---- the end of sign-ins


def end_token_in(server: Product, session_id: str, seconds: float) -> None:
    """Let a session's token end soon, before anybody watches it."""
    with contextlib.closing(sqlite3.connect(server.data_dir / "noosphere.sqlite3")) as database:
        database.execute("PRAGMA busy_timeout = 30000")
        ends_at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() + seconds))
        changed = database.execute(
            "UPDATE auth_sessions SET expires_at = ? WHERE id = ?",
            (f"{ends_at}.000000", session_id),
        )
        database.commit()
        assert changed.rowcount == 1


class Open:
    """One connection of every kind that follows a conversation."""

    def __init__(self, sse: Body, single: Body, multipart: Body, socket: Any) -> None:
        self.sse, self.single, self.multipart, self.socket = sse, single, multipart, socket

    async def ends(self) -> int:
        """Wait until all are ended; none may say that its operation is complete."""
        assert b"complete" not in (await self.sse.rest())
        assert b"complete" not in (await self.single.until_broken())
        assert b"--graphql--" not in (await self.multipart.rest())
        async with asyncio.timeout(60):
            await self.socket.wait_closed()
        code = self.socket.close_code
        assert code is not None
        return int(code)

    async def hear(self, client: Client, id_: str) -> None:
        """Make sure that all are open still."""
        await client.run(op.SEND, id=id_, content="hello?")
        await self.sse.until(b"MessageAdded")
        await self.single.until(b"MessageAdded")
        await self.multipart.until(b"MessageAdded")
        async with asyncio.timeout(60):
            while "MessageAdded" not in await self.socket.recv():
                pass


@asynccontextmanager
async def all_open(client: Client, id_: str) -> AsyncIterator[Open]:
    accept = f"{MULTIPART}, application/json"
    async with (
        following(client, id_) as sse,
        reserved(f"{client.url}/graphql", client.headers) as single,
        following(client, id_, accept=accept) as multipart,
        client.subscribe(op.CONVERSATION_EVENTS, id=id_) as socket,
    ):
        variables = {"id": id_, "after": None}
        accepted = await single.post("1", op.CONVERSATION_EVENTS, variables=variables)
        assert accepted.status_code == 202
        await sse.until(b"ConversationReset")
        await single.body.until(b"ConversationReset")
        await multipart.until(b"ConversationReset")
        assert (await socket.next() or {})["__typename"] == "ConversationReset"
        yield Open(sse, single.body, multipart, socket.socket)


async def test_a_token_that_ends_ends_all_and_a_new_one_goes_on(
    server: Product, ann: Client
) -> None:
    id_ = await conversation(ann)
    session = ann.session  # type: ignore[attr-defined]
    end_token_in(server, session["id"], 4)
    async with all_open(ann, id_) as opened:
        assert await opened.ends() == 4403
        last = events(opened.sse.seen)[-1]["id"]
    async with following(ann, id_, headers={"last-event-id": last}) as body:
        assert body.response.status_code == 401
    ann.token = None
    data = await ann.run(REFRESH, t=session["refreshToken"])
    ann.token = data["sessionRefresh"]["session"]["token"]
    await ann.run(op.SEND, id=id_, content="hi")
    async with following(ann, id_, headers={"last-event-id": last}) as body:
        await body.until(b"event: next")
        assert told(body.seen)[0]["__typename"] == "MessageAdded"


async def test_a_refresh_keeps_all_open(server: Product, ann: Client) -> None:
    id_ = await conversation(ann)
    session = ann.session  # type: ignore[attr-defined]
    async with person(server) as bob:
        theirs = await conversation(bob)
        end_token_in(server, session["id"], 6)
        async with all_open(ann, id_) as opened:
            data = await ann.run(REFRESH, t=session["refreshToken"])
            ann.token = data["sessionRefresh"]["session"]["token"]
            # Somebody whose token ends a little later, and who does nothing about it.
            end_token_in(server, bob.session["id"], 7)  # type: ignore[attr-defined]
            async with following(bob, theirs) as body:
                await body.rest()
            await opened.hear(ann, id_)


async def test_a_change_of_roles_ends_all(server: Product, ann: Client, admin_token: str) -> None:
    id_ = await conversation(ann)
    me = (await ann.run("{ viewer { id } }"))["viewer"]["id"]
    admin = Client(server.url, admin_token)
    async with all_open(ann, id_) as opened:
        data = await admin.run(SET_ROLES, id=me, roles=["viewer"])
        assert data["userRolesSet"]["errors"] == []
        assert await opened.ends() == 4403
    await admin.aclose()
    async with all_open(ann, id_):
        pass


# ---- the end of the server


async def test_a_server_that_stops_ends_streams_so_that_clients_come_back(tmp_path: Path) -> None:
    server = product(tmp_path / "data").start()
    try:
        async with person(server) as ann:
            id_ = await conversation(ann)
            async with all_open(ann, id_) as opened:
                stopping = asyncio.create_task(asyncio.to_thread(server.stop))
                assert await opened.ends() == 1012
                last = events(opened.sse.seen)[-1]["id"]
            assert await stopping == 0
            server.start()
            await ann.run(op.SEND, id=id_, content="hi")
            async with following(ann, id_, headers={"last-event-id": last}) as body:
                await body.until(b"event: next")
                assert told(body.seen)[0]["__typename"] == "MessageAdded"
    finally:
        server.close()


# ---- many servers


@pytest.mark.mysql
@pytest.mark.redis
async def test_a_revoked_session_ends_on_every_server_at_once(
    tmp_path: Path, mysql_url: str, redis_url: str
) -> None:
    common = {"NOOSPHERE_DATABASE_URL": mysql_url, "NOOSPHERE_REDIS_URL": redis_url}
    servers = [product(tmp_path / name, **common) for name in ("a", "b")]
    try:
        for server in servers:
            server.start()
        async with person(servers[0]) as ann:
            id_ = await conversation(ann)
            there = Client(servers[1].url, ann.token)
            async with all_open(ann, id_) as here, all_open(there, id_) as far:
                async with asyncio.TaskGroup() as group:
                    endings = [group.create_task(opened.ends()) for opened in (here, far)]
                    began = time.monotonic()
                    await ann.run("mutation { sessionRevoke { errors { code } } }")
                took_s = time.monotonic() - began
            assert [ending.result() for ending in endings] == [4403, 4403]
            log.info("revoked, and ended on both servers after %.3f s", took_s)
            # By the signal, not by looking again a minute later.
            assert took_s < 20
            async with following(there, id_) as body:
                assert body.response.status_code == 401
            await there.aclose()
    finally:
        for server in servers:
            server.close()
