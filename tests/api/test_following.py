"""Conversations are followed from every cursor."""

import asyncio
from typing import Any

import orjson
import pytest

from services.base import Deps
from tests.api import operations as op
from tests.api.conversing import begin, encoded, position, send
from tests.api.people import sign_up
from tests.fixtures import Api, Person


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


def texts(events: list[dict[str, Any]], known: dict[str, str] | None = None) -> dict[str, str]:
    """Put the deltas together, checking that each goes on where the text before it ended."""
    found = dict(known or {})
    for event in events:
        if event["__typename"] == "MessageDelta":
            id_ = event["message"]["id"]
            assert event["offset"] == len(found.get(id_, "")), "a gap or a duplicate"
            found[id_] = found.get(id_, "") + event["text"]
    return found


def facts(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Give what happened apart from texts: kinds and messages, which must come once each."""
    return [
        (e["__typename"], orjson.dumps(e.get("message") or e.get("toolCall")).decode())
        for e in events
        if e["__typename"] not in ("MessageDelta", "ConversationReset")
    ]


async def test_a_follower_can_go_on_from_every_cursor_and_gets_exactly_the_rest(
    live: Api, ann: Person
) -> None:
    id_ = await begin(live, ann)
    async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
        await events.until("ConversationReset")
        for question in ("What can you do?", "what time is it in UTC?"):
            await send(live, ann, id_, question)
            await events.until("MessageCompleted")
        seen = events.seen
    whole = texts(seen)
    final = await live.run(op.MESSAGES, ann, id=id_)
    answers = {m["id"]: m["content"] for m in final["messages"]["nodes"] if m["id"] in whole}
    assert whole == answers
    assert len(answers) == 2

    for place, event in enumerate(seen[:-1]):
        known, rest = texts(seen[: place + 1]), seen[place + 1 :]
        async with live.subscribe(
            op.CONVERSATION_EVENTS, ann, id=id_, after=event["cursor"]
        ) as again:
            for _ in range(sum(e["__typename"] == "MessageCompleted" for e in rest)):
                await again.until("MessageCompleted")
        assert "ConversationReset" not in {e["__typename"] for e in again.seen}
        assert texts(again.seen, known) == whole, place
        # Rows are shown as they are now, so kinds and ids are compared.
        assert [kind for kind, _ in facts(again.seen)] == [kind for kind, _ in facts(rest)], place
        assert again.seen[-1]["cursor"] == seen[-1]["cursor"]


async def test_from_the_last_cursor_nothing_comes_until_something_happens(
    live: Api, ann: Person
) -> None:
    id_ = await begin(live, ann)
    async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
        first = await events.until("ConversationReset")
    async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_, after=first["cursor"]) as events:
        sent = await send(live, ann, id_, "Hello")
        added = await events.next()
        assert added is not None
        assert added["__typename"] == "MessageAdded"
        assert added["message"]["id"] == sent["message"]["id"]


async def test_a_foreign_future_or_old_cursor_begins_anew_from_a_snapshot(
    live: Api, ann: Person
) -> None:
    ids = [await begin(live, ann) for _ in range(2)]
    cursors = []
    for id_ in ids:
        async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
            await events.until("ConversationReset")
            await send(live, ann, id_, "Hello")
            cursors.append((await events.until("MessageCompleted"))["cursor"])
    epoch, seq, offsets = position(cursors[0])
    strange = {
        "another conversation's": cursors[1],
        "the future": encoded([epoch, seq + 1, offsets]),
        "the far future": encoded([epoch, 2**62, offsets]),
        "another epoch": encoded(["00000000", 1, {}]),
        "beyond the end of a text": encoded([epoch, seq, {"msg_none:0": 10**9}]),
    }
    for what, cursor in strange.items():
        async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=ids[0], after=cursor) as events:
            if what == "beyond the end of a text":
                # What the cursor claims to have is of no use, and does no harm.
                await send(live, ann, ids[0], "Hello again")
                await events.until("MessageCompleted")
                continue
            first = await events.next()
            assert first is not None, what
            assert first["__typename"] == "ConversationReset", what
            nodes = first["conversation"]["messages"]["nodes"]
            assert [m["status"] for m in nodes] == ["COMPLETED"] * 2, what
            assert all(m["content"] for m in nodes)


async def test_many_followers_see_the_same(live: Api, ann: Person) -> None:
    id_ = await begin(live, ann)

    async def follow(ready: asyncio.Barrier) -> tuple[dict[str, str], str]:
        async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
            await events.until("ConversationReset")
            await ready.wait()
            done = await events.until("MessageCompleted")
            return texts(events.seen), str(done["message"]["content"])

    barrier = asyncio.Barrier(11)
    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow(barrier)) for _ in range(10)]
        await barrier.wait()
        sent = await send(live, ann, id_, "What can you do?")
    for follower in followers:
        text, content = follower.result()
        assert text == {sent["reply"]["id"]: content}
