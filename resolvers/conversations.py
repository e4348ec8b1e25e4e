"""Computed fields of conversations and messages."""

from collections.abc import Sequence

from models.accounts import User
from models.conversations import Context, Conversation, Message, MessageToolCall
from models.memories import Memory
from models.states import ConversationStatus, MessageStatus
from models.tools import ToolExecution
from resolvers.base import Info, Order, Page, PageArgs, by_id_alone, known_by, reads
from services.conversations.threads import TITLE_MAX_CHARS
from services.errors import RequestError, UserError
from services.text import clean


async def one(info: Info, id_: str) -> Conversation | None:
    """Give a conversation the viewer may see, or None."""
    return (await info.context.load.one(Conversation, Conversation.id, [id_]))[0]


async def listed(
    info: Info, page: PageArgs, order: Order, status: ConversationStatus | None, title: str | None
) -> Page[Conversation]:
    """Give a page of the viewer's own conversations.

    Raises RequestError BAD_USER_INPUT for a part of a title that no title can have.
    """
    where = []
    if status is not None:
        where.append(Conversation.status == status)
    if title:
        _check_title_part(title)
        where.append(Conversation.title.icontains(title, autoescape=True))
    return await info.context.load.list(
        Conversation, page, order=order, owner=Conversation.user_id, where=where
    )


def _check_title_part(title: str) -> None:
    try:
        clean(title, "title_contains", max_chars=TITLE_MAX_CHARS, min_chars=0, multiline=False)
    except UserError as error:
        raise RequestError("BAD_USER_INPUT", error.message) from error


async def message(info: Info, id_: str) -> Message | None:
    """Give a message the viewer may see, or None."""
    return (await info.context.load.one(Message, Message.id, [id_]))[0]


@reads()
async def of_users(users: Sequence[User], info: Info, page: PageArgs) -> list[Page[Conversation]]:
    """Conversations of users, the last changed first."""
    return await info.context.load.page(
        Conversation,
        Conversation.user_id,
        [user.id for user in users],
        page,
        order=Order(("updated_at",), is_descending=True),
    )


@reads("user_id")
async def owner(conversations: Sequence[Conversation], info: Info) -> list[User | None]:
    """Owners of conversations."""
    return await info.context.load.one(User, User.id, [c.user_id for c in conversations])


@reads()
async def messages(
    conversations: Sequence[Conversation], info: Info, page: PageArgs
) -> list[Page[Message]]:
    """Messages of conversations, the oldest first."""
    return await info.context.load.page(
        Message, Message.conversation_id, [c.id for c in conversations], page
    )


@reads("conversation_id")
async def conversation(messages: Sequence[Message], info: Info) -> list[Conversation | None]:
    """Conversations of messages."""
    ids = [message.conversation_id for message in messages]
    return await info.context.load.one(Conversation, Conversation.id, ids)


@reads("user_id")
async def author(messages: Sequence[Message], info: Info) -> list[User | None]:
    """Authors of messages; None for the assistant."""
    return await info.context.load.one(User, User.id, [m.user_id for m in messages])


@reads("reply_to_id")
async def reply_to(messages: Sequence[Message], info: Info) -> list[Message | None]:
    """The messages that messages answer."""
    return await info.context.load.one(Message, Message.id, [m.reply_to_id for m in messages])


@reads()
async def tool_calls(messages: Sequence[Message], info: Info) -> list[list[MessageToolCall]]:
    """Tool calls made while messages were written, in order."""
    return await info.context.load.many(
        MessageToolCall, MessageToolCall.message_id, [message.id for message in messages]
    )


@reads("meta")
async def cited_memories(messages: Sequence[Message], info: Info) -> list[list[Memory]]:
    """Memories that messages rely on, those that still exist, in the order cited."""
    cited = [(message.meta or {}).get("citedMemoryIds", []) for message in messages]
    wanted = [id_ for ids in cited for id_ in ids]
    rows = await info.context.load.one(Memory, Memory.id, wanted)
    found = {row.id: row for row in rows if row is not None}
    return [[found[id_] for id_ in ids if id_ in found] for ids in cited]


@reads()
async def context(messages: Sequence[Message], info: Info) -> list[Context | None]:
    """What answers were made from."""
    return await info.context.load.one(Context, Context.message_id, [m.id for m in messages])


@reads("status", "error_code", "error_message")
async def errors(messages: Sequence[Message], info: Info) -> list[Message | None]:
    """Messages that failed, as their own error."""
    return [m if m.status is MessageStatus.FAILED else None for m in messages]


@reads("data")
async def context_messages(contexts: Sequence[Context], info: Info) -> list[list[Message]]:
    """Messages an answer was made from, oldest first."""
    wanted = [id_ for context in contexts for id_ in context.data["messageIds"]]
    rows = await info.context.load.one(Message, Message.id, wanted)
    found = {row.id: row for row in rows if row is not None}
    return [[found[i] for i in c.data["messageIds"] if i in found] for c in contexts]


@reads("data")
async def context_memories(contexts: Sequence[Context], info: Info) -> list[list[Memory]]:
    """Memories an answer was made from, the most relevant first."""
    wanted = [memory["id"] for context in contexts for memory in context.data["memories"]]
    rows = await info.context.load.one(Memory, Memory.id, wanted)
    found = {row.id: row for row in rows if row is not None}
    return [[found[m["id"]] for m in c.data["memories"] if m["id"] in found] for c in contexts]


@reads("message_id")
async def call_message(calls: Sequence[MessageToolCall], info: Info) -> list[Message | None]:
    """The messages that tool calls belong to."""
    return await info.context.load.one(Message, Message.id, [c.message_id for c in calls])


@reads("tool_execution_id")
async def call_execution(
    calls: Sequence[MessageToolCall], info: Info
) -> list[ToolExecution | None]:
    """The executions behind tool calls."""
    ids = [call.tool_execution_id for call in calls]
    return await info.context.load.one(ToolExecution, ToolExecution.id, ids)


@known_by("message_id")
@reads()
async def event_message(events: Sequence[object], info: Info) -> list[Message | None]:
    """The messages that events are about."""
    ids = [event.message_id for event in events]  # type: ignore[attr-defined]
    known = by_id_alone(Message, ids, info)
    if known is not None:
        return known
    return await info.context.load.one(Message, Message.id, ids)


@reads()
async def event_tool_call(events: Sequence[object], info: Info) -> list[MessageToolCall | None]:
    """The tool calls that events are about."""
    ids = [event.tool_call_id for event in events]  # type: ignore[attr-defined]
    return await info.context.load.one(MessageToolCall, MessageToolCall.id, ids)


@reads()
async def event_conversation(events: Sequence[object], info: Info) -> list[Conversation | None]:
    """The conversations that events are about."""
    ids = [event.conversation_id for event in events]  # type: ignore[attr-defined]
    return await info.context.load.one(Conversation, Conversation.id, ids)
