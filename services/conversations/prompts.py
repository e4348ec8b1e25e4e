"""What an answer is made from: recent messages, their tool calls, and recalled memories."""

from collections.abc import Iterable, Sequence

import orjson
from sqlalchemy import select

from models.base import now, row_columns, rows_of
from models.conversations import Context, Message, MessageToolCall
from models.states import MessageRole, MessageStatus
from services.base import Deps, Work
from services.llm.base import ChatMessage, RecalledMemory, Role, ToolCall

_SYSTEM = (
    "You are the assistant of Noosphere, a self-hosted backend. Answer in the language of the "
    "user. Use the tools when they help: run code rather than guess results. Cite a memory you "
    "rely on by its id in square brackets. Today is {date} (UTC)."
)
# A tool's result is cut to this many characters before a model reads it.
_RESULT_MAX_CHARS = 16_000


async def history(deps: Deps, reply: Message) -> list[Message]:
    """Give the newest messages before a reply, oldest first, within the configured limits.

    The message that is answered is always among them. Later messages that wait for their own answer
    are not.
    """
    options = deps.options
    async with deps.db.reading() as connection:
        rows = rows_of(
            Message,
            (
                await connection.execute(
                    select(*row_columns(Message))
                    .where(
                        Message.conversation_id == reply.conversation_id,
                        Message.id < reply.id,
                        Message.status != MessageStatus.PENDING,
                    )
                    .order_by(Message.id.desc())
                    .limit(options.context_messages)
                )
            ).all(),
        )
    kept: list[Message] = []
    chars = 0
    for row in rows:
        chars += len(row.content)
        if kept and chars > options.context_chars:
            break
        kept.append(row)
    return kept[::-1]


async def calls_of(deps: Deps, message_ids: Iterable[str]) -> dict[str, list[MessageToolCall]]:
    """Give the tool calls of messages, in the order they were made."""
    ids = list(message_ids)
    async with deps.db.reading() as connection:
        rows = rows_of(
            MessageToolCall,
            (
                await connection.execute(
                    select(*row_columns(MessageToolCall))
                    .where(MessageToolCall.message_id.in_(ids))
                    .order_by(MessageToolCall.round, MessageToolCall.position)
                )
            ).all(),
        )
    grouped: dict[str, list[MessageToolCall]] = {id_: [] for id_ in ids}
    for row in rows:
        grouped[row.message_id].append(row)
    return grouped


def system() -> ChatMessage:
    """Give the system message."""
    return ChatMessage(Role.SYSTEM, _SYSTEM.format(date=now().date().isoformat()))


def chat(message: Message, calls: Sequence[MessageToolCall]) -> list[ChatMessage]:
    """Turn a stored message into prompt messages: text, calls and results, round by round."""
    if message.role is MessageRole.USER:
        return [ChatMessage(Role.USER, message.content)]
    if message.role is not MessageRole.ASSISTANT:
        return [ChatMessage(Role.SYSTEM, message.content)]
    prompt, done = rounds(message.content, calls)
    rest = message.content[done:]
    if rest:
        prompt.append(ChatMessage(Role.ASSISTANT, rest))
    return prompt


def rounds(text: str, calls: Sequence[MessageToolCall]) -> tuple[list[ChatMessage], int]:
    """Give the prompt messages of an answer's rounds that made calls, and how far they reach.

    The second value is the number of characters of `text` those rounds wrote.
    """
    prompt: list[ChatMessage] = []
    done = 0
    for number in sorted({call.round for call in calls}):
        group = [call for call in calls if call.round == number]
        requested = [ToolCall(c.call_id, c.tool_name, c.arguments) for c in group]
        start, done = done, group[0].text_offset
        prompt.append(ChatMessage(Role.ASSISTANT, text[start:done], tool_calls=requested))
        prompt += [
            ChatMessage(Role.TOOL, result_text(c.result), tool_call_id=c.call_id) for c in group
        ]
    return prompt, done


def result_text(result: object) -> str:
    """Give a tool's result as the JSON text a model reads, cut when it is long."""
    text = orjson.dumps(result, default=str).decode()
    if len(text) > _RESULT_MAX_CHARS:
        return text[:_RESULT_MAX_CHARS] + " … (cut)"
    return text


async def keep_context(
    unit: Work, reply: Message, messages: Sequence[Message], memories: Sequence[RecalledMemory]
) -> None:
    """Store what an answer was made from, under the sign-in that asked."""
    if reply.session_id is None:
        return
    data = {
        "messageIds": [message.id for message in messages],
        "memories": [{"id": m.id, "score": round(m.score, 4)} for m in memories],
        "provider": unit.deps.provider.name,
        "model": unit.deps.provider.model,
    }
    context = await unit.session.scalar(select(Context).where(Context.message_id == reply.id))
    if context is None:
        unit.session.add(Context(session_id=reply.session_id, message_id=reply.id, data=data))
    else:
        context.data = data
