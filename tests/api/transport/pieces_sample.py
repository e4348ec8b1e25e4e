"""A schema whose fields wait until told, and the parts of an answer as clients read them."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import strawberry
from strawberry.types import Info

from schema.execution import directives
from services.errors import UserError, UserErrorCode

BY_PATH = "multipart/mixed;deferSpec=20220824"
BY_ID = "multipart/mixed;incrementalSpec=v0.2"


@dataclass
class Gates:
    """What fields wait for, by name, and what became of them."""

    open: dict[str, asyncio.Event] = field(default_factory=dict)
    entered: dict[str, asyncio.Event] = field(default_factory=dict)
    cancelled: dict[str, asyncio.Event] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for events in (self.open, self.entered, self.cancelled):
            events.update({name: asyncio.Event() for name in "abc"})


@dataclass
class Context:
    """The context of one operation."""

    gates: Gates
    request_id: str
    extensions: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.extensions["cost"] = {"requested": 1}


SampleInfo = Info[Context, None]


@strawberry.type
class Thing:
    id: strawberry.ID

    @strawberry.field
    async def gate(self, info: SampleInfo, name: str, spared: str = "") -> str:
        gates = info.context.gates
        if self.id == spared:
            return "spared"
        gates.asked.append(f"{self.id}.{name}")
        gates.entered[name].set()
        try:
            await gates.open[name].wait()
        except asyncio.CancelledError:
            gates.cancelled[name].set()
            raise
        return f"{name} of {self.id}"

    @strawberry.field
    async def bug(self) -> str:
        raise RuntimeError("the password is hunter2")

    @strawberry.field
    async def maybe_bug(self) -> str | None:
        raise RuntimeError("the password is hunter2")

    @strawberry.field
    async def unmended(self) -> str | None:
        raise UserError(UserErrorCode.INVALID, "`first` must be at most 100.")

    @strawberry.field
    async def odd(self) -> int:
        if self.id == "t2":
            raise RuntimeError("the password is hunter2")
        return int(self.id[1:])

    @strawberry.field
    async def endless(self) -> float:
        return float("inf")

    @strawberry.field
    async def inner(self, info: SampleInfo) -> "Thing":
        info.context.gates.asked.append(f"{self.id}.inner")
        return Thing(id=strawberry.ID(f"{self.id}1"))

    @strawberry.field
    async def maybe(self, info: SampleInfo) -> "Thing | None":
        return Thing(id=strawberry.ID(f"{self.id}2"))

    @strawberry.field
    async def things(self, count: int = 3) -> list["Thing"]:
        return [Thing(id=strawberry.ID(f"t{number}")) for number in range(1, count + 1)]


@strawberry.type
class Query:
    @strawberry.field
    def thing(self) -> Thing:
        return Thing(id=strawberry.ID("t"))


@strawberry.type
class Mutation:
    @strawberry.mutation
    def make(self) -> Thing:
        return Thing(id=strawberry.ID("t"))

    @strawberry.mutation
    def open(self, info: SampleInfo, name: str) -> bool:
        info.context.gates.open[name].set()
        return True

    @strawberry.mutation
    def shut(self, info: SampleInfo, name: str) -> bool:
        info.context.gates.open[name].clear()
        return True


schema = strawberry.Schema(query=Query, mutation=Mutation)._schema
directives.add_to(schema)


def parts(text: bytes) -> list[Any]:
    """Read a multipart body as clients do: a part counts once a boundary follows it."""
    *whole, rest = text.split(b"\r\n---")
    bodies = [part.partition(b"\r\n\r\n")[2] for part in whole if part]
    return [json.loads(body) for body in bodies] + (["end"] if rest.startswith(b"--") else [])
