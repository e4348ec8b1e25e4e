"""Who asks the same with the same rights is answered once, and nobody else with them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

import schema
from resolvers.base import Context
from schema.execution import Engine, Event, Live, Prepared, Stream
from schema.execution.sharing import cursor_variables, kind_of
from services.base import Deps, Viewer
from services.conversations import threads
from tests.api import operations as op
from tests.api.people import sign_up
from tests.fixtures import Api, Person, Statements
from tests.schema.journal import until
from tests.schema.watching import DOCUMENTS
from tests.services.streams.authors import Author

NAMED = (
    "subscription A($id: ID!, $after: String) {"
    " conversationEvents(conversationId: $id, after: $after) {"
    " __typename cursor ... on MessageAdded { message { id content author { username } } } } }"
)
TWO = f"{NAMED} {NAMED.replace('subscription A', 'subscription B')}"


class Room:
    """A conversation, and those who follow it through one engine."""

    def __init__(self, deps: Deps, owner: Person, conversation_id: str) -> None:
        self.deps, self.owner, self.id = deps, owner, conversation_id
        self.engine = Api(deps).engine
        self.writer = Author(deps, owner.viewer, conversation_id)

    async def open(
        self,
        document: str = NAMED,
        viewer: Viewer | None = None,
        *,
        name: str | None = None,
        **variables: Any,
    ) -> Stream:
        prepared = self.engine.prepare(document, name, {"id": self.id, **variables})
        assert isinstance(prepared, Prepared), prepared
        context = Context(self.deps, viewer or self.owner.viewer, "test")
        stream = await self.engine.subscribe(prepared, context)
        assert isinstance(stream, Stream), stream
        return stream

    @asynccontextmanager
    async def opened(self, *openings: dict[str, Any]) -> AsyncIterator[list[Stream]]:
        """Open subscriptions, and wait until all of them stand still."""
        async with AsyncExitStack() as stack:
            streams = []
            for opening in openings:
                stream = await self.open(**opening)
                stack.callback(stream.close)
                streams.append(stream)
                if opening.get("after") is None:
                    assert (await told(stream))["__typename"] == "ConversationReset"
            await until(lambda: stand_still(self.engine))
            yield streams
        await until(lambda: self.engine.feeds.open_feeds == 0)


def stand_still(engine: Engine) -> bool:
    """Tell whether all feeds are shared ones that wait for news."""
    feeds = engine.feeds._shared.values()
    return len(feeds) == engine.feeds.open_feeds and all(feed._is_idle for feed in feeds)


async def told(stream: Stream) -> dict[str, Any]:
    """Give the next event."""
    async with asyncio.timeout(20):
        event = await anext(stream)
    assert isinstance(event, Event), event
    payload = event.payload()
    assert not payload.get("errors"), payload
    (value,) = payload["data"].values()
    return dict(value)


@pytest.fixture
async def room(deps: Deps) -> AsyncIterator[Room]:
    ann = await sign_up(deps, "ann")
    conversation = await threads.create(deps, ann.viewer)
    room = Room(deps, ann, conversation.id)
    yield room
    await room.engine.feeds.aclose()


# ---- sharing


async def test_a_crowd_costs_the_database_what_one_reader_costs(
    room: Room, statements: Statements
) -> None:
    costs = []
    for crowd in (1, 30):
        async with room.opened(*[{}] * crowd) as streams:
            assert room.engine.feeds.open_feeds == 1
            executed = room.engine.feeds.stats.executed
            before = len(statements.reads())
            await room.writer.say()
            events = [await told(stream) for stream in streams]
            costs.append(len(statements.reads()) - before)
            assert room.engine.feeds.stats.executed == executed + 1
            assert events == [events[0]] * crowd
            assert events[0]["message"]["content"]
    assert costs[0] == costs[1] > 0


async def test_a_crowd_that_asks_at_once_reads_two_snapshots_at_most(
    room: Room, statements: Statements
) -> None:
    await room.writer.say()
    costs = []
    for crowd in (1, 40):
        before = len(statements.reads())
        streams = await asyncio.gather(*(room.open(op.CONVERSATION_EVENTS) for _ in range(crowd)))
        resets = [await told(stream) for stream in streams]
        assert resets == [resets[0]] * crowd
        await until(lambda: stand_still(room.engine))
        costs.append(len(statements.reads()) - before)
        assert room.engine.feeds.open_feeds == 1
        for stream in streams:
            stream.close()
        await until(lambda: room.engine.feeds.open_feeds == 0)
    assert costs[1] <= 2 * costs[0] + 2


async def test_texts_are_told_to_all_without_any_statement(
    room: Room, statements: Statements
) -> None:
    answer = await room.writer.add()
    async with room.opened(*[{"document": op.CONVERSATION_EVENTS}] * 10) as streams:
        before = len(statements.sent)
        for _ in range(20):
            await room.writer.write(answer, 1)
        for stream in streams:
            text = ""
            while text != answer.writer.text:
                text += (await told(stream))["text"]
        assert len(statements.sent) == before


async def test_readers_share_wherever_they_began_once_they_have_caught_up(room: Room) -> None:
    async with room.opened({}) as (first,):
        cursors = []
        for _ in range(6):
            await room.writer.say()
            cursors.append((await told(first))["cursor"])
    async with room.opened({}) as (first,):
        late = [await room.open(after=cursor) for cursor in cursors]
        for place, stream in enumerate(late):
            rest = [(await told(stream))["cursor"] for _ in cursors[place + 1 :]]
            assert rest == cursors[place + 1 :]
        await until(lambda: room.engine.feeds.open_feeds == 1 and stand_still(room.engine))
        executed = room.engine.feeds.stats.executed
        await room.writer.say()
        events = [await told(stream) for stream in (first, *late)]
        assert events == [events[0]] * 7
        assert room.engine.feeds.stats.executed == executed + 1
        for stream in late:
            stream.close()


async def test_a_token_that_was_prolonged_changes_no_rights(room: Room) -> None:
    viewer = room.owner.viewer
    later = replace(viewer, expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    async with room.opened({"viewer": viewer}, {"viewer": later}):
        assert room.engine.feeds.open_feeds == 1


# ---- not sharing


async def admin_of(room: Room) -> Viewer:
    """Give somebody else who may see the conversation."""
    return (await sign_up(room.deps, "root", "admin")).viewer


async def _other_permissions(room: Room) -> Viewer:
    viewer = room.owner.viewer
    return replace(viewer, permissions=viewer.permissions - {"conversations:write"})


async def _more_permissions(room: Room) -> Viewer:
    viewer = room.owner.viewer
    return replace(viewer, permissions=viewer.permissions | {"everything:manage"})


async def _other_roles(room: Room) -> Viewer:
    return replace(room.owner.viewer, roles=frozenset({"guest"}))


async def _other_session(room: Room) -> Viewer:
    return replace(room.owner.viewer, session_id="ses_elsewhere")


@pytest.mark.parametrize(
    "other", [admin_of, _other_permissions, _more_permissions, _other_roles, _other_session]
)
async def test_viewers_of_unequal_rights_never_share(
    room: Room, other: Callable[[Room], Any]
) -> None:
    viewers = [room.owner.viewer, await other(room)]
    openings = [{"viewer": viewer} for viewer in viewers * 3]
    async with room.opened(*openings) as streams:
        assert room.engine.feeds.open_feeds == 2
        executed = room.engine.feeds.stats.executed
        for _ in range(3):
            await room.writer.say()
            events = [await told(stream) for stream in streams]
            assert [event["__typename"] for event in events] == ["MessageAdded"] * 6
        assert room.engine.feeds.stats.executed == executed + 6
        assert_answered_as_themselves(streams, viewers * 3)


async def test_viewers_of_unequal_rights_never_share_though_they_catch_up_lag_and_ask_at_once(
    room: Room,
) -> None:
    viewers = [room.owner.viewer, await admin_of(room), await _other_permissions(room)] * 5
    streams = await asyncio.gather(*(room.open(viewer=viewer) for viewer in viewers))
    assert_answered_as_themselves(streams, viewers)
    cursors = [(await told(stream))["cursor"] for stream in streams]
    assert_answered_as_themselves(streams, viewers)
    for stream in streams[::2]:
        stream.close()
    for place in range(0, len(streams), 2):
        streams[place] = await room.open(viewer=viewers[place], after=cursors[place])
    await room.writer.say()
    for stream in streams:
        await told(stream)
    await until(lambda: room.engine.feeds.open_feeds == 3 and stand_still(room.engine))
    assert_answered_as_themselves(streams, viewers)
    for stream in streams:
        stream.close()


def assert_answered_as_themselves(streams: list[Stream], viewers: list[Viewer]) -> None:
    """See that whoever answers a reader has the reader's rights."""
    for stream, viewer in zip(streams, viewers, strict=True):
        assert stream.feed is not None
        assert stream.feed.subscription.context.viewer == viewer
        assert stream.subscription.context.viewer == viewer
        assert all(other.subscription.context.viewer == viewer for other in stream.feed.streams)


async def test_what_one_may_not_see_is_answered_to_nobody_in_anothers_name(room: Room) -> None:
    stranger = await sign_up(room.deps, "stranger")
    prepared = room.engine.prepare(NAMED, None, {"id": room.id})
    assert isinstance(prepared, Prepared)
    async with room.opened({}, {}):

        async def refusal(viewer: Viewer) -> Any:
            refused = await room.engine.subscribe(prepared, Context(room.deps, viewer, "test"))
            assert not isinstance(refused, Stream)
            return refused.payload()  # type: ignore[union-attr]

        # While the owner asks the very same.
        *refusals, stream = await asyncio.gather(
            refusal(stranger.viewer), refusal(Viewer()), refusal(stranger.viewer), room.open()
        )
        stream.close()
        assert all("data" not in refused for refused in refusals)
        codes = [refused["errors"][0]["extensions"]["code"] for refused in refusals]
        assert codes == ["NOT_FOUND", "UNAUTHENTICATED", "NOT_FOUND"]


async def test_other_operations_documents_and_variables_never_share(room: Room) -> None:
    other = await threads.create(room.deps, room.owner.viewer)
    limited = NAMED.replace("$after: String", "$after: String, $all: Boolean! = true").replace(
        "content author", "content @include(if: $all) author"
    )
    openings: list[dict[str, Any]] = [
        {},
        {"document": NAMED + " "},
        {"document": NAMED.replace("subscription A", "subscription B")},
        {"document": TWO, "name": "A"},
        {"document": TWO, "name": "B"},
        {"document": limited},
        {"document": limited, "all": False},
        {"id": other.id},
        *[{"document": document} for document in DOCUMENTS],
    ]
    async with room.opened(*openings, *openings):
        assert room.engine.feeds.open_feeds == len(openings)
        assert all(len(feed.streams) == 2 for feed in room.engine.feeds._shared.values())


PAGED = (
    "subscription($id: ID!, $after: String) {"
    " conversationEvents(conversationId: $id, after: $after) { __typename cursor"
    " ... on ConversationReset { conversation { messages(first: 1, after: %s) { nodes { id } } } }"
    " ... on MessageAdded { message { conversation {"
    " messages(first: 1, after: %s) { nodes { id } } } } } } }"
)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (NAMED, {"after"}),
        (NAMED.replace("$after", "$from"), {"from"}),
        (NAMED.replace("$after: String", '$after: String = "x"'), {"after"}),
        (NAMED.replace("$after: String", "").replace("after: $after", "after: null"), set()),
        (PAGED % ("null", "null"), {"after"}),
        (PAGED % ("$after", "null"), set()),
        (PAGED % ("$,after", "null"), set()),
        (PAGED % ("$ #\n after", "null"), set()),
        (NAMED.replace("cursor", "cursor # $after\n"), {"after"}),
        (
            "subscription($id: ID!, $after: String) {"
            " conversationEvents(conversationId: $id, after: $after) { ...F } }"
            " fragment F on ConversationReset {"
            " conversation { messages(after: $after) { nodes { id } } } }",
            set(),
        ),
    ],
)
def test_only_what_does_nothing_but_say_where_to_begin_is_left_out(
    document: str, expected: set[str]
) -> None:
    engine = Engine(schema.build()._schema)
    prepared = engine.prepare(document, None, {"id": "cnv_1"})
    assert isinstance(prepared, Prepared), prepared
    assert cursor_variables(prepared.document, prepared.operation) == expected


async def test_a_cursor_that_is_used_elsewhere_too_keeps_its_readers_apart(room: Room) -> None:
    # The same text for both, and yet another list for each of them.
    document = PAGED % ("null", "$after")
    prepared = [
        room.engine.prepare(document, None, {"id": room.id, "after": after})
        for after in ("one", "two")
    ]
    kinds = set()
    for operation in prepared:
        assert isinstance(operation, Prepared)
        cursors = cursor_variables(operation.document, operation.operation)
        assert cursors == set()
        live = Live(room.deps.bus, lambda _: cast("Any", None), str, "the same")
        kinds.add(kind_of(operation, live, cursors))
    assert len(kinds) == 2


# ---- snapshots


async def test_what_one_has_written_before_one_asks_is_always_in_the_snapshot(room: Room) -> None:
    async def write_and_ask(number: int) -> None:
        for _ in range(3):
            await asyncio.sleep(number % 3 * 0.001)
            sent = await room.writer.say()
            stream = await room.open(op.CONVERSATION_EVENTS)
            reset = await told(stream)
            nodes = reset["conversation"]["messages"]["nodes"]
            assert sent in {node["id"] for node in nodes}
            stream.close()

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(write_and_ask(number))
    assert room.engine.feeds.stats.joined > 0
