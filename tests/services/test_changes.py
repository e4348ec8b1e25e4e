"""What becomes of people's things is told, by whatever it comes about: all of it, and once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.runtime import running
from app.worker import working
from models.memories import Memory
from models.states import MemoryType
from models.system import Task, TaskStatus
from services import memories, plans
from services.base import Deps
from tests.api import operations as op
from tests.api.access.expectations import MUTATIONS
from tests.api.access.graph import root
from tests.api.access.test_allowed import ORDER
from tests.api.access.world import build, filled
from tests.api.conversing import DELETE, RETRY, STOP, UPDATE, begin
from tests.api.people import sign_up
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
