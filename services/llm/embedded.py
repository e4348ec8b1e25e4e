"""The embedded assistant: no model, no download, and no pretence of being one.

It reads what the latest message asks, calls tools, answers from memories in the user's own words
with citations, and says plainly what it cannot do. The same request always gives the same text and
the same tool calls, so an answer cut off by a crash can be made again and continued.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.language import calculations, scripts, zones
from services.language.embeddings import Embedder, Vectors
from services.language.extraction import candidate, extract
from services.llm import answers, intents, recollection, tokens
from services.llm.base import (
    ChatEvent,
    ChatMessage,
    ChatRequest,
    Finished,
    RecalledMemory,
    Role,
    TextDelta,
    ToolCall,
    ToolCallRequested,
    Usage,
)
from services.llm.intents import Intent, Kind

# A message is read as its nearest example from this cosine on; below, it is out of scope.
_NEAREST_EXAMPLE = 0.62
_READ_AT_ONCE_CHARS = 400
# All delays of one answer together, so that a long output is not slowed down.
_MAX_TOTAL_DELAY_S = 1.5
_T = TypeVar("_T")
_WORD = re.compile(r"\s*\S+\s*?(?=\s|$)|\s+")


@dataclass(frozen=True, slots=True)
class _Result:
    """A tool's answer in the conversation, with the call it answers."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class _Reply:
    """What one turn gives: text, or calls."""

    text: str = ""
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    cited: Sequence[str] = ()


def _results(messages: Sequence[ChatMessage]) -> list[_Result]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [
        _Result(names.get(message.tool_call_id or "", ""), answers.parsed(message.content))
        for message in messages
        if message.role is Role.TOOL
    ]


def _last_user(messages: Sequence[ChatMessage]) -> int:
    """The position of the latest user message; -1 if there is none."""
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].role is Role.USER:
            return position
    return -1


def _field(result: _Result, name: str) -> str | None:
    value = result.value.get(name) if isinstance(result.value, Mapping) else None
    return value if isinstance(value, str) else None


def _plan_id(messages: Sequence[ChatMessage]) -> str | None:
    """The plan last made in the conversation, by its tool result or by what was said of it."""
    made = [
        _field(result, "planId") for result in _results(messages) if result.name == "create_plan"
    ]
    known = [id for id in made if id]
    if known:
        return known[-1]
    for message in reversed(messages):
        if message.role is Role.ASSISTANT:
            match = re.search(r"\*\* \(`([\w-]+)`\)", message.content)
            if match:
                return match[1]
    return None


class EmbeddedProvider:
    """Answers by rules, tools and memories. `word_delay_s` paces the stream; 0 gives it at once."""

    name = "embedded"
    model = "noosphere-embedded-1"
    is_generative = False

    def __init__(self, embedder: Embedder, *, word_delay_s: float = 0.008) -> None:
        self._embedder = embedder
        self._word_delay_s = word_delay_s
        self._examples: Vectors | None = None

    async def ping(self) -> None:
        """Return at once: there is nothing outside to reach."""

    async def aclose(self) -> None:
        """Nothing to close; the embedder belongs to its maker."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Answer one turn word by word, or ask for one tool call; then exactly one Finished."""
        reply = await self._reply(request)
        input_tokens = tokens.count_messages(request.messages)
        output: list[str] = []
        if reply.calls:
            position = len(request.messages)
            for name, arguments in reply.calls:
                call = _call(position, name, arguments)
                output.append(call.name + call.arguments)
                yield ToolCallRequested(call)
            usage = Usage(input_tokens, sum(map(tokens.count, output)))
            yield Finished("tool_calls", usage)
            return
        text, reason = _bounded(reply.text, request.max_output_tokens)
        words = _WORD.findall(text)
        delay_s = min(self._word_delay_s, _MAX_TOTAL_DELAY_S / max(1, len(words)))
        for word in words:
            yield TextDelta(word)
            await asyncio.sleep(delay_s)
        yield Finished(reason, Usage(input_tokens, tokens.count(text)), tuple(reply.cited))

    async def _reply(self, request: ChatRequest) -> _Reply:
        position = _last_user(request.messages)
        if position < 0:
            return _Reply(answers.GREETING[request.locale == "ko"])
        message = request.messages[position].content
        intent = await self._intent(message, request.locale)
        done = _results(request.messages[position + 1 :])
        if done:
            return await self._after(request, intent, done)
        return await self._first(request, intent, message)

    async def _intent(self, message: str, locale: str | None) -> Intent:
        intent = await _read(intents.read, message)
        if intent is not None:
            return intent
        prose = scripts.without_code(scripts.clean(message)).strip()[:800]
        is_korean = scripts.has_hangul(prose) or (not prose and (locale or "").startswith("ko"))
        if await _read(extract, message) or not prose:
            return Intent(Kind.OTHER, is_korean)
        if self._examples is None:
            self._examples = await self._embedder.embed(
                [example for group in intents.EXAMPLES.values() for example in group]
            )
        kinds = [kind for kind, group in intents.EXAMPLES.items() for _ in group]
        scores = self._examples @ (await self._embedder.embed([prose]))[0]
        best = int(scores.argmax())
        if float(scores[best]) < _NEAREST_EXAMPLE:
            return Intent(Kind.OTHER, is_korean)
        kind = kinds[best]
        return Intent(kind, is_korean, prose if kind in {Kind.RECALL, Kind.CREATE_PLAN} else "")

    async def _after(self, request: ChatRequest, intent: Intent, done: Sequence[_Result]) -> _Reply:
        """What follows the results of this turn's tools."""
        last = done[-1]
        if last.name == "create_plan" and intent.is_run_too:
            plan_id = _field(last, "planId")
            if plan_id and _has(request, "run_plan"):
                return _Reply(calls=[("run_plan", {"planId": plan_id})])
        if last.name == "recall" and isinstance(last.value, Mapping) and "error" not in last.value:
            return await self._from_memory(request, intent, _recalled(last.value))
        texts = [answers.of_tool(result.name, result.value, intent.is_korean) for result in done]
        ids = [_field(result, "memoryId") for result in done if result.name == "remember"]
        return _Reply("\n\n".join(texts), cited=[id for id in ids if id])

    async def _first(self, request: ChatRequest, intent: Intent, message: str) -> _Reply:
        """What to do with a message nothing has been done about."""
        ko = intent.is_korean
        fixed = {
            Kind.GREETING: answers.GREETING[ko],
            Kind.THANKS: answers.THANKS[ko],
            Kind.FAREWELL: answers.FAREWELL[ko],
            Kind.HELP: f"{answers.HELP[ko]}\n\n{answers.NATURE[ko]} {answers.CONFIGURE[ko]}",
            Kind.IDENTITY: f"{answers.NATURE[ko]}\n\n{answers.HELP[ko]}\n\n{answers.CONFIGURE[ko]}",
        }
        if intent.kind in fixed:
            return _Reply(fixed[intent.kind])
        if intent.kind is Kind.RECALL:
            return await self._from_memory(request, intent, None)
        if intent.kind is Kind.OTHER:
            return await self._other(request, intent, message)
        return _tool_reply(request, intent)

    async def _from_memory(
        self, request: ChatRequest, intent: Intent, recalled: Sequence[RecalledMemory] | None
    ) -> _Reply:
        """An extractive answer; a call of `recall` where the given memories do not suffice."""
        memories = [*request.memories, *(recalled or ())]
        question = intent.argument or request.messages[_last_user(request.messages)].content
        found = await recollection.relevant(self._embedder, question, memories)
        if found:
            return _quoted(found)
        if recalled is None and _has(request, "recall"):
            return _Reply(calls=[("recall", {"query": question[:500]})])
        return _Reply(answers.NOT_REMEMBERED[intent.is_korean])

    async def _other(self, request: ChatRequest, intent: Intent, message: str) -> _Reply:
        """A statement is noted; anything else gets the plain truth, and what memory offers."""
        ko = intent.is_korean
        noted = await _read(extract, message)
        if noted and _has(request, "remember"):
            return _Reply(calls=[("remember", _remember_arguments(item.content)) for item in noted])
        found = await recollection.relevant(
            self._embedder, message[:800], request.memories, is_strict=True
        )
        parts = [f"{answers.NATURE[ko]} {answers.CONFIGURE[ko]}"]
        if found:
            said = _quoted(found)
            head = "다만 관련해서 기억하는 것이 있습니다." if ko else "But this may help:"
            return _Reply(f"{parts[0]}\n\n{head} {said.text}", cited=said.cited)
        parts.append(answers.HELP[ko])
        return _Reply("\n\n".join(parts))


async def _read(reader: Callable[[str], _T], message: str) -> _T:
    """Read a message by rules; a long one in a thread, for it takes many milliseconds."""
    if len(message) <= _READ_AT_ONCE_CHARS:
        return reader(message)
    return await asyncio.to_thread(reader, message)


def _call(position: int, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    text = json.dumps(arguments, ensure_ascii=False)
    digest = hashlib.sha256(f"{position}\n{name}\n{text}".encode()).hexdigest()
    return ToolCall(f"call_{digest[:24]}", name, text)


def _bounded(text: str, max_tokens: int | None) -> tuple[str, str]:
    """The text within its bound, and the reason it ends."""
    if max_tokens is None or tokens.count(text) <= max_tokens:
        return text, "stop"
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens.count(text[:middle]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low], "length"


def _has(request: ChatRequest, name: str) -> bool:
    return any(tool.name == name for tool in request.tools)


def _recalled(value: Mapping[str, Any]) -> list[RecalledMemory]:
    found = value.get("memories")
    rows = [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
    return [
        RecalledMemory(
            str(row.get("id")),
            str(row.get("type") or ""),
            str(row.get("content") or ""),
            float(row.get("score") or 0.0),
        )
        for row in rows
        if row.get("id") and row.get("content")
    ]


def _quoted(found: Sequence[RecalledMemory]) -> _Reply:
    ids = [memory.id for memory in found]
    said = [recollection.sentence(memory.content) for memory in found]
    text = said[0] if len(said) == 1 else "\n".join(f"- {line}" for line in said) + "\n\n"
    return _Reply(f"{text} {answers.memory_marker(ids)}".replace("\n\n ", "\n\n"), cited=ids)


def _remember_arguments(content: str) -> dict[str, Any]:
    noted = candidate(content, is_explicit=True)
    return {
        "content": noted.content,
        "type": noted.type.value,
        "importance": noted.importance,
    }


def _tool_reply(request: ChatRequest, intent: Intent) -> _Reply:
    """The tool call an intent asks for, or what is missing for it."""
    ko = intent.is_korean
    name, arguments, missing = _tool_call(request, intent)
    if missing:
        return _Reply(missing)
    if not _has(request, name):
        return _Reply(answers.NO_TOOL[ko].format(name=name))
    return _Reply(calls=[(name, arguments)])


def _tool_call(request: ChatRequest, intent: Intent) -> tuple[str, dict[str, Any], str]:
    """Name and arguments of the tool, and what to say instead where something is missing."""
    ko = intent.is_korean
    argument = intent.argument
    if intent.kind is Kind.CALCULATE:
        return "run_code", {"code": calculations.program(argument), "language": "python"}, ""
    if intent.kind is Kind.RUN_CODE:
        is_python = intent.language in {None, "python"}
        arguments = {"code": calculations.shown(argument) if is_python else argument}
        if intent.language:
            arguments["language"] = intent.language
        return "run_code", arguments, "" if argument else answers.ASK_CODE[ko]
    if intent.kind is Kind.REMEMBER:
        return "remember", _remember_arguments(argument), ""
    if intent.kind is Kind.CREATE_PLAN:
        return "create_plan", {"goal": argument}, "" if argument else answers.ASK_GOAL[ko]
    if intent.kind is Kind.RUN_PLAN:
        plan_id = argument or _plan_id(request.messages)
        return "run_plan", {"planId": plan_id}, "" if plan_id else answers.NO_PLAN[ko]
    zone = zones.find(argument) if argument else None
    if argument and zone is None:
        return "current_time", {}, answers.UNKNOWN_PLACE[ko].format(place=argument)
    return "current_time", {"timeZone": zone} if zone else {}, ""
