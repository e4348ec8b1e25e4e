"""Conversations as a whole: create, change, archive, delete."""

from typing import Any

from sqlalchemy.sql.elements import ColumnElement

from models.base import now
from models.conversations import Context, Conversation, Message, MessageToolCall
from models.states import ConversationStatus
from services import access
from services.base import Deps, Viewer, Work, work
from services.contention import repeatable
from services.errors import UserError, UserErrorCode
from services.sandboxes import rows
from services.text import clean

TITLE_MAX_CHARS = 200
_AUTO_TITLE_CHARS = 80


@access.rule(Conversation)
def _conversations(viewer: Viewer) -> ColumnElement[bool]:
    return (Conversation.user_id == viewer.user_id) & (
        Conversation.status != ConversationStatus.DELETED
    )


access.follows(Message.conversation_id, Conversation)
access.follows(MessageToolCall.message_id, Message)
access.follows(Context.message_id, Message)


def topic(conversation_id: str) -> str:
    """Name the topic of a conversation's events."""
    return f"conversation:{conversation_id}"


async def owned(unit: Work, viewer: Viewer, conversation_id: str, *, path: str) -> Conversation:
    """Lock a conversation of the viewer. Raises UserError NOT_FOUND when it is not theirs."""
    conversation = await unit.lock(Conversation, conversation_id)
    if (
        conversation is None
        or conversation.user_id != viewer.user_id
        or conversation.status is ConversationStatus.DELETED
    ):
        raise UserError(UserErrorCode.NOT_FOUND, "There is no such conversation.", (path,))
    return conversation


@repeatable
async def create(deps: Deps, viewer: Viewer, *, title: str | None = None) -> Conversation:
    """Begin a conversation of the viewer."""
    user_id = viewer.require("conversations:write")
    async with work(deps) as unit:
        conversation = Conversation(user_id=user_id, title=_title(title))
        unit.session.add(conversation)
        await unit.session.flush()
        unit.open_topic(topic(conversation.id))
        return conversation.frozen()


def _title(title: str | None) -> str | None:
    if title is None:
        return None
    return clean(title, "title", max_chars=TITLE_MAX_CHARS, multiline=False).strip()


def title_of(content: str) -> str:
    """Make a title of a first message: its first line, at most 80 characters."""
    line = next((line.strip() for line in content.splitlines() if line.strip()), "")
    printable = "".join(char for char in line if char.isprintable())
    if len(printable) <= _AUTO_TITLE_CHARS:
        return printable
    return printable[: _AUTO_TITLE_CHARS - 1].rstrip() + "…"


@repeatable
async def update(
    deps: Deps, viewer: Viewer, *, conversation_id: str, changes: dict[str, Any]
) -> Conversation:
    """Change `title` (None takes it away) or `status` (ACTIVE or ARCHIVED) of a conversation."""
    viewer.require("conversations:write")
    async with work(deps) as unit:
        conversation = await owned(unit, viewer, conversation_id, path="id")
        if "title" in changes:
            conversation.title = _title(changes["title"])
        if "status" in changes:
            status = changes["status"]
            if status not in (ConversationStatus.ACTIVE, ConversationStatus.ARCHIVED):
                raise UserError(
                    UserErrorCode.INVALID,
                    "Set ACTIVE or ARCHIVED; conversationDelete deletes.",
                    ("status",),
                )
            conversation.status = status
        conversation.updated_at = now()
        await unit.session.flush()
        return conversation.frozen()


@repeatable
async def delete(deps: Deps, viewer: Viewer, *, conversation_id: str) -> Conversation:
    """Take a conversation out of sight. Answers under way are stopped.

    So are the sandboxes made to run its code.
    """
    viewer.require("conversations:write")
    async with work(deps) as unit:
        conversation = await owned(unit, viewer, conversation_id, path="id")
        conversation.status = ConversationStatus.DELETED
        conversation.updated_at = now()
        await unit.session.flush()
        await rows.release(unit, conversation_id)
        unit.record(topic(conversation_id), "ConversationDeleted", {})
        bus = deps.bus
        unit.after_commit(lambda: bus.publish(f"control:{conversation_id}", {"stop": "all"}))
        return conversation.frozen()
