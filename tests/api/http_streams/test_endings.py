"""What ends with a sign-in, with the rights of a user, or with the server."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.graphql_media import MULTIPART
from tests.api import operations as op
from tests.api.http_streams.readers import conversation, following, person, product, told
from tests.api.transport.streams import Body, events, reserved
from tests.product import Client, Product

pytestmark = pytest.mark.timeout(240)

log = logging.getLogger(__name__)
REFRESH = """
mutation($t: String!) { sessionRefresh(refreshToken: $t) { session { token } errors { code } } }
"""
SET_ROLES = """
mutation($id: ID!, $roles: [String!]!) { userRolesSet(input: {userId: $id, roles: $roles}) {
  errors { code message } } }
"""


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
