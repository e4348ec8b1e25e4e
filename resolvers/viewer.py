"""Computed fields of what becomes of a viewer's things."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement

from models.accounts import User
from models.base import Record
from models.conversations import Conversation
from models.memories import Memory
from models.plans import Plan
from models.sandboxes import Sandbox
from models.states import SandboxStatus
from resolvers.base import Info
from services.changes import ChangeKind

R = TypeVar("R", bound=Record)


async def conversation(events: Sequence[Any], info: Info) -> list[Conversation | None]:
    """The conversations that events are about."""
    return await _still_there(Conversation, events, info)


async def plan(events: Sequence[Any], info: Info) -> list[Plan | None]:
    """The plans that events are about."""
    return await _still_there(Plan, events, info)


async def sandbox(events: Sequence[Any], info: Info) -> list[Sandbox | None]:
    """The sandboxes that events are about; one that was deleted is kept, but not shown."""
    return await _still_there(Sandbox, events, info, Sandbox.status != SandboxStatus.DELETED)


async def memory(events: Sequence[Any], info: Info) -> list[Memory | None]:
    """The memories that events are about."""
    return await _still_there(Memory, events, info)


async def _still_there(
    record: type[R], events: Sequence[Any], info: Info, *where: ColumnElement[bool]
) -> list[R | None]:
    ids = [None if event.change is ChangeKind.DELETED else event.id for event in events]
    return await info.context.load.one(record, record.id, ids, *where)  # type: ignore[attr-defined]


async def owner(events: Sequence[Any], info: Info) -> list[User | None]:
    """The viewer, for whom events are."""
    viewer = info.context.viewer
    return await info.context.load.one(User, User.id, [viewer.user_id for _ in events])
