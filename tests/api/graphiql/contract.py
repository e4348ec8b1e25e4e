"""The stand-in's part of the contract: accounts, and conversations with their events."""

from datetime import datetime

import strawberry
from strawberry.scalars import JSON


@strawberry.type
class UserError:
    code: str
    message: str
    path: list[str]


@strawberry.interface
class Node:
    id: strawberry.ID


@strawberry.type
class User(Node):
    username: str
    created_at: datetime


@strawberry.type
class AuthSession:
    token: str
    refresh_token: str
    expires_at: datetime


@strawberry.type
class SessionPayload:
    session: AuthSession | None = None
    user: User | None = None
    errors: list[UserError] = strawberry.field(default_factory=list)


@strawberry.type
class Conversation(Node):
    title: str
    status: str
    created_at: datetime


@strawberry.type
class Message(Node):
    role: str
    content: str
    status: str
    cited_memories: list["Memory"] = strawberry.field(default_factory=list)
    error: "MessageError | None" = None


@strawberry.type
class Memory(Node):
    content: str


@strawberry.type
class MessageError:
    code: str
    message: str


@strawberry.type
class ToolCall(Node):
    tool_name: str
    arguments: str
    status: str
    result: JSON | None = None


@strawberry.type
class ConversationPayload:
    conversation: Conversation | None = None
    errors: list[UserError] = strawberry.field(default_factory=list)


@strawberry.type
class MessagePayload:
    message: Message | None = None
    reply: Message | None = None
    errors: list[UserError] = strawberry.field(default_factory=list)


@strawberry.interface
class ConversationEvent:
    cursor: str


@strawberry.type
class MessageAdded(ConversationEvent):
    message: Message


@strawberry.type
class ConversationReset(ConversationEvent):
    conversation: Conversation


@strawberry.type
class ToolCallStarted(ConversationEvent):
    tool_call: ToolCall


@strawberry.type
class ToolCallFinished(ConversationEvent):
    tool_call: ToolCall


@strawberry.type
class MessageDelta(ConversationEvent):
    offset: int
    text: str


@strawberry.type
class MessageCompleted(ConversationEvent):
    message: Message


@strawberry.type
class MessageFailed(ConversationEvent):
    message: Message


@strawberry.input
class UserRegisterInput:
    username: str
    email: str
    password: str


@strawberry.input
class SessionCreateInput:
    login: str
    password: str


@strawberry.input
class ConversationCreateInput:
    title: str


@strawberry.input
class MessageSendInput:
    conversation_id: strawberry.ID
    content: str
