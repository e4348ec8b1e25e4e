"""Snapshots that are shared by all who begin at the same moment."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import event, func, select

from models.conversations import Conversation, Message
from models.states import MessageRole, MessageStatus
from services import access
from services.base import Deps, work
from services.conversations import events, messages, threads
from services.streams import Source, snapshots
from tests.fixtures import Api, Person

_COUNT = 25


@pytest.fixture
async def ann(deps: Deps) -> Person:
    api = Api(deps)
    # The first to come may see everything.
    await api.person("root")
    return await api.person("ann")


@pytest.fixture
async def sources(deps: Deps, ann: Person) -> list[Source]:
    """Give things to follow; in each second one an answer grows."""
    found = []
    for number in range(_COUNT):
        conversation = await threads.create(deps, ann.viewer)
        if number % 2:
            async with work(deps) as unit:
                message = Message(
                    conversation_id=conversation.id,
                    role=MessageRole.ASSISTANT,
                    status=MessageStatus.STREAMING,
                    content=f"text {number}",
                )
                unit.session.add(message)
                await unit.session.flush()
                messages._announce(unit, message)
        found.append(await events.source(deps, ann.viewer, conversation.id))
    return found


@pytest.fixture
def statements(deps: Deps, sources: list[Source]) -> Iterator[list[str]]:
    """Give the statements that are executed from here on."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    event.listen(deps.db.engine.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(deps.db.engine.sync_engine, "before_cursor_execute", note)


def queries(statements: list[str]) -> list[str]:
    return [statement for statement in statements if statement.startswith("SELECT")]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_those_who_begin_together_cost_three_statements(
    deps: Deps, sources: list[Source], statements: list[str], stack: AsyncExitStack
) -> None:
    pool: Any = deps.db.engine.pool
    idle = pool.checkedout()
    lend = snapshots.snapshots(deps)
    lent = await asyncio.gather(*(stack.enter_async_context(lend.of(one)) for one in sources))
    assert len(queries(statements)) == 3
    assert len({id(connection) for _, connection, _ in lent}) == 1
    assert pool.checkedout() == idle + 1
    for number, (seen, _, _) in enumerate(lent):
        assert list(seen.growing.values()) == ([f"text {number}"] if number % 2 else [])
        assert seen.seq == number % 2
        assert not seen.is_complete
    await stack.aclose()
    assert pool.checkedout() == idle


async def test_the_last_one_gives_the_connection_back(deps: Deps, sources: list[Source]) -> None:
    pool: Any = deps.db.engine.pool
    idle = pool.checkedout()
    stacks = [AsyncExitStack() for _ in sources[:3]]
    lend = snapshots.snapshots(deps)
    pairs = zip(stacks, sources, strict=False)
    await asyncio.gather(*(stack.enter_async_context(lend.of(one)) for stack, one in pairs))
    for stack in stacks:
        assert pool.checkedout() == idle + 1
        await stack.aclose()
    assert pool.checkedout() == idle


async def test_all_see_the_moment_it_was_read(
    deps: Deps, ann: Person, sources: list[Source], stack: AsyncExitStack
) -> None:
    lend = snapshots.snapshots(deps)
    lent = await asyncio.gather(*(stack.enter_async_context(lend.of(one)) for one in sources[:2]))
    await threads.create(deps, ann.viewer)
    for _, connection, lock in lent:
        async with lock:
            assert await connection.scalar(select(func.count()).select_from(Conversation)) == _COUNT
    async with lend.of(sources[0]) as (_, connection, lock), lock:
        # Who asks later is given a later one.
        assert await connection.scalar(select(func.count()).select_from(Conversation)) == _COUNT + 1


async def test_who_leaves_before_it_is_read_keeps_nobody_waiting(
    deps: Deps, sources: list[Source]
) -> None:
    pool: Any = deps.db.engine.pool
    idle = pool.checkedout()
    lend = snapshots.snapshots(deps)

    async def begin(source: Source) -> int:
        async with lend.of(source) as (seen, _, _):
            return seen.seq

    tasks = [asyncio.create_task(begin(source)) for source in sources]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in done[::2]] == [True] * 13
    assert done[1::2] == [1] * 12
    assert pool.checkedout() == idle


async def test_a_database_that_fails_is_told_to_all_and_asked_again(
    deps: Deps, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    lend = snapshots.snapshots(deps)

    async def begin(source: Source) -> int:
        async with lend.of(source) as (seen, _, _):
            return seen.seq

    with monkeypatch.context() as patch:
        patch.setattr(deps.db, "snapshot", _failing)
        answers = await asyncio.gather(*map(begin, sources[:4]), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["the database is away"] * 4
    assert await begin(sources[1]) == 1


def _failing() -> Any:
    raise OSError("the database is away")


async def test_rights_are_asked_for_together_and_for_each(
    deps: Deps, ann: Person, sources: list[Source], statements: list[str]
) -> None:
    bob = await Api(deps).person("bob")
    statements.clear()
    asked = [(person.viewer, source.id) for source in sources for person in (ann, bob)]
    seen = await asyncio.gather(
        *(access.may_see(deps, viewer, Conversation, id_) for viewer, id_ in asked)
    )
    assert seen == [True, False] * _COUNT
    assert len(queries(statements)) == 2
    assert not await access.may_see(deps, ann.viewer, Conversation, "cnv_absent")
