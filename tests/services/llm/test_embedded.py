import json
from contextlib import aclosing

import pytest

from services.language.embeddings import Embedder
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
from services.llm.embedded import EmbeddedProvider

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


@pytest.fixture
async def talk():
    embedder = Embedder()
    yield Talk(EmbeddedProvider(embedder, word_delay_s=0))
    await embedder.aclose()


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


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("run `print(2**10)`", code("print(2**10)")),
        ("Please run `print(2**10)` for me", code("print(2**10)")),
        ("run print(2**10)", code("print(2**10)")),
        ("execute `2**10`", code("print(2**10)")),
        (
            "```python\nfor n in range(3):\n    print(n)\n```",
            code("for n in range(3):\n    print(n)", "python"),
        ),
        ("run this:\n```bash\nls -la\n```", code("ls -la", "bash")),
        ("run `echo hi` in bash", code("echo hi", "bash")),
        ("`print(2**10)` 실행해 줘", code("print(2**10)")),
        ("파이썬으로 `print(3)` 돌려 줘", code("print(3)", "python")),
        ("calculate 12*7", code("print(12*7)", "python")),
        ("what is 12 times 7?", code("print(12 * 7)", "python")),
        ("What's 15% of 80?", code("print(15/100*80)", "python")),
        ("2+2", code("print(2+2)", "python")),
        ("sqrt(16) + 1", code("from math import sqrt\n\nprint(sqrt(16) + 1)", "python")),
        ("12 곱하기 7은?", code("print(12 * 7)", "python")),
        ("1,234 + 1 계산해 줘", code("print(1234 + 1)", "python")),
    ],
)
async def test_code_and_sums_are_run(talk, message, expected):
    assert await talk.say(message) == expected
    assert talk.finished.reason == "tool_calls"


async def test_the_output_is_in_the_answer(talk):
    await talk.say("run `print(2**10)`")
    answer = await talk.tool(ran("1024\n"))
    assert answer == "Here is the output:\n\n```\n1024\n```"
    assert talk.finished.reason == "stop"


async def test_the_output_in_korean(talk):
    await talk.say("`print(2**10)` 실행해 줘")
    assert await talk.tool(ran("1024\n")) == "실행 결과입니다.\n\n```\n1024\n```"


async def test_no_output_and_output_with_fences(talk):
    await talk.say("run `x = 1`")
    assert await talk.tool(ran()) == "It ran and printed nothing."
    await talk.say("run `print('```')`")
    assert "````\n```\n````" in await talk.tool(ran("```\n"))


@pytest.mark.parametrize(
    ("result", "parts"),
    [
        (
            ran("", "Traceback …\nNameError: name 'x' is not defined\n", 1),
            ["exit code 1", "used before it is defined", "NameError: name 'x'"],
        ),
        (ran("begun\n", "", None, "TIMED_OUT"), ["ran too long", "begun"]),
        (ran("", "", 137, "OOM_KILLED"), ["more memory than allowed"]),
        (ran("", "boom\n", 3), ["exit code 3", "boom"]),
        ({"error": {"code": "UNAVAILABLE", "message": "No sandbox here."}}, ["No sandbox here."]),
        ("not json at all", ["not json at all"]),
        ("[1, 2]", ["1"]),
    ],
)
async def test_failures_are_explained(talk, result, parts):
    await talk.say("run `print(x)`")
    answer = await talk.tool(result)
    assert all(part in answer for part in parts)


async def test_failures_are_explained_in_korean(talk):
    await talk.say("`1/0` 실행해 줘")
    answer = await talk.tool(ran("", "ZeroDivisionError: division by zero\n", 1))
    assert "종료 코드 1" in answer
    assert "0으로 나누었습니다" in answer


async def test_long_output_is_shortened_in_the_middle(talk):
    await talk.say("run `print('x' * 9999)`")
    answer = await talk.tool(ran("a" * 5000 + "b" * 5000))
    assert "6000 characters left out" in answer
    assert len(answer) < 4_200


async def test_remembering_is_a_call_and_then_a_confirmation(talk):
    assert await talk.say("remember that I prefer metric units") == [
        (
            "remember",
            {"content": "I prefer metric units", "type": "preference", "importance": 0.8},
        )
    ]
    answer = await talk.tool(
        {
            "memoryId": "mem_1",
            "content": "I prefer metric units",
            "type": "preference",
            "isNew": True,
        }
    )
    assert answer == "I will remember: You prefer metric units. [memory mem_1]"
    assert talk.finished.cited_memory_ids == ("mem_1",)


async def test_remembering_again_and_otherwise(talk):
    stored = {"memoryId": "mem_1", "content": "I live in Busan", "type": "semantic"}
    await talk.say("remember that I live in Busan")
    assert (await talk.tool(stored | {"isNew": False})).startswith("I already knew: You live in")
    await talk.say("remember that I live in Busan")
    answer = await talk.tool(stored | {"isNew": True, "supersededId": "mem_0"})
    assert answer.startswith("Updated. I will remember: You live in Busan.")


async def test_remembering_in_korean(talk):
    calls = await talk.say("기억해 줘: 나는 서울에 살아")
    assert calls[0][1]["content"] == "나는 서울에 살아"
    answer = await talk.tool(
        {"memoryId": "mem_1", "content": "나는 서울에 살아", "type": "semantic", "isNew": True}
    )
    assert answer == "기억했습니다: 서울에 살고 계십니다. [memory mem_1]"


async def test_a_plain_statement_is_noted(talk):
    assert await talk.say("I prefer dark mode") == [
        ("remember", {"content": "I prefer dark mode", "type": "preference", "importance": 0.8})
    ]


@pytest.mark.parametrize(
    ("question", "answer", "cited"),
    [
        ("what units do I prefer?", "You prefer metric units.", "mem_units"),
        ("Which units should you use for me, what do I prefer?", "You prefer metric", "mem_units"),
        ("내가 선호하는 단위는?", "You prefer metric units.", "mem_units"),
        ("what is my name", "Your name is Anna.", "mem_name"),
        ("Do you remember my name?", "Your name is Anna.", "mem_name"),
        ("who am I?", "Your name is Anna.", "mem_name"),
        ("내 이름이 뭐야?", "Your name is Anna.", "mem_name"),
        ("where do I live?", "You live in Seoul.", "mem_home"),
        ("나 어디 살아?", "You live in Seoul.", "mem_home"),
        ("내가 좋아하는 음료는?", "커피를 좋아하십니다.", "mem_coffee"),
        ("what did we decide about storage?", "We decided to use PostgreSQL", "mem_storage"),
        ("우리가 데이터베이스는 뭘로 하기로 했지?", "We decided to use PostgreSQL", "mem_storage"),
        ("what's my dog's name?", "Your dog's name is Rex.", "mem_dog"),
        ("what is my favorite colour?", "Your favourite color is green.", "mem_color"),
        ("what do I do for a living?", "You work as a nurse at Asan.", "mem_job"),
        ("when is my birthday?", "사용자님의 생일은 3월 5일입니다.", "mem_birthday"),
    ],
)
async def test_questions_are_answered_from_memory_with_citations(talk, question, answer, cited):
    talk.memories = MEMORIES
    said = await talk.say(question)
    assert answer in said
    assert said.endswith(f"[memory {cited}]") or f"[memory {cited}]" in said
    assert cited in talk.finished.cited_memory_ids


async def test_one_thing_asked_gets_one_memory(talk):
    talk.memories = MEMORIES
    assert await talk.say("what is my name?") == "Your name is Anna. [memory mem_name]"
    assert talk.finished.cited_memory_ids == ("mem_name",)


@pytest.mark.parametrize(
    "question",
    [
        "how old am I?",
        "what is my wife's name?",
        "what's my favourite food?",
        "am I allergic to anything?",
        "which editor do I use?",
        "내가 제일 좋아하는 음식이 뭐야?",
        "what is my phone number?",
    ],
)
async def test_what_is_not_known_is_looked_up_and_never_made_up(talk, question):
    talk.memories = MEMORIES
    assert await talk.say(question) == [("recall", {"query": question})]
    answer = await talk.tool({"memories": []})
    assert "memory mem_" not in answer
    assert talk.finished.cited_memory_ids == ()


async def test_a_looked_up_memory_answers(talk):
    assert (await talk.say("what units do I prefer?"))[0][0] == "recall"
    row = {"id": "mem_7", "type": "preference", "content": "I prefer metric units", "score": 0.9}
    assert await talk.tool({"memories": [row]}) == "You prefer metric units. [memory mem_7]"
    assert talk.finished.cited_memory_ids == ("mem_7",)


async def test_everything_known_about_the_user(talk):
    talk.memories = MEMORIES
    answer = await talk.say("what do you know about me?")
    assert "- Your name is Anna." in answer
    assert "- You live in Seoul." in answer
    assert set(talk.finished.cited_memory_ids) == {memory.id for memory in MEMORIES}


PLAN = {
    "planId": "plan_1",
    "title": "Publish",
    "steps": [
        {"description": "Write", "dependsOn": []},
        {"description": "Test", "dependsOn": [0]},
    ],
}


async def test_a_plan_is_made_and_then_run(talk):
    assert await talk.say("make a plan to publish a release") == [
        ("create_plan", {"goal": "publish a release"})
    ]
    answer = await talk.tool(PLAN)
    assert "**Publish** (`plan_1`)" in answer
    assert "1. Write\n2. Test (after 1)" in answer
    assert await talk.say("run the plan") == [("run_plan", {"planId": "plan_1"})]
    answer = await talk.tool({"executionId": "ex_1", "planId": "plan_1", "status": "RUNNING"})
    assert "ex_1" in answer
    assert "running" in answer


async def test_a_plan_is_known_from_what_was_said_when_tool_messages_are_gone(talk):
    await talk.say("make a plan to publish a release")
    await talk.tool(PLAN)
    talk.messages = [m for m in talk.messages if m.role is not Role.TOOL and not m.tool_calls]
    assert await talk.say("execute the plan") == [("run_plan", {"planId": "plan_1"})]


async def test_a_plan_made_and_run_in_one_request(talk):
    calls = await talk.say("make a plan to publish a release and run it")
    assert calls == [("create_plan", {"goal": "publish a release"})]
    assert await talk.tool(PLAN) == [("run_plan", {"planId": "plan_1"})]
    answer = await talk.tool({"executionId": "ex_1", "planId": "plan_1", "status": "PENDING"})
    assert "ex_1" in answer


async def test_plans_in_korean(talk):
    assert await talk.say("부산으로 이사하는 계획을 세워 줘") == [
        ("create_plan", {"goal": "부산으로 이사"})
    ]
    assert "(1단계 다음)" in await talk.tool(PLAN)
    assert await talk.say("계획 실행해 줘") == [("run_plan", {"planId": "plan_1"})]


async def test_without_a_plan_there_is_nothing_to_run(talk):
    assert "no plan in this conversation" in await talk.say("run the plan")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("what time is it?", {}),
        ("what time is it in Seoul?", {"timeZone": "Asia/Seoul"}),
        ("What's the time in New York right now?", {"timeZone": "America/New_York"}),
        ("what day is it today?", {}),
        ("지금 몇 시야?", {}),
        ("지금 서울은 몇 시야?", {"timeZone": "Asia/Seoul"}),
        ("뉴욕은 지금 몇 시예요?", {"timeZone": "America/New_York"}),
    ],
)
async def test_the_time_is_asked_of_the_tool(talk, message, arguments):
    assert await talk.say(message) == [("current_time", arguments)]


async def test_the_time_is_told_in_both_languages(talk):
    told = {"iso": "2026-03-05T14:07:00+09:00", "timeZone": "Asia/Seoul"}
    await talk.say("what time is it in Seoul?")
    assert await talk.tool(told) == "It is 14:07 on Thursday, 5 March 2026 in Asia/Seoul."
    await talk.say("지금 서울은 몇 시야?")
    assert await talk.tool(told) == "Asia/Seoul 기준 2026년 3월 5일 목요일 14:07입니다."


async def test_an_unknown_place_is_said_to_be_unknown(talk):
    assert "do not know the time zone of “Atlantis”" in await talk.say(
        "what time is it in Atlantis?"
    )


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ("hello", "Hello!"),
        ("Hi there, how are you?", "Hello!"),
        ("안녕하세요", "안녕하세요!"),
        ("thanks a lot!", "welcome"),
        ("고마워요", "천만에요"),
        ("bye", "Goodbye"),
        ("help", "run code"),
        ("what can you do?", "calculate"),
        ("could you show me your features?", "calculate"),
        ("뭘 할 수 있어?", "코드 실행"),
        ("who are you?", "not a generative language model"),
        ("are you ChatGPT?", "not a generative language model"),
        ("너 누구야?", "생성형 언어 모델이 아니라"),
    ],
)
async def test_small_talk(talk, message, part):
    assert part in await talk.say(message)


@pytest.mark.parametrize(
    "message",
    [
        "what is the capital of France?",
        "write a poem about the sea",
        "How tall is Mount Everest?",
        "what's the weather in Paris?",
        "how do I sort a list in Python?",
        "tell me a joke",
        "summarize the news",
    ],
)
async def test_what_it_cannot_do_it_says_plainly(talk, message):
    answer = await talk.say(message)
    assert "not a generative language model" in answer
    for name in ("BASE_URL", "API_KEY", "MODEL"):
        assert f"NOOSPHERE_LLM_{name}" in answer


async def test_what_it_cannot_do_in_korean(talk):
    answer = await talk.say("프랑스의 수도는 어디인가요?")
    assert "생성형 언어 모델이 아니라" in answer
    assert "NOOSPHERE_LLM_BASE_URL" in answer


async def test_related_memories_are_offered_where_it_cannot_answer(talk):
    talk.memories = [
        RecalledMemory("mem_1", "semantic", "The staging server runs on port 8443", 0.9),
        *MEMORIES[:2],
    ]
    answer = await talk.say("Which port does the staging server run on?")
    assert "The staging server runs on port 8443. [memory mem_1]" in answer
    assert talk.finished.cited_memory_ids == ("mem_1",)


@pytest.mark.parametrize(
    "message",
    ["run `print(1)`", "remember that I like tea", "make a plan to sing", "what time is it?"],
)
async def test_tools_that_are_not_offered_are_not_called(talk, message):
    talk.tools = []
    assert "not available in this conversation" in await talk.say(message)


async def test_without_the_recall_tool_ignorance_is_admitted(talk):
    talk.tools = []
    assert "nothing in memory" in await talk.say("what is my name?")


async def test_the_same_request_gives_the_same_events(talk):
    talk.memories = MEMORIES
    for message in ("run `print(1)`", "what do you know about me?", "tell me a joke"):
        talk.messages = []
        await talk.say(message)
        first = talk.events
        talk.messages = []
        await talk.say(message)
        assert talk.events == first


async def test_calls_of_different_places_have_different_ids(talk):
    await talk.say("run `print(1)`")
    first = talk.messages[-1].tool_calls[0].id
    await talk.tool(ran("1\n"))
    await talk.say("run `print(1)`")
    assert talk.messages[-1].tool_calls[0].id != first


async def test_text_streams_word_by_word(talk):
    text = await talk.say("help")
    pieces = [event.text for event in talk.events if isinstance(event, TextDelta)]
    assert len(pieces) > 20
    assert "".join(pieces) == text
    assert all(len(piece.split()) <= 1 for piece in pieces)


async def test_usage_and_the_bound_on_output(talk):
    text = await talk.say("help", max_output_tokens=10)
    assert talk.finished.reason == "length"
    assert 0 < talk.finished.usage.output_tokens <= 10
    assert len(text) <= 40
    await talk.say("help")
    assert talk.finished.usage.input_tokens > 0
    assert talk.finished.usage.output_tokens > 100


@pytest.mark.parametrize("text", ["", " ", "?", "\x00", "`", "```", "a" * 100_000, "🙂", "run ``"])
async def test_odd_messages_are_answered(talk, text):
    answer = await talk.say(text)
    assert answer


async def test_no_user_message_at_all(talk):
    assert "Hello" in await talk.turn()


async def test_closing_the_stream_early_is_quiet(talk):
    request = ChatRequest([ChatMessage(Role.USER, "help")], TOOLS)
    async with aclosing(talk.provider.stream(request)) as stream:
        first = await anext(stream)
    assert isinstance(first, TextDelta)


async def test_it_says_what_it_is(talk):
    await talk.provider.ping()
    assert (talk.provider.name, talk.provider.model) == ("embedded", "noosphere-embedded-1")
    assert talk.provider.is_generative is False
