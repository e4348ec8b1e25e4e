"""What was understood of messages."""

from collections.abc import Sequence

from models.conversations import Message
from models.language import MessageEntity, MessageIntent, MessageSentiment
from resolvers.base import Info, reads


@reads()
async def sentiment(messages: Sequence[Message], info: Info) -> list[MessageSentiment | None]:
    """Tones of messages; None where none was read."""
    ids = [message.id for message in messages]
    return await info.context.load.one(MessageSentiment, MessageSentiment.message_id, ids)


@reads(rows=("confidence",))
async def intents(messages: Sequence[Message], info: Info) -> list[list[MessageIntent]]:
    """What messages ask for or do, the surest first."""
    rows = await info.context.load.many(
        MessageIntent, MessageIntent.message_id, [message.id for message in messages]
    )
    return [sorted(group, key=lambda row: (-row.confidence, row.id)) for group in rows]


@reads()
async def entities(messages: Sequence[Message], info: Info) -> list[list[MessageEntity]]:
    """Things messages name, by position."""
    return await info.context.load.many(
        MessageEntity,
        MessageEntity.message_id,
        [message.id for message in messages],
        order_by=MessageEntity.start_pos,
    )
