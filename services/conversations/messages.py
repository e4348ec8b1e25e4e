"""Messages: send, stop, retry.

When a message arrives while another is being answered it queues: answers of a conversation are
given one at a time, in the order of the messages, each knowing what came before it. At most
`options.answers_queued_max` wait at once.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from models.base import now
from models.conversations import Conversation, Message, MessageToolCall
from models.states import ConversationStatus, MessageRole, MessageStatus, RunState
from services import tasks
from services.base import Deps, Viewer, Work, work
from services.contention import repeatable
from services.conversations import threads
from services.errors import UserError, UserErrorCode
from services.language.analyzing import ANALYZE_MESSAGE
from services.text import clean

ANSWER = "answer"
EXTRACT_MEMORIES = "extract_memories"
_OPEN = (MessageStatus.PENDING, MessageStatus.STREAMING)
_STOP_WAIT_S = 3.0


async def send(
    deps: Deps,
    viewer: Viewer,
    *,
    conversation_id: str,
    content: str,
    idempotency_key: str | None = None,
) -> tuple[Message, Message]:
    """Append a message of the viewer and an assistant's reply, PENDING, that is then written.

    The same `idempotency_key` in the same conversation gives the same two messages again.
    Raises UserError NOT_FOUND, INVALID, LIMIT (too long, or too many answers waiting), CONFLICT (an
    archived conversation, or a key used with another text).
    """
    viewer.require("conversations:write")
    clean(content, "content", max_chars=deps.options.message_max_chars)
    if idempotency_key is not None:
        clean(idempotency_key, "idempotency_key", max_chars=100, multiline=False)
    try:
        return await _send(deps, viewer, conversation_id, content, idempotency_key)
    except IntegrityError:
        # Two requests with one key at once: the other one was first, so this gives its messages.
        if idempotency_key is None:
            raise
        return await _send(deps, viewer, conversation_id, content, idempotency_key)


@repeatable
async def _send(
    deps: Deps, viewer: Viewer, conversation_id: str, content: str, key: str | None
) -> tuple[Message, Message]:
    async with work(deps) as unit:
        conversation = await threads.owned(unit, viewer, conversation_id, path="conversation_id")
        earlier = await _sent_before(unit, conversation_id, content, key)
        if earlier is not None:
            return earlier
        await _admit(unit, conversation, path="conversation_id")
        message = Message(
            conversation_id=conversation_id,
            user_id=viewer.user_id,
            session_id=viewer.session_id,
            role=MessageRole.USER,
            content=content,
            idempotency_key=key,
            completed_at=now(),
        )
        unit.session.add(message)
        await unit.session.flush()
        reply = Message(
            conversation_id=conversation_id,
            session_id=viewer.session_id,
            reply_to_id=message.id,
            role=MessageRole.ASSISTANT,
            status=MessageStatus.PENDING,
            content="",
        )
        unit.session.add(reply)
        if conversation.title is None:
            conversation.title = threads.title_of(content)
        conversation.updated_at = now()
        await unit.session.flush()
        _announce(unit, message)
        _announce(unit, reply)
        tasks.enqueue(unit, ANSWER, {"id": reply.id}, lane=conversation_id, priority=10)
        tasks.enqueue(unit, EXTRACT_MEMORIES, {"id": message.id})
        tasks.enqueue(unit, ANALYZE_MESSAGE, {"id": message.id})
        return message.frozen(), reply.frozen()


async def _sent_before(
    unit: Work, conversation_id: str, content: str, key: str | None
) -> tuple[Message, Message] | None:
    if key is None:
        return None
    sent = await unit.session.scalar(
        select(Message).where(
            Message.conversation_id == conversation_id, Message.idempotency_key == key
        )
    )
    if sent is None:
        return None
    if sent.content != content:
        raise UserError(
            UserErrorCode.CONFLICT,
            "This idempotency key was used with another text; take a new key for a new message.",
            ("idempotency_key",),
        )
    reply = (
        await unit.session.scalars(
            select(Message).where(Message.reply_to_id == sent.id).order_by(Message.id)
        )
    ).first()
    if reply is None:
        raise UserError(UserErrorCode.CONFLICT, "The reply to this message is gone.")
    return sent.frozen(), reply.frozen()


async def _admit(unit: Work, conversation: Conversation, *, path: str) -> None:
    if conversation.status is not ConversationStatus.ACTIVE:
        raise UserError(
            UserErrorCode.CONFLICT,
            "The conversation is archived; set its status to ACTIVE first.",
            (path,),
        )
    limit = unit.deps.options.answers_queued_max
    waiting = await unit.session.scalar(
        select(func.count()).where(
            Message.conversation_id == conversation.id, Message.status.in_(_OPEN)
        )
    )
    if (waiting or 0) >= limit:
        raise UserError(
            UserErrorCode.LIMIT,
            f"{limit} messages of this conversation wait for an answer already; "
            "wait for one, or stop it.",
            (path,),
        )


def text_key(message_id: str, number: int) -> str:
    """Name the growing text of one attempt at an answer."""
    return f"{message_id}:{number}"


def attempt(meta: Mapping[str, Any] | None) -> int:
    """Give how often the text of a message was taken back, from its metadata."""
    return int((meta or {}).get("attempt", 0))


def take_back(message: Message, kept: str) -> str:
    """Begin another attempt at an answer that holds up to `kept`; gives the key of its text."""
    number = attempt(message.meta) + 1
    message.content, message.meta = kept, {**(message.meta or {}), "attempt": number}
    return text_key(message.id, number)


def _announce(unit: Work, message: Message) -> None:
    unit.record(
        threads.topic(message.conversation_id),
        "MessageAdded",
        {"message_id": message.id, "is_growing": message.status in _OPEN},
    )


async def end(
    unit: Work,
    message: Message,
    status: MessageStatus,
    *,
    error_code: str | None = None,
    error_message: str | None = None,
) -> None:
    """Bring an answer to its end in the caller's transaction and announce it.

    Tool calls still open are canceled: nobody waits for their results any more.
    """
    await _cancel_calls(unit, message)
    message.status, message.completed_at = status, now()
    message.error_code, message.error_message = error_code, error_message
    kind = "MessageFailed" if status is MessageStatus.FAILED else "MessageCompleted"
    payload = {"message_id": message.id, "attempt": attempt(message.meta)}
    unit.record(threads.topic(message.conversation_id), kind, payload)


async def _cancel_calls(unit: Work, message: Message) -> None:
    open_calls = await unit.session.scalars(
        select(MessageToolCall).where(
            MessageToolCall.message_id == message.id,
            MessageToolCall.status.in_((RunState.PENDING, RunState.RUNNING)),
        )
    )
    for call in open_calls:
        call.status, call.completed_at = RunState.CANCELED, now()
        payload = {"tool_call_id": call.id, "message_id": message.id}
        unit.record(threads.topic(message.conversation_id), "ToolCallFinished", payload)


async def _answer_of(
    unit: Work, viewer: Viewer, message_id: str, *, may_manage: bool
) -> tuple[Message, Conversation]:
    """Lock a message of the viewer, or of anybody with `may_manage`, unless it was deleted."""
    message = await unit.lock(Message, message_id)
    if message is not None:
        conversation = await unit.session.get(Conversation, message.conversation_id)
        if (
            conversation is not None
            and conversation.status is not ConversationStatus.DELETED
            and (conversation.user_id == viewer.user_id or may_manage)
        ):
            return message, conversation
    raise UserError(UserErrorCode.NOT_FOUND, "There is no such message.", ("id",))


@repeatable
async def stop(deps: Deps, viewer: Viewer, *, message_id: str) -> Message:
    """Stop an answer and keep what was written. Stopping a finished answer changes nothing.

    Waits up to 3 s for the writer to stop; the message then is STOPPED. Raises UserError NOT_FOUND,
    INVALID for a message that is not the assistant's.
    """
    viewer.require("conversations:write")
    async with deps.db.reading() as connection:
        conversation_id = await connection.scalar(
            select(Message.conversation_id).where(Message.id == message_id)
        )
    async with deps.bus.attach(threads.topic(conversation_id or "none")) as tap:
        async with work(deps) as unit:
            message, _ = await _answer_of(
                unit, viewer, message_id, may_manage=viewer.may("everything:manage")
            )
            if message.role is not MessageRole.ASSISTANT:
                raise UserError(
                    UserErrorCode.INVALID, "Only the assistant's answers can be stopped.", ("id",)
                )
            if message.status is MessageStatus.PENDING:
                message.stop_requested_at = now()
                await end(unit, message, MessageStatus.STOPPED)
                await tasks.cancel_pending(
                    unit, task_type=ANSWER, lane=message.conversation_id, payload_id=message.id
                )
            elif message.status is MessageStatus.STREAMING:
                message.stop_requested_at = message.stop_requested_at or now()
                control = f"control:{message.conversation_id}"
                unit.after_commit(lambda: deps.bus.publish(control, {"stop": message_id}))
            await unit.session.flush()
            row = message.frozen()
        deadline = asyncio.get_running_loop().time() + _STOP_WAIT_S
        while not row.status.is_final:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await tap.get(min(left, 0.5))
            tap.lost()
            row = await _read(deps, message_id) or row
    return row


async def _read(deps: Deps, message_id: str) -> Message | None:
    async with work(deps) as unit:
        message = await unit.session.get(Message, message_id)
        return message.frozen() if message else None


@repeatable
async def retry(deps: Deps, viewer: Viewer, *, message_id: str) -> Message:
    """Write a failed or stopped answer anew, from the beginning.

    Raises UserError NOT_FOUND, CONFLICT when the answer neither failed nor was stopped.
    """
    viewer.require("conversations:write")
    async with work(deps) as unit:
        message, conversation = await _answer_of(unit, viewer, message_id, may_manage=False)
        if message.role is not MessageRole.ASSISTANT or message.status not in (
            MessageStatus.FAILED,
            MessageStatus.STOPPED,
        ):
            raise UserError(
                UserErrorCode.CONFLICT,
                "Only an answer that failed or was stopped can be tried again.",
                ("id",),
            )
        # Answers that wait are counted under the conversation's lock, as when one is sent.
        await unit.lock(Conversation, conversation.id)
        await _admit(unit, conversation, path="id")
        await restart(unit, message)
        tasks.enqueue(unit, ANSWER, {"id": message.id}, lane=conversation.id, priority=10)
        await unit.session.flush()
        return message.frozen()


async def restart(unit: Work, message: Message) -> None:
    """Empty an answer, so that it can be written again; followers begin anew."""
    await unit.session.execute(
        delete(MessageToolCall).where(MessageToolCall.message_id == message.id)
    )
    take_back(message, "")
    message.status = MessageStatus.PENDING
    message.stop_requested_at = message.completed_at = None
    message.error_code = message.error_message = None
    message.input_tokens = message.output_tokens = message.cost_usd = None
    topic = threads.topic(message.conversation_id)
    unit.record(topic, "MessageRestarted", {"message_id": message.id})
