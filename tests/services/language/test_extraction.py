import pytest

from services.language.memories import MemoryType, classify, explicit, extract

P, S, R, E = (
    MemoryType.PREFERENCE,
    MemoryType.SEMANTIC,
    MemoryType.PROCEDURAL,
    MemoryType.EPISODIC,
)

REMEMBERED = [
    ("remember that I prefer metric units", P, "I prefer metric units", "user.prefer:units"),
    ("Please remember: my name is Anna.", S, "My name is Anna", "user.name"),
    ("Can you remember that I live in Seoul?", S, "I live in Seoul", "user.residence"),
    ("Don't forget that the deadline is Friday", S, "The deadline is Friday", "user.deadline"),
    (
        "Note that the staging server is called Zeus",
        S,
        "The staging server is called Zeus",
        "user.staging server",
    ),
    ("Keep in mind that I'm allergic to nuts", S, "I'm allergic to nuts", "user.allergy"),
    ("For future reference, I work as a nurse", S, "I work as a nurse", "user.job"),
    ("remember to always answer in Korean", R, "Always answer in Korean", None),
    ("Save this to memory: we use MariaDB", S, "We use MariaDB", "user.use:database"),
    ("My name is Anna.", S, "My name is Anna", "user.name"),
    ("Hi! I'm called Bob, by the way.", S, "I'm called Bob, by the way", "user.name"),
    ("I live in Seoul.", S, "I live in Seoul", "user.residence"),
    ("Actually, I moved to Busan last month.", S, "I moved to Busan last month", "user.residence"),
    ("I work as a data engineer at Acme.", S, "I work as a data engineer at Acme", "user.job"),
    ("I prefer dark mode", P, "I prefer dark mode", "user.prefer:theme"),
    ("I really love hiking!", P, "I really love hiking", "user.like"),
    ("I don't like mushrooms", P, "I don't like mushrooms", "user.like"),
    ("My favourite colour is green", P, "My favourite colour is green", "user.favorite:color"),
    ("My wife's name is Jane", S, "My wife's name is Jane", "user.spouse"),
    ("Always answer in Korean when I ask about food", R, None, None),
    ("Never use emojis when you write to me.", R, "Never use emojis when you write to me", None),
    ("When I ask for code, always add tests.", R, "When I ask for code, always add tests", None),
    ("We decided to use PostgreSQL for storage.", E, None, "user.decision:database"),
    ("Yesterday I met Anna in Paris.", E, "Yesterday I met Anna in Paris", None),
    ("기억해 줘: 나는 미터법을 선호해", P, "나는 미터법을 선호해", "user.prefer:units"),
    ("내가 커피를 좋아한다고 기억해 줘", P, "내가 커피를 좋아한다", "user.like"),
    (
        "나는 새우 알레르기가 있다는 걸 기억해 주세요.",
        S,
        "나는 새우 알레르기가 있다",
        "user.allergy",
    ),
    ("나는 커피를 좋아해", P, "나는 커피를 좋아해", "user.like"),
    ("제 이름은 민수입니다.", S, "제 이름은 민수입니다", "user.name"),
    ("저는 서울에 살고 있어요.", S, "저는 서울에 살고 있어요", "user.residence"),
    ("나는 네이버에서 개발자로 일해", S, "나는 네이버에서 개발자로 일해", "user.job"),
    ("내 생일은 3월 5일이야", S, "내 생일은 3월 5일이야", "user.birthday"),
    ("항상 한국어로 대답해 줘", R, "항상 한국어로 대답해 줘", None),
    ("절대 이모지를 쓰지 마", R, "절대 이모지를 쓰지 마", None),
    ("어제 지수를 만났어", E, "어제 지수를 만났어", None),
]

NOT_REMEMBERED = [
    "What units do I prefer?",
    "what is my name",
    "Do I like coffee?",
    "Do you remember that I like coffee?",
    "Do you remember my name?",
    "remember when we met?",
    "Can you remember me?",
    "Where do I live?",
    "run `print('I live in Paris')`",
    "```python\n# I live in Paris\nname = 'my name is Bob'\n```",
    "```\nI prefer metric units\n",
    "Translate this to Korean: I live in Paris.",
    "Translate: My name is John.",
    "Write a story: My name is Jack. I live in a castle.",
    '"My name is Ishmael and I live at sea"',
    'He said "I live in Paris and I love it"',
    "She said I work as a spy",
    "> I live in Paris",
    "If I lived in Paris, I would eat more bread",
    "Imagine I work as a pilot",
    "Suppose my name is Bob.",
    "I wish my name were Bob",
    "Maybe I prefer tea",
    "My code is broken",
    "My question is about lists",
    "I have a question about Python",
    "I have an error in my program",
    "I'm tired",
    "I am going home",
    "I think this is wrong",
    "I want you to run the tests",
    "I need help with this",
    "make a plan to move to Busan",
    "calculate 12*7",
    "Thanks, that's great",
    "hello",
    "It is raining",
    "The sky is blue",
    "My password is hunter2hunter2",
    "My API key is sk-abcdefghijkl",
    "My credit card number is 4111 1111 1111 1111",
    "delete my account",
    "call me when you are done?",
    "내 이름이 뭐야?",
    "나는 어디에 살아?",
    "내가 커피를 좋아하나요",
    "내가 좋아하는 음료가 뭔지 알아?",
    "오늘 날씨 어때",
    "코드를 실행해 줘",
    "이 문장을 번역해 줘: 나는 파리에 살아",
    "그는 파리에 산다고 말했어",
    "만약 내가 파리에 산다면 좋겠어",
    "안녕하세요",
    "고마워",
    "내 코드가 안 돼",
    "비밀번호는 hunter2야",
    "계획을 세워 줘",
    "",
    "   ",
    "?",
]


@pytest.mark.parametrize(("text", "kind", "content", "subject"), REMEMBERED)
def test_facts_become_candidates(text, kind, content, subject):
    found = extract(text)
    assert len(found) == 1
    assert found[0].type is kind
    assert found[0].content == (content or text.rstrip("."))
    assert found[0].subject == subject
    assert 0 < found[0].importance <= 1


@pytest.mark.parametrize("text", NOT_REMEMBERED)
def test_everything_else_becomes_no_memory(text):
    assert extract(text) == []


def test_facts_are_found_among_other_sentences_in_order():
    text = (
        "Hello! My name is Anna. Can you help me? I live in Busan, and I prefer tea.\n"
        "```python\nprint('I live in Paris')\n```\n"
        "I prefer metric units. What is 2+2? I prefer metric units."
    )
    assert [item.content for item in extract(text)] == [
        "My name is Anna",
        "I live in Busan, and I prefer tea",
        "I prefer metric units",
    ]


def test_what_is_asked_for_weighs_more_than_what_is_overheard():
    (asked,) = extract("remember that I like jazz")
    (heard,) = extract("I like jazz")
    assert asked.content == heard.content == "I like jazz"
    assert asked.importance > heard.importance


def test_who_somebody_is_weighs_more_than_what_happened():
    (name,) = extract("My name is Anna")
    (episode,) = extract("Yesterday I met Tom at the station")
    assert name.importance > episode.importance


def test_candidates_of_one_message_are_bounded():
    text = " ".join(f"I like thing{n} very much." for n in range(40))
    assert len(extract(text)) == 8


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("remember my locker code is 4-8-15", "My locker code is 4-8-15"),
        ("Remember this: the password of the demo is demo", "The password of the demo is demo"),
        ("please don't ever forget that I love you", "I love you"),
        ("잊지 마: 회의는 3시야", "회의는 3시야"),
        ("내일 회의가 있다는 것을 잊지 말아 줘", "내일 회의가 있다"),
        ("remember", None),
        ("remember that", None),
        ("remember me", None),
        ("I remember that day", None),
        ("기억해 줘", None),
        ("이것 기억해 줘", None),
        ("내 이름 기억해?", None),
    ],
)
def test_explicit_requests(text, content):
    assert explicit(text) == content


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("I prefer tea", P),
        ("나는 커피를 싫어해", P),
        ("Always answer briefly", R),
        ("앞으로 존댓말로 대답해 줘", R),
        ("We decided to ship on Friday", E),
        ("The Eiffel Tower is in Paris", S),
    ],
)
def test_classify(content, kind):
    assert classify(content) is kind


@pytest.mark.parametrize(
    "text",
    ["I love this.", "I like it!", "I hate that one", "I love them so much", "나는 이것을 좋아해"],
)
def test_what_is_only_pointed_at_is_not_remembered(text: str) -> None:
    assert extract(text) == []
    (city,) = extract("I love this city")
    assert city.content == "I love this city"
