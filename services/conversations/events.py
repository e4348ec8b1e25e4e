"""What happens in a conversation, live."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from models.conversations import Conversation, Message
from models.statements import Reading
from models.states import ConversationStatus, MessageStatus
from services import access, streams
from services.base import Deps, Viewer
from services.conversations import threads
from services.conversations.messages import attempt, text_key
from services.errors import RequestError
from services.streams import Fact, Item, Kind, Source, Texts, TopicFollower, position

_OPEN = (MessageStatus.PENDING, MessageStatus.STREAMING)
# Everybody who begins to follow asks these.
_GROWING = Reading(
    select(Message.conversation_id, Message.id, Message.meta, Message.content).where(
        Message.conversation_id.in_(bindparam("ids", expanding=True)), Message.status.in_(_OPEN)
    )
)
_THERE = Reading(
    select(Conversation.id).where(
        Conversation.id.in_(bindparam("ids", expanding=True)),
        Conversation.status != ConversationStatus.DELETED,
    )
)


async def source(deps: Deps, viewer: Viewer, conversation_id: str) -> Source:
    """Give what is followed of a conversation.

    Raises RequestError NOT_FOUND when the viewer cannot see it.
    """
    if not await access.may_see(deps, viewer, Conversation, conversation_id):
        raise RequestError("NOT_FOUND", "There is no such conversation.")
    return Source(_KIND, conversation_id, threads.topic(conversation_id))


async def follow(
    deps: Deps, viewer: Viewer, conversation_id: str, after: str | None
) -> AsyncGenerator[Item, None]:
    """Follow a conversation from a cursor, or from a snapshot.

    Raises RequestError NOT_FOUND when the viewer cannot see it, BAD_USER_INPUT for a bad cursor.
    """
    follower = TopicFollower(deps, await source(deps, viewer, conversation_id), position(after))
    async with aclosing(streams.follow(deps, follower)) as items:
        async for item in items:
            yield item


async def _growing(connection: AsyncConnection, ids: Sequence[str]) -> Mapping[str, Texts]:
    rows = await _GROWING.rows(connection, ids=ids)
    texts: dict[str, Texts] = defaultdict(dict)
    for conversation_id, id_, meta, content in rows:
        texts[conversation_id][text_key(id_, attempt(meta))] = content
    return texts


async def _stored(connection: AsyncConnection, key: str) -> str | None:
    message_id = key.partition(":")[0]
    row = (
        await connection.execute(
            select(Message.meta, Message.content).where(Message.id == message_id)
        )
    ).first()
    if row is None:
        return None
    meta, content = row
    # The text of an attempt that was given up is not there any more: a reset follows.
    return str(content) if text_key(message_id, attempt(meta)) == key else None


async def _complete(connection: AsyncConnection, ids: Sequence[str]) -> set[str]:
    rows = await _THERE.rows(connection, ids=ids)
    return set(ids) - {id_ for (id_,) in rows}


def _begins(fact: Fact) -> str | None:
    if fact.type == "MessageAdded" and fact.payload["is_growing"]:
        return text_key(fact.payload["message_id"], 0)
    return None


def _ends(fact: Fact) -> str | None:
    if fact.type in ("MessageCompleted", "MessageFailed"):
        return text_key(fact.payload["message_id"], fact.payload["attempt"])
    return None


_KIND = Kind(
    growing=_growing,
    stored=_stored,
    complete=_complete,
    begins=_begins,
    ends=_ends,
    restarts=lambda fact: fact.type in ("MessageRestarted", "MessageRewound"),
    is_last=lambda fact: fact.type == "ConversationDeleted",
)
