"""Byte pipes to the node that hosts a sandbox: here, over the bus, and over Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from models.base import now
from models.sandboxes import Sandbox
from sandbox.errors import FileError, FileErrorCode
from services.base import Deps
from services.errors import UserError, UserErrorCode
from services.events.base import Json
from services.events.redis import RedisBus
from services.sandboxes import lifecycle, operations, relay
from services.sandboxes.node import Node
from services.sandboxes.relay import CHUNK_BYTES, Pipe
from tests.services.sandboxes.conftest import Launch, Server

pytestmark = pytest.mark.bubblewrap


class Echo:
    """What is written comes back; the far end of what tests open."""

    def __init__(self, head: Json) -> None:
        self.head = head
        self.received = bytearray()
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.room = asyncio.Event()
        self.room.set()
        self.closed = asyncio.Event()
        self.asked = asyncio.Event()
        self.waits = asyncio.Event()

    async def read(self) -> bytes:
        self.asked.set()
        data = await self.queue.get()
        if data == b"fail":
            raise FileError(FileErrorCode.NO_SPACE, "The disk of the sandbox is full.")
        return data

    async def write(self, data: bytes) -> None:
        self.waits.set()
        await self.room.wait()
        self.received += data
        self.queue.put_nowait(data)

    async def end(self) -> None:
        self.queue.put_nowait(b"")

    async def aclose(self) -> None:
        self.closed.set()


@dataclass
class Place:
    """Where a pipe is opened, and the node that has its far end."""

    deps: Deps
    row: Sandbox
    node: Node
    open: Callable[..., Awaitable[Pipe]]
    far: list[Echo]


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> list[Echo]:
    opened: list[Echo] = []

    async def echo(node: Node, sandbox_id: str, request: Json) -> Pipe:
        if request.get("refuse"):
            raise FileError(FileErrorCode.NOT_FOUND, "There is no such file.")
        opened.append(Echo({"sandbox": sandbox_id, "size": request["size"]}))
        return opened[-1]

    monkeypatch.setitem(relay.KINDS, "test-echo", echo)
    return opened


@pytest.fixture(params=["here", "local", pytest.param("redis", marks=pytest.mark.redis)])
async def place(
    request: pytest.FixtureRequest, launch: Launch, far: list[Echo]
) -> AsyncIterator[Place]:
    """Each way there is to a sandbox."""
    if request.param != "redis":
        server = await launch()
        box = await lifecycle.create(server.deps, await server.person("ada"))
        how = relay.open if request.param == "here" else relay.open_remote
        yield Place(server.deps, box, await server.host.node(), how, far)
        return
    url, prefix = request.getfixturevalue("redis_url"), f"test-{secrets.token_hex(4)}:"

    async def process(name: str) -> Server:
        bus = RedisBus(url, name, prefix)
        await bus.start()
        return await launch(bus=bus, folder=name)

    near, other = await process("near"), await process("other")
    box = await lifecycle.create(other.deps, await other.person("ada"))
    assert (box.node_id, near.deps.bus.node_id) == ("other", "near")
    yield Place(near.deps, box, await other.host.node(), relay.open, far)


async def drained(pipe: Pipe) -> bytes:
    found = b""
    async with asyncio.timeout(60):
        while data := await pipe.read():
            found += data
    return found


async def opened(place: Place, **arguments: Any) -> Pipe:
    return await place.open(place.deps, place.row, "test-echo", **{"size": 0, **arguments})


async def test_bytes_come_back_exactly_as_they_went_whatever_their_number(place: Place) -> None:
    sent = secrets.token_bytes(3 * CHUNK_BYTES + 17)
    async with aclosing(await opened(place, size=len(sent))) as pipe:
        assert pipe.head == {"sandbox": place.row.id, "size": len(sent)}
        async with asyncio.TaskGroup() as group:
            back = group.create_task(drained(pipe))
            await pipe.write(sent[:1])
            await pipe.write(sent[1:])
            await pipe.end()
        assert back.result() == sent
        assert not place.far[0].closed.is_set()
    await asyncio.wait_for(place.far[0].closed.wait(), 60)
    assert len(place.node.relays) == 0


async def test_what_goes_through_is_use_of_the_sandbox(place: Place) -> None:
    live = place.node.live[place.row.id]
    long_ago = now() - timedelta(hours=1)
    async with aclosing(await opened(place)) as pipe:
        live.used_at = long_ago
        await pipe.write(b"x")
        assert live.used_at > long_ago
        live.used_at = long_ago
        assert await pipe.read() == b"x"
        assert live.used_at > long_ago


async def test_a_refusal_to_open_is_told_in_words_for_the_user(place: Place) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        await opened(place, refuse=True)
    assert (caught.value.code, caught.value.path) == (UserErrorCode.NOT_FOUND, ("path",))
    assert len(place.node.relays) == 0


async def test_an_error_of_the_sandbox_is_told_in_words_for_the_user(place: Place) -> None:
    async with aclosing(await opened(place)) as pipe:
        place.far[0].queue.put_nowait(b"fail")
        with pytest.raises(UserError, match="disk of the sandbox is full") as caught:
            await pipe.read()
        assert caught.value.code is UserErrorCode.LIMIT


async def test_a_read_that_is_given_up_takes_no_bytes_along(place: Place) -> None:
    async with aclosing(await opened(place)) as pipe:
        reading = asyncio.ensure_future(pipe.read())
        await asyncio.wait_for(place.far[0].asked.wait(), 60)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert reading.cancelled()
        await pipe.write(b"all of it")
        await pipe.end()
        assert await drained(pipe) == b"all of it"


async def test_a_writer_waits_until_there_is_room(place: Place) -> None:
    async with aclosing(await opened(place)) as pipe:
        place.far[0].room.clear()
        writing = asyncio.ensure_future(pipe.write(b"patience"))
        done, _ = await asyncio.wait({writing}, timeout=0.05)
        assert not done
        place.far[0].room.set()
        async with asyncio.timeout(60):
            await writing
            assert await pipe.read() == b"patience"


async def test_what_waits_is_asked_for_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # A call over the bus ends after a while with nothing; the pipe does not.
    monkeypatch.setattr(relay, "WAIT_S", 0.01)
    async with aclosing(await opened(place)) as pipe:
        reading = asyncio.ensure_future(drained(pipe))
        place.far[0].room.clear()
        writing = asyncio.ensure_future(pipe.write(b"late"))
        await asyncio.wait({reading, writing}, timeout=0.1)
        place.far[0].room.set()
        async with asyncio.timeout(60):
            await writing
            await pipe.end()
            assert await reading == b"late"
        assert bytes(place.far[0].received) == b"late"


async def test_what_goes_into_a_sandbox_ends_with_it(launch: Launch, far: list[Echo]) -> None:
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    pipe = await relay.open_remote(server.deps, box, "test-echo", size=1)
    await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
    await asyncio.wait_for(far[0].closed.wait(), 60)
    with pytest.raises(UserError, match="was lost") as caught:
        await pipe.write(b"x")
    assert caught.value.code is UserErrorCode.UNAVAILABLE
    with pytest.raises(UserError, match="was lost"):
        await pipe.write(b"y")
    await pipe.aclose()


async def test_who_waits_when_a_sandbox_ends_is_told_at_once(
    launch: Launch, far: list[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody is asked again, and no call is given up, before the test is.
    monkeypatch.setattr(relay, "WAIT_S", 600.0)
    monkeypatch.setattr(relay, "CALL_S", 600.0)
    server = await launch()
    ada = await server.person("ada")
    box = await lifecycle.create(server.deps, ada)
    reader = await relay.open_remote(server.deps, box, "test-echo", size=1)
    writer = await relay.open_remote(server.deps, box, "test-echo", size=1)
    far[1].room.clear()
    waiting = [asyncio.ensure_future(reader.read()), asyncio.ensure_future(writer.write(b"x"))]
    async with asyncio.timeout(60):
        await far[0].asked.wait()
        await far[1].waits.wait()
        await lifecycle.stop(server.deps, ada, sandbox_id=box.id)
        for ended in waiting:
            with pytest.raises(UserError, match="was lost") as caught:
                await ended
            assert caught.value.code is UserErrorCode.UNAVAILABLE


async def test_a_pipe_nobody_uses_is_closed(launch: Launch, far: list[Echo]) -> None:
    server = await launch()
    box = await lifecycle.create(server.deps, await server.person("ada"))
    node = await server.host.node()
    node.relays._idle_s = 0.05
    pipe = await relay.open_remote(server.deps, box, "test-echo", size=1)
    await asyncio.wait_for(far[0].closed.wait(), 60)
    assert len(node.relays) == 0
    with pytest.raises(UserError, match="was lost"):
        await pipe.read()
    await pipe.aclose()


async def test_a_sandbox_has_only_so_many(
    launch: Launch, far: list[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PER_SANDBOX", 2)
    server = await launch()
    ada = await server.person("ada")
    box, other = [await lifecycle.create(server.deps, ada) for _ in range(2)]
    pipes = [await relay.open_remote(server.deps, box, "test-echo", size=1) for _ in range(2)]
    with pytest.raises(UserError, match="2 transfers") as caught:
        await relay.open_remote(server.deps, box, "test-echo", size=1)
    assert caught.value.code is UserErrorCode.LIMIT
    await (await relay.open_remote(server.deps, other, "test-echo", size=1)).aclose()
    await pipes[0].aclose()
    await (await relay.open_remote(server.deps, box, "test-echo", size=1)).aclose()
    await pipes[1].aclose()
    # The end of the process closes the rest.
    kept = await relay.open_remote(server.deps, box, "test-echo", size=1)
    await server.host.aclose()
    assert far[-1].closed.is_set()
    await kept.aclose()


async def test_of_one_position_nothing_is_written_twice_and_nothing_is_left_out(
    launch: Launch, far: list[Echo]
) -> None:
    server = await launch()
    box = await lifecycle.create(server.deps, await server.person("ada"))
    ask = server.host.ask
    name = (await ask(box, "relay_open", kind="test-echo", arguments={"size": 1}))["pipe"]
    for _ in range(2):
        assert not (await ask(box, "relay_push", pipe=name, at=0, data="YWJj", last=False))[
            "is_waiting"
        ]
    with pytest.raises(UserError, match="was lost"):
        await ask(box, "relay_push", pipe=name, at=4, data="YWJj", last=False)
    assert bytes(far[0].received) == b"abc"
    for _ in range(2):
        assert (await ask(box, "relay_pull", pipe=name, at=0))["data"] == "YWJj"
    with pytest.raises(UserError, match="was lost"):
        await ask(box, "relay_pull", pipe=name, at=4)
    await ask(box, "relay_close", pipe=name)
    with pytest.raises(UserError, match="was lost"):
        await ask(box, "relay_pull", pipe=name, at=3)


async def test_a_name_is_registered_once() -> None:
    with pytest.raises(TypeError, match="relay_open"):
        operations.operation("relay_open")(operations.OPERATIONS["relay_open"])


async def test_what_is_attached_to_a_node_sees_every_sandbox_come_and_go(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def attach(node: Node) -> Any:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def attached() -> AsyncIterator[None]:
            node.on_added.append(lambda live: seen.append(f"+{live.sandbox_id}"))
            node.on_ending.append(lambda live: seen.append(f"-{live.sandbox_id}"))
            seen.append("attached")
            try:
                yield
            finally:
                seen.append("left")

        return attached()

    operations.load()
    monkeypatch.setattr(operations, "ATTACHMENTS", [*operations.ATTACHMENTS, attach])
    server = await launch()
    ada = await server.person("ada")
    first, second = [await lifecycle.create(server.deps, ada) for _ in range(2)]
    await lifecycle.stop(server.deps, ada, sandbox_id=first.id)
    await server.host.aclose()
    assert seen == [
        "attached",
        f"+{first.id}",
        f"+{second.id}",
        f"-{first.id}",
        "left",
        f"-{second.id}",
    ]
