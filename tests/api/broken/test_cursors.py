"""Cursors of every wrong kind, on every subscription and over every transport, to a real server."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import orjson
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from models.base import now
from models.database import Database
from models.sandboxes import Sandbox, SandboxExecution
from models.states import ExecutionReason, RunState
from tests.api import operations as op
from tests.api.hostile import assert_decent
from tests.api.transports import TRANSPORTS, Subscription
from tests.product import Client, Product

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

ABSENT = {
    "conversation": "cnv_00000000000000000000000000",
    "plan": "pex_00000000000000000000000000",
    "sandbox": "sbe_00000000000000000000000000",
}
QUERIES = {
    "conversation": op.CONVERSATION_EVENTS,
    "plan": op.PLAN_EVENTS,
    "sandbox": op.OUTPUT,
    "viewer": op.VIEWER_EVENTS,
}
OVER = ("websocket", "server-sent-events", "multipart")


def cursor(*values: Any) -> str:
    """Give a cursor of these values, sound or not."""
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


def raw(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


MALFORMED = {
    "empty": "",
    "words": "not a cursor at all",
    "not base64": "!!!!",
    "base64 of no JSON": raw("hello"),
    "a number": raw("7"),
    "null": raw("null"),
    "a map": raw("{}"),
    "too few": cursor("epoch", 1),
    "too many": cursor("epoch", 1, {}, False, 1),
    "an epoch that is a number": cursor(1, 1, {}),
    "a number that is text": cursor("epoch", "1", {}),
    "a number below zero": cursor("epoch", -1, {}),
    "a fraction": cursor("epoch", 1.5, {}),
    "infinity": raw('["epoch", 1e999, {}]'),
    "beyond 64 bits": raw('["epoch", 99999999999999999999999999, {}]'),
    "offsets below zero": cursor("epoch", 1, {"msg_1:0": -1}),
    "offsets that are text": cursor("epoch", 1, {"msg_1:0": "1"}),
    "offsets that are a list": cursor("epoch", 1, []),
    "an endless key": cursor("epoch", 1, {"k" * 61: 1}),
    "too many texts": cursor("epoch", 1, {str(number): 1 for number in range(201)}),
    "deep": raw("[" * 3000 + "]" * 3000),
    "long": "A" * 30_000,
}


class World:
    """A server, and two people who own one of everything that can be followed."""

    def __init__(self, server: Product) -> None:
        self.server = server
        self.ann, self.bob = Client(server.url), Client(server.url)
        self.ids: dict[str, str] = {}
        self.others: dict[str, str] = {}

    async def fill(self) -> None:
        # The first to come is the administrator, who sees everything.
        async with Client(self.server.url) as first:
            await first.register("root")
        for name, client, ids in (("ann", self.ann, self.ids), ("bob", self.bob, self.others)):
            await client.register(name)
            made = (await client.run(op.CREATE_CONVERSATION))["conversationCreate"]
            ids["conversation"] = made["conversation"]["id"]
            await client.run(op.SEND, id=ids["conversation"], content="hi")
            steps = [{"description": "say hi", "dependsOn": []}]
            plan = await client.run(op.CREATE_PLAN, input={"title": "Plan", "steps": steps})
            assert plan["planCreate"]["errors"] == []
            run = await client.run(op.EXECUTE_PLAN, id=plan["planCreate"]["plan"]["id"])
            ids["plan"] = run["planExecute"]["execution"]["id"]
            ids["viewer"] = ""
        database = Database(f"sqlite+aiosqlite:///{self.server.data_dir / 'noosphere.sqlite3'}")
        try:
            self.ids["sandbox"] = await _execution(database, self.ann)
            self.others["sandbox"] = await _execution(database, self.bob)
        finally:
            await database.aclose()

    async def aclose(self) -> None:
        await self.ann.aclose()
        await self.bob.aclose()

    def wanted(self, kind: str, after: str | None, id_: str | None = None) -> Subscription:
        variables: Mapping[str, Any] = {"id": self.ids[kind] if id_ is None else id_}
        if kind == "viewer":
            variables = {}
        return Subscription(QUERIES[kind], variables, self.ann.token, after)

    async def first(self, over: str, wanted: Subscription) -> dict[str, Any]:
        """Give the first event."""
        opened = TRANSPORTS[over].open(self.server.url, wanted)
        async with opened as events, aclosing(events):
            return await anext(events)

    async def refusal(self, over: str, wanted: Subscription) -> list[dict[str, Any]]:
        """Give the errors of what is refused."""
        if over == "multipart":
            # To those who accept it, a refusal is an answer as any other.
            errors = await self._answer(wanted)
        else:
            try:
                event = await self.first(over, wanted)
            except AssertionError as refused:
                (errors,) = refused.args
            else:
                raise AssertionError(f"it was taken: {event}")
        assert_decent(errors)
        return [{"code": e["extensions"]["code"], "message": e["message"]} for e in errors]

    async def _answer(self, wanted: Subscription) -> Any:
        answer = await self.ann.http.post(
            "/graphql",
            json={
                "query": wanted.query,
                "variables": {**wanted.variables, "after": wanted.after},
            },
            headers={
                **self.ann.headers,
                "accept": "multipart/mixed;subscriptionSpec=1.0, application/json",
            },
        )
        return answer.json()["errors"]


async def _execution(database: Database, owner: Client) -> str:
    """Make what a sandbox would have left of a command."""
    user_id = (await owner.run("{ viewer { id } }"))["viewer"]["id"]
    async with database.writing() as session:
        box = Sandbox(user_id=user_id, driver="none", node_id="none", image_name="none")
        session.add(box)
        await session.flush()
        row = SandboxExecution(
            sandbox_id=box.id,
            user_id=user_id,
            command="true",
            status=RunState.COMPLETED,
            reason=ExecutionReason.EXITED,
            exit_code=0,
            stdout="kept",
            stdout_bytes=4,
            completed_at=now(),
        )
        session.add(row)
        await session.flush()
        id_ = row.id
        await session.commit()
        return id_


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(product: Product) -> AsyncIterator[World]:
    made = World(product)
    await made.fill()
    yield made
    await made.aclose()


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", QUERIES)
async def test_what_is_no_cursor_is_refused(world: World, kind: str, over: str) -> None:
    for what, after in MALFORMED.items():
        if over == "server-sent-events" and not after:
            # A header without a value is no header.
            continue
        (error,) = await world.refusal(over, world.wanted(kind, after))
        assert error["code"] == "BAD_USER_INPUT", what
        assert "cursor" in error["message"]


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", QUERIES)
async def test_a_cursor_of_elsewhere_or_of_the_future_begins_anew(
    world: World, kind: str, over: str
) -> None:
    known = await world.first(over, world.wanted(kind, None))
    values = orjson.loads(base64.urlsafe_b64decode(known["cursor"] + "=="))
    variables = {} if kind == "viewer" else {"id": world.others[kind]}
    elsewhere = Subscription(QUERIES[kind], variables, world.bob.token, None)
    strange = {
        "another's": (await world.first(over, elsewhere))["cursor"],
        "the future": cursor(values[0], values[1] + 1000, *values[2:]),
        "the far future": cursor(values[0], 2**53, *values[2:]),
        "another epoch": cursor("00000000", 1, *values[2:]),
        "no epoch": cursor("", 1, *values[2:]),
    }
    if kind == "sandbox":
        # Nothing was logged of either, so that both have come as far, by the same words.
        assert strange.pop("another's") == known["cursor"]
        strange["bytes of the future"] = cursor("", 0, 10**9, False)
    for what, after in strange.items():
        event = await world.first(over, world.wanted(kind, after))
        assert event["__typename"].endswith("Reset"), (what, event)
        if kind == "conversation":
            assert event["conversation"]["id"] == world.ids["conversation"], what
        shown = json.dumps(event)
        assert not any(id_ and id_ in shown for id_ in world.others.values()), what


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("kind", ABSENT)
async def test_what_one_may_not_see_is_as_absent_with_any_cursor(
    world: World, kind: str, over: str
) -> None:
    for after in (None, cursor("epoch", 1, {}), cursor("epoch", 1, 1, False), "nonsense"):
        answers = [
            await world.refusal(over, world.wanted(kind, after, id_))
            for id_ in (world.others[kind], ABSENT[kind])
        ]
        assert answers[0] == answers[1]
        assert answers[0][0]["code"] == "NOT_FOUND"


async def test_a_huge_beginning_closes_the_socket(product: Product) -> None:
    async with connect(
        product.url.replace("http", "ws") + "/graphql",
        subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
    ) as socket:
        payload = {"Authorization": "Bearer " + "x" * 3_000_000}
        with contextlib.suppress(ConnectionClosed):
            # It may be closed before all of it was sent.
            await socket.send(json.dumps({"type": "connection_init", "payload": payload}))
        async with asyncio.timeout(30):
            await socket.wait_closed()
        assert socket.close_code == 1009
