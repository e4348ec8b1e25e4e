"""The shape of a fact, shared by the rules of both languages."""

import re
from dataclasses import dataclass

from services.language import lexicon

# Things of which a person or a project has one at a time, by the last word of their name.
FUNCTIONAL_NOUNS = frozenset(
    [
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
        "phone",
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
    """`key` says what it is about ("residence", "prefer:units", "my:dog's name"), `value` what is so.

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
        owner = "world" if self.key.startswith("the:") else "user"
        return f"{owner}.{self.key}"


_SYNONYMS = {
    "occupation": "job",
    "profession": "job",
    "job title": "job",
    "직업": "job",
    "employer": "employer",
    "company": "employer",
    "회사": "employer",
    "hometown": "hometown",
    "고향": "hometown",
    "age": "age",
    "나이": "age",
    "birthday": "birthday",
    "birth date": "birthday",
    "생일": "birthday",
    "name": "name",
    "full name": "name",
    "first name": "name",
    "이름": "name",
    "nickname": "nickname",
    "별명": "nickname",
    "닉네임": "nickname",
    "email address": "email",
    "e-mail": "email",
    "mail": "email",
    "이메일": "email",
    "이메일 주소": "email",
    "메일": "email",
    "phone number": "phone",
    "mobile number": "phone",
    "전화번호": "phone",
    "휴대폰 번호": "phone",
    "time zone": "timezone",
    "시간대": "timezone",
    "home": "residence",
    "집": "residence",
    "native language": "native language",
    "mother tongue": "native language",
    "first language": "native language",
    "모국어": "native language",
    "deadline": "deadline",
    "due date": "deadline",
    "마감": "deadline",
    "마감일": "deadline",
    "wife": "spouse",
    "husband": "spouse",
    "아내": "spouse",
    "남편": "spouse",
    "boss": "manager",
    "manager": "manager",
    "supervisor": "manager",
    "상사": "manager",
    "팀장": "manager",
    "color": "color",
    "colour": "color",
    "색": "color",
    "색깔": "color",
    "food": "food",
    "음식": "food",
    "drink": "drink",
    "음료": "drink",
    "movie": "movie",
    "film": "movie",
    "영화": "movie",
    "book": "book",
    "책": "book",
    "season": "season",
    "계절": "season",
    "sport": "sport",
    "운동": "sport",
    "스포츠": "sport",
    "programming language": "programming",
    "프로그래밍 언어": "programming",
    "editor": "editor",
    "에디터": "editor",
    "meeting": "meeting",
    "회의": "meeting",
    "미팅": "meeting",
    "budget": "budget",
    "예산": "budget",
    "dog": "dog",
    "강아지": "dog",
    "개": "dog",
    "cat": "cat",
    "고양이": "cat",
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
    # "the deadline" and "our deadline" are one thing; so is a dog and what it is called.
    return f"{owner}:{re.sub(r' name$', '', whole)}"


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
                r"^(?:to|in|at|on|with|for|be|my|the|a|an)\b|\b(?:in|at|the|to|by|with)$", "", rest
            )
            return f"{prefix}:{kind}" + (
                f" {rest.strip()}" if about is None and rest.strip() else ""
            ), name
        kind = about or (head if len(value.split()) > 1 else None)
    return (f"{prefix}:{about or kind}" if about or kind else prefix), name
