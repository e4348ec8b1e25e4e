"""Subscriptions over HTTP go on behind a cursor, whatever names it."""

import asyncio
import re

import pytest

from app.graphql_media import MULTIPART
from services.streams import Position
from tests.api import operations as op
from tests.api.following import FINAL, ConversationFollower
from tests.api.http_streams.readers import conversation, following, person, told, whole
from tests.api.transport.streams import answers, events
from tests.product import Client, Product

pytestmark = pytest.mark.timeout(240)

CODE = re.compile(rb'"code":"(\w+)"')


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
