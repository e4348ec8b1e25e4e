"""The shape of a fact, shared by the rules of both languages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from services.language import lexicon

# Things of which a person or a project has one at a time, by the last word of their name.
FUNCTIONAL_NOUNS = frozenset(
    [
        "date",
        "name",
        "nickname",
        "age",
        "birthday",
        "anniversary",
        "email",
        "phone",
        "number",
        "address",
        "timezone",
        "zone",
        "manager",
        "boss",
        "mentor",
        "teacher",
        "doctor",
        "dentist",
        "therapist",
        "wife",
        "husband",
        "partner",
        "girlfriend",
        "boyfriend",
        "spouse",
        "fiance",
        "roommate",
        "landlord",
        "deadline",
        "budget",
        "salary",
        "goal",
        "title",
        "major",
        "school",
        "university",
        "college",
        "company",
        "team",
        "department",
        "office",
        "employer",
        "job",
        "occupation",
        "profession",
        "hometown",
        "nationality",
        "height",
        "weight",
        "size",
        "language",
        "dog",
        "cat",
        "hamster",
        "daughter",
        "son",
        "car",
        "bike",
        "laptop",
        "computer",
        "keyboard",
        "bank",
        "username",
        "handle",
        "website",
        "pronouns",
        "religion",
        "visa",
        "plan",
        "priority",
        "status",
        "version",
        "commute",
        "rent",
        "shift",
        "schedule",
        "lunch",
        "breakfast",
        "dinner",
        "bedtime",
        "standup",
        "meeting",
        "flight",
        "appointment",
        "currency",
        "editor",
        "os",
        "database",
        "stack",
        "project",
        "repository",
        "theme",
        "format",
        "style",
        "role",
        "position",
        "degree",
        "band",
        "instrument",
        "mother",
        "father",
        "brother",
        "sister",
        "mom",
        "dad",
        "supervisor",
        "advisor",
        "lawyer",
        "accountant",
        "gym",
        "airline",
        "hotel",
        "이름",
        "별명",
        "나이",
        "생일",
        "기념일",
        "이메일",
        "메일",
        "번호",
        "전화번호",
        "주소",
        "시간대",
        "상사",
        "팀장",
        "매니저",
        "멘토",
        "선생님",
        "의사",
        "주치의",
        "아내",
        "남편",
        "여자친구",
        "남자친구",
        "배우자",
        "룸메이트",
        "마감",
        "마감일",
        "예산",
        "연봉",
        "월급",
        "목표",
        "직함",
        "전공",
        "학교",
        "대학교",
        "대학",
        "회사",
        "팀",
        "부서",
        "사무실",
        "직업",
        "고향",
        "국적",
        "키",
        "몸무게",
        "사이즈",
        "언어",
        "강아지",
        "개",
        "고양이",
        "딸",
        "아들",
        "차",
        "자전거",
        "노트북",
        "컴퓨터",
        "휴대폰",
        "핸드폰",
        "키보드",
        "은행",
        "종교",
        "계획",
        "우선순위",
        "상태",
        "버전",
        "월세",
        "일정",
        "점심",
        "저녁",
        "아침",
        "회의",
        "미팅",
        "비행기",
        "약속",
        "통화",
        "에디터",
        "데이터베이스",
        "프로젝트",
        "저장소",
        "테마",
        "형식",
        "역할",
        "직책",
        "아이디",
        "닉네임",
        "취미",
        "혈액형",
        "출근시간",
        "기상시간",
        "담당자",
        "사이트",
        "도메인",
        "mbti",
    ]
)


@dataclass(frozen=True, slots=True)
class Fact:
    """`key` says what it is about ("residence", "prefer:units", "my:dog"), `value` what is so.

    `is_single`: the key has one value at a time. `is_about_user`: worth remembering unasked.
    """

    key: str
    value: str
    is_negated: bool = False
    is_single: bool = True
    is_about_user: bool = True

    @property
    def subject(self) -> str:
        """What the fact is about, with whose it is: "user.residence"."""
        return f"user.{self.key.removeprefix('my:')}"


@dataclass(frozen=True, slots=True)
class Said:
    """What a rule found in a sentence."""

    key: str
    groups: Mapping[str, str | None]
    value: str
    is_negated: bool
    sentence: str = ""

    def get(self, name: str) -> str:
        """A named part, empty where the sentence has none."""
        return (self.groups.get(name) or "").strip()

    @property
    def noun(self) -> str:
        """What the value belongs to."""
        return self.get("x")


_SYNONYMS = {
    name: canonical
    for canonical, names in {
        "job": ("occupation", "profession", "job title", "직업"),
        "employer": ("employer", "company", "회사"),
        "hometown": ("hometown", "고향"),
        "age": ("age", "나이"),
        "birthday": ("birthday", "birth date", "생일"),
        "name": ("name", "full name", "first name", "이름"),
        "nickname": ("nickname", "별명", "닉네임"),
        "email": ("email address", "e-mail", "mail", "이메일", "이메일 주소", "메일"),
        "phone": ("phone number", "mobile number", "전화번호", "휴대폰 번호"),
        "timezone": ("time zone", "시간대"),
        "residence": ("home", "집"),
        "native language": ("native language", "mother tongue", "first language", "모국어"),
        "deadline": ("deadline", "due date", "마감", "마감일"),
        "spouse": ("wife", "husband", "아내", "남편"),
        "manager": ("boss", "manager", "supervisor", "상사", "팀장"),
        "color": ("color", "colour", "색", "색깔"),
        "food": ("food", "음식"),
        "drink": ("drink", "음료"),
        "movie": ("movie", "film", "영화"),
        "book": ("book", "책"),
        "season": ("season", "계절"),
        "sport": ("sport", "운동", "스포츠"),
        "programming": ("programming language", "프로그래밍 언어"),
        "editor": ("editor", "에디터"),
        "meeting": ("meeting", "회의", "미팅"),
        "budget": ("budget", "예산"),
        "dog": ("dog", "강아지", "개"),
        "cat": ("cat", "고양이"),
    }.items()
    for name in names
}
_TOP_LEVEL = frozenset(
    {
        "job",
        "employer",
        "hometown",
        "age",
        "birthday",
        "name",
        "nickname",
        "email",
        "phone",
        "timezone",
    }
    | {"residence", "native language"}
)


def attribute(owner: str, noun: str) -> str:
    """The key of "my …" and "the …": "my occupation" → "job", "my dog's name" → "my:dog name"."""
    words = [
        _SYNONYMS.get(word, word) for word in re.sub(r"'s\b|의(?=\s)", "", noun).strip().split()
    ]
    whole = _SYNONYMS.get(
        noun.strip(), " ".join(_SYNONYMS.get(" ".join(words), " ".join(words)).split())
    )
    if owner == "my" and whole in _TOP_LEVEL:
        return whole
    # "the deadline" and "my deadline" are one thing; so are a dog and what it is called.
    return f"my:{re.sub(r' name$', '', whole)}"


def is_functional(noun: str) -> bool:
    """Whether one has a single such thing: "my dog's name", "team", not "idea"."""
    words = noun.replace("'s", " ").split()
    return bool(words) and (words[-1] in FUNCTIONAL_NOUNS or "".join(words) in FUNCTIONAL_NOUNS)


def choice(prefix: str, value: str, *, about: str | None = None) -> tuple[str, str]:
    """Key and canonical value of a choice: ("prefer:units", "metric") for "metric units".

    Without a known category the last word is the kind ("window seats": "seats"), if there are two.
    """
    kind, name = lexicon.look_up(value)
    if kind is None:
        found = lexicon.find(value)
        head = value.rsplit(maxsplit=1)[-1]
        if found and len(value.split()) > 1:
            kind, name = found
            rest = " ".join(w for w in value.split() if lexicon.canonical(w) != name)
            rest = re.sub(
                r"^(?:to|in|at|on|with|for|be|my|the|a|an)\b|(?:\s*\b(?:in|at|on|the|to|by"
                r"|with))+$",
                "",
                rest,
            )
            return f"{prefix}:{kind}" + (
                f" {rest.strip()}" if about is None and rest.strip() else ""
            ), name
        kind = about or (head if len(value.split()) > 1 else None)
    return (f"{prefix}:{about or kind}" if about or kind else prefix), name
