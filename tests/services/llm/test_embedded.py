"""What the embedded assistant says and calls: code, sums, and what it remembers."""

import pytest

from tests.services.llm.talk import MEMORIES, code, ran


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
