"""What becomes of people's things is told, by whatever it comes about: all of it, and once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update

from app.runtime import running
from app.worker import working
from models.base import now
from models.conversations import Conversation
from models.memories import Memory
from models.states import ConversationStatus, MemoryType
from models.system import Event, Task, TaskStatus, Topic
from services import changes, memories, plans, system
from services.base import Deps, work
from services.conversations import messages, threads
from services.plans import StepInput
from tests.api import operations as op
from tests.api.access.expectations import MUTATIONS
from tests.api.access.graph import root
from tests.api.access.test_allowed import ORDER
from tests.api.access.world import build, filled
from tests.api.people import sign_up
from tests.api.test_conversations import DELETE, RETRY, STOP, UPDATE, begin
from tests.fixtures import Api, Person, settings_for
from tests.witness import Witness

Told = list[tuple[str, str]]


@dataclass
class Place:
    """A process over SQLite, watched, and somebody in it."""

    api: Api
    ann: Person
    witness: Witness

    async def does(self, document: str, **variables: Any) -> Any:
        """Run a mutation that must succeed."""
        payload = await self.api.run(document, self.ann, **variables)
        assert payload["errors"] == []
        return payload

    async def told(self) -> Told:
        """Give what was told since last asked, which was Ann's; the ids are looked at elsewhere."""
        told = await self.witness.told()
        assert {owner for owner, *_ in told} <= {self.ann.id}
        return [(event, change) for _, event, _, change in told]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with running(settings_for(tmp_path)) as deps:
        witness = await Witness(deps).install()
        yield Place(Api(deps), await sign_up(deps, "ann"), witness)


def changed(noun: str, *kinds: str) -> Told:
    return [(f"{noun}Changed", kind) for kind in kinds]


# ---- verb by verb


async def test_conversations_tell_what_becomes_of_them(place: Place) -> None:
    does = place.does
    id_ = (await does(op.CREATE_CONVERSATION, title=None))["conversation"]["id"]
    assert await place.told() == changed("Conversation", "CREATED")
    await does(UPDATE, id=id_, input={"title": "Trees"})
    assert await place.told() == changed("Conversation", "UPDATED")
    sent = await does(op.SEND, id=id_, content="Hello", key="one")
    assert await place.told() == changed("Conversation", "UPDATED")

    await does(op.SEND, id=id_, content="Hello", key="one")
    await does(STOP, id=sent["reply"]["id"])
    await does(RETRY, id=sent["reply"]["id"])
    assert await place.told() == [], "these change messages alone"

    for status in ("ARCHIVED", "ACTIVE"):
        await does(UPDATE, id=id_, input={"status": status})
        assert await place.told() == changed("Conversation", "UPDATED")
    await does(DELETE, id=id_)
    assert await place.told() == changed("Conversation", "DELETED")


async def test_plans_tell_what_becomes_of_them(place: Place) -> None:
    steps = [{"description": "Tell the time", "tool": "current_time", "arguments": {}}]
    made = await place.does(op.CREATE_PLAN, input={"title": "Clock", "steps": steps})
    assert await place.told() == changed("Plan", "CREATED")
    run = await place.does(op.EXECUTE_PLAN, id=made["plan"]["id"])
    assert await place.told() == changed("Plan", "UPDATED")
    await place.does(op.CANCEL_PLAN, id=run["execution"]["id"])
    assert await place.told() == changed("Plan", "UPDATED")
    await place.does(op.CANCEL_PLAN, id=run["execution"]["id"])
    assert await place.told() == []

    async with working(place.api.deps):
        run = await place.does(op.EXECUTE_PLAN, id=made["plan"]["id"])
        async with place.api.subscribe(
            op.PLAN_EVENTS, place.ann, id=run["execution"]["id"]
        ) as events:
            await events.until("PlanExecutionFinished")
    # Begun, taken up, ended.
    assert await place.told() == changed("Plan", "UPDATED", "UPDATED", "UPDATED")
    await plans.delete(place.api.deps, place.ann.viewer, plan_id=made["plan"]["id"])
    assert await place.told() == changed("Plan", "DELETED")


async def test_memories_tell_what_becomes_of_them(place: Place) -> None:
    deps, viewer = place.api.deps, place.ann.viewer

    async def keep(content: str) -> Memory:
        kept = await memories.create(deps, viewer, type=MemoryType.SEMANTIC, content=content)
        return kept.memory

    old = await keep("I live in Seoul")
    assert await place.told() == changed("Memory", "CREATED")
    await keep("I live in Seoul")
    assert await place.told() == changed("Memory", "UPDATED"), "told again it matters more"
    new = await keep("I live in Busan")
    told = await place.witness.told()
    assert {(id_, change) for _, _, id_, change in told} == {
        (new.id, "CREATED"),
        (old.id, "UPDATED"),
    }
    await memories.update(deps, viewer, memory_id=new.id, importance=0.9)
    assert await place.told() == changed("Memory", "UPDATED")
    assert await memories.search(deps, viewer, "Where do I live?")
    await memories.recall(deps, viewer, "Where do I live?", first=5)
    assert await place.told() == [], "a memory being used is no change of it"
    await memories.delete(deps, viewer, memory_id=new.id)
    told = await place.witness.told()
    assert {(id_, change) for _, _, id_, change in told} == {
        (new.id, "DELETED"),
        # It has no successor any more.
        (old.id, "UPDATED"),
    }


async def test_what_the_assistant_does_is_told_and_its_words_are_not(tmp_path: Path) -> None:
    # Words come one by one and are stored every few of them: nothing of that concerns a list.
    settings = settings_for(tmp_path, embedded_word_delay_ms=2)
    async with running(settings) as deps, working(deps):
        place = Place(Api(deps), await sign_up(deps, "ann"), await Witness(deps).install())
        id_ = await begin(place.api, place.ann)
        expected = changed("Conversation", "CREATED")
        for content, more in (
            ("what can you do?", []),
            ("remember that I prefer metric units", changed("Memory", "CREATED")),
        ):
            async with place.api.subscribe(op.CONVERSATION_EVENTS, place.ann, id=id_) as events:
                await events.until("ConversationReset")
                await place.does(op.SEND, id=id_, content=content, key=None)
                done = await events.until("MessageCompleted")
                assert len(done["message"]["content"]) > 20
            expected += changed("Conversation", "UPDATED") + more
        await no_tasks_left(deps)
        told = await place.told()
        # Read from the message as well, the fact may be told a second time: it then only matters
        # more.
        assert [item for item in told if item != ("MemoryChanged", "UPDATED")] == expected


async def no_tasks_left(deps: Deps) -> None:
    """Wait until background tasks have ended."""
    open_ = (TaskStatus.PENDING, TaskStatus.RUNNING)
    async with asyncio.timeout(60), deps.bus.attach("tasks") as tap:
        while True:
            async with deps.db.reading() as connection:
                if not await connection.scalar(
                    select(func.count()).select_from(Task).where(Task.status.in_(open_))
                ):
                    return
            await tap.get(0.05)


# ---- all verbs


async def test_every_mutation_tells_what_it_does_and_no_more(tmp_path: Path) -> None:
    assert set(ORDER) == set(root("mutation"))
    async with running(settings_for(tmp_path)) as deps:
        world = await build(deps)
        witness = await Witness(deps).install()
        told: dict[str, set[str]] = {}
        for name in ORDER:
            mutation = MUTATIONS[name]
            variables = filled(world, "owner", mutation.variables)
            await world.api.raw(mutation.document, world.owner, **variables)
            found = await witness.told()
            told[name] = {change for *_, change in found}
    assert {name: kinds for name, kinds in told.items() if kinds} == {
        "conversationCreate": {"CREATED"},
        "conversationUpdate": {"UPDATED"},
        "messageSend": {"UPDATED"},
        "memoryCreate": {"CREATED"},
        "memoryUpdate": {"UPDATED"},
        "planCreate": {"CREATED"},
        "planExecute": {"UPDATED"},
        # What was made of the same message goes on without it.
        "memoryDelete": {"DELETED", "UPDATED"},
        "conversationDelete": {"DELETED"},
        # Sandboxes need a driver: told by themselves.
        "sandboxDelete": {"DELETED"},
    }


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
