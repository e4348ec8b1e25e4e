"""Analysing what people write: one task a message, its results kept beside the message."""

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, select

from models.conversations import Conversation, Message
from models.language import MessageEntity, MessageIntent, MessageSentiment
from models.states import ConversationStatus, MessageRole
from models.system import Task
from services import access, tasks
from services.base import Deps, Viewer, work

if TYPE_CHECKING:
    from services.language.analysis import Analysis, Analyzer

ANALYZE_MESSAGE = "analyze_message"
_CACHE = "language.analyzer"


def _of_visible_messages(column: Any, viewer: Viewer) -> ColumnElement[bool]:
    found: ColumnElement[bool] = column.in_(
        select(Message.id).where(access.visible(Message, viewer))
    )
    return found


@access.rule(MessageSentiment)
def _sentiments(viewer: Viewer) -> ColumnElement[bool]:
    return _of_visible_messages(MessageSentiment.message_id, viewer)


@access.rule(MessageIntent)
def _intents(viewer: Viewer) -> ColumnElement[bool]:
    return _of_visible_messages(MessageIntent.message_id, viewer)


@access.rule(MessageEntity)
def _entities(viewer: Viewer) -> ColumnElement[bool]:
    return _of_visible_messages(MessageEntity.message_id, viewer)


@tasks.handler(ANALYZE_MESSAGE)
async def _analyze(deps: Deps, task: Task) -> dict[str, bool]:
    """Analyse the message `id` of the payload, unless that was done.

    Its sentiment is written with all the rest in one transaction, so it tells whether it was.
    """
    message_id = task.payload["id"]
    async with deps.db.reading() as connection:
        content = await connection.scalar(
            select(Message.content)
            .join(Conversation, Conversation.id == Message.conversation_id)
            .where(
                Message.id == message_id,
                Message.role == MessageRole.USER,
                Conversation.status != ConversationStatus.DELETED,
                ~select(MessageSentiment.id)
                .where(MessageSentiment.message_id == message_id)
                .exists(),
            )
        )
    if content is None:
        return {"isNew": False}
    if _CACHE not in deps.caches:
        made = await asyncio.to_thread(_analyzer, deps)
        deps.caches.setdefault(_CACHE, made)
    analysis = await deps.caches[_CACHE].analyze(content)
    return {"isNew": await _keep(deps, message_id, analysis)}


def _analyzer(deps: Deps) -> "Analyzer":
    # It needs numpy and word lists, which only a process that runs tasks should hold.
    from services.language.analysis import Analyzer

    return Analyzer(deps.embedder)


async def _keep(deps: Deps, message_id: str, analysis: "Analysis") -> bool:
    """Write an analysis; False where the message is gone, or another run came first."""
    async with work(deps) as unit:
        # Its lock lets one of two runs at once see what the other wrote.
        if await unit.lock(Message, message_id) is None:
            return False
        is_done = select(MessageSentiment.id).where(MessageSentiment.message_id == message_id)
        if await unit.session.scalar(is_done) is not None:
            return False
        tone = analysis.sentiment
        unit.session.add(
            MessageSentiment(message_id=message_id, label=tone.label, score=tone.score)
        )
        unit.session.add_all(
            MessageIntent(message_id=message_id, name=aim.name, confidence=aim.confidence)
            for aim in analysis.intents
        )
        unit.session.add_all(
            MessageEntity(
                message_id=message_id,
                type=entity.type,
                name=entity.name,
                value=entity.value,
                start_pos=entity.start,
                end_pos=entity.end,
            )
            for entity in analysis.entities
        )
        return True
