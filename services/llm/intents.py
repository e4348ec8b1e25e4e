"""What a user's message asks the embedded assistant to do: rules, in English and Korean.

Rules come first because they are exact and explainable; `EXAMPLES` serve the nearest-example
step for messages no rule reads.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from services.language import calculations, scripts, zones
from services.language.extraction import explicit

# A longer message is read by its beginning; code in it is found wherever it stands.
_READ_CHARS = 4_000


class Kind(StrEnum):
    """What is asked."""

    RUN_CODE = "run_code"
    CALCULATE = "calculate"
    REMEMBER = "remember"
    RECALL = "recall"
    CREATE_PLAN = "create_plan"
    RUN_PLAN = "run_plan"
    TIME = "time"
    GREETING = "greeting"
    THANKS = "thanks"
    FAREWELL = "farewell"
    HELP = "help"
    IDENTITY = "identity"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Intent:
    """What is asked, in which language, and with which argument.

    `argument`: code, expression, content, query, goal, plan id or place, by `kind`; empty where the
    message names none. `language`: the code's language, where it is named.
    """

    kind: Kind
    is_korean: bool
    argument: str = ""
    language: str | None = None
    is_run_too: bool = False


EXAMPLES: dict[Kind, tuple[str, ...]] = {
    Kind.GREETING: (
        "hello there",
        "hi, how are you?",
        "good morning",
        "hey, nice to meet you",
        "안녕하세요, 반가워요",
        "안녕, 잘 지냈어?",
        "좋은 아침이에요",
    ),
    Kind.THANKS: (
        "thank you very much",
        "thanks, that helped a lot",
        "great job, much appreciated",
        "정말 고마워요",
        "도와줘서 감사합니다",
    ),
    Kind.FAREWELL: (
        "goodbye, see you later",
        "bye for now",
        "good night",
        "다음에 또 봐요",
        "잘 가",
    ),
    Kind.HELP: (
        "what can you do for me?",
        "how do you work?",
        "what are your features?",
        "show me how to use you",
        "which commands do you understand?",
        "뭘 할 수 있어요?",
        "어떻게 사용하는 거예요?",
        "무슨 기능이 있어?",
        "도움말 보여 줘",
    ),
    Kind.IDENTITY: (
        "who are you?",
        "are you a language model like ChatGPT?",
        "which model are you?",
        "are you a real person or a robot?",
        "너는 누구야?",
        "어떤 모델이에요?",
        "너 인공지능이야?",
    ),
    Kind.RECALL: (
        "what do you know about me?",
        "what have I told you so far?",
        "what is my favourite food?",
        "where do I live?",
        "나에 대해 뭘 알고 있어?",
        "내가 어디에 사는지 알아?",
        "내가 좋아하는 음식이 뭐야?",
    ),
    Kind.TIME: (
        "what is the time now?",
        "what day is it today?",
        "지금 몇 시예요?",
        "오늘 며칠이야?",
    ),
    Kind.CREATE_PLAN: (
        "help me plan a project",
        "lay out the steps for this task",
        "프로젝트 계획을 세워 줘",
        "단계별로 계획해 줘",
    ),
    Kind.RUN_CODE: ("run some code for me", "execute this program", "코드를 실행해 줘"),
}

_POLITE = (
    r"(?:(?:please|hey|hi|hello|ok|okay|so|now|and|then|also)\b[,!]?\s*)*"
    r"(?:(?:can|could|would|will) you (?:please )?|i(?:'d| would) like (?:you )?to "
    r"|i want (?:you )?to"
    r" |let(?:'s| us) |help me (?:to )?)?(?:please )?"
)


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


_RUN_VERB = _rule(r"\b(?:run|execute|eval|evaluate|try|test)\b|실행|돌려|돌리|출력해")
_RUN_PREFIX = _rule(
    rf"^{_POLITE}(?:run|execute|eval|evaluate)\b(?: (?:this|the|following|my|some|a))*"
    r"(?: (?P<language>python|python3|py|bash|shell|sh|javascript|js|node))?"
    r"(?: (?:code|script|program|snippet|command))?(?: in (?P<in>\w+))?\s*:?\s*(?P<code>.*)$"
)
_LANGUAGE = _rule(
    r"\b(?:in|with|using|as) (?P<en>python3?|bash|shell|sh|javascript|js|node)\b"
    r"|\b(?P<adjective>python3?|bash|shell|javascript|js|node)\s+(?:code|script|command|program)\b"
    r"|(?P<ko>파이썬|배시|셸|쉘|자바스크립트)"
)
_LANGUAGES = {
    "py": "python",
    "python3": "python",
    "파이썬": "python",
    "sh": "bash",
    "shell": "bash",
    "배시": "bash",
    "셸": "bash",
    "쉘": "bash",
    "console": "bash",
    "js": "javascript",
    "node": "javascript",
    "자바스크립트": "javascript",
}
_RUN_PLAN = _rule(
    rf"^{_POLITE}(?:run|execute|start|launch|carry out|begin)\s+(?:the|that|this|my|our|your)?\s*"
    r"(?:last |latest |new |first )?plan\b|^\s*(?:run|execute|start) (?:it|plan_\S+)[.!]*$"
    r"|계획(?:을|를|대로)?\s*(?:좀\s*)?(?:실행|시작|진행|수행|돌려)"
)
_PLAN_ID = _rule(r"\b(plan_[A-Za-z0-9-]+|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22})\b")
_PLAN = (
    _rule(
        rf"^{_POLITE}(?:make|create|draw up|write|build|prepare|draft|design|give|outline|develop)"
        r"(?: me| us)?(?: (?:a|the|an|some))?(?: \w+){0,2}? plan\b"
        r"(?:,? (?:and|then) (?:run|execute|start) it)?\s*(?:to|for|of|about|on|how to|:|-)?\s*"
        r"(?P<goal>.*)$"
    ),
    _rule(rf"^{_POLITE}plan (?:out )?(?:how to |to |for |the |a |my |our |an )?(?P<goal>.+)$"),
    _rule(
        r"^(?P<goal>.*?)(?:을|를|에 대한|에 대해|에 관한|위한|할|하는|하기 위한|하도록)?\s*"
        r"(?:단계별\s*)?계획(?:을|를|서를|표를)?\s*(?:좀\s*)?"
        r"(?:세워|세우|만들|짜|작성|수립|잡아)[^:]*(?::\s*(?P<rest>.*))?$"
    ),
)
_AND_RUN = _rule(
    r"[,.]?\s*(?:and|then)(?: then)? (?:run|execute|start) (?:it|the plan|that)\b[.! ]*$"
    r"|(?:고|서)\s*(?:바로\s*)?실행(?:도)?\s*해.*$"
)
_TIME = _rule(
    r"\bwhat(?:'s| is)? (?:the )?(?:current )?(?:local )?(?:time|date)\b(?! (?:complexity|zone"
    r"|limit))"
    r"|\bwhat time is it\b|\bwhat day is (?:it|today)\b|\bcurrent (?:time|date)\b"
    r"|^(?:tell me )?the time(?: now| in .+)?\W*$|\btoday'?s date\b"
    r"|몇\s*시(?:야|예요|에요|입니까|죠|지|인지|니|냐|$|\s*\?)|현재\s*(?:시간|시각|날짜)"
    r"|지금\s*(?:시간|시각)"
    r"|오늘\s*(?:며칠|날짜|무슨\s*요일)|며칠이(?:야|에요|죠|지)"
)
_EVENT_TIME = _rule(
    r"\b(?:my|our|the) (?!current|local|time|date)\w+|\bdid\b|\bshould\b|내\s|우리\s|회의"
)
_PLACE = (
    _rule(
        r"\b(?:time|date|day)\b.*?\b(?:in|at|for) (?P<place>[\w /.'-]+?)(?: right now| now"
        r"| today)?\W*$"
    ),
    _rule(r"\bis it(?: right)?(?: now)? in (?P<place>[\w /.'-]+?)(?: right now| now| today)?\W*$"),
    _rule(
        r"(?P<place>[가-힣A-Za-z_/ ]+?)(?:은|는|의|에서는|에서|에는)?\s*"
        r"(?:지금|현재|오늘)?\s*(?:몇\s*시|시간|시각|며칠|날짜|무슨)"
    ),
)
_GREETING = _rule(
    r"^(?:hi|hello|hey|hiya|yo|greetings|howdy|good (?:morning|afternoon|evening|day))"
    r"(?: there| all| everyone| noosphere| assistant)?(?:,? how are you(?: doing)?(?: today)?)?\W*$"
    r"|^(?:안녕|안녕하세요|안녕하십니까|반가워|반가워요|반갑습니다|하이|헬로|여보세요)\W*$"
)
_THANKS = _rule(
    r"^(?:many |ok,? |great,? |perfect,? )?(?:thanks|thank you|thx|ty|cheers|much appreciated)"
    r"(?: a lot| so much| very much| again| for .*)?\W*$"
    r"|^(?:정말 |너무 |대단히 )?(?:고마워|고마워요|고맙습니다|감사해요|감사합니다|땡큐)\W*$"
)
_FAREWELL = _rule(
    r"^(?:ok,? |thanks,? )?(?:bye|goodbye|bye bye|see you(?: later| soon| tomorrow)?|good night"
    r"|farewell)\W*$"
    r"|^(?:잘 ?가|잘 ?있어|안녕히 (?:가|계)세요|다음에 (?:또 )?봐요?|또 봐요?|잘 ?자)\W*$"
)
_HELP = _rule(
    r"^(?:/?help(?: me)?|\?)\W*$|\bwhat (?:else )?(?:can|could|do) you (?:do|offer|support)\b"
    r"|\bwhat are you (?:able to do|capable of)\b|\bhow (?:do|can|should) i use (?:you|this)\b"
    r"|\byour (?:capabilities|features|abilities|tools)\b"
    r"|^(?:도움말|도와줘|도와 줘|사용법)\W*$|(?:뭘|무엇을|뭐|무얼|어떤 (?:걸|것을"
    r"|일을)) ?할 ?수 ?있"
)
_IDENTITY = _rule(
    r"\b(?:who|what) are you\b(?! (?:doing|able|capable))|\bare you (?:an? )?(?:\w+ )?(?:ai|bot"
    r"|robot|"
    r"human|person|model|llm|chatgpt|gpt|claude|gemini|language model|generative)\b"
    r"|\b(?:what|which) (?:language )?model (?:are you|is this|do you use)\b|\bwhat(?:'s"
    r"| is) your name\b"
    r"|(?:너|넌|너는|당신은?|네)\s*(?:이름|누구|뭐야|뭐니|정체)|(?:어떤|무슨) 모델"
)
_ABOUT_USER = _rule(
    r"\b(?:do|can) you (?:still )?(?:remember|recall|know)\b"
    r"|\bwhat (?:do|did) you (?:know|remember|learn|note)\b"
    r"|\b(?:remind me|tell me) (?:what|which|where|who|when|how|about (?:me|my|our|us))\b"
    r"|\bwhat(?:'s| is| are| was| were)? (?:my|our)\b|\b(?:who|where|when|which|how \w+)(?:'s"
    r"| is| are| was)"
    r" (?:my|our)\b|\bwho am i\b|\bhow old am i\b"
    r"|\b(?:what|which|where|who|when|why|how (?:many|much|long|often|old))\b[^?.!]*?"
    r"\b(?:do|did|am|have|was|were|had) (?:i|we)\b"
    r"|^(?:do|did|am|have|was|were) (?:i|we)\b|\b(?:i|we) (?:told|tell|asked|said"
    r"|mentioned) (?:you)?"
)
_HOW_TO = _rule(
    r"\b(?:how|what|where|which|when) (?:\w+ )?(?:do|can|could|should|would|must) (?:i|we)\b"
)
_HOW_TO_ALLOWED = _rule(
    r"\b(?:what|which|where|who|when|how (?:many|much|long|often))\b.*\b(?:do|did) (?:i|we)\b"
    r"(?!.* (?:need|have) to\b)"
)
_KO_SELF = _rule(
    r"(?:^|\s)(?:내|나|난|나는|내가|나의|나한테|나에\s*대해|저|저는|전|제|제가|저에\s*대해|우리"
    r"|우리가|우리는)"
    r"(?=\s|$)"
)
_KO_QUESTION = _rule(
    r"\?|뭐|뭘|무엇|무슨|어떤|어디|언제|누구|몇|얼마|왜|알아$|알고 있|아니\?|기억(?:나|해|하)"
    r"|말했|인지|였지|했지|까$|나요$|더라"
)
_KO_ASK_MEMORY = _rule(
    r"기억(?:나|하고|해\?|하니|하나)|(?:알고 있는|아는) (?:것|거|게|걸)|뭘 알고|말했(?:지|더라|나)"
)


def _language(name: str | None) -> str | None:
    return _LANGUAGES.get(name, name) if name else None


def _named_language(prose: str) -> str | None:
    match = _LANGUAGE.search(prose)
    return _language((match["en"] or match["adjective"] or match["ko"]).lower()) if match else None


def _code(text: str, prose: str, is_korean: bool) -> Intent | None:
    """Code in a fence, in backticks, or plain after "run"."""
    blocks = scripts.code_blocks(text)
    is_asked = _RUN_VERB.search(prose) is not None
    is_alone = bool(blocks) and not re.search(r"\w", prose) and scripts.has_fence(text)
    if blocks and (is_asked or is_alone):
        languages = {language for _, language in blocks if language}
        code = "\n".join(code for code, _ in blocks)
        language = _language(languages.pop()) if len(languages) == 1 else _named_language(prose)
        return Intent(Kind.RUN_CODE, is_korean, code, language)
    if blocks:
        return None
    match = _RUN_PREFIX.match(text)
    if match and re.search(r"[\w\])]\s*\(|[=+*/%]|^\s*(?:import|echo|ls|cat|for)\b", match["code"]):
        language = _language((match["language"] or match["in"] or "").lower() or None)
        return Intent(Kind.RUN_CODE, is_korean, match["code"].strip(), language)
    if match and re.fullmatch(r"\W*", match["code"]) and (match["language"] or "code" in text):
        return Intent(Kind.RUN_CODE, is_korean)
    return None


def _plan(text: str, is_korean: bool) -> Intent | None:
    for pattern in _PLAN:
        match = pattern.match(text)
        if match is None:
            continue
        goal = (match.groupdict().get("rest") or match["goal"] or "").strip()
        is_run_too = _AND_RUN.search(text) is not None
        goal = _AND_RUN.sub("", goal).strip(" .!:")
        return Intent(Kind.CREATE_PLAN, is_korean, goal, is_run_too=is_run_too)
    return None


def _time(text: str, is_korean: bool) -> Intent | None:
    if not _TIME.search(text) or (_EVENT_TIME.search(text) and "current" not in text.lower()):
        return None
    for pattern in _PLACE:
        match = pattern.search(text)
        place = match["place"].strip() if match else ""
        if match and re.sub(r"지금|현재|오늘|right now|now|it|the", "", place).strip():
            place = re.sub(r"^(?:지금|현재|오늘)\s*", "", place)
            # In Korean any word before the time may be a filler; only a known place counts.
            if not is_korean or zones.find(place):
                return Intent(Kind.TIME, is_korean, place)
            last = place.split()[-1]
            return Intent(Kind.TIME, is_korean, last if zones.find(last) else "")
    return Intent(Kind.TIME, is_korean)


def _is_about_user(text: str, is_korean: bool) -> bool:
    if is_korean:
        is_own = _KO_SELF.search(text) is not None
        is_asked = _KO_QUESTION.search(text.rstrip(" .!")) is not None
        return _KO_ASK_MEMORY.search(text) is not None or (is_own and is_asked)
    if not _ABOUT_USER.search(text):
        return False
    return not _HOW_TO.search(text) or _HOW_TO_ALLOWED.search(text) is not None


def read(message: str) -> Intent | None:
    """The intent that a rule reads in a user's message; None if no rule applies."""
    message = scripts.clean(message)
    prose = scripts.without_code(message)[:_READ_CHARS].strip()
    text = message[:_READ_CHARS].strip()
    is_korean = scripts.has_hangul(prose)
    content = explicit(text)
    if content is not None:
        return Intent(Kind.REMEMBER, is_korean, content)
    if _RUN_PLAN.search(prose) and not scripts.code_blocks(message):
        named = _PLAN_ID.search(prose)
        return Intent(Kind.RUN_PLAN, is_korean, named[1] if named else "")
    intent = _plan(text, is_korean) or _code(message.strip(), prose, is_korean)
    if intent is not None:
        return intent
    expression = calculations.read(prose) if prose else None
    if expression is not None:
        return Intent(Kind.CALCULATE, is_korean, expression)
    intent = _time(prose, is_korean)
    if intent is not None:
        return intent
    for kind, pattern in (
        (Kind.GREETING, _GREETING),
        (Kind.THANKS, _THANKS),
        (Kind.FAREWELL, _FAREWELL),
        (Kind.HELP, _HELP),
        (Kind.IDENTITY, _IDENTITY),
    ):
        if pattern.search(prose):
            return Intent(kind, is_korean)
    if _is_about_user(prose, is_korean):
        return Intent(Kind.RECALL, is_korean, prose)
    return None
