"""Facts in Korean sentences."""

import re

from services.language import lexicon
from services.language.fact import Fact, attribute, choice, is_functional

# Endings that make a noun a statement: "…이야", "…입니다", "…이다".
_COPULA = (
    r"(?:이었어요?|였어요?|이에요|이예요|예요|에요|이야|야|입니다|이다|다|임|이고|이거든|거든|(?:으로|로) (?:바뀌\S*|변경\S*|바꿨\S*|정해\S*|옮\S*)"
    r"|(?:이|가) 됐\S*|(?:이|가) 되었\S*|(?:이|가) 아니\S*|이 아님)?"
)
_FILLER = re.compile(
    r"(?:^|(?<=\s))(?:지금은?|이제는?|이제부터|현재는?|요즘은?|요새는?|더 ?이상|정말로?|진짜로?|아주|너무|많이|사실은?|그냥|최근에?|얼마 전에?"
    r"|앞으로는?|원래|보통|주로|대체로|이번에|드디어|결국|아직도?|여전히|다시|오늘부터|올해부터|작년부터|작년에|올해|지난달에?|지난주에?|매우|무척|참"
    r"|굉장히|훨씬|역시|좀|조금|어제|저번에|살짝|새로|이미|계속|근데|그리고|하지만|그래서|음|아|네|응)(?=\s|$)"
)
_SELF = re.compile(r"^(?:나는|저는|난|전|제가|내가|나|저|사용자는|나도|저도)\s+")
NEGATION = re.compile(
    r"(?:^|\s)(?:안|못|별로)(?=\s?[가-힣])|지 ?(?:않|못|말)|(?:없|끊었|끊었|그만|싫|아니야|아니다|아니에요|아닙니다|아님|관뒀|퇴사|떠났|헤어|멈췄|포기)"
)
_PROFESSION = re.compile(
    r"(?:\S*(?:개발자|디자이너|엔지니어|프로그래머|기획자|연구원|회사원|공무원|간호사|의사|약사|교사|변호사|회계사|요리사|작가|기자|가수|배우|선생님|교수|학생"
    r"|대학생|대학원생|주부|농부|군인|경찰|경찰관|소방관|매니저|컨설턴트|분석가|과학자|건축가|사진작가|번역가|통역사|미용사|운전사|기사|승무원|조종사|은행원"
    r"|사업가|창업자|대표|팀장|부장|과장|마케터|트레이너|유튜버|프리랜서|백수|인턴|데이터 과학자|PM|자영업자|은퇴자))$",
    re.IGNORECASE,
)
_TEAM = r"(?:(?:우리는|우리 팀은|저희는|저희 팀은|우리 회사는|팀은|회사는) )?"
# "형은 서울": somebody else of whom the fact is true.
_OTHER = re.compile(r"^(?P<who>[가-힣a-z]+?(?: [가-힣]+?)?)(?:은|는|이|가)\s+(?P<rest>\S.*)$")
_PERSONAL = frozenset(
    ["residence", "birthplace", "age", "marital", "hand", "diet", "allergy", "job", "employer"]
    + ["like", "dislike", "prefer:", "favorite:", "use:", "habit", "routine", "have", "workplace"]
)


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"^{pattern}$")


_RULES: tuple[tuple[str, bool, re.Pattern[str]], ...] = (
    ("name", True, _rule(rf"(?:내|제|나의|저의)? ?이름은 (?P<v>.+?){_COPULA}")),
    ("name", True, _rule(r"이름을 (?P<v>\S+?)(?:으로|로) (?:바꿨|개명)\S*")),
    ("name", True, _rule(r"(?P<v>\S+?)(?:이)?라고 (?:합니다|해|해요|한다|하고)")),
    (
        "nickname",
        True,
        _rule(r"(?:나를|저를|날|절) (?P<v>.+?)(?:이)?라고 (?:불러|부르)\S*(?: ?\S+)?"),
    ),
    (
        "residence",
        True,
        _rule(r"(?:집은 )?(?P<v>.+?)(?:에서?|에는) (?:안 )?(?:살|거주)\S*(?: \S+)?"),
    ),
    (
        "residence",
        True,
        _rule(r"(?:(?P<w>.+?)에서 )?(?P<v>.+?)(?:으로|로|에) (?:이사|이주)\S*(?: \S+)?"),
    ),
    (
        "residence",
        True,
        _rule(r"(?:우리 ?)?집은 (?P<v>.+?)(?:에 있\S*|이야|야|입니다|이에요|예요)"),
    ),
    ("birthplace", True, _rule(r"(?P<v>.+?)(?:에서 태어났\S*| 출신\S*)")),
    ("birthday", True, _rule(rf"(?:내|제)? ?생일은 (?P<v>.+?){_COPULA}")),
    ("age", True, _rule(r"(?:나이는 )?(?P<v>\d+)\s?(?:살|세)\S*(?: \S+)?")),
    (
        "marital",
        True,
        _rule(
            r"(?P<v>미혼|기혼|독신|결혼|이혼|약혼)(?:이야|입니다|이에요|했\S*|을 했\S*|한 상태\S*)"
        ),
    ),
    ("hand", True, _rule(r"(?P<v>왼손잡이|오른손잡이|양손잡이)\S*")),
    (
        "diet",
        True,
        _rule(
            r"(?P<v>채식주의자|비건|채식|베지테리언)(?:이야|야|입니다|이에요|예요|가 됐\S*|이 됐\S*|를 해|을 해|를 시작\S*|을 시작\S*|가 아니\S*|이 아니\S*|이다|다)(?: \S+)?"
        ),
    ),
    ("diet", True, _rule(r"(?P<v>고기)(?:를|는|도)? (?:안 |못 |잘 )?먹\S*(?: \S+)?")),
    (
        "allergy",
        False,
        _rule(
            r"(?P<v>.+?)(?:에|에 대한|에 대해)? ?알레르기(?:가|는|도)? ?(?:있|없|심|생)\S*(?: \S+)?"
        ),
    ),
    (
        "workplace",
        True,
        _rule(
            r"(?P<v>재택|재택근무|집에서|사무실에서|사무실|원격|하이브리드)(?:으로|로|를|을)? ?(?:일|근무|출근)?(?:해|하고|합니다|해요|한다)\S*(?: \S+)?"
        ),
    ),
    ("job", True, _rule(rf"(?:내|제|나의|저의)? ?직업은 (?P<v>.+?){_COPULA}")),
    ("job", True, _rule(r"직업을 (?P<v>.+?)(?:으로|로) (?:바꿨|변경|전환)\S*")),
    (
        "job",
        True,
        _rule(
            r"(?:(?P<employer>\S+?)에서 )?(?P<v>.+?)(?:으로|로) (?:안 )?(?:일|근무|재직|활동)\S*(?: \S+)?"
        ),
    ),
    (
        "job",
        True,
        _rule(r"(?:(?P<employer>\S+?)에서 )?(?P<v>.+?)(?:으로|로) (?:전직|승진|취업)\S*(?: \S+)?"),
    ),
    ("job", True, _rule(r"(?P<profession>[\w ]+?)(?:이|가) (?:됐|되었|된)\S*(?: \S+)?")),
    ("job", True, _rule(r"(?P<profession>[\w ]+?)(?:이|가) (?:아니야|아니에요|아닙니다|아니다)")),
    (
        "job",
        True,
        _rule(r"(?P<profession>[\w ]+?)(?:이에요|예요|이야|야|입니다|이다|다|임|인데요?)"),
    ),
    ("employer", True, _rule(r"(?P<v>.+?)에서 (?:안 )?(?:일|근무|재직)\S*(?: \S+)?")),
    (
        "employer",
        True,
        _rule(r"(?P<v>.+?)에 (?:안 )?(?:다니|다녀|다닌|다닙|입사|취직|취업|합류|재직)\S*(?: \S+)?"),
    ),
    ("employer", True, _rule(r"(?:(?P<w>.+?)에서 )?(?P<v>.+?)(?:으로|로) 이직\S*(?: \S+)?")),
    (
        "employer",
        True,
        _rule(
            r"(?P<v>(?!담배|술|커피|운동).+?)(?:을|를|에서) (?:그만뒀|그만두|퇴사|떠났|관뒀)\S*(?: \S+)?"
        ),
    ),
    (
        "favorite",
        True,
        _rule(rf"(?:(?:내|제)가 )?(?:가장|제일) 좋아하는 (?P<x>.+?)(?:은|는) (?P<v>.+?){_COPULA}"),
    ),
    (
        "favorite",
        True,
        _rule(
            rf"(?P<v>.+?)(?:이|가|은|는) (?:(?:내|제)가 )?(?:가장|제일) 좋아하는 (?P<x>.+?){_COPULA}"
        ),
    ),
    ("favorite:", True, _rule(r"(?P<v>.+?)(?:을|를|이|가) (?:가장|제일) 좋\S*(?: \S+)?")),
    (
        "prefer:",
        True,
        _rule(
            r"(?:(?P<w>.+?)보다(?:는)? )?(?P<v>.+?)(?:을|를|이|가|은|는) (?:더 )?(?:안 )?선호\S*(?: \S+)?"
        ),
    ),
    (
        "prefer:",
        True,
        _rule(
            r"(?P<w>.+?)보다(?:는)? (?P<v>.+?)(?:을|를|이|가|은|는) (?:더 )?(?:좋|낫|나아|편|마음에)\S*(?: \S+)?"
        ),
    ),
    ("prefer:", True, _rule(r"(?P<v>.+?)(?:을|를|이|가|은|는) 더 (?:좋|낫|나아|편)\S*(?: \S+)?")),
    (
        "dislike",
        False,
        _rule(r"(?P<v>.+?)(?:을|를|이|가|은|는|도)? (?:안 |별로 안 )?(?:싫|질색|혐오)\S*(?: \S+)?"),
    ),
    (
        "like",
        False,
        _rule(
            r"(?P<v>.+?)(?:을|를|이|가|은|는|도)? (?:별로 )?(?:안 )?(?:좋아|좋|사랑|즐겨|즐기|즐긴|즐깁)\S*(?: \S+)?"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            r"(?:(?P<owner>내|제|나의|저의|우리|저희) )?(?P<x>\S+(?: \S+)?)(?:은|는|이|가) (?P<v>.+?)(?:으로|로)"
            r" (?:바뀌|바뀐|변경|옮겨|옮긴|연기|미뤄|당겨|조정)\S*(?: \S+)?"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            r"(?:(?P<owner>내|제|나의|저의|우리|저희) )?(?P<x>\S+(?: \S+)?)(?:을|를) (?P<v>\S+(?: \S+)?)(?:으로|로)"
            r" (?:바꿨|바꾸|변경|옮겼|정했)\S*(?: \S+)?"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            r"(?:(?P<owner>내|제|나의|저의|우리|저희) )?(?P<x>\S+(?: \S+)?)(?:은|는|이|가) (?P<v>.+?)"
            r"(?:에 있|에 위치|로 옮겼|으로 옮겼|로 이전|으로 이전|로 이사|으로 이사)\S*(?: \S+)?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{_TEAM}(?:(?P<w>.+?)에서 )?(?P<v>.+?)(?:으로|로) (?:바꿨|바꾸|갈아탔|갈아타|변경|전환|옮겼|옮기|넘어)\S*(?: \S+)?"
        ),
    ),
    (
        "decision",
        True,
        _rule(
            r"(?:(?:우리는|우리|팀은|저희는) )?(?:(?P<x>.+?)(?:는|은|에는|로는|으로는|로|으로) )?(?P<v>\S+?)(?:을|를|로|으로) (?:(?:안 )?(?:쓰|사용하|도입하|선택하|하|가)기로|결정|정|선택)"
            r"\S*(?: ?\S+)?"
        ),
    ),
    (
        "use:",
        True,
        _rule(
            rf"{_TEAM}(?:(?P<x>.+?)(?:에는|으로는|로는|에|용으로|할 때는?) )?(?P<v>\S+(?: \S+)?)(?:을|를|은|는) (?:안 )?(?:써|쓰|쓴|씁|사용|이용|타고|몰|타)\S*(?: \S+)?"
        ),
    ),
    (
        "habit",
        False,
        _rule(
            r"(?:매일 |매일 아침 |매주 |아침마다 |주말마다 |자주 )?(?P<v>.+?)(?:을|를|은|는|도)? (?:안 |못 )?(?P<verb>마시|마셔|마신|마십|먹|피우|피워|피운|피웁|끊|하지|해|합|한다|배우|배워|치|그만)\S*(?: \S+)?"
        ),
    ),
    (
        "have",
        True,
        _rule(
            r"(?P<noun>.+?)(?:이|가|을|를|은|는|도)? (?P<n>\d+|한|두|세|네|다섯)\s?(?:마리|명|개|대|권|채)(?:가|를|을)? (?:있|키우|키워|가지|소유|살)\S*(?: \S+)?"
        ),
    ),
    (
        "have",
        True,
        _rule(
            r"(?P<noun>강아지|개|고양이|아이|아들|딸|자녀|차|자동차|자전거|형|누나|언니|오빠|동생|남동생|여동생)(?:이|가|을|를|은|는|도)? (?:안 )?(?:있|없|키우|키워)\S*(?: \S+)?"
        ),
    ),
    (
        "routine",
        True,
        _rule(
            r"(?P<v>(?:오전|오후|아침|저녁|새벽|밤)?\s?\d{1,2}시(?: ?\d{1,2}분| ?반)?|아침|저녁|밤|새벽)(?:에|쯤에?|부터)? (?P<x>일어나|일어난|기상|자러|잠|자고|잔다|잡니다|자|출근|퇴근|운동|점심|저녁)\S*(?: \S+)?"
        ),
    ),
    (
        "my:",
        True,
        _rule(
            rf"(?P<owner>내|제|나의|저의|우리|우리의|저희) (?P<x>.+?)(?:은|는|이|가) (?P<v>.+?){_COPULA}"
        ),
    ),
    ("my:", True, _rule(rf"(?P<owner>)(?P<x>[가-힣\w ]+?)(?:은|는) (?P<v>.+?){_COPULA}")),
)
_HABITS = (("마", "drink"), ("먹", "eat"), ("피", "smoke"), ("배", "learn"), ("치", "play"))
_ROUTINES = (
    ("일어", "wake up"),
    ("기상", "wake up"),
    ("출근", "start work"),
    ("퇴근", "finish work"),
    ("운동", "exercise"),
    ("점심", "have lunch"),
    ("저녁", "have dinner"),
    ("자", "go to bed"),
    ("잠", "go to bed"),
    ("잔", "go to bed"),
    ("잡", "go to bed"),
)


def plain(text: str) -> str:
    """The sentence without final marks, the speaker and words that change no fact."""
    text = re.sub(r"\s+", " ", text.lower().strip(" .!~;,?"))
    text = _FILLER.sub(" ", text)
    text = re.sub(r"\s+", " ", text.replace(",", " ")).strip()
    return _SELF.sub("", text).strip()


def _value(text: str) -> str:
    text = re.sub(r"^(?:내|제|나의|우리|그|이)\s+", "", text.strip(" ,'\""))
    return (
        re.sub(r"(?:\s?(?:에서|에는|에|은|는|을|를))$", "", text).strip() if len(text) > 2 else text
    )


def _canonical(value: str) -> str:
    kind, name = lexicon.look_up(value)
    if kind is None and len(value) > 2:
        # "서울시", "부산광역시": the place without its rank.
        short = re.sub(r"(?:특별시|광역시|시|도|역|구)$", "", value)
        if lexicon.category(short) == "place":
            return lexicon.canonical(short)
    return name


def _fact(key: str, is_single: bool, match: re.Match[str], is_negated: bool) -> list[Fact] | None:
    groups = match.groupdict()
    noun = (groups.get("x") or "").strip()
    if groups.get("profession") is not None:
        profession = groups["profession"].strip()
        if not _PROFESSION.search(profession):
            return None
        groups["v"] = profession
    value = _value(groups.get("v") or "")
    if key == "have":
        count = lexicon.canonical(groups["n"]) if groups.get("n") else "some"
        return [
            Fact(f"have:{lexicon.canonical(groups['noun'].strip())}", "0" if is_negated else count)
        ]
    if not value:
        return None
    other = _OTHER.match(value) if key in _PERSONAL else None
    if other:
        about = f"of {other['who']}:{key.rstrip(':')}"
        told = _canonical(_value(other["rest"]))
        return [Fact(about, told, is_negated != (key == "dislike"), is_single, False)]
    name = _canonical(value)
    if key in {"like", "dislike"}:
        value = re.sub(r"(?:하는|타는|보는|듣는|읽는|마시는|먹는) (?:것|거|걸)$", "", name).strip()
        is_double = re.search(r"안 싫|싫지 않|싫어하지 않", match[0]) is not None
        is_denied = (key == "dislike" and not is_double) or (key == "like" and is_negated)
        return [Fact("like", lexicon.canonical(value), is_denied, False)]
    if key == "favorite":
        return [Fact(f"favorite:{attribute('my', noun).removeprefix('my:')}", name, is_negated)]
    if key == "habit":
        verb = next((full for part, full in _HABITS if groups["verb"].startswith(part)), "")
        if name in {"담배"}:
            return [Fact("habit", "smoke", is_negated, False)]
        verb = verb or ("drink" if lexicon.category(value) == "drink" or name == "술" else "do")
        return [Fact("habit", f"{verb} {name}", is_negated, False)]
    if key == "routine":
        verb = next(full for part, full in _ROUTINES if noun.startswith(part))
        return [Fact(f"routine:{verb}", name, is_negated)]
    if key == "my:":
        return _attribute(groups["owner"] or "", noun, value, name, is_negated)
    if key == "decision":
        about = lexicon.category(value) or noun
        return [Fact(f"decision:{about}" if about else "decision", name, is_negated, bool(about))]
    if key in {"prefer:", "use:", "favorite:"}:
        return _choice(key.rstrip(":"), noun, value, groups.get("w"), is_negated)
    facts = [Fact(key, name, is_negated, is_single)]
    if key == "job" and groups.get("employer"):
        facts.append(Fact("employer", _value(groups["employer"])))
    return facts


def _attribute(owner: str, noun: str, value: str, name: str, is_negated: bool) -> list[Fact] | None:
    is_known = is_functional(noun)
    if not owner and not is_known:
        return None
    if re.search(r"(?:을|를|에서|에게) \S+$|(?:어|아|여|해|요|까)$", value):
        # A verb, not a noun: the ending that makes it a statement is missing.
        return None
    whose = "the" if owner in {"우리", "우리의", "저희"} else "my"
    name = (
        re.sub(r"(?:으로|로|에|에서)$", "", name)
        if len(name) > 2 and lexicon.category(value) is None
        else name
    )
    is_own = is_known and bool(owner)
    return [Fact(attribute(whose, noun), name, is_negated, is_known, is_own)]


def _choice(prefix: str, noun: str, value: str, other: str | None, is_negated: bool) -> list[Fact]:
    about = None
    if noun:
        about = lexicon.category(value) or attribute("my", noun).removeprefix("my:")
    key, name = choice(prefix, value, about=about)
    facts = [Fact(key, name, is_negated, is_single=key != prefix)]
    if other and prefix == "prefer":
        facts = [Fact(key, name, is_negated)]
        facts.append(
            Fact("prefer pair", f"{name} > {lexicon.canonical(_value(other))}", is_negated, False)
        )
    return facts


def parse(text: str) -> list[Fact]:
    """The facts of a Korean sentence, the main one first."""
    sentence = plain(text)
    is_negated = NEGATION.search(sentence) is not None
    for key, is_single, rule in _RULES:
        match = rule.match(sentence)
        if match:
            found = _fact(key, is_single, match, is_negated)
            if found:
                return found
    return []
