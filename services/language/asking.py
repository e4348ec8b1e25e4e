"""What a question about the user asks for, in the keys of `facts`."""

import re
from dataclasses import dataclass

from services.language import facts, lexicon, scripts
from services.language.fact import Fact, attribute

_READ_CHARS = 500
_SAME = 1.0
_ALIKE = 0.5
_OTHER = -1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """The key asked for, its kind where it is narrower; `is_wide` for "all you know"."""

    key: str
    kind: str | None = None
    is_wide: bool = False


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "*",
        _rule(
            r"\b(?:know|remember|noted?|recall|told you) (?:all |everything )?about (?:me|us)\b"
            r"|what do you (?:know|remember)\W*$"
            r"|\b(?:who am i|about me)\b|(?:나|저)에 (?:대해|대한|관해)|뭘 (?:알고|기억)"
        ),
    ),
    (
        "decision",
        _rule(
            r"\b(?:we|i|team) (?:decide|agree|choose|settle|pick)|\bdecisions?\b"
            r"|decide(?:d)? (?:on|about)|결정|정했|하기로"
        ),
    ),
    ("name", _rule(r"\bmy (?:full |first )?name\b|\bwhat am i called\b|(?:내|제|나의|저의) 이름")),
    ("nickname", _rule(r"\b(?:call me|my nickname)\b|(?:내|제) (?:별명|닉네임)")),
    (
        "residence",
        _rule(
            r"\bwhere (?:do|am|did) i (?:live|living|reside|based|move)\b|\bwhere(?:'s"
            r"| is) my (?:home|house)\b|\b(?:which|what) (?:city|country|town) (?:do|am) i"
            r"|(?:어디|어느).*(?:살|거주|이사)|(?:사는|거주하는) (?:곳|데|도시|동네)|(?:내|제"
            r"|우리) 집"
        ),
    ),
    (
        "birthplace",
        _rule(r"\bwhere (?:was i born|am i from|do i come from)\b|어디 출신|어디서 태어"),
    ),
    ("birthday", _rule(r"\bmy birthday\b|\bwhen was i born\b|(?:내|제) 생일|언제 태어")),
    ("age", _rule(r"\bhow old am i\b|\bmy age\b|몇 ?살|(?:내|제) 나이")),
    (
        "employer",
        _rule(
            r"\b(?:where|who|whom) do i work(?: for| at)?\b(?! as)|\bmy (?:employer|company)\b"
            r"|어디(?:에|에서|서)? ?(?:일|다니|근무)|(?:내|제|우리) 회사|(?:다니는"
            r"|일하는) (?:곳|회사|직장)"
        ),
    ),
    (
        "job",
        _rule(
            r"\bwhat do i (?:do|work as)\b|\bmy (?:job|occupation|profession|role|position)\b"
            r"|\bfor a living\b|(?:내|제|나의) 직업|무슨 일|하는 일"
        ),
    ),
    ("allergy", _rule(r"\ballerg|알레르기")),
    ("diet", _rule(r"\bmy diet\b|\bam i (?:a )?(?:vegetarian|vegan)\b|채식|식단")),
    ("marital", _rule(r"\bam i (?:married|single|divorced)\b|결혼했")),
    ("speak", _rule(r"\b(?:which|what) languages? (?:do|can) i speak\b|할 줄 아는 언어")),
    ("commute", _rule(r"\bhow do i (?:commute|get to work|go to work)\b|어떻게 출근|출퇴근")),
    (
        "favorite",
        _rule(
            r"\bfavou?rite (?P<x>[a-z]+(?: language| food)?)|(?:가장"
            r"|제일) 좋아하는 (?P<ko>[가-힣 ]+?)(?:은|는|이|가|을|를)?(?: ?뭐|\W*$| )"
        ),
    ),
    (
        "prefer",
        _rule(
            r"\b(?:which|what) (?P<x>[\w ]+?) (?:do|would|did) i (?:prefer|like|want)\b"
            r"|\bmy preferred (?P<y>[\w ]+?)\W*$|\bmy preference (?:for|about|on) (?P<z>[\w ]+)"
            r"|(?:선호하는|원하는) (?P<ko>[가-힣 ]+?)(?:은|는|이|가|을|를)?(?: ?뭐| ?무엇|\W*$| )"
        ),
    ),
    ("prefer", _rule(r"\bdo i prefer\b|\bmy preferences?\b|선호")),
    (
        "like",
        _rule(
            r"\b(?:what|which)\b.*\bdo i (?:like|love|enjoy|hate|dislike)\b|\bdo i (?:like|love"
            r"|enjoy|hate|dislike)\b|좋아하|좋아해|싫어하"
        ),
    ),
    (
        "use",
        _rule(
            r"\b(?:what|which) (?P<x>[\w ]+?) (?:do|am) (?:i|we) us(?:e|ing)\b|(?:쓰는"
            r"|사용하는) (?P<ko>[가-힣 ]+?)(?:은|는|이|가)?(?: ?뭐|\W*$| )"
        ),
    ),
    (
        "my",
        _rule(
            r"\b(?:what|who|where|when|which|how \w+)(?:'s| is| are| was)? (?:my|our"
            r"|the) (?P<x>[a-z' ]+?)(?: called| due| again| scheduled| is| at| on)?\W*$"
            r"|\bmy (?P<y>[a-z' ]+?)\W*$|(?:^|\s)(?:내|제|우리) (?P<ko>[가-힣 ]+?)(?:은|는|이"
            r"|가)(?=\s|\W|$)"
        ),
    ),
)
_KINDS = {
    "units": "units",
    "unit": "units",
    "단위": "units",
    "theme": "theme",
    "mode": "theme",
    "테마": "theme",
    "모드": "theme",
    "drink": "drink",
    "drinks": "drink",
    "beverage": "drink",
    "음료": "drink",
    "마실 것": "drink",
    "editor": "editor",
    "에디터": "editor",
    "편집기": "editor",
    "language": "language",
    "언어": "language",
    "programming language": "programming",
    "프로그래밍 언어": "programming",
    "database": "database",
    "데이터베이스": "database",
    "storage": "database",
    "browser": "browser",
    "브라우저": "browser",
    "color": "color",
    "colour": "color",
    "색": "color",
    "색깔": "color",
    "seat": "seat",
    "seats": "seat",
    "좌석": "seat",
    "temperature": "temperature",
    "temperature unit": "temperature",
    "온도": "temperature",
    "os": "system",
    "operating system": "system",
    "운영체제": "system",
    "framework": "framework",
    "프레임워크": "framework",
    "cloud": "cloud",
    "phone": "phone",
    "휴대폰": "phone",
    "season": "season",
    "계절": "season",
    "sport": "sport",
    "운동": "sport",
    "스포츠": "sport",
    "pet": "pet",
    "city": "place",
    "도시": "place",
    "transport": "transport",
    "payment": "payment",
}


def about(question: str) -> Asked | None:
    """What the question asks for; None where no rule knows."""
    text = scripts.clean(question[:_READ_CHARS]).lower()
    for key, rule in _RULES:
        match = rule.search(text)
        if match is None:
            continue
        groups = match.groupdict()
        noun = next((groups[name] for name in ("x", "y", "z", "ko") if groups.get(name)), None)
        noun = re.sub(r"^(?:kind of|sort of|type of|my|the) ", "", noun.strip()) if noun else None
        if key == "*":
            return Asked("*", is_wide=True)
        if key == "my" and noun:
            return Asked(attribute("my", noun), noun)
        if key == "decision":
            topic = re.search(
                r"\b(?:about|on|for|regarding) (?:the |our )?([\w ]+)|(\S+?)(?:에 대해|에 관해"
                r"|은|는)",
                text,
            )
            noun = (topic[1] or topic[2]) if topic else None
            return Asked(key, _KINDS.get(noun or "", noun))
        return Asked(key, (_KINDS.get(noun) or noun) if noun else None)
    return None


# Facts that answer one question each: a question for one of them is not answered by another.
_SPECIFIC = frozenset(
    {
        "name",
        "nickname",
        "age",
        "birthday",
        "residence",
        "birthplace",
        "hometown",
        "job",
        "employer",
    }
    | {"email", "phone", "marital", "diet", "allergy", "favorite", "my", "native language"}
    | {"commute", "speak", "timezone", "have"}
)
_TASTES = frozenset(["prefer", "favorite", "like"])


def _fit_one(asked: Asked, fact: Fact) -> float:
    head, _, kind = fact.key.partition(":")
    asked_head, _, asked_noun = asked.key.partition(":")
    if fact.key == asked.key or (asked_noun and head == "my" and kind == asked_noun):
        return _SAME
    if head == asked.key or {head, asked.key} <= _TASTES:
        kinds = {kind.split(" ")[0], kind, lexicon.category(fact.value)} - {"", None}
        if asked.kind is None or asked.kind in kinds:
            return _SAME if head == asked.key else _ALIKE
        return _OTHER if kinds and (asked.kind in _KINDS.values() or head == "favorite") else 0.0
    if asked.kind and asked.kind in {kind, _KINDS.get(kind)} and head in {"use", "decision", "my"}:
        return _ALIKE
    if asked_head in _SPECIFIC and head in _SPECIFIC | _TASTES:
        shared = set(asked_noun.split()) & set(kind.split())
        return 0.0 if shared or head == "have" else _OTHER
    return 0.0


def fit(asked: Asked, content: str) -> float:
    """How well a memory answers: 1 the very thing, 0.5 alike, 0 unknown, -1 something else."""
    if asked.is_wide:
        return _SAME
    return max((_fit_one(asked, fact) for fact in facts.parse_all(content)), default=0.0)
