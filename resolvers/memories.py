"""Computed fields of memories."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement

from models.accounts import User
from models.base import now
from models.conversations import Message
from models.memories import Memory, MemoryRelation
from models.states import MemoryRelationType, MemoryType
from resolvers.base import Info, Order, Page, PageArgs, reads
from services import memories
from services.errors import RequestError
from services.memories import Match


async def one(info: Info, id_: str) -> Memory | None:
    """Give a memory the viewer may see, or None."""
    return (await info.context.load.one(Memory, Memory.id, [id_]))[0]


async def listed(
    info: Info,
    page: PageArgs,
    order: Order,
    *,
    types: Sequence[MemoryType] | None = None,
    is_current: bool | None = None,
    importance_at_least: float | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Page[Memory]:
    """Give a page of the viewer's own memories; a condition that is None holds for all."""
    where: list[ColumnElement[bool]] = []
    if types is not None:
        where.append(Memory.type.in_(types))
    if is_current is not None:
        where.append(
            Memory.valid_until.is_(None) if is_current else Memory.valid_until.is_not(None)
        )
    if importance_at_least is not None:
        where.append(Memory.importance >= importance_at_least)
    if created_after is not None:
        where.append(Memory.created_at > _aware(created_after, "createdAfter"))
    if created_before is not None:
        where.append(Memory.created_at < _aware(created_before, "createdBefore"))
    return await info.context.load.list(
        Memory, page, order=order, owner=Memory.user_id, where=where
    )


def _aware(at: datetime, name: str) -> datetime:
    """Take a time without a zone as UTC. Raises RequestError BAD_USER_INPUT beyond the calendar."""
    try:
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    except OverflowError as error:
        raise RequestError(
            "BAD_USER_INPUT", f"`{name}` must lie within the years 1 to 9999 in UTC."
        ) from error


async def search(
    info: Info,
    query: str,
    first: int,
    types: Sequence[MemoryType] | None,
    *,
    include_superseded: bool,
) -> list[Match]:
    """Give the viewer's memories nearest to the meaning of a query; none when anonymous."""
    if not info.context.viewer.is_authenticated:
        return []
    return await memories.search(
        info.context.deps,
        info.context.viewer,
        query,
        first=first,
        types=types,
        include_superseded=include_superseded,
    )


@reads()
async def of_users(users: Sequence[User], info: Info, page: PageArgs) -> list[Page[Memory]]:
    """Memories of users, the newest first."""
    ids = [user.id for user in users]
    return await info.context.load.page(
        Memory, Memory.user_id, ids, page, order=Order(is_descending=True)
    )


@reads("user_id")
async def owner(memories: Sequence[Memory], info: Info) -> list[User | None]:
    """Whom memories are about."""
    return await info.context.load.one(User, User.id, [memory.user_id for memory in memories])


@reads("source_message_id")
async def source_message(memories: Sequence[Memory], info: Info) -> list[Message | None]:
    """The messages in which the facts were told."""
    ids = [memory.source_message_id for memory in memories]
    return await info.context.load.one(Message, Message.id, ids)


@reads("valid_until")
async def is_current(memories: Sequence[Memory], info: Info) -> list[bool]:
    """Whether the facts hold now."""
    at = now()
    return [memory.valid_until is None or memory.valid_until > at for memory in memories]


@reads("superseded_by_id")
async def superseded_by(memories: Sequence[Memory], info: Info) -> list[Memory | None]:
    """What took the memories' place."""
    ids = [memory.superseded_by_id for memory in memories]
    return await info.context.load.one(Memory, Memory.id, ids)


@reads()
async def supersedes(memories: Sequence[Memory], info: Info) -> list[list[Memory]]:
    """What the memories took the place of, the newest first."""
    return await info.context.load.many(
        Memory,
        Memory.superseded_by_id,
        [memory.id for memory in memories],
        order_by=Memory.id.desc(),
    )


@reads()
async def related(memories: Sequence[Memory], info: Info) -> list[list[Memory]]:
    """Current memories near in meaning, the nearest first, at most ten of each."""
    return await info.context.load.through(
        Memory,
        MemoryRelation.source_memory_id,
        MemoryRelation.target_memory_id,
        [memory.id for memory in memories],
        order_by=MemoryRelation.strength.desc(),
        where=[
            MemoryRelation.relation_type == MemoryRelationType.RELATED,
            Memory.valid_until.is_(None),
        ],
    )
