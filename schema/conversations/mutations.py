"""What is done to conversations and messages."""

import strawberry

from resolvers.base import Info
from schema.base import Id, Payload, answer, attr, mutation
from schema.conversations.core import Conversation, ConversationStatus, Message
from services.conversations import messages, threads


@strawberry.input(description="A new conversation.")
class ConversationCreateInput:
    title: str | None = attr(
        "At most 200 characters; made from the first message if absent.", default=None
    )


@strawberry.type(description="Answer to `conversationCreate`.")
class ConversationCreatePayload(Payload):
    conversation: Conversation | None = answer("The new conversation.")


@strawberry.input(description="Changes to a conversation; what is left out stays.")
class ConversationUpdateInput:
    title: strawberry.Maybe[str | None] = attr("A new title; null takes it away.")
    status: strawberry.Maybe[ConversationStatus] = attr("ACTIVE or ARCHIVED.")


@strawberry.type(description="Answer to `conversationUpdate`.")
class ConversationUpdatePayload(Payload):
    conversation: Conversation | None = answer("The changed conversation.")


@strawberry.type(description="Answer to `conversationDelete`.")
class ConversationDeletePayload(Payload):
    conversation: Conversation | None = answer("The conversation as it was deleted.")


@strawberry.input(description="A message to the assistant.")
class MessageSendInput:
    conversation_id: strawberry.ID = attr("Where to.")
    content: str = attr("The text, 1 to 100,000 characters unless configured otherwise.")
    idempotency_key: str | None = attr(
        "At most 100 characters; the same key gives the same messages again.", default=None
    )


@strawberry.type(description="Answer to `messageSend`.")
class MessageSendPayload(Payload):
    message: Message | None = answer("Your message.")
    reply: Message | None = answer("The assistant's message, PENDING until it is written.")


@strawberry.type(description="Answer to `messageStop`.")
class MessageStopPayload(Payload):
    message: Message | None = answer("The stopped answer.")


@strawberry.type(description="Answer to `messageRetry`.")
class MessageRetryPayload(Payload):
    message: Message | None = answer("The answer, PENDING.")


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
