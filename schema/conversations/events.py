"""What happens in conversations."""

from collections.abc import AsyncGenerator
from typing import Annotated

import strawberry

from resolvers import conversations
from resolvers.base import Info
from schema.base import arg, attr, field
from schema.conversations.core import Conversation, Message, MessageToolCall
from schema.live import live_topic, shared
from services import streams
from services.conversations import events


@strawberry.interface(description="Something that happened in a conversation.")
class ConversationEvent:
    cursor: str = attr("Give it as `after` to go on from here.")


@strawberry.type(description="A message was added; an assistant's is still to be written.")
class MessageAdded(ConversationEvent):
    message_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message.")


@strawberry.type(description="More text of a message.")
class MessageDelta(ConversationEvent):
    message_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message.")
    offset: int = attr("Where the text begins, in characters of the message's content.")
    text: str = attr("The text to append.")


@strawberry.type(description="A message is whole, or was stopped.")
class MessageCompleted(ConversationEvent):
    message_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message.")


@strawberry.type(description="Writing a message failed; `message.error` says why.")
class MessageFailed(ConversationEvent):
    message_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message.")


@strawberry.type(description="The assistant calls a tool.")
class ToolCallStarted(ConversationEvent):
    message_id: strawberry.Private[str]
    tool_call_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message being written.")
    tool_call: MessageToolCall | None = field(conversations.event_tool_call, "The call.")


@strawberry.type(description="A tool call ended.")
class ToolCallFinished(ConversationEvent):
    message_id: strawberry.Private[str]
    tool_call_id: strawberry.Private[str]
    message: Message | None = field(conversations.event_message, "The message being written.")
    tool_call: MessageToolCall | None = field(conversations.event_tool_call, "The call.")


@strawberry.type(description="The conversation was deleted; nothing follows.")
class ConversationDeleted(ConversationEvent):
    id: strawberry.ID = attr("Id of the conversation.")


@strawberry.type(
    description="Begin anew from this snapshot: at the start, when the cursor is unknown or too "
    "old, and when text was taken back. Texts go on from the contents in the snapshot."
)
class ConversationReset(ConversationEvent):
    conversation_id: strawberry.Private[str]
    conversation: Conversation | None = field(
        conversations.event_conversation, "The conversation at this very cursor."
    )


_MESSAGE_EVENTS: dict[str, type[ConversationEvent]] = {
    "MessageAdded": MessageAdded,
    "MessageCompleted": MessageCompleted,
    "MessageFailed": MessageFailed,
    "ToolCallStarted": ToolCallStarted,
    "ToolCallFinished": ToolCallFinished,
}
_EVENT_FIELDS = ("message_id", "tool_call_id")


def _event(item: streams.Item, conversation_id: str) -> ConversationEvent:
    if isinstance(item, streams.Appended):
        return MessageDelta(
            cursor=item.cursor,
            message_id=item.key.split(":")[0],
            offset=item.offset,
            text=item.text,
        )
    if isinstance(item, streams.Restarted):
        return ConversationReset(cursor=item.cursor, conversation_id=conversation_id)
    if item.type == "ConversationDeleted":
        return ConversationDeleted(cursor=item.cursor, id=strawberry.ID(conversation_id))
    ids = {name: item.payload[name] for name in _EVENT_FIELDS if name in item.payload}
    return _MESSAGE_EVENTS[item.type](cursor=item.cursor, **ids)


@strawberry.type
class ConversationsSubscription:
    @strawberry.subscription(
        description="What happens in a conversation: first a ConversationReset with its snapshot, "
        "or, with `after`, what you missed; then everything as it happens, until it is deleted."
    )
    async def conversation_events(
        self,
        info: Info,
        conversation_id: Annotated[strawberry.ID, arg("Id of the conversation.")],
        after: Annotated[str | None, arg("The cursor of the last event you have.")] = None,
    ) -> AsyncGenerator[ConversationEvent, None]:
        context = info.context
        source = await shared(
            context,
            ("conversation", conversation_id),
            lambda: events.source(context.deps, context.viewer, conversation_id),
        )
        return live_topic(context, source, after, lambda item: _event(item, conversation_id))
