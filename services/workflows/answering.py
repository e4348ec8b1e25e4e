"""Writing an answer with memories, a model, tools and a sandbox."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from models.conversations import Conversation, Message, MessageToolCall
from models.statements import Reading
from models.states import ConversationStatus, MessageStatus
from models.system import Task
from services import memories, tasks
from services.accounts.sessions import viewer_of
from services.base import Deps, Viewer, work
from services.batches import Batches
from services.conversations import messages, prompts, threads
from services.errors import UserErrorCode
from services.events.base import BusUnavailableError, Tap
from services.llm.base import ProviderError
from services.streams import TextWriter, read_text, resume_text
from services.workflows.draft import Draft
from services.workflows.rounds import checkpoint, write

log = logging.getLogger("noosphere.answers")
_RECALLED = 5
_CONTROL_POLL_S = 2.0
# Followers that come back late still find the text in the bus for so long after its end.
_LOG_TTL_S = 600.0


async def _answer_is_dead(deps: Deps, task: Task, reason: str) -> None:
    await _end_early(
        deps,
        task.payload["id"],
        MessageStatus.FAILED,
        error_code="INTERNAL",
        error_message="The answer could not be written. Try again with messageRetry.",
    )


async def _end_early(deps: Deps, message_id: str, status: MessageStatus, **error: str) -> None:
    """End an answer that nobody writes, with all that was sent of it."""
    async with deps.db.reading() as connection:
        row = (
            await connection.execute(
                select(Message.conversation_id, Message.meta, Message.content).where(
                    Message.id == message_id
                )
            )
        ).first()
    if row is None:
        return
    conversation_id, meta, stored = row
    key = messages.text_key(message_id, messages.attempt(meta))
    # Read before the transaction: a bus that is away must not keep rows locked.
    sent = await read_text(deps, threads.topic(conversation_id), key, stored)
    async with work(deps) as unit:
        message = await unit.lock(Message, message_id)
        if message is None or message.status.is_final:
            return
        message.content = max(message.content, sent, key=len)
        await messages.end(unit, message, status, **error)


@tasks.handler(messages.ANSWER, dead=_answer_is_dead)
async def answer(deps: Deps, task: Task) -> None:
    """Write an answer: recall, ask the model, run its tools, and again until it calls none.

    An answer whose writer was killed is taken up where it stood: finished rounds are kept, the text
    of the round under way is written again and sent only where it differs. Stopping keeps the text.
    """
    message = await _begin(deps, task)
    if message is None:
        return
    viewer = await _viewer(deps, message)
    if viewer is None:
        await _end_early(
            deps,
            message.id,
            MessageStatus.FAILED,
            error_code="FORBIDDEN",
            error_message="The account of this conversation is not active any more.",
        )
        return
    draft = await _draft(deps, viewer, task, message)
    ended: BaseException | None = None
    async with deps.bus.attach(f"control:{message.conversation_id}") as control:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(draft.text.run())
            writing = group.create_task(write(draft))
            watching = group.create_task(_watch(draft, control, writing))
            await asyncio.wait({writing})
            sending.cancel()
            watching.cancel()
        ended = None if writing.cancelled() else writing.result()
        was_stopped = writing.cancelled()
    if isinstance(ended, tasks.LeaseLostError):
        # Nothing more may be sent: followers hear another writer.
        raise ended
    if isinstance(ended, Exception) and not isinstance(ended, ProviderError | TimeoutError):
        await draft.text.settle()
        await checkpoint(deps, task, draft.text.text)
        raise ended
    await draft.text.settle()
    await _finish(draft, ended, was_stopped=was_stopped)


async def _begin(deps: Deps, task: Task) -> Message | None:
    message_id = task.payload["id"]
    async with work(deps) as unit:
        await tasks.hold(unit, task)
        message = await unit.lock(Message, message_id)
        if message is None or message.status.is_final:
            return None
        conversation = await unit.session.get(Conversation, message.conversation_id)
        is_gone = conversation is None or conversation.status is ConversationStatus.DELETED
        if not is_gone and message.stop_requested_at is None:
            message.status = MessageStatus.STREAMING
            message.provider, message.model = deps.provider.name, deps.provider.model
            await unit.session.flush()
            return message.frozen()
    await _end_early(deps, message_id, MessageStatus.STOPPED)
    return None


async def _viewer(deps: Deps, message: Message) -> Viewer | None:
    async with deps.db.reading() as connection:
        user_id = await connection.scalar(
            select(Conversation.user_id).where(Conversation.id == message.conversation_id)
        )
    return None if user_id is None else await viewer_of(deps, user_id, message.session_id)


async def _draft(deps: Deps, viewer: Viewer, task: Task, message: Message) -> Draft:
    topic = threads.topic(message.conversation_id)
    past = await prompts.history(deps, message)
    calls = await prompts.calls_of(deps, [message.id, *(m.id for m in past)])
    question = next((m for m in past if m.id == message.reply_to_id), None)
    recalled = (
        await memories.recall(deps, viewer, question.content, first=_RECALLED) if question else []
    )
    prompt = [prompts.system()]
    for earlier in past:
        prompt += prompts.chat(earlier, calls[earlier.id])
    key = messages.text_key(message.id, messages.attempt(message.meta))
    sent, is_known = await resume_text(deps, topic, key, message.content)
    if not is_known:
        key = await _rewind(deps, task, message, sent)
    elif sent != message.content:
        await checkpoint(deps, task, sent)
    finished = _finished_rounds(calls[message.id])
    own, done = prompts.rounds(sent, finished)
    async with work(deps) as unit:
        await prompts.keep_context(unit, message, past, recalled)
    writer = TextWriter(
        deps,
        topic,
        key,
        checkpoint=lambda text: checkpoint(deps, task, text),
        rewind=lambda text: _rewind(deps, task, message, text),
        text=sent,
        replay_from=done,
    )
    next_round = max((call.round for call in finished), default=-1) + 1
    return Draft(deps, viewer, task, message, writer, prompt + own, recalled, next_round)


def _finished_rounds(calls: list[MessageToolCall]) -> list[MessageToolCall]:
    open_rounds = {call.round for call in calls if not call.status.is_final}
    first_open = min(open_rounds, default=None)
    return [call for call in calls if first_open is None or call.round < first_open]


async def _rewind(deps: Deps, task: Task, message: Message, text: str) -> str:
    """Take back the text after the part that holds: what was sent cannot be written again.

    Gives the key of the text that goes on from there.
    """
    async with work(deps) as unit:
        await tasks.hold(unit, task)
        row = await unit.lock(Message, message.id)
        if row is None:
            # Deleted meanwhile: nobody follows it any more.
            return messages.text_key(message.id, 0)
        if row.status.is_final:
            raise RuntimeError("another writer has finished this answer")
        key = messages.take_back(row, text)
        unit.record(
            threads.topic(message.conversation_id), "MessageRewound", {"message_id": message.id}
        )
        return key


async def _watch(draft: Draft, control: Tap, writing: "asyncio.Task[Any]") -> None:
    """Cancel the writing when its stop is asked for; news may get lost, so look at the row."""
    wanted, loop = _wanted(draft.deps), asyncio.get_running_loop()
    while True:
        # All answers of the process are looked at in the same moments, with one statement.
        news = await control.get(_CONTROL_POLL_S - loop.time() % _CONTROL_POLL_S)
        control.lost()
        if news is not None and news.data.get("stop") not in (draft.message.id, "all"):
            continue
        try:
            is_wanted = await wanted.of(draft.message.id)
        except SQLAlchemyError:
            log.warning("the answer could not be looked at", exc_info=True)
            continue
        if not is_wanted:
            writing.cancel()
            return


_WANTED = Reading(
    select(Message.id)
    .join(Conversation, Conversation.id == Message.conversation_id)
    .where(
        Message.id.in_(bindparam("ids", expanding=True)),
        Message.stop_requested_at.is_(None),
        Conversation.status != ConversationStatus.DELETED,
    )
)


def _wanted(deps: Deps) -> Batches[str, bool]:
    """Give who tells, for this process, whether an answer is still wanted. Raises DBAPIError."""

    async def read(ids: Sequence[str]) -> Mapping[str, bool]:
        return dict.fromkeys((id_ for (id_,) in await deps.db.rows(_WANTED, ids=ids)), True)

    known = deps.caches.get("wanted answers")
    if not isinstance(known, Batches):
        known = deps.caches["wanted answers"] = Batches(read)
    return known


async def _finish(draft: Draft, ended: BaseException | None, *, was_stopped: bool) -> None:
    async with work(draft.deps) as unit:
        await tasks.hold(unit, draft.task)
        message = await unit.lock(Message, draft.message.id)
        if message is None or message.status.is_final:
            return
        message.content = draft.text.text
        message.input_tokens, message.output_tokens = draft.input_tokens, draft.output_tokens
        message.cost_usd = draft.cost_usd
        if draft.cited:
            message.meta = {**(message.meta or {}), "citedMemoryIds": draft.cited}
        if was_stopped:
            await messages.end(unit, message, MessageStatus.STOPPED)
        elif ended is None:
            await messages.end(unit, message, MessageStatus.COMPLETED)
        else:
            code, reason = _explain(draft, ended)
            log.warning("answer failed: %s", reason, extra={"message_id": message.id})
            await messages.end(
                unit, message, MessageStatus.FAILED, error_code=code, error_message=reason
            )
    try:
        await draft.deps.bus.expire(draft.topic, _LOG_TTL_S)
    except BusUnavailableError:
        log.info("the log of a finished answer goes with those nobody writes to")


def _explain(draft: Draft, ended: BaseException) -> tuple[str, str]:
    if isinstance(ended, ProviderError):
        return ended.code, ended.message
    limit = draft.deps.options.answer_timeout_s
    return UserErrorCode.UNAVAILABLE, f"The answer took longer than {limit} seconds."
