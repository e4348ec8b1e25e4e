"""Operations of one moment share their statements, and nothing that is not theirs."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from typing import Any

import pytest_asyncio

from models.conversations import Conversation, Message
from resolvers.base import Context
from services.base import Deps, work
from tests.fixtures import Api, Person, Statements

_READ = """query($id: ID!) {
  conversation(id: $id) { title messages(first: 5) { nodes { content author { username } } } }
  conversations(first: 5) { nodes { title } }
  node(id: $id) { ... on Conversation { title user { username } } } }"""


@pytest_asyncio.fixture
async def api(deps: Deps) -> Api:
    found = Api(deps)
    found.core = None
    # The first account sees everything, and needs no predicate.
    await found.person("admin")
    return found


async def _talk(deps: Deps, person: Person, title: str) -> str:
    async with work(deps) as unit:
        made = Conversation(user_id=person.id, title=title)
        unit.session.add(made)
        await unit.session.flush()
        unit.session.add(
            Message(conversation_id=made.id, user_id=person.id, role="user", content=f"of {title}")
        )
        return made.id


async def test_everybody_is_answered_as_if_alone(api: Api, statements: Statements) -> None:
    people = [await api.person(name) for name in ("ann", "bob", "cleo")]
    talks = [
        await _talk(api.deps, person, f"{person.viewer.user_id} {n}")
        for person in people
        for n in range(4)
    ]

    asked = list(itertools.product(people, talks))

    async def answer(person: Person, id_: str) -> Any:
        return await api.raw(_READ, person, id=id_)

    await answer(*asked[0])
    statements.sent.clear()
    alone = [await answer(*each) for each in asked]
    sent_alone = len(statements.reads())
    statements.sent.clear()
    together = await asyncio.gather(*(answer(*each) for each in asked))
    assert together == alone
    assert len(statements.reads()) < sent_alone / 3
    for (person, id_), found in zip(asked, together, strict=True):
        is_own = id_ in talks[people.index(person) * 4 :][:4]
        assert (found["data"]["conversation"] is not None) == is_own
        assert (found["data"]["node"] is not None) == is_own
        assert len(found["data"]["conversations"]["nodes"]) == 4


async def test_a_snapshot_is_read_alone(api: Api, statements: Statements) -> None:
    ann = await api.person("ann")
    id_ = await _talk(api.deps, ann, "a")
    contexts = [Context(api.deps, ann.viewer, "r") for _ in range(3)]

    async def read(context: Context) -> Any:
        return await context.load.one(Conversation, Conversation.id, [id_])

    statements.sent.clear()
    await asyncio.gather(*map(read, contexts))
    assert len(statements.reads()) == 1
    async with api.deps.db.snapshot() as connection:
        pinned = _Pinned(connection)
        await contexts[0].pin(pinned)  # type: ignore[arg-type]
        statements.sent.clear()
        found = await asyncio.gather(*map(read, contexts))
        assert len(statements.reads()) == 2
        assert [row.id for (row,) in found] == [id_] * 3
        await contexts[0].end_event()


async def test_nobody_waits_for_what_else_another_asks(api: Api, statements: Statements) -> None:
    ann = await api.person("ann")
    id_ = await _talk(api.deps, ann, "a")
    busy, *others = (Context(api.deps, ann.viewer, "r") for _ in range(3))

    async def read(context: Context) -> Any:
        return await context.load.one(Conversation, Conversation.id, [id_])

    await read(others[0])
    async with AsyncExitStack() as stack:
        while not busy.is_busy():
            await stack.enter_async_context(busy._slots)
        statements.sent.clear()
        held = asyncio.create_task(read(busy))
        found = await asyncio.gather(*map(read, others))
        assert len(statements.reads()) == 1
        assert not held.done()
    assert [row.id for (row,) in (*found, await held)] == [id_] * 3


class _Pinned:
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()

    async def release(self) -> None:
        """Leave the connection to the test."""
