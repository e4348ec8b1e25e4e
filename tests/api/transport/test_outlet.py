"""Live streams on their way out of a socket: frames, turns, ids, bounds and ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection

from app.graphql_outlet import WebSocketProtocol
from app.graphql_ws import SocketOptions
from services.events.local import LocalBus
from tests.api.transport.conftest import Server, closing, hear, say, serving, subscribe, until
from tests.schema import journal as journals
from tests.schema.journal import QUERY, Book, Journal

MEBI = 1024 * 1024


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    bus = LocalBus(None)
    await bus.start()
    try:
        yield Journal(bus)
    finally:
        await bus.aclose()


@asynccontextmanager
async def served(
    journal: Journal, protocol: type[asyncio.Protocol] = WebSocketProtocol, **options: Any
) -> AsyncIterator[Server]:
    """Serve a journal; in the end nothing of any subscription must be left."""

    def context(_probe: Any, request_id: str, viewer: str | None, *_: Any) -> journals.Context:
        return journals.Context(journal, viewer or "nobody", request_id)

    async with serving(
        schema=journals.schema._schema,
        context=context,
        protocol=protocol,
        options=SocketOptions(**options),
    ) as server:
        yield server
        await until(lambda: server.ws.open_sockets == 0)
        await until(lambda: server.engine.feeds.open_feeds == 0)
        assert not any(server.engine.feeds.queues())
        assert journal.bus.stats.taps == 0


@pytest.fixture(params=[WebSocketProtocol, WebSocketsSansIOProtocol], ids=["direct", "asgi"])
async def server(journal: Journal, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with served(journal, request.param) as server:
        yield server


async def event(socket: ClientConnection, id_: str = "1") -> dict[str, Any]:
    """Give the next event of an operation, which must be the next message."""
    message = await hear(socket)
    assert (message["type"], message["id"]) == ("next", id_), message
    return dict(message["payload"])


async def begun(server: Server, socket: ClientConnection, id_: str = "1", **variables: Any) -> None:
    """Subscribe, and wait until there is nothing left to catch up with."""
    await subscribe(socket, id_, QUERY, variables=variables)
    if "after" not in variables:
        await event(socket, id_)
    feeds = server.engine.feeds
    await until(lambda: all(f._is_idle for f in feeds._shared.values()) and bool(feeds._shared))


# ---- frames


@pytest.mark.parametrize("filler", ["x", "é", "語", "😀"])
@pytest.mark.parametrize("size", [125, 126, 127, 65_535, 65_536, 65_537, 3_000_000])
async def test_a_frame_of_any_size_comes_as_it_was_told(
    journal: Journal, server: Server, size: int, filler: str
) -> None:
    short = "subscription { journal { ... on Text { text } } }"
    width = len(filler.encode())
    async with server.socket() as socket:
        await subscribe(socket, "1", short)
        assert await event(socket) == {"data": {"journal": {}}}
        await until(lambda: bool(server.engine.feeds._shared))
        frame = '{"id":"1","type":"next","payload":{"data":{"journal":{"text":"%s"}}}}'
        room = size - len(frame % "")
        text = filler * (room // width) + "." * (room % width)
        # Neighbours in the same write.
        journal.tell("before", text, "after")
        expected = [frame % told for told in ("before", text, "after")]
        heard: list[str] = []
        while len("".join(heard)) < len("".join(expected)):
            heard.append(await asyncio.wait_for(socket.recv(decode=True), 60))
        assert [len(frame) for frame in heard] == [len(frame) for frame in expected]
        assert heard == expected
        assert len(expected[1].encode()) == size
        await say(socket, {"id": "1", "type": "complete"})


async def test_thousands_of_events_at_once_are_whole_frames_in_order(
    journal: Journal, server: Server
) -> None:
    book = Book()
    async with server.socket() as socket:
        await subscribe(socket, "1", QUERY)
        book.take(journal, await event(socket))
        await until(lambda: bool(server.engine.feeds._shared))
        for number in range(3000):
            journal.tell(f"{number} é😀 " * (1 + number % 89), *[None] * (number % 100 == 0))
            if number % 40 == 0:
                await asyncio.sleep(0)
        while book.at < len(journal.entries):
            book.take(journal, await event(socket))


# ---- ids and turns


async def test_one_socket_follows_many_and_knows_them_apart(
    journal: Journal, server: Server
) -> None:
    books = {str(number): Book() for number in range(20)}
    async with server.socket() as socket:
        for id_ in books:
            await subscribe(socket, id_, QUERY)
        while any(book.at < 0 for book in books.values()):
            message = await hear(socket)
            books[message["id"]].take(journal, message["payload"])
        await until(lambda: server.engine.feeds.open_feeds == 1)
        for number in range(50):
            journal.tell(f"{number} ", None)
        while any(book.at < 100 for book in books.values()):
            message = await hear(socket)
            books[message["id"]].take(journal, message["payload"])
        executed = server.engine.feeds.stats.executed
        await say(socket, {"id": "3", "type": "complete"})
        await until(lambda: server.engine.feeds.queues()[0] == 19)
        journal.tell(None)
        heard = [(await hear(socket))["id"] for _ in range(19)]
        assert sorted(heard) == sorted(books.keys() - {"3"})
        assert server.engine.feeds.stats.executed == executed + 1


async def test_an_id_that_is_free_again_hears_nothing_of_its_past(
    journal: Journal, server: Server
) -> None:
    async with server.socket() as socket:
        await begun(server, socket)
        for number in range(20):
            journal.tell(*[None] * 30)
            await say(socket, {"id": "1", "type": "complete"})
            only = "subscription { journal { anew: __typename cursor } }"
            await subscribe(socket, "1", only)
            while "anew" not in (payload := await event(socket))["data"]["journal"]:
                assert number >= 0
            # Nothing of the first comes after the second has begun.
            assert payload["data"]["journal"]["anew"] == "Anew"
            await say(socket, {"id": "1", "type": "complete"})
            await say(socket, {"type": "ping", "payload": {"number": number}})
            assert await hear(socket) == {"type": "pong", "payload": {"number": number}}
            await begun(server, socket)


async def test_two_with_one_id_close_the_socket_and_leave_nothing(
    journal: Journal, server: Server
) -> None:
    async with server.socket() as bystander, server.socket() as socket:
        await begun(server, bystander)
        await begun(server, socket)
        await subscribe(socket, "1", QUERY)
        assert await closing(socket) == (4409, "Subscriber for 1 already exists")
        await until(lambda: server.engine.feeds.queues()[0] == 1)
        journal.tell("a ")
        assert (await event(bystander))["data"]["journal"]["text"] == "a "


# ---- ends


async def test_the_end_comes_after_everything_and_frees_the_id(
    journal: Journal, server: Server
) -> None:
    async with server.socket() as socket:
        await begun(server, socket)
        journal.tell("a ", None, "b ")
        journal.close()
        kinds = [(await event(socket))["data"]["journal"]["__typename"] for _ in range(3)]
        assert kinds == ["Text", "Note", "Text"]
        assert await hear(socket) == {"id": "1", "type": "complete"}
        await subscribe(socket, "1", QUERY, variables={"after": "3"})
        assert await hear(socket) == {"id": "1", "type": "complete"}
        await subscribe(socket, "1", QUERY, variables={"after": "2"})
        assert (await event(socket))["data"]["journal"]["text"] == "b "
        assert await hear(socket) == {"id": "1", "type": "complete"}


async def test_a_failure_is_the_last_word_and_frees_the_id(
    journal: Journal, server: Server
) -> None:
    async with server.socket() as socket:
        journal.failure = OSError("the password is hunter2")
        for _ in range(2):
            await subscribe(socket, "1", QUERY)
            message = await hear(socket)
            assert (message["id"], message["type"]) == ("1", "error")
            assert message["payload"][0]["extensions"]["code"] == "INTERNAL"
            assert "hunter2" not in json.dumps(message)
        journal.failure = None
        await begun(server, socket)


async def test_what_is_no_cursor_is_refused_and_the_socket_lives_on(
    journal: Journal, server: Server
) -> None:
    async with server.socket() as socket:
        for number in range(3):
            await subscribe(socket, "1", QUERY, variables={"after": "nonsense"})
            message = await hear(socket)
            assert (message["id"], message["type"]) == ("1", "error"), number
            assert message["payload"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        await begun(server, socket)


# ---- bounds


async def test_a_client_that_takes_nothing_is_dropped_and_others_are_not(journal: Journal) -> None:
    async with (
        served(journal, ping_interval_s=0.1, send_timeout_s=0.5, pong_timeout_s=60) as server,
        server.socket() as reader,
        server.connect(max_queue=1) as socket,
    ):
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        await begun(server, reader)
        await begun(server, socket)
        socket.transport.pause_reading()
        book, told = Book("", 0), 0
        while server.ws.open_sockets == 2:
            journal.tell("x" * 30_000)
            told += 1
            message = await hear(reader)
            while message["type"] == "ping":
                await say(reader, {"type": "pong"})
                message = await hear(reader)
            book.take(journal, message["payload"])
            assert server.engine.feeds.queues()[2] < 1.2 * MEBI
        assert book.at == told
        await until(lambda: server.engine.feeds.queues()[0] == 1)
        socket.transport.abort()


async def test_a_client_that_reads_on_in_time_has_missed_nothing(journal: Journal) -> None:
    async with served(journal) as server, server.connect(max_queue=1) as socket:
        await say(socket, {"type": "connection_init"})
        await hear(socket)
        await begun(server, socket)
        socket.transport.pause_reading()
        for _ in range(500):
            journal.tell("x" * 30_000, None)
            await asyncio.sleep(0)
            assert server.engine.feeds.queues()[2] < 1.2 * MEBI
        socket.transport.resume_reading()
        book = Book("", 0)
        while book.at < len(journal.entries):
            book.take(journal, await event(socket))
        assert "Anew" not in book.kinds


async def test_clients_that_vanish_with_much_to_take_leave_nothing(
    journal: Journal, server: Server
) -> None:
    for _ in range(3):
        sockets = []
        for _ in range(10):
            socket = await server.connect(max_queue=1)
            await say(socket, {"type": "connection_init"})
            await hear(socket)
            await begun(server, socket)
            socket.transport.pause_reading()
            sockets.append(socket)
        for _ in range(100):
            journal.tell("x" * 10_000, None)
            await asyncio.sleep(0)
        for socket in sockets:
            socket.transport.abort()
        await until(lambda: server.ws.open_sockets == 0)
    await until(lambda: server.engine.feeds.open_feeds == 0)
