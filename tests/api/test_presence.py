"""Who is looking at a conversation: seen by those who may see it, and gone when they go."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from models.conversations import Conversation
from models.states import ConversationStatus
from services.accounts import sessions
from services.base import Deps, work
from services.conversations import presence, threads
from services.conversations.presence import VIEWERS_MAX, Audience, Presence
from tests.api import operations as op
from tests.api.people import CLIENT, sign_up
from tests.fixtures import Api, Person, Stream
from tests.product import Client, Events, Product
from tests.services.faulty_bus import FaultyBus

_names = (f"looker{n}" for n in itertools.count())


@pytest.fixture
async def ann(deps: Deps) -> Person:
    return await sign_up(deps, "ann")


async def begin(api: Api, who: Person) -> str:
    return (await threads.create(api.deps, who.viewer)).id


async def on_another_device(deps: Deps, who: Person) -> Person:
    async with work(deps) as unit:
        credentials = await sessions.open_session(unit, who.id, CLIENT)
    viewer = await sessions.authenticate(deps, credentials.token)
    return Person(viewer, credentials.token, credentials.refresh_token)


def devices(event: dict[str, Any] | None) -> dict[str | None, int]:
    """Give who looks, with how many devices."""
    assert event is not None
    viewers = event["viewers"]
    assert event["totalCount"] >= len(viewers)
    return {(v["user"] or {}).get("username"): v["deviceCount"] for v in viewers}


async def until(stream: Stream | Events, expected: dict[str | None, int]) -> dict[str, Any]:
    """Read until so many look; those who come and go together may be told of together."""
    while True:
        event = await stream.next()
        if devices(event) == expected:
            assert event is not None
            return event


async def test_whoever_looks_is_seen_at_once_and_as_long_as_they_look(
    api: Api, ann: Person
) -> None:
    id_ = await begin(api, ann)
    phone = await on_another_device(api.deps, ann)
    async with api.subscribe(op.PRESENCE, ann, id=id_) as desk:
        first = await desk.next()
        assert devices(first) == {"ann": 1}
        async with api.subscribe(op.PRESENCE, phone, id=id_) as handheld:
            second = await handheld.next()
            assert devices(second) == {"ann": 2}
            told = await desk.next()
            assert told == second
            # Whoever came first says since when.
            assert first is not None
            assert told is not None
            assert told["viewers"][0]["joinedAt"] == first["viewers"][0]["joinedAt"]
            async with api.subscribe(op.PRESENCE, phone, id=id_) as tab:
                assert devices(await tab.next()) == {"ann": 2}, "two tabs of one sign-in are one"
        assert devices(await desk.next()) == {"ann": 1}
    assert await presence.look(api.deps, id_) == Audience((), 0)
    assert await api.deps.bus.members(presence.topic(id_)) == {}


async def test_a_query_shows_who_looks_and_looks_not_itself(api: Api, ann: Person) -> None:
    ids = [await begin(api, ann) for _ in range(3)]
    query = """{ conversations { nodes { id presence { totalCount viewers {
      user { username } joinedAt deviceCount } } } } }"""

    async def shown() -> dict[str, dict[str | None, int]]:
        found = await api.run(query, ann)
        return {node["id"]: devices(node["presence"]) for node in found["nodes"]}

    assert await shown() == {id_: {} for id_ in ids}
    phone = await on_another_device(api.deps, ann)
    async with (
        api.subscribe(op.PRESENCE, ann, id=ids[0]) as one,
        api.subscribe(op.PRESENCE, phone, id=ids[0]) as two,
        api.subscribe(op.PRESENCE, phone, id=ids[1]) as three,
    ):
        for stream in (one, two, three):
            await stream.next()
        assert await shown() == {ids[0]: {"ann": 2}, ids[1]: {"ann": 1}, ids[2]: {}}
    assert await shown() == {id_: {} for id_ in ids}
    # A bus that is away keeps nobody from the rest.
    api.deps.bus = FaultyBus(api.deps.bus)
    api.deps.bus.is_away = True
    found = await api.run(query, ann)
    assert [node["presence"] for node in found["nodes"]] == [None] * 3


async def test_one_conversation_knows_nothing_of_another(api: Api, ann: Person) -> None:
    ids = [await begin(api, ann) for _ in range(2)]
    async with (
        api.subscribe(op.PRESENCE, ann, id=ids[0]) as one,
        api.subscribe(op.PRESENCE, ann, id=ids[1]) as two,
    ):
        assert devices(await one.next()) == {"ann": 1}
        assert devices(await two.next()) == {"ann": 1}
    audiences = [await presence.look(api.deps, id_) for id_ in ids]
    assert audiences == [Audience((), 0)] * 2


async def test_who_may_not_see_it_neither_sees_who_looks_nor_is_seen(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)
    bob = await sign_up(api.deps, "bob")
    async with api.subscribe(op.PRESENCE, ann, id=id_) as events:
        await events.next()
        for who, code in ((None, "UNAUTHENTICATED"), (bob, "NOT_FOUND")):
            refusals = []
            for wanted in (id_, "cnv_none", "", "🦆", "x" * 9_999):
                async with api.subscribe(op.PRESENCE, who, id=wanted) as refused:
                    assert await refused.next() is None
                    (error,) = refused.refusal
                    refusals.append((error["extensions"]["code"], error["message"]))
            # The same whether it exists or not.
            assert len(set(refusals)) == 1
            assert refusals[0][0] == code
        assert len(await api.deps.bus.members(presence.topic(id_))) == 1


async def test_an_administrator_who_looks_is_counted_and_sees_all(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)
    root = await sign_up(api.deps, "root", "admin")
    async with (
        api.subscribe(op.PRESENCE, ann, id=id_) as anns,
        api.subscribe(op.PRESENCE, root, id=id_) as roots,
    ):
        await until(anns, {"ann": 1})
        await until(roots, {"ann": 1, "root": 1})
        # Ann may not see the accounts of others, but that somebody looks.
        await until(anns, {"ann": 1, None: 1})


@pytest.mark.parametrize("how", ["deleted", "behind our back"])
async def test_it_ends_with_the_conversation(
    api: Api, ann: Person, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_IDLE_S", 0.1 if how != "deleted" else 600.0)
    id_ = await begin(api, ann)
    async with api.subscribe(op.PRESENCE, ann, id=id_) as events:
        await events.next()
        if how == "deleted":
            await threads.delete(api.deps, ann.viewer, conversation_id=id_)
        else:
            async with work(api.deps) as unit:
                await unit.session.execute(
                    update(Conversation)
                    .where(Conversation.id == id_)
                    .values(status=ConversationStatus.DELETED)
                )
        assert await events.next() is None
        assert events.refusal == []
        assert await api.deps.bus.members(presence.topic(id_)) == {}


async def test_a_bus_that_is_away_for_a_while_ends_nothing(
    api: Api, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_AWAY_S", 0.01)
    bus = FaultyBus(api.deps.bus)
    api.deps.bus = bus
    id_ = await begin(api, ann)
    phone = await on_another_device(api.deps, ann)
    async with api.subscribe(op.PRESENCE, ann, id=id_) as events:
        assert devices(await events.next()) == {"ann": 1}
        bus.is_away = True
        async with api.subscribe(op.PRESENCE, phone, id=id_) as refused:
            assert await refused.next() is None
            assert [e["extensions"]["code"] for e in refused.refusal] == ["UNAVAILABLE"]
        waiting = asyncio.create_task(events.next())
        # Heard of, but nobody can be asked: it asks again until somebody answers.
        await bus._bus.present(presence.topic(id_), "m", _member("somebody"), 30)
        for _ in range(20):
            await bus._bus.publish(f"control:{id_}", {"stop": "none"})
        assert not waiting.done()
        bus.is_away = False
        assert devices(await waiting) == {"ann": 1, None: 1}
        bus.is_away = True
    # It could not say goodbye, which harms nobody: its time runs out.
    assert len(await bus._bus.members(presence.topic(id_))) == 2


def _member(user: str, session: str = "s", joined_at: str = "2030-01-01T00:00:00+00:00") -> Any:
    return {"user": user, "session": session, "joined_at": joined_at}


async def test_of_a_crowd_those_here_longest_are_listed_and_all_are_counted(
    api: Api, ann: Person
) -> None:
    id_ = await begin(api, ann)
    room = presence.topic(id_)
    for n in range(250):
        at = f"2030-01-01T00:{n // 60:02}:{n % 60:02}+00:00"
        await api.deps.bus.present(room, f"m{n}", _member(f"usr_{n}", joined_at=at), 30)
    async with api.subscribe(op.PRESENCE, ann, id=id_) as events:
        event = await events.next()
        assert event is not None
        assert event["totalCount"] == 251
        assert len(event["viewers"]) == VIEWERS_MAX
        assert devices(event)["ann"] == 1, "here before all of those"
    found = await presence.look(api.deps, id_)
    assert found is not None
    assert [viewer.user_id for viewer in found.viewers] == [f"usr_{n}" for n in range(100)]
    assert found.total_count == 250


async def test_those_who_look_at_once_share_one_look(
    api: Api, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty who follow in one process ask the bus less often than each by themselves."""
    id_ = await begin(api, ann)
    bus, asked = api.deps.bus, 0
    members = bus.members

    async def counted(topic: str) -> Any:
        nonlocal asked
        asked += 1
        return await members(topic)

    monkeypatch.setattr(bus, "members", counted)
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(api.subscribe(op.PRESENCE, ann, id=id_))
            for _ in range(20)
        ]
        await asyncio.gather(*(stream.next() for stream in streams))
        phone = await on_another_device(api.deps, ann)
        asked = 0
        async with api.subscribe(op.PRESENCE, phone, id=id_) as late:
            assert devices(await late.next()) == {"ann": 2}
            await asyncio.gather(*(until(stream, {"ann": 2}) for stream in streams))
        # Each heard of it at its own moment; a few looks served them all.
        assert asked <= len(streams) / 2


async def test_many_come_and_go_and_all_agree_in_the_end(api: Api, ann: Person) -> None:
    id_ = await begin(api, ann)
    people = [await on_another_device(api.deps, ann) for _ in range(10)]

    async def come_and_go(who: Person) -> None:
        for _ in range(5):
            async with api.subscribe(op.PRESENCE, who, id=id_) as events:
                assert (await events.next()) is not None

    async with api.subscribe(op.PRESENCE, ann, id=id_) as events:
        await events.next()
        await asyncio.gather(*(come_and_go(who) for who in people))
        async with api.subscribe(op.PRESENCE, people[0], id=id_) as last:
            assert devices(await last.next()) == {"ann": 2}
            await until(events, {"ann": 2})
        await until(events, {"ann": 1})
    assert await api.deps.bus.members(presence.topic(id_)) == {}


def test_devices_of_one_person_are_one_viewer() -> None:
    found = presence._audience(
        [
            _member("b", "s1", "2030-01-01T00:00:02+00:00"),
            _member("a", "s2", "2030-01-01T00:00:03+00:00"),
            _member("b", "s3", "2030-01-01T00:00:01+00:00"),
            _member("b", "s3", "2030-01-01T00:00:04+00:00"),
        ]
    )
    b, a = found.viewers
    assert (b.user_id, b.device_count, b.joined_at.second) == ("b", 2, 1)
    assert (a.user_id, a.device_count, a.joined_at.second) == ("a", 1, 3)
    assert isinstance(a, Presence)
    assert found.total_count == 2


# ---- real processes


@pytest.mark.redis
@pytest.mark.mysql
@pytest.mark.timeout(300)
async def test_who_looks_through_a_process_that_dies_vanishes_for_those_of_another(
    tmp_path: Path, mysql_url: str, redis_url: str
) -> None:
    products = [
        Product(
            tmp_path / name,
            NOOSPHERE_DATABASE_URL=mysql_url,
            NOOSPHERE_REDIS_URL=redis_url,
            NOOSPHERE_NODE_ID=name,
            NOOSPHERE_SANDBOX_DRIVER="off",
        )
        for name in ("a", "b")
    ]
    a, b = products
    clients = []
    try:
        for product in products:
            await asyncio.to_thread(product.start)
        here = Client(a.url)
        clients.append(here)
        name = next(_names)
        await here.register(name)
        data = await here.run(op.CREATE_CONVERSATION, title="Trees")
        id_ = data["conversationCreate"]["conversation"]["id"]
        signed_in = await here.run(
            """mutation($input: SessionCreateInput!) { sessionCreate(input: $input) {
                 session { token } } }""",
            input={"login": name, "password": "correct horse"},
        )
        there = Client(b.url, signed_in["sessionCreate"]["session"]["token"])
        clients.append(there)

        async with here.subscribe(op.PRESENCE, id=id_) as watching:
            await until(watching, {name: 1})
            async with there.subscribe(op.PRESENCE, id=id_) as looking:
                await until(looking, {name: 2})
                await until(watching, {name: 2})
                # A socket that is closed is told of at once.
            await until(watching, {name: 1})
            async with there.subscribe(op.PRESENCE, id=id_) as looking:
                await until(watching, {name: 2})
                # One whose process stops as well.
                await asyncio.to_thread(b.stop)
                await until(watching, {name: 1})
            await asyncio.to_thread(b.start)
            async with there.subscribe(op.PRESENCE, id=id_) as looking:
                await until(watching, {name: 2})
                # And of one that is killed when its time has run out.
                b.kill()
                await until(watching, {name: 1})
    finally:
        for client in clients:
            await client.aclose()
        for product in products:
            await asyncio.to_thread(product.close)
