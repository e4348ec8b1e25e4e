"""Memories: what is remembered of a user."""

from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry

from models import memories as tables
from models.states import MemoryType
from resolvers import memories
from resolvers.base import Info, Order, PageArgs, reads
from schema.base import (
    After,
    Before,
    Connection,
    First,
    Id,
    Last,
    Node,
    Payload,
    answer,
    arg,
    attr,
    described_enum,
    field,
    mutation,
)
from services import memories as service

if TYPE_CHECKING:
    from schema.accounts import User
    from schema.conversations import Message

described_enum(
    MemoryType,
    "What kind of thing is remembered.",
    {
        MemoryType.EPISODIC: "Something that happened.",
        MemoryType.SEMANTIC: "Something that is so.",
        MemoryType.PROCEDURAL: "How something is to be done.",
        MemoryType.PREFERENCE: "What the user likes or wants.",
    },
)


@strawberry.type(description="Something remembered of a user. The past is closed, never lost.")
class Memory(Node, row=tables.Memory):
    type: MemoryType = attr("What kind of thing it is.")
    content: str = attr("The fact, in words.")
    importance: float = attr("How much it matters, 0 to 1.")
    access_count: int = attr("How often it was found by a search or recalled for an answer.")
    last_accessed_at: datetime | None = attr("When it was last found or recalled.")
    valid_from: datetime = attr("Since when it holds, as far as is known.")
    valid_until: datetime | None = attr("Until when it held; null while it holds.")
    created_at: datetime = attr("When it was kept.")
    updated_at: datetime = attr("When it was last changed (being read is no change).")
    is_current: bool = field(memories.is_current, "Whether it holds now.")
    superseded_by: Annotated["Memory", strawberry.lazy("schema.memories")] | None = field(
        memories.superseded_by, "What took its place; null while it holds, or when deleted."
    )
    supersedes: list[Annotated["Memory", strawberry.lazy("schema.memories")]] = field(
        memories.supersedes, "What it took the place of, newest first."
    )
    related: list[Annotated["Memory", strawberry.lazy("schema.memories")]] = field(
        memories.related, "Current memories near in meaning, nearest first, at most 10."
    )
    user: Annotated["User", strawberry.lazy("schema.accounts")] | None = field(
        memories.owner, "Whom it is about."
    )
    source_message: Annotated["Message", strawberry.lazy("schema.conversations")] | None = field(
        memories.source_message, "The message it was told in; null when told otherwise."
    )


@strawberry.type(description="A memory found by a search.")
class MemoryMatch:
    memory: Memory = attr("The memory.")
    score: float = attr("How well it fits, 0 to 1: relevance, importance, recency and use.")


@strawberry.input(description="Which memories to list; what is left out is no condition.")
class MemoryFilter:
    types: list[MemoryType] | None = attr("Of one of these types.", default=None)
    is_current: bool | None = attr(
        "True: those that hold now. False: those superseded.", default=None
    )
    importance_at_least: float | None = attr("At least this important, 0 to 1.", default=None)
    created_after: datetime | None = attr("Kept after this time.", default=None)
    created_before: datetime | None = attr("Kept before this time.", default=None)


@strawberry.enum(description="In which order to list memories; ties by time.")
class MemoryOrder(Enum):
    CREATED_AT_DESC = strawberry.enum_value("CREATED_AT_DESC", description="Newest first.")
    CREATED_AT_ASC = strawberry.enum_value("CREATED_AT_ASC", description="Oldest first.")
    UPDATED_AT_DESC = strawberry.enum_value(
        "UPDATED_AT_DESC", description="Most recently changed first."
    )
    IMPORTANCE_DESC = strawberry.enum_value("IMPORTANCE_DESC", description="Most important first.")
    ACCESS_COUNT_DESC = strawberry.enum_value("ACCESS_COUNT_DESC", description="Most used first.")


_ORDERS = {
    MemoryOrder.CREATED_AT_DESC: Order(is_descending=True),
    MemoryOrder.CREATED_AT_ASC: Order(),
    MemoryOrder.UPDATED_AT_DESC: Order(("updated_at",), is_descending=True),
    MemoryOrder.IMPORTANCE_DESC: Order(("importance",), is_descending=True),
    MemoryOrder.ACCESS_COUNT_DESC: Order(("access_count",), is_descending=True),
}


@strawberry.type
class MemoriesQuery:
    @strawberry.field(description="A memory of yours; null when there is no such.")
    @reads()
    async def memory(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the memory.")]
    ) -> Memory | None:
        return await memories.one(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your memories; none when anonymous.")
    @reads()
    async def memories(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: Annotated[MemoryFilter | None, arg("Which ones; all by default.")] = None,
        order_by: Annotated[MemoryOrder, arg("In which order.")] = MemoryOrder.CREATED_AT_DESC,
    ) -> Connection[Memory]:
        page = PageArgs(first, after, last, before)
        chosen = filter or MemoryFilter()
        return await memories.listed(  # type: ignore[return-value]
            info,
            page,
            _ORDERS[order_by],
            types=chosen.types,
            is_current=chosen.is_current,
            importance_at_least=chosen.importance_at_least,
            created_after=chosen.created_after,
            created_before=chosen.created_before,
        )

    @strawberry.field(
        description="Your memories nearest to the meaning of a text, in any language, best first; "
        "none when anonymous. Those that fit count as accessed."
    )
    async def memory_search(
        self,
        info: Info,
        query: Annotated[str, arg("What to look for, 1 to 2,000 characters.")],
        first: Annotated[int | None, arg("How many at most, 1 to 100.")] = 10,
        types: Annotated[
            list[MemoryType] | None, arg("Only of these types; all by default.")
        ] = None,
        include_superseded: Annotated[
            bool, arg("Whether to look among what does not hold any more, too.")
        ] = False,
    ) -> list[MemoryMatch]:
        return await memories.search(  # type: ignore[return-value]
            info,
            query,
            10 if first is None else first,
            types,
            include_superseded=include_superseded,
        )


@strawberry.input(description="A new memory.")
class MemoryCreateInput:
    content: str = attr("The fact in words that stand alone, 1 to 4,000 characters.")
    type: MemoryType = attr("What kind of thing it is.", default=MemoryType.SEMANTIC)
    importance: float | None = attr("How much it matters, 0 to 1; 0.5 by default.", default=None)


@strawberry.type(description="Answer to `memoryCreate`.")
class MemoryCreatePayload(Payload):
    memory: Memory | None = answer("The memory: a new one, or the one that said this already.")
    is_new: bool | None = answer("False when this was remembered already.")


@strawberry.input(description="Changes to a memory; what is left out stays.")
class MemoryUpdateInput:
    content: strawberry.Maybe[str] = attr("The fact in words, 1 to 4,000 characters.")
    type: strawberry.Maybe[MemoryType] = attr("What kind of thing it is.")
    importance: strawberry.Maybe[float] = attr("How much it matters, 0 to 1.")


@strawberry.type(description="Answer to `memoryUpdate`.")
class MemoryUpdatePayload(Payload):
    memory: Memory | None = answer("The changed memory.")


@strawberry.type(description="Answer to `memoryDelete`.")
class MemoryDeletePayload(Payload):
    memory: Memory | None = answer("The memory as it was.")


async def _create(info: Info, input: MemoryCreateInput) -> dict[str, object]:
    made = await service.create(
        info.context.deps,
        info.context.viewer,
        type=input.type,
        content=input.content,
        importance=input.importance,
    )
    return {"memory": made.memory, "is_new": made.is_new}


async def _update(info: Info, id: Id, input: MemoryUpdateInput) -> dict[str, object]:
    memory = await service.update(
        info.context.deps,
        info.context.viewer,
        memory_id=id,
        content=input.content.value if input.content else None,
        type=input.type.value if input.type else None,
        importance=input.importance.value if input.importance else None,
    )
    return {"memory": memory}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    return {"memory": await service.delete(info.context.deps, info.context.viewer, memory_id=id)}


@strawberry.type
class MemoriesMutation:
    memory_create = mutation(
        MemoryCreatePayload,
        "Remember something. What is known stays one memory; what it contradicts is closed.",
    )(_create)
    memory_update = mutation(MemoryUpdatePayload, "Change a memory of yours.")(_update)
    memory_delete = mutation(MemoryDeletePayload, "Delete a memory of yours for good.")(_delete)
