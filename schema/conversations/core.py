"""Conversations and messages, and how they are asked for."""

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
    RunState,
    arg,
    attr,
    connection,
    described_enum,
    field,
)
from schema.language import Entity, Intent, Sentiment
from schema.memories import Memory
from schema.presence import ConversationPresence
from schema.tools import ToolExecution

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
    error_code: str | None = attr(
        "UNAVAILABLE, RATE_LIMITED, TIMED_OUT, INTERNAL, and others.", name="code"
    )
    error_message: str | None = attr("What happened and what to do.", name="message")

    @classmethod
    def is_type_of(cls, value: object, _info: object) -> bool:
        """A failed message is its own error."""
        return is_row(value, tables.Message)


@strawberry.type(description="What an answer was made from.")
class MessageContext(Node, row=tables.Context):
    messages: list[Annotated["Message", strawberry.lazy("schema.conversations.core")]] = field(
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

    conversation: Annotated["Conversation", strawberry.lazy("schema.conversations.core")] | None = (
        field(conversations.conversation, "The conversation it belongs to.")
    )
    author: User | None = field(conversations.author, "The person who wrote it; null else.")
    reply_to: Annotated["Message", strawberry.lazy("schema.conversations.core")] | None = field(
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
    status: ConversationStatus | None = attr("Only those with this status.", default=None)
    title_contains: str | None = attr(
        "Only those whose title contains this, whatever the case.", default=None
    )


@strawberry.input(description="In which order.")
class ConversationOrder:
    field: ConversationOrderField = attr(
        "What they are ordered by.", default=ConversationOrderField.UPDATED_AT
    )
    direction: OrderDirection = attr("Which end comes first.", default=OrderDirection.DESC)


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
