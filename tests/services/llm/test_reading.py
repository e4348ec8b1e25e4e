import time

import pytest

from services.language import zones
from services.llm import intents, tokens
from services.llm.base import ChatMessage, Role, ToolCall
from services.llm.intents import Kind
from services.llm.person import said_back


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("I prefer metric units", "You prefer metric units"),
        ("I'm allergic to nuts.", "You're allergic to nuts"),
        ("I am a nurse", "You are a nurse"),
        ("I was born in Busan", "You were born in Busan"),
        ("My dog is called Rex", "Your dog is called Rex"),
        ("call me Bob", "Call you Bob"),
        ("you should always answer in Korean", "I should always answer in Korean"),
        ("I want you to call me Bob", "You want me to call you Bob"),
        ("We decided to use PostgreSQL", "We decided to use PostgreSQL"),
        ("The deadline is Friday", "The deadline is Friday"),
        ("The user likes tea", "The user likes tea"),
        ("나는 커피를 좋아해", "커피를 좋아하십니다"),
        ("저는 서울에 살고 있어요", "서울에 살고 계십니다"),
        ("내 이름은 민수야", "사용자님의 이름은 민수입니다"),
        ("하늘을 나는 꿈을 꾸곤 하지", '"하늘을 나는 꿈을 꾸곤 하지"라고 하셨습니다'),
    ],
)
def test_facts_are_said_back_in_the_second_person(content, said):
    assert said_back(content) == said


@pytest.mark.parametrize(
    "message",
    [
        "explain this code:\n```python\nprint(1)\n```",
        "what does `print(1)` do?",
        "why is `x` undefined here?",
        "how do I sort a list?",
        "where can I buy paint?",
        "what should I cook?",
        "what time complexity does quicksort have?",
        "when does the store open?",
    ],
)
def test_no_rule_reads_what_asks_for_none_of_its_tools(message):
    assert intents.read(message) is None


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("remember that I run every day", Kind.REMEMBER),
        ("make a plan to run a marathon", Kind.CREATE_PLAN),
        ("plan my trip to Jeju", Kind.CREATE_PLAN),
        ("when is my meeting?", Kind.RECALL),
        ("what did I tell you about the budget?", Kind.RECALL),
        ("start the plan", Kind.RUN_PLAN),
        ("run plan_abc123", Kind.RUN_PLAN),
        ("run code", Kind.RUN_CODE),
    ],
)
def test_close_calls_are_read_rightly(message, kind):
    intent = intents.read(message)
    assert intent is not None
    assert intent.kind is kind


def test_reading_takes_time_in_proportion_to_the_text():
    """Patterns must not backtrack: the longest took minutes before they were mended."""
    for unit in ("`", "remember ", "할 때 ", "what do i ", "plan and ", "1.", "(", "i prefer to "):
        started = time.perf_counter()
        intents.read(unit * 20_000)
        assert time.perf_counter() - started < 20


def test_places_have_zones():
    assert zones.find("Seoul") == zones.find("서울") == "Asia/Seoul"
    assert zones.find("new york") == "America/New_York"
    assert zones.find("Europe/Paris") == "Europe/Paris"
    assert zones.find("the UK") == "Europe/London"
    assert zones.find("Atlantis") is None
    assert zones.find("../etc") is None


def test_tokens_are_counted_by_script():
    assert tokens.count("") == 0
    assert tokens.count("a") == 1
    assert tokens.count("a" * 400) == 100
    assert tokens.count("가" * 15) == 10
    message = ChatMessage(Role.USER, "abcd" * 10, [ToolCall("c", "abcd", "{}  ")])
    assert tokens.count_messages([message]) == 4 + 10 + 2
