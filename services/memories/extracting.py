"""Remembering without being asked: facts about users in what they write."""

import asyncio
import logging
from datetime import datetime

from sqlalchemy import select

from models.base import now
from models.conversations import Conversation, Message
from models.states import ConversationStatus, MemoryType, MessageRole
from models.system import Task
from services import tasks
from services.accounts.sessions import viewer_of
from services.base import Deps, Viewer
from services.errors import UserError, UserErrorCode
from services.language.memories import extract
from services.memories.keeping import Remembered, create

EXTRACT_MEMORIES = "extract_memories"
# What is wrong with one fact alone.
_UNFIT = (UserErrorCode.LIMIT, UserErrorCode.INVALID, UserErrorCode.REQUIRED)
log = logging.getLogger("noosphere.memories")


async def remember_from_message(
    deps: Deps, viewer: Viewer, message_id: str, content: str, *, told_at: datetime | None = None
) -> list[Remembered]:
    """Keep the facts about the viewer that a message of theirs states, in its order.

    Repeating it changes nothing. Messages may be read in any order: `told_at`, the time of the
    message (now by default), decides which of two contradicting facts holds. What cannot be a
    memory, such as a fact that is too long, is passed over; a full quota ends it early.
    """
    kept: list[Remembered] = []
    for candidate in await asyncio.to_thread(extract, content):
        try:
            kept.append(
                await create(
                    deps,
                    viewer,
                    type=MemoryType[candidate.type.name],
                    content=candidate.content,
                    importance=candidate.importance,
                    source_message_id=message_id,
                    told_at=told_at or now(),
                )
            )
        except UserError as error:
            if error.code is UserErrorCode.QUOTA:
                log.info("memories are full", extra={"user_id": viewer.user_id})
                break
            if error.code not in _UNFIT:
                raise
            log.info("a fact cannot be kept: %s", error.code, extra={"message_id": message_id})
    return kept


@tasks.handler(EXTRACT_MEMORIES)
async def _extract(deps: Deps, task: Task) -> dict[str, list[str]]:
    """Read the message `id` of the payload."""
    async with deps.db.reading() as connection:
        found = (
            await connection.execute(
                select(Message.content, Message.created_at, Conversation.user_id)
                .join(Conversation, Conversation.id == Message.conversation_id)
                .where(
                    Message.id == task.payload["id"],
                    Message.role == MessageRole.USER,
                    Conversation.status != ConversationStatus.DELETED,
                )
            )
        ).first()
    viewer = None if found is None else await viewer_of(deps, found.user_id)
    if found is None or viewer is None or not viewer.may("memories:write"):
        return {"memoryIds": []}
    kept = await remember_from_message(
        deps, viewer, task.payload["id"], found.content, told_at=found.created_at
    )
    return {"memoryIds": [item.memory.id for item in kept]}
