"""Conversations, messages, and their events."""

from collections.abc import AsyncGenerator
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import strawberry
from strawberry.scalars import JSON

from models import conversations as tables
from models import states
from models.base import is_row
from resolvers import conversations, language, presence
from resolvers.base import Info, Order, PageArgs, reads
from schema.accounts import User
from schema.base import (
    After,
    Before,
    Connection,
    First,
    Last,
    Node,
    Payload,
    RunState,
    arg,
    attr,
    connection,
    described_enum,
    field,
    mutation,
)
from schema.language import Entity, Intent, Sentiment
from schema.live import live_topic, shared
from schema.memories import Memory
from schema.presence import ConversationPresence
from schema.tools import ToolExecution
from services import streams
from services.conversations import events, messages, threads

ConversationStatus = states.ConversationStatus
described_enum(
    ConversationStatus,
    "Where a conversation stands in its owner's list.",
    {
        states.ConversationStatus.ACTIVE: "In use.",
        states.ConversationStatus.ARCHIVED: "Put away: readable, takes no messages.",
        states.ConversationStatus.DELETED: "Deleted: seen only in the answer to its deletion.",
    },
)
MessageRole = states.MessageRole
described_enum(
    MessageRole,
    "Who speaks in a message.",
    {
        states.MessageRole.USER: "A person.",
        states.MessageRole.ASSISTANT: "The assistant.",
        states.MessageRole.SYSTEM: "The application.",
        states.MessageRole.TOOL: "A tool.",
    },
)
MessageStatus = states.MessageStatus
described_enum(
    MessageStatus,
    "How far the text of a message has come.",
    {
        states.MessageStatus.PENDING: "The answer waits to be written.",
        states.MessageStatus.STREAMING: "The answer is being written.",
        states.MessageStatus.COMPLETED: "The text is whole.",
        states.MessageStatus.FAILED: "Writing failed; the text is what was written until then.",
        states.MessageStatus.STOPPED: "Stopped on request; the text is what was written so far.",
    },
)


class ConversationOrderField(StrEnum):
    """What conversations are ordered by."""

    UPDATED_AT = "UPDATED_AT"
    CREATED_AT = "CREATED_AT"


described_enum(
    ConversationOrderField,
    "What conversations are ordered by.",
    {
        ConversationOrderField.UPDATED_AT: "Their last change, such as a message.",
        ConversationOrderField.CREATED_AT: "Their beginning.",
    },
)


class OrderDirection(StrEnum):
    """Which end comes first."""

    ASC = "ASC"
    DESC = "DESC"


described_enum(
    OrderDirection,
    "Which end comes first.",
    {OrderDirection.ASC: "The oldest first.", OrderDirection.DESC: "The newest first."},
)


@strawberry.type(description="A tool the assistant called while it wrote a message.")
class MessageToolCall(Node, row=tables.MessageToolCall):
    tool_name: str = attr("Name of the tool.")
    arguments: str = attr("Arguments as the model wrote them, JSON text.")
    status: RunState = attr("Where the call stands.")
    result: JSON | None = attr("What the tool gave, or `{error: {code, message}}`.")
    round: int = attr("Which turn of the model made the call, from 0.")
    text_offset: int = attr("Where in the message's text the call was made, in characters.")
    created_at: datetime = attr("When it was called.")
    completed_at: datetime | None = attr("When it ended.")
    execution: ToolExecution | None = field(
        conversations.call_execution, "The execution behind the call."
    )


@strawberry.type(description="Why an answer failed.")
class MessageError:
    error_code: str | None = strawberry.field(
        name="code", description="UNAVAILABLE, RATE_LIMITED, TIMED_OUT, INTERNAL, and others."
    )
    error_message: str | None = strawberry.field(
        name="message", description="What happened and what to do."
    )

    @classmethod
    def is_type_of(cls, value: object, _info: object) -> bool:
        """A failed message is its own error."""
        return is_row(value, tables.Message)


@strawberry.type(description="What an answer was made from.")
class MessageContext(Node, row=tables.Context):
    messages: list[Annotated["Message", strawberry.lazy("schema.conversations")]] = field(
        conversations.context_messages, "Earlier messages the model was given, oldest first."
    )
    memories: list[Memory] = field(
        conversations.context_memories, "Memories the model was given, most relevant first."
    )
    created_at: datetime = attr("When it was put together.")


@strawberry.type(description="One message of a conversation.")
class Message(Node, row=tables.Message):
    role: MessageRole = attr("Who speaks.")
    content: str = attr(
        "The text. While STREAMING a recent state of it: subscribe to follow it to the letter."
    )
    status: MessageStatus = attr("How far the text has come.")
    created_at: datetime = attr("When it was added.")
    updated_at: datetime = attr("When it last changed.")
    completed_at: datetime | None = attr("When its text was whole, failed or stopped.")
    provider: str | None = attr("Who wrote it: `embedded`, `openai`; null for a person.")
    model: str | None = attr("The model that wrote it.")
    input_tokens: int | None = attr("Tokens the model read.")
    output_tokens: int | None = attr("Tokens the model wrote.")

    @strawberry.field(
        description="What the answer cost in US dollars, where prices are configured."
    )
    def cost_usd(self) -> float | None:
        return None if self.cost_usd is None else float(self.cost_usd)  # type: ignore[arg-type]

    conversation: Annotated["Conversation", strawberry.lazy("schema.conversations")] | None = field(
        conversations.conversation, "The conversation it belongs to."
    )
    author: User | None = field(conversations.author, "The person who wrote it; null else.")
    reply_to: Annotated["Message", strawberry.lazy("schema.conversations")] | None = field(
        conversations.reply_to, "The message it answers."
    )
    tool_calls: list[MessageToolCall] = field(
        conversations.tool_calls, "Tools called while it was written, in order."
    )
    cited_memories: list[Memory] = field(
        conversations.cited_memories, "Memories the text relies on, in the order cited."
    )
    context: MessageContext | None = field(
        conversations.context, "What the answer was made from; null for a person's message."
    )
    error: MessageError | None = field(conversations.errors, "Why it FAILED; null else.")
    sentiment: Sentiment | None = field(
        language.sentiment,
        "Its tone; null for what no person wrote, and until it was read, soon after it was sent.",
    )
    intents: list[Intent] = field(
        language.intents, "What it asks for or does, the surest first; empty until it was read."
    )
    entities: list[Entity] = field(
        language.entities,
        "Things its first 10,000 characters name, by position, at most 200; empty until it was "
        "read. They never overlap.",
    )


@strawberry.type(description="A thread of messages between a person and the assistant.")
class Conversation(Node, row=tables.Conversation):
    title: str | None = attr("Its title; made from the first message when none is given.")
    status: ConversationStatus = attr("Where it stands in its owner's list.")
    created_at: datetime = attr("When it began.")
    updated_at: datetime = attr("When it last changed, such as by a message.")
    user: User | None = field(conversations.owner, "Whose it is.")
    messages: Connection[Message] = connection(
        conversations.messages, "Its messages, oldest first; use `last` for the newest."
    )
    presence: ConversationPresence | None = field(
        presence.of_conversations,
        "Who is looking at it now, through `conversationPresence`; null while nobody can tell.",
    )


@strawberry.input(description="Which conversations.")
class ConversationFilter:
    status: ConversationStatus | None = strawberry.field(
        default=None, description="Only those with this status."
    )
    title_contains: str | None = strawberry.field(
        default=None, description="Only those whose title contains this, whatever the case."
    )


@strawberry.input(description="In which order.")
class ConversationOrder:
    field: ConversationOrderField = strawberry.field(
        default=ConversationOrderField.UPDATED_AT, description="What they are ordered by."
    )
    direction: OrderDirection = strawberry.field(
        default=OrderDirection.DESC, description="Which end comes first."
    )


@strawberry.type
class ConversationsQuery:
    @strawberry.field(description="A conversation of yours; null when there is no such.")
    @reads()
    async def conversation(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the conversation.")]
    ) -> Conversation | None:
        return await conversations.one(info, id)  # type: ignore[return-value]

    @strawberry.field(description="Your conversations, the last changed first.")
    @reads()
    async def conversations(
        self,
        info: Info,
        first: First = None,
        after: After = None,
        last: Last = None,
        before: Before = None,
        filter: Annotated[ConversationFilter | None, arg("Which ones.")] = None,
        order_by: Annotated[ConversationOrder | None, arg("In which order.")] = None,
    ) -> Connection[Conversation]:
        wanted, by = filter or ConversationFilter(), order_by or ConversationOrder()
        order = Order((by.field.lower(),), is_descending=by.direction is OrderDirection.DESC)
        page = PageArgs(first, after, last, before)
        return await conversations.listed(  # type: ignore[return-value]
            info, page, order, wanted.status, wanted.title_contains
        )

    @strawberry.field(description="A message of yours; null when there is no such.")
    @reads()
    async def message(
        self, info: Info, id: Annotated[strawberry.ID, arg("Id of the message.")]
    ) -> Message | None:
        return await conversations.message(info, id)  # type: ignore[return-value]


@strawberry.input(description="A new conversation.")
class ConversationCreateInput:
    title: str | None = strawberry.field(
        default=None, description="At most 200 characters; made from the first message if absent."
    )


@strawberry.type(description="Answer to `conversationCreate`.")
class ConversationCreatePayload(Payload):
    conversation: Conversation | None = strawberry.field(
        default=None, description="The new conversation."
    )


@strawberry.input(description="Changes to a conversation; what is left out stays.")
class ConversationUpdateInput:
    title: strawberry.Maybe[str | None] = attr("A new title; null takes it away.")
    status: strawberry.Maybe[ConversationStatus] = attr("ACTIVE or ARCHIVED.")


@strawberry.type(description="Answer to `conversationUpdate`.")
class ConversationUpdatePayload(Payload):
    conversation: Conversation | None = strawberry.field(
        default=None, description="The changed conversation."
    )


@strawberry.type(description="Answer to `conversationDelete`.")
class ConversationDeletePayload(Payload):
    conversation: Conversation | None = strawberry.field(
        default=None, description="The conversation as it was deleted."
    )


@strawberry.input(description="A message to the assistant.")
class MessageSendInput:
    conversation_id: strawberry.ID = attr("Where to.")
    content: str = attr("The text, 1 to 100,000 characters unless configured otherwise.")
    idempotency_key: str | None = strawberry.field(
        default=None,
        description="At most 100 characters; the same key gives the same messages again.",
    )


@strawberry.type(description="Answer to `messageSend`.")
class MessageSendPayload(Payload):
    message: Message | None = strawberry.field(default=None, description="Your message.")
    reply: Message | None = strawberry.field(
        default=None, description="The assistant's message, PENDING until it is written."
    )


@strawberry.type(description="Answer to `messageStop`.")
class MessageStopPayload(Payload):
    message: Message | None = strawberry.field(default=None, description="The stopped answer.")


@strawberry.type(description="Answer to `messageRetry`.")
class MessageRetryPayload(Payload):
    message: Message | None = strawberry.field(default=None, description="The answer, PENDING.")


Id = Annotated[strawberry.ID, arg("Which one.")]


async def _create(info: Info, input: ConversationCreateInput) -> dict[str, object]:
    context = info.context
    made = await threads.create(context.deps, context.viewer, title=input.title)
    return {"conversation": made}


async def _update(info: Info, id: Id, input: ConversationUpdateInput) -> dict[str, object]:
    changes = {
        name: given.value
        for name in ("title", "status")
        if (given := getattr(input, name)) is not None
    }
    context = info.context
    changed = await threads.update(
        context.deps, context.viewer, conversation_id=id, changes=changes
    )
    return {"conversation": changed}


async def _delete(info: Info, id: Id) -> dict[str, object]:
    context = info.context
    deleted = await threads.delete(context.deps, context.viewer, conversation_id=id)
    return {"conversation": deleted}


async def _send(info: Info, input: MessageSendInput) -> dict[str, object]:
    message, reply = await messages.send(
        info.context.deps,
        info.context.viewer,
        conversation_id=input.conversation_id,
        content=input.content,
        idempotency_key=input.idempotency_key,
    )
    return {"message": message, "reply": reply}


async def _stop(info: Info, id: Id) -> dict[str, object]:
    return {"message": await messages.stop(info.context.deps, info.context.viewer, message_id=id)}


async def _retry(info: Info, id: Id) -> dict[str, object]:
    return {"message": await messages.retry(info.context.deps, info.context.viewer, message_id=id)}


@strawberry.type
class ConversationsMutation:
    conversation_create = mutation(ConversationCreatePayload, "Begin a conversation.")(_create)
    conversation_update = mutation(ConversationUpdatePayload, "Rename or archive a conversation.")(
        _update
    )
    conversation_delete = mutation(
        ConversationDeletePayload, "Delete a conversation; its answers under way are stopped."
    )(_delete)
    message_send = mutation(
        MessageSendPayload,
        "Send a message. The answer is written in the background, after those before it.",
    )(_send)
    message_stop = mutation(
        MessageStopPayload, "Stop an answer and keep what was written; harmless when it has ended."
    )(_stop)
    message_retry = mutation(
        MessageRetryPayload, "Write a failed or stopped answer again, from the beginning."
    )(_retry)


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
