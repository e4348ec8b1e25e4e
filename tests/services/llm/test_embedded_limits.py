"""Plans, the time and what cannot be done, as the embedded assistant has them; and its streams."""

from contextlib import aclosing

import pytest

from services.llm.base import ChatMessage, ChatRequest, RecalledMemory, Role, TextDelta
from tests.services.llm.talk import MEMORIES, TOOLS, ran

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
