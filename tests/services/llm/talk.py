"""A talk with the embedded assistant."""

import json
from contextlib import aclosing

from services.llm.base import (
    ChatMessage,
    ChatRequest,
    Finished,
    RecalledMemory,
    Role,
    TextDelta,
    ToolCallRequested,
    ToolSpec,
)

NAMES = ["run_code", "remember", "recall", "create_plan", "run_plan", "current_time"]
TOOLS = [ToolSpec(name, name, {"type": "object"}) for name in NAMES]
MEMORIES = [
    RecalledMemory("mem_units", "preference", "I prefer metric units", 0.8),
    RecalledMemory("mem_name", "semantic", "My name is Anna", 0.5),
    RecalledMemory("mem_home", "semantic", "I live in Seoul", 0.5),
    RecalledMemory("mem_coffee", "preference", "나는 커피를 좋아해", 0.5),
    RecalledMemory("mem_storage", "episodic", "We decided to use PostgreSQL for storage", 0.5),
    RecalledMemory("mem_dog", "semantic", "My dog's name is Rex", 0.4),
    RecalledMemory("mem_color", "preference", "My favourite color is green", 0.4),
    RecalledMemory("mem_job", "semantic", "I work as a nurse at Asan", 0.4),
    RecalledMemory("mem_birthday", "semantic", "내 생일은 3월 5일이야", 0.4),
]


class Talk:
    """A conversation with the embedded assistant; what it asks of tools is answered by hand."""

    def __init__(self, provider):
        self.provider = provider
        self.messages = []
        self.tools = TOOLS
        self.memories = ()

    async def turn(self, **more):
        request = ChatRequest(tuple(self.messages), self.tools, self.memories, **more)
        self.events = []
        async with aclosing(self.provider.stream(request)) as stream:
            self.events = [event async for event in stream]
        assert sum(isinstance(event, Finished) for event in self.events) == 1
        self.finished = self.events[-1]
        assert isinstance(self.finished, Finished)
        calls = [event.call for event in self.events if isinstance(event, ToolCallRequested)]
        text = "".join(event.text for event in self.events if isinstance(event, TextDelta))
        assert bool(calls) != bool(text)
        self.messages.append(ChatMessage(Role.ASSISTANT, text, calls))
        return [(call.name, json.loads(call.arguments)) for call in calls] or text

    async def say(self, text, **more):
        self.messages.append(ChatMessage(Role.USER, text))
        return await self.turn(**more)

    async def tool(self, result):
        call = self.messages[-1].tool_calls[0]
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        self.messages.append(ChatMessage(Role.TOOL, content, tool_call_id=call.id))
        return await self.turn()


def ran(stdout="", stderr="", code=0, reason="EXITED"):
    return {
        "stdout": stdout,
        "stderr": stderr,
        "exitCode": code,
        "reason": reason,
        "durationMs": 12,
    }


def code(source, language=None):
    return [("run_code", {"code": source} | ({"language": language} if language else {}))]
