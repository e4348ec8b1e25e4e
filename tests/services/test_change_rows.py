"""Changes by the rows that statements touch: each is told once, in order, and kept for a time."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from app.runtime import running
from models.base import now
from models.conversations import Conversation
from models.states import ConversationStatus, MemoryType
from models.system import Event, Topic
from services import changes, memories, plans, system
from services.base import Deps, work
from services.conversations import messages, threads
from services.plans import StepInput
from tests.api.people import sign_up
from tests.fixtures import Person, settings_for

# ---- how writes are watched


async def rows_told(deps: Deps, user_id: str) -> list[tuple[str, str, str]]:
    async with deps.db.reading() as connection:
        rows = await connection.execute(
            select(Event.type, Event.payload)
            .where(Event.topic == changes.topic(user_id))
            .order_by(Event.seq)
        )
        return [(kind, payload["id"], payload["change"]) for kind, payload in rows]


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


async def test_statements_of_many_rows_tell_each_of_them(deps: Deps, ann: Person) -> None:
    bob = await sign_up(deps, "bob")
    async with work(deps) as unit:
        rows = [Conversation(user_id=ann.id) for _ in range(3)]
        rows += [
            Conversation(user_id=bob.id),
            Conversation(user_id=ann.id, status=ConversationStatus.DELETED),
        ]
        unit.session.add_all(rows)
    ids = [row.id for row in rows]
    before = {user: await rows_told(deps, user) for user in (ann.id, bob.id)}

    async with work(deps) as unit:
        await unit.session.execute(update(Conversation).values(title="Trees"))
    async with work(deps) as unit:
        await unit.session.execute(
            update(Conversation)
            .where(Conversation.id.in_(ids[1:]))
            .values(status=ConversationStatus.DELETED)
        )
    async with work(deps) as unit:
        await unit.session.execute(delete(Conversation).where(Conversation.id == ids[0]))

    def told(count: range, change: str) -> list[tuple[str, str, str]]:
        return [("ConversationChanged", ids[n], change) for n in count]

    after = {user: await rows_told(deps, user) for user in (ann.id, bob.id)}
    news = {user: after[user][len(before[user]) :] for user in after}
    # A conversation deleted before is nobody's news.
    assert sorted(news[ann.id]) == sorted(
        told(range(3), "UPDATED") + told(range(1, 3), "DELETED") + told(range(1), "DELETED")
    )
    assert news[bob.id] == told(range(3, 4), "UPDATED") + told(range(3, 4), "DELETED")


async def test_one_transaction_tells_one_change_of_a_thing(deps: Deps, ann: Person) -> None:
    async with work(deps) as unit:
        row = Conversation(user_id=ann.id, title="a")
        unit.session.add(row)
        await unit.session.flush()
        for title in "bcd":
            row.title = title
            await unit.session.flush()
        await unit.session.execute(
            update(Conversation).where(Conversation.id == row.id).values(title="e")
        )
    async with work(deps) as unit:
        same = await unit.lock(Conversation, row.id)
        assert same is not None
        same.title = "e"
    assert await rows_told(deps, ann.id) == [("ConversationChanged", row.id, "CREATED")]


async def test_what_is_taken_back_is_not_told(deps: Deps, ann: Person) -> None:
    row = await threads.create(deps, ann.viewer)
    before = await rows_told(deps, ann.id)

    async def fail() -> None:
        async with work(deps) as unit:
            same = await unit.lock(Conversation, row.id)
            assert same is not None
            same.title = "Trees"
            await unit.session.flush()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert await rows_told(deps, ann.id) == before


async def test_a_change_of_rows_that_cannot_be_found_out_is_refused(
    deps: Deps, ann: Person
) -> None:
    row = await threads.create(deps, ann.viewer)
    with pytest.raises(TypeError, match="Which rows"):
        async with work(deps) as unit:
            await unit.session.execute(update(Conversation), [{"id": row.id, "title": "Trees"}])


# ---- many writers


async def test_writers_of_one_user_at_once_lose_nothing_and_never_lock_each_other_out(
    deps: Deps,
) -> None:
    """All kinds of transactions that share the topic of a user, in every order of their locks."""
    ann = await sign_up(deps, "ann")
    viewer = ann.viewer
    async with work(deps) as unit:
        # As it is for an account older than the topic: all begin it at the same moment.
        await unit.session.execute(delete(Topic).where(Topic.id == changes.topic(ann.id)))

    async def converse(n: int) -> int:
        row = await threads.create(deps, viewer, title=f"{n}")
        for text in "abc":
            await messages.send(deps, viewer, conversation_id=row.id, content=text)
        await threads.update(deps, viewer, conversation_id=row.id, changes={"title": "done"})
        return 5

    async def plan(n: int) -> int:
        made = await plans.create(deps, viewer, title=f"{n}", steps=[StepInput("Plant a tree")])
        for _ in range(2):
            run = await plans.execute(deps, viewer, plan_id=made.id)
            await plans.cancel(deps, viewer, execution_id=run.id)
        return 5

    async def remember(n: int) -> int:
        # Facts that have nothing to do with each other.
        words = ("piano", "glacier", "invoice", "tiger", "velvet", "comet")
        kept = await memories.create(
            deps, viewer, type=MemoryType.EPISODIC, content=f"{words[n]} {n * 7919}"
        )
        await memories.update(deps, viewer, memory_id=kept.memory.id, importance=0.9)
        await memories.delete(deps, viewer, memory_id=kept.memory.id)
        return 3

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        done = [group.create_task(job(n)) for n in range(6) for job in (converse, plan, remember)]
    expected = sum(task.result() for task in done)

    async with deps.db.reading() as connection:
        seqs = (
            await connection.scalars(
                select(Event.seq).where(Event.topic == changes.topic(ann.id)).order_by(Event.seq)
            )
        ).all()
        head = await connection.scalar(select(Topic.seq).where(Topic.id == changes.topic(ann.id)))
    assert list(seqs) == list(range(1, expected + 1))
    assert head == expected


# ---- how long events are kept


async def test_events_are_kept_by_age_and_by_number_and_the_floor_never_falls(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_BATCH", 3)
    async with running(settings_for(tmp_path, database_url=database_url)) as deps:
        object.__setattr__(deps.options, "event_retention_count", 10)
        async with work(deps) as unit:
            for topic in ("many", "few"):
                unit.session.add(Topic(id=topic, epoch="abcd", seq=25 if topic == "many" else 4))
            await unit.session.execute(
                insert(Event),
                [
                    {"topic": topic, "seq": seq, "type": "T", "payload": {}, "recorded_at": now()}
                    for topic, count in (("many", 25), ("few", 4))
                    for seq in range(1, count + 1)
                ],
            )
            await unit.session.execute(
                update(Event)
                .where(Event.topic == "few", Event.seq <= 2)
                .values(recorded_at=now() - timedelta(days=30))
            )

        async def state() -> dict[str, tuple[int, list[int]]]:
            async with deps.db.reading() as connection:
                return {
                    topic: (
                        await connection.scalar(select(Topic.first_seq).where(Topic.id == topic))
                        or 0,
                        list(
                            await connection.scalars(
                                select(Event.seq).where(Event.topic == topic).order_by(Event.seq)
                            )
                        ),
                    )
                    for topic in ("many", "few")
                }

        dropped = await asyncio.gather(*(system.clean(deps) for _ in range(3)))
        assert sum(found["events"] for found in dropped) == 15 + 2
        kept = {"many": (16, list(range(16, 26))), "few": (3, [3, 4])}
        assert await state() == kept

        # Another process that found less to drop, and comes late, changes nothing.
        assert await system._drop_events(deps, "many", 7) == 0
        assert await state() == kept
        assert (await system.clean(deps))["events"] == 0
