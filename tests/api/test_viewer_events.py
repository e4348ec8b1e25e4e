"""Following one's own things: a list that is kept by events is the list as it is."""

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy import delete

from models.sandboxes import Sandbox
from models.states import MemoryType, SandboxStatus
from models.system import Event, Topic
from services import changes, memories, plans
from services.base import Deps, work
from services.conversations import messages, threads
from services.plans import StepInput
from tests.api import operations as op
from tests.api.conversing import encoded, position
from tests.api.people import sign_up
from tests.fixtures import Api, Person, Stream

LISTS = ("conversations", "plans", "sandboxes", "memories")


class Sidebar:
    """What a frontend shows of somebody's things, kept by events alone."""

    def __init__(self) -> None:
        self.shown: dict[str, dict[str, Any]] = {}
        self.cursor: str | None = None
        self.resets = 0

    def take(self, event: dict[str, Any]) -> None:
        self.cursor = event["cursor"]
        kind = event["__typename"]
        if kind == "ViewerReset":
            self.resets += 1
            self.shown = {
                node["id"]: node for name in LISTS for node in event["viewer"][name]["nodes"]
            }
            return
        node = event[kind.removesuffix("Changed").lower()]
        if event["change"] == "DELETED":
            assert node is None
        if node is None:
            # Deleted by now: that is told as well, if it was not.
            self.shown.pop(event["id"], None)
        else:
            assert node["id"] == event["id"]
            self.shown[event["id"]] = node


async def now_shown(api: Api, who: Person) -> dict[str, dict[str, Any]]:
    sidebar = Sidebar()
    async with api.subscribe(op.VIEWER_EVENTS, who) as events:
        first = await events.next()
        assert first is not None
        sidebar.take(first)
    return sidebar.shown


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


async def begun(events: Stream) -> dict[str, Any]:
    first = await events.next()
    assert first is not None, events.refusal
    assert first["__typename"] == "ViewerReset"
    return first


async def test_it_begins_with_everything_and_goes_on_with_what_happens(
    api: Api, ann: Person
) -> None:
    viewer, deps = ann.viewer, api.deps
    old = await threads.create(deps, viewer, title="Old")
    async with api.subscribe(op.VIEWER_EVENTS, ann) as events:
        first = await begun(events)
        assert [node["id"] for node in first["viewer"]["conversations"]["nodes"]] == [old.id]
        assert first["viewer"]["id"] == ann.id

        made = await threads.create(deps, viewer, title="New")
        event = await events.next()
        assert event == {
            "__typename": "ConversationChanged",
            "cursor": event["cursor"] if event else "",
            "id": made.id,
            "change": "CREATED",
            "conversation": {
                "id": made.id,
                "title": "New",
                "status": "ACTIVE",
                "updatedAt": made.updated_at.isoformat(),
            },
        }
        await messages.send(deps, viewer, conversation_id=made.id, content="Hello")
        event = await events.next()
        assert event is not None
        assert (event["change"], event["id"]) == ("UPDATED", made.id)
        assert event["conversation"]["updatedAt"] > made.updated_at.isoformat()

        plan = await plans.create(deps, viewer, title="Clock", steps=[StepInput("Tell the time")])
        event = await events.next()
        assert event is not None
        assert event["plan"] == {"id": plan.id, "title": "Clock", "status": "PENDING"}
        await plans.execute(deps, viewer, plan_id=plan.id)
        event = await events.next()
        assert event is not None
        assert (event["change"], event["plan"]["status"]) == ("UPDATED", "RUNNING")

        kept = await memories.create(deps, viewer, type=MemoryType.SEMANTIC, content="I like tea")
        event = await events.next()
        assert event is not None
        assert event["memory"]["content"] == "I like tea"
        await memories.delete(deps, viewer, memory_id=kept.memory.id)
        event = await events.next()
        assert event is not None
        assert (event["change"], event["id"], event["memory"]) == ("DELETED", kept.memory.id, None)

        async with work(deps) as unit:
            box = Sandbox(user_id=ann.id, driver="none", node_id="local", image_name="none")
            unit.session.add(box)
        event = await events.next()
        assert event is not None
        assert event["sandbox"] == {"id": box.id, "status": "CREATING"}
        async with work(deps) as unit:
            row = await unit.lock(Sandbox, box.id)
            assert row is not None
            row.status = SandboxStatus.DELETED
        event = await events.next()
        assert event is not None
        assert (event["change"], event["id"], event["sandbox"]) == ("DELETED", box.id, None)


async def test_what_was_deleted_meanwhile_is_not_shown(api: Api, ann: Person) -> None:
    async with api.subscribe(op.VIEWER_EVENTS, ann) as events:
        cursor = (await begun(events))["cursor"]
    async with work(api.deps) as unit:
        box = Sandbox(user_id=ann.id, driver="none", node_id="local", image_name="none")
        unit.session.add(box)
    made = await threads.create(api.deps, ann.viewer, title="Gone")
    await threads.delete(api.deps, ann.viewer, conversation_id=made.id)
    async with work(api.deps) as unit:
        row = await unit.lock(Sandbox, box.id)
        assert row is not None
        row.status = SandboxStatus.DELETED

    async with api.subscribe(op.VIEWER_EVENTS, ann, after=cursor) as events:
        told = [await events.next() for _ in range(4)]
    assert [(e["id"], e["change"]) for e in told if e] == [
        (box.id, "CREATED"),
        (made.id, "CREATED"),
        (made.id, "DELETED"),
        (box.id, "DELETED"),
    ]
    assert [e.get("sandbox") or e.get("conversation") for e in told if e] == [None] * 4


async def test_nobody_is_told_of_anothers_things(api: Api, ann: Person) -> None:
    bob, admin = await sign_up(api.deps, "bob"), await sign_up(api.deps, "root", "admin")
    streams = {}
    async with (
        api.subscribe(op.VIEWER_EVENTS, bob) as streams["bob"],
        api.subscribe(op.VIEWER_EVENTS, admin) as streams["admin"],
    ):
        for stream in streams.values():
            await begun(stream)
        await threads.create(api.deps, ann.viewer, title="Ann's")
        for who, stream in ((bob, streams["bob"]), (admin, streams["admin"])):
            own = await threads.create(api.deps, who.viewer, title="Own")
            event = await stream.next()
            assert event is not None
            assert event["id"] == own.id


async def test_without_a_sign_in_nothing_is_told(api: Api) -> None:
    for after in (None, "garbage"):
        async with api.subscribe(op.VIEWER_EVENTS, None, after=after) as events:
            assert await events.next() is None
            codes = [error["extensions"]["code"] for error in events.refusal]
            assert codes == ["UNAUTHENTICATED"]


async def test_a_list_kept_by_events_is_the_list_whenever_one_leaves_and_comes_back(
    live: Api, ann: Person
) -> None:
    """A client hops on and off while everything is changed, and misses nothing."""
    deps, viewer = live.deps, ann.viewer
    done = asyncio.Event()

    async def change(seed: int) -> None:
        chance = random.Random(seed)
        made: list[str] = []
        for n in range(12):
            if made and chance.random() < 0.3:
                await threads.delete(deps, viewer, conversation_id=made.pop())
            elif made and chance.random() < 0.6:
                await messages.send(
                    deps, viewer, conversation_id=chance.choice(made), content=f"Hello {n}"
                )
            else:
                made.append((await threads.create(deps, viewer, title=f"{seed}-{n}")).id)
            plan = await plans.create(deps, viewer, title=f"{n}", steps=[StepInput("Plant")])
            if chance.random() < 0.5:
                await plans.delete(deps, viewer, plan_id=plan.id)

    async def changes_end() -> None:
        async with asyncio.TaskGroup() as group:
            for seed in range(3):
                group.create_task(change(seed))
        done.set()
        # Who has heard of all of it already waits for one more.
        await threads.create(deps, viewer, title="Done")

    sidebar, chance = Sidebar(), random.Random(4)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(changes_end())
        while not done.is_set():
            async with live.subscribe(op.VIEWER_EVENTS, ann, after=sidebar.cursor) as events:
                for _ in range(chance.randint(1, 6)):
                    event = await events.next()
                    assert event is not None, events.refusal
                    sidebar.take(event)
                    if done.is_set():
                        break
    marker = await threads.create(deps, viewer, title="The end")
    async with live.subscribe(op.VIEWER_EVENTS, ann, after=sidebar.cursor) as events:
        while marker.id not in sidebar.shown:
            event = await events.next()
            assert event is not None, events.refusal
            sidebar.take(event)
    assert sidebar.resets == 1
    assert sidebar.shown == await now_shown(live, ann)


async def test_a_foreign_future_or_old_cursor_begins_anew(api: Api, ann: Person) -> None:
    bob = await sign_up(api.deps, "bob")
    cursors = {}
    for who in (ann, bob):
        async with api.subscribe(op.VIEWER_EVENTS, who) as events:
            await begun(events)
            for n in range(3):
                await threads.create(api.deps, who.viewer, title=f"{n}")
                event = await events.next()
                assert event is not None
                cursors.setdefault(who.id, []).append(event["cursor"])
    async with api.subscribe(op.VIEWER_EVENTS, ann, after=cursors[ann.id][0]) as events:
        told = [await events.next() for _ in range(2)]
        assert [event["cursor"] for event in told if event] == cursors[ann.id][1:]

    epoch, seq, offsets = position(cursors[ann.id][-1])
    conversation = await threads.create(api.deps, ann.viewer)
    async with api.subscribe(op.CONVERSATION_EVENTS, ann, id=conversation.id) as events:
        first = await events.next()
        assert first is not None
    strange = {
        "another person's": cursors[bob.id][-1],
        "a conversation's": first["cursor"],
        "the future": encoded([epoch, seq + 2, offsets]),
        "the far future": encoded([epoch, 2**62, offsets]),
        "another epoch": encoded(["00000000", 1, {}]),
    }
    async with work(api.deps) as unit:
        # As housekeeping does with what is too old.
        topic = await unit.session.get(Topic, changes.topic(ann.id))
        assert topic is not None
        topic.first_seq = 3
        await unit.session.execute(delete(Event).where(Event.topic == topic.id, Event.seq < 3))
    strange["too old"] = cursors[ann.id][0]
    for what, cursor in strange.items():
        async with api.subscribe(op.VIEWER_EVENTS, ann, after=cursor) as events:
            reset = await events.next()
            assert reset is not None, what
            assert reset["__typename"] == "ViewerReset", what
            assert len(reset["viewer"]["conversations"]["nodes"]) == 4, what


async def test_the_snapshot_and_its_cursor_belong_together(api: Api, ann: Person) -> None:
    """What is written while the snapshot is read is told after it, and not shown in it."""
    made = await threads.create(api.deps, ann.viewer, title="Before")
    stop = asyncio.Event()

    async def write() -> int:
        count = 0
        while not stop.is_set():
            count += 1
            await threads.update(
                api.deps, ann.viewer, conversation_id=made.id, changes={"title": f"{count}"}
            )
        return count

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        for _ in range(10):
            async with api.subscribe(op.VIEWER_EVENTS, ann) as events:
                first = await begun(events)
                (shown,) = first["viewer"]["conversations"]["nodes"]
                # Created once, changed so often: the cursor says the same as the title.
                written = 0 if shown["title"] == "Before" else int(shown["title"])
                seq = position(first["cursor"])[1]
                assert seq == 1 + written
                event = await events.next()
                assert event is not None
                assert position(event["cursor"])[1] == seq + 1
        stop.set()
    assert writing.result() > 0
