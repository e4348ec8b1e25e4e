"""Conversations: sending, queueing, stopping, retrying and listing."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select

from models.conversations import Message
from models.system import Task, TaskStatus
from services.base import Deps
from tests.api import operations as op
from tests.api.conversing import DELETE, LIST, RETRY, STOP, UPDATE, begin, codes, send
from tests.api.people import everything_stored, sign_up
from tests.fixtures import Api, Person


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


# ---- sending


async def test_a_message_gets_a_reply_that_waits_and_the_conversation_a_title(
    api: Api, ann: Person
) -> None:
    id_ = await begin(api, ann)

    sent = await send(api, ann, id_, "  \n Where do trees grow?\nTell me.")

    assert sent["message"]["role"] == "USER"
    assert sent["message"]["status"] == "COMPLETED"
    assert sent["reply"]["role"] == "ASSISTANT"
    assert sent["reply"] == sent["reply"] | {"status": "PENDING", "content": ""}
    found = await api.run(op.MESSAGES, ann, id=id_)
    assert found["title"] == "Where do trees grow?"
    assert [m["id"] for m in found["messages"]["nodes"]] == [
        sent["message"]["id"],
        sent["reply"]["id"],
    ]


async def test_a_key_gives_the_same_messages_again(api: Api, ann: Person) -> None:
    id_, other = await begin(api, ann), await begin(api, ann)

    first = await send(api, ann, id_, "Hello", "one")
    before = await everything_stored(api.deps)
    again = await send(api, ann, id_, "Hello", "one")
    clash = await api.run(op.SEND, ann, id=id_, content="Bye", key="one")
    assert await everything_stored(api.deps) == before
    elsewhere = await send(api, ann, other, "Hello", "one")

    assert again == first
    assert codes(clash) == [("CONFLICT", "input.idempotencyKey")]
    assert elsewhere["message"]["id"] != first["message"]["id"]


async def test_twenty_sends_with_one_key_at_once_make_one_message(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)

    sent = await asyncio.gather(*(send(api, ann, id_, "Hello", "one") for _ in range(20)))

    assert len({answer["message"]["id"] for answer in sent}) == 1
    assert len({answer["reply"]["id"] for answer in sent}) == 1
    async with api.deps.db.reading() as connection:
        assert await connection.scalar(select(func.count(Message.id))) == 2
        tasks = await connection.scalars(select(Task.task_type).where(Task.lane == id_))
        assert list(tasks) == ["answer"]


async def test_a_conversation_lets_so_many_messages_wait_and_no_more(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)
    limit = api.deps.options.answers_queued_max
    sent = [await send(api, ann, id_, f"Hello {n}") for n in range(limit)]
    before = await everything_stored(api.deps)

    refused = await api.run(op.SEND, ann, id=id_, content="Once more")
    assert codes(refused) == [("LIMIT", "input.conversationId")]
    assert await everything_stored(api.deps) == before

    await api.run(STOP, ann, id=sent[3]["reply"]["id"])
    await send(api, ann, id_, "Now")
    again = await api.run(RETRY, ann, id=sent[3]["reply"]["id"])
    assert codes(again) == [("LIMIT", "id")]


async def test_many_sends_at_once_do_not_pass_the_limit(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)

    answers = await asyncio.gather(
        *(api.run(op.SEND, ann, id=id_, content=f"Hello {n}") for n in range(16))
    )

    accepted = sum(answer["errors"] == [] for answer in answers)
    assert accepted == api.deps.options.answers_queued_max


# ---- stopping and retrying


async def test_an_answer_that_waits_is_stopped_at_once_and_not_written(
    api: Api, ann: Person
) -> None:
    id_ = await begin(api, ann)
    sent = await send(api, ann, id_, "Hello")

    stopped = await api.run(STOP, ann, id=sent["reply"]["id"])
    again = await api.run(STOP, ann, id=sent["reply"]["id"])
    question = await api.run(STOP, ann, id=sent["message"]["id"])

    assert stopped["errors"] == []
    assert stopped["message"] == again["message"]
    assert stopped["message"]["status"] == "STOPPED"
    assert codes(question) == [("INVALID", "id")]
    async with api.deps.db.reading() as connection:
        status = await connection.scalar(select(Task.status).where(Task.lane == id_))
    assert status is TaskStatus.CANCELED


async def test_a_stopped_answer_can_be_tried_again_and_a_whole_one_cannot(
    live: Api, ann: Person
) -> None:
    id_ = await begin(live, ann)
    async with live.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
        await events.until("ConversationReset")
        sent = await send(live, ann, id_, "What can you do?")
        reply = sent["reply"]["id"]
        await live.run(STOP, ann, id=reply)
        ended = await events.until("MessageCompleted")
        if ended["message"]["status"] == "STOPPED":
            retried = await live.run(RETRY, ann, id=reply)
            assert retried["errors"] == []
            assert retried["message"] == {"id": reply, "status": "PENDING", "content": ""}
            ended = await events.until("MessageCompleted")
    assert ended["message"]["id"] == reply
    assert ended["message"]["status"] == "COMPLETED"
    assert ended["message"]["content"]

    assert codes(await live.run(RETRY, ann, id=reply)) == [("CONFLICT", "id")]
    assert codes(await live.run(RETRY, ann, id=sent["message"]["id"])) == [("CONFLICT", "id")]


# ---- archiving, renaming, deleting


async def test_an_archived_conversation_is_read_only_until_it_is_active_again(
    api: Api, ann: Person
) -> None:
    id_ = await begin(api, ann, "Trees")
    sent = await send(api, ann, id_, "Hello")
    await api.run(STOP, ann, id=sent["reply"]["id"])

    archived = await api.run(UPDATE, ann, id=id_, input={"status": "ARCHIVED"})
    refused = await api.run(op.SEND, ann, id=id_, content="Hello")
    retried = await api.run(RETRY, ann, id=sent["reply"]["id"])

    assert archived["conversation"]["status"] == "ARCHIVED"
    assert codes(refused) == [("CONFLICT", "input.conversationId")]
    assert codes(retried) == [("CONFLICT", "id")]
    assert len((await api.run(op.MESSAGES, ann, id=id_))["messages"]["nodes"]) == 2
    await api.run(UPDATE, ann, id=id_, input={"status": "ACTIVE"})
    await send(api, ann, id_, "Hello")


async def test_a_conversation_is_renamed_and_its_title_taken_away(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann, "Trees")

    named = await api.run(UPDATE, ann, id=id_, input={"title": " Bushes "})
    kept = await api.run(UPDATE, ann, id=id_, input={})
    bare = await api.run(UPDATE, ann, id=id_, input={"title": None})
    deleted = await api.run(UPDATE, ann, id=id_, input={"status": "DELETED"})

    assert named["conversation"]["title"] == kept["conversation"]["title"] == "Bushes"
    assert bare["conversation"]["title"] is None
    assert codes(deleted) == [("INVALID", "input.status")]


async def test_a_deleted_conversation_is_gone_and_its_answers_are_not_written(
    api: Api, ann: Person
) -> None:
    id_, other = await begin(api, ann), await begin(api, ann)
    sent = await send(api, ann, id_, "Hello")
    reply = sent["reply"]["id"]

    deleted = await api.run(DELETE, ann, id=id_)

    assert deleted["conversation"] == {"id": id_, "status": "DELETED"}
    assert await api.run(op.MESSAGES, ann, id=id_) is None
    assert await api.run("query($id: ID!) { message(id: $id) { id } }", ann, id=reply) is None
    assert [c["id"] for c in (await api.run(LIST, ann))["nodes"]] == [other]
    absent = [
        await api.run(op.SEND, ann, id=id_, content="Hello"),
        await api.run(UPDATE, ann, id=id_, input={"title": "a"}),
        await api.run(DELETE, ann, id=id_),
        await api.run(STOP, ann, id=reply),
        await api.run(RETRY, ann, id=reply),
    ]
    assert [codes(answer)[0][0] for answer in absent] == ["NOT_FOUND"] * 5
    async with api.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as events:
        assert await events.next() is None
        assert events.refusal[0]["extensions"]["code"] == "NOT_FOUND"


async def test_following_a_conversation_ends_with_it(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)
    async with (
        api.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as first,
        api.subscribe(op.CONVERSATION_EVENTS, ann, id=id_) as second,
    ):
        for events in (first, second):
            await events.until("ConversationReset")

        await api.run(DELETE, ann, id=id_)

        for events in (first, second):
            await events.until("ConversationDeleted")
            assert await events.next() is None
            assert events.refusal == []


# ---- lists


async def test_conversations_are_listed_in_order_and_page_by_page(api: Api, ann: Person) -> None:
    ids = [await begin(api, ann, f"Tree {n}") for n in range(5)]
    await api.run(UPDATE, ann, id=ids[1], input={"status": "ARCHIVED"})

    async def listed(**variables: Any) -> list[str]:
        return [c["id"] for c in (await api.run(LIST, ann, **variables))["nodes"]]

    newest = [ids[1], *reversed([*ids[:1], *ids[2:]])]
    assert await listed() == newest
    assert await listed(order={"field": "CREATED_AT", "direction": "ASC"}) == ids
    assert await listed(filter={"status": "ARCHIVED"}) == [ids[1]]
    assert await listed(filter={"titleContains": "TREE 3"}) == [ids[3]]
    assert await listed(filter={"titleContains": "%"}) == []
    for order in ({"field": "UPDATED_AT"}, {"field": "CREATED_AT", "direction": "ASC"}):
        whole, found, after, more = await listed(order=order), [], None, True
        while more:
            page = await api.run(LIST, ann, order=order, first=2, after=after)
            found += [c["id"] for c in page["nodes"]]
            after, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
        assert found == whole


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("ärger ÜBER öl", True),
        ("ПРИВЕТ", True),
        ("ΣΟΦΊΑ", True),
        ("100%_a\\B", True),
        ("arger", False),
        ("100__a", False),
        ("Öl%", False),
    ],
)
async def test_a_part_of_a_title_is_found_whatever_the_case(
    api: Api, ann: Person, part: str, found: bool
) -> None:
    id_ = await begin(api, ann, "Ärger über Öl, привет, σοφία: 100%_A\\b/c")
    listed = (await api.run(LIST, ann, filter={"titleContains": part}))["nodes"]
    assert [c["id"] for c in listed] == ([id_] if found else [])
