"""Rows are visible because those they follow were seen, and by nothing else."""

import pytest_asyncio
from sqlalchemy import update

from models.accounts import User
from models.conversations import Conversation, Message, MessageToolCall
from models.states import ConversationStatus
from resolvers.base import Context, PageArgs
from services import access
from services.base import Deps, Viewer, work
from tests.fixtures import Api, Person, Statements


@pytest_asyncio.fixture
async def api(deps: Deps) -> Api:
    found = Api(deps)
    # The first account sees everything, and needs no predicate.
    await found.person("ann")
    return found


@pytest_asyncio.fixture
async def bob(api: Api) -> Person:
    return await api.person("bob")


@pytest_asyncio.fixture
async def cleo(api: Api) -> Person:
    return await api.person("cleo")


async def talk(api: Api, person: Person) -> tuple[str, str]:
    """Give the ids of a conversation and of its one message."""
    made = await api.run(
        'mutation { conversationCreate(input: {title: "a"}) { conversation { id } } }', person
    )
    conversation_id = made["conversation"]["id"]
    async with work(api.deps) as unit:
        message = Message(
            conversation_id=conversation_id, user_id=person.id, role="user", content="b"
        )
        unit.session.add(message)
        await unit.session.flush()
        return conversation_id, message.id


def context(api: Api, person: Person) -> Context:
    return Context(api.deps, person.viewer, "r")


async def page(asked: Context, *conversation_ids: str) -> list[list[str]]:
    pages = await asked.load.page(
        Message, Message.conversation_id, conversation_ids, PageArgs(first=10)
    )
    return [[row.id for row in found.rows] for found in pages]


async def test_the_predicate_is_left_out_only_where_every_parent_was_seen(
    api: Api, bob: Person, statements: Statements
) -> None:
    (mine, my_message), (other, other_message) = await talk(api, bob), await talk(api, bob)
    asked = context(api, bob)
    assert [row.id for row in await asked.load.one(Conversation, Conversation.id, [mine]) if row]

    statements.sent.clear()
    assert await page(asked, mine) == [[my_message]]
    assert "conversations" not in statements.sent[-1]
    # One that was not seen, and the whole statement asks.
    assert await page(asked, mine, other) == [[my_message], [other_message]]
    assert "conversations" in statements.sent[-1]


async def test_a_strangers_rows_stay_hidden_whatever_else_was_seen(
    api: Api, bob: Person, cleo: Person
) -> None:
    (mine, my_message), (theirs, _) = await talk(api, bob), await talk(api, cleo)
    asked = context(api, bob)
    # Asked for, and not found: not seen.
    assert await asked.load.one(Conversation, Conversation.id, [mine, theirs]) != []
    assert await page(asked, theirs) == [[]]
    assert await page(asked, mine, theirs) == [[my_message], []]
    calls = await asked.load.many(MessageToolCall, MessageToolCall.message_id, [theirs])
    assert calls == [[]]


async def test_nothing_is_seen_from_one_event_to_the_next_or_after_another_sign_in(
    api: Api, bob: Person
) -> None:
    conversation_id, message_id = await talk(api, bob)
    asked = context(api, bob)
    await asked.load.one(Conversation, Conversation.id, [conversation_id])
    assert await page(asked, conversation_id) == [[message_id]]
    async with work(api.deps) as unit:
        await unit.session.execute(
            update(Conversation)
            .where(Conversation.id == conversation_id)
            .values(status=ConversationStatus.DELETED)
        )
    asked.begin_event()
    assert await page(asked, conversation_id) == [[]]


async def test_only_the_column_that_is_followed_counts() -> None:
    assert access.parent_of(Message, "conversation_id") is Conversation
    assert access.parent_of(Message, "user_id") is None
    assert access.parent_of(Message, "id") is None
    assert access.parent_of(Conversation, "user_id") is None
    assert access.is_followed(Conversation)
    assert not access.is_followed(User)


async def test_who_is_not_signed_in_sees_nothing(deps: Deps, api: Api, bob: Person) -> None:
    conversation_id, _ = await talk(api, bob)
    nobody = Context(deps, Viewer(), "r")
    assert await nobody.load.one(Conversation, Conversation.id, [conversation_id]) == [None]
    assert await page(nobody, conversation_id) == [[]]
