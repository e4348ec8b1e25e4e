"""A small schema with every kind of answer, and what its resolvers tell the tests."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import strawberry
from strawberry.scalars import JSON
from strawberry.types import Info

from services.errors import RateLimitedError, RequestError, UserError, UserErrorCode


@dataclass
class Probe:
    """What happened inside the resolvers, shared by all contexts of one server."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    open_streams: int = 0
    produced: int = 0
    mutations: list[str] = field(default_factory=list)
    contexts: list["Context"] = field(default_factory=list)


@dataclass
class Context:
    probe: Probe
    request_id: str
    viewer: str | None = None
    resume_after: str | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    events: int = 0

    def __post_init__(self) -> None:
        self.extensions["requestId"] = self.request_id
        self.probe.contexts.append(self)

    def begin_event(self) -> None:
        self.events += 1
        self.extensions["event"] = self.events


SampleInfo = Info[Context, None]


@strawberry.type
class Thing:
    id: strawberry.ID

    @strawberry.field
    def inner(self) -> "Thing":
        return self

    @strawberry.field
    async def label(self, info: SampleInfo, size: int = 1) -> str:
        return "x" * size


@strawberry.type
class Numbered:
    cursor: str
    number: int


@strawberry.input
class ThingInput:
    name: str
    count: int = 1


@strawberry.type
class Query:
    @strawberry.field
    async def hello(self, name: str = "world") -> str:
        return f"Hello, {name}!"

    @strawberry.field
    def thing(self) -> Thing:
        return Thing(id=strawberry.ID("thing_1"))

    @strawberry.field
    async def viewer(self, info: SampleInfo) -> str | None:
        return info.context.viewer

    @strawberry.field
    async def wait(self, info: SampleInfo) -> str:
        probe = info.context.probe
        probe.entered.set()
        try:
            await probe.gate.wait()
        except asyncio.CancelledError:
            probe.cancelled.set()
            raise
        return "done"

    @strawberry.field
    async def broken(self) -> str | None:
        raise RuntimeError("the password is hunter2")

    @strawberry.field
    def broken_sync(self) -> str:
        raise RuntimeError("the password is hunter2")

    @strawberry.field
    async def grouped(self) -> str | None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_refuse())
        return None

    @strawberry.field
    async def limited(self) -> str | None:
        return await _refuse()

    @strawberry.field
    async def limited_always(self) -> str:
        return await _refuse()

    @strawberry.field
    async def unmended(self) -> str | None:
        raise UserError(UserErrorCode.INVALID, "`first` must be at most 100.")

    @strawberry.field
    async def infinite(self) -> float | None:
        return float("inf")

    @strawberry.field
    def data(self, kind: str) -> JSON:
        values: dict[str, Any] = {
            "nan": {"value": float("nan")},
            "surrogate": {"text": "a\ud83db", "fine": "😀"},
            "big": {"number": 2**80},
            "object": {"bad": object()},
        }
        return values[kind]  # type: ignore[no-any-return]

    @strawberry.field
    async def make(self, input: ThingInput) -> str:
        return input.name * input.count


async def _refuse() -> str:
    raise RateLimitedError("Too many attempts: wait a little.", 6.2)


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def note(self, info: SampleInfo, text: str) -> str:
        info.context.probe.mutations.append(text)
        return text

    @strawberry.mutation
    async def slow_note(self, info: SampleInfo, text: str) -> str:
        probe = info.context.probe
        probe.entered.set()
        await probe.gate.wait()
        probe.mutations.append(text)
        probe.finished.set()
        return text


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def count(self, info: SampleInfo, to: int = 3) -> AsyncGenerator[int, None]:
        for number in range(1, to + 1):
            yield number

    @strawberry.subscription
    async def things(self, info: SampleInfo) -> AsyncGenerator[Thing, None]:
        for number in range(1, 3):
            yield Thing(id=strawberry.ID(f"thing_{number}"))

    @strawberry.subscription
    async def numbered(
        self, info: SampleInfo, to: int = 3, after: str | None = None
    ) -> AsyncGenerator[Numbered, None]:
        cursor = info.context.resume_after or after or "c0"
        if not cursor[1:].isdigit():
            raise RequestError("BAD_USER_INPUT", "`after` is not a cursor of this subscription.")
        for number in range(int(cursor[1:]) + 1, to + 1):
            yield Numbered(cursor=f"c{number}", number=number)

    @strawberry.subscription
    async def paced(
        self, info: SampleInfo, to: int = 3, after: str | None = None
    ) -> AsyncGenerator[Numbered, None]:
        """Count as `numbered` does, but stand still after the second until the gate opens."""
        probe = info.context.probe
        cursor = info.context.resume_after or after or "c0"
        for number in range(int(cursor[1:]) + 1, to + 1):
            yield Numbered(cursor=f"c{number}", number=number)
            if number == 2:
                probe.paused.set()
                await probe.gate.wait()

    @strawberry.subscription
    async def absent(self, info: SampleInfo) -> AsyncGenerator[int, None]:
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such thing.")
        yield 1

    @strawberry.subscription
    async def unspeakable(self, info: SampleInfo) -> AsyncGenerator[JSON, None]:
        yield {"fine": 1}  # type: ignore[misc]
        yield {"bad": object()}  # type: ignore[misc]

    @strawberry.subscription
    async def forever(self, info: SampleInfo) -> AsyncGenerator[int, None]:
        probe = info.context.probe
        probe.open_streams += 1
        try:
            yield 1
            probe.entered.set()
            await asyncio.Event().wait()
        finally:
            probe.open_streams -= 1
            probe.closed.set()

    @strawberry.subscription
    async def lingering(self, info: SampleInfo) -> AsyncGenerator[int, None]:
        """Take its time at the end, until the gate opens."""
        probe = info.context.probe
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            probe.entered.set()
            await probe.gate.wait()
            probe.closed.set()

    @strawberry.subscription
    async def flood(self, info: SampleInfo, size: int = 10_000) -> AsyncGenerator[str, None]:
        probe = info.context.probe
        rest = "x" * size
        try:
            while True:
                probe.produced += 1
                yield f"{probe.produced}:{rest}"
        finally:
            probe.closed.set()

    @strawberry.subscription
    async def failing(self, info: SampleInfo) -> AsyncGenerator[int, None]:
        yield 1
        raise RuntimeError("the password is hunter2")

    @strawberry.subscription
    async def limited(self, info: SampleInfo) -> AsyncGenerator[int, None]:
        await _refuse()
        yield 1


schema = strawberry.Schema(query=Query, mutation=Mutation, subscription=Subscription)
graphql_schema = schema._schema
