"""What is worth remembering in a user's message: rules for English and Korean.

Precision comes before recall: a question, a command, a quotation, a supposition, code or somebody
else's words must never become a fact about the user.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from services.language import facts, scripts

_READ_CHARS = 8_000
_MAX_SENTENCE_CHARS = 300
_MAX_CANDIDATES = 8


class MemoryType(StrEnum):
    """What kind of thing is remembered."""

    EPISODIC = "episodic"
    SEMANTIC = "semantic"
    PROCEDURAL = "procedural"
    PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to remember. `importance` in 0…1.

    `subject` names what the fact is about ("user.residence"), None where no rule knows.
    """

    type: MemoryType
    content: str
    importance: float
    subject: str | None = None


def _rule(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


_ASK_EN = (
    r"(?:(?:please|hey|hi|hello|ok|okay|also|and|so|then|now)\b[,!.]?\s*)*"
    r"(?:(?:can|could|would|will) you (?:please )?|i(?:'d| would) like you to |i (?:want"
    r"|need) you to "
    r"|you (?:should|must|need to) )?(?:please )?"
)
_REMEMBER_EN = _rule(
    rf"^{_ASK_EN}(?:always )?(?:remember|memori[sz]e|keep in mind|bear in mind|take note"
    rf"|make a note"
    r"|note down|note|don't (?:ever )?forget|do not forget|never forget)\b"
    r"(?:\s*(?:(?:that|this|the following|the fact that|of the fact that|for (?:me|later)"
    r"|of this)\b"
    r"|(?:this )?(?:for )?(?:later|the future)\b))*\s*[:,\-–]?\s*(?P<content>.+)$"
)
_SAVE_EN = _rule(
    rf"^{_ASK_EN}(?:save|store|add|put|commit)\b(?: (?:this|that|it|the following))?"
    r" (?:to|in|into) (?:your |my |the )?memor(?:y|ies)\s*(?:that\b)?\s*[:,\-–]?\s*(?P<content>.+)$"
)
_FUTURE_EN = _rule(
    r"^(?:for (?:future|your|later) (?:reference|information)|for the record|fyi|just so you know)"
    r"\s*[:,\-–]?\s*(?:that\b)?\s*(?P<content>.+)$"
)
_NOT_CONTENT_EN = _rule(
    r"^(?:when|how|what|why|where|who|which|whether|if|me|it|this|that|us|them|him|her)\b\W*"
    r"(?:\w+\W+){0,3}\?*$|^(?:when|how|what|why|where|who|whether) (?:we|i|you|they|he|she)\b.*$"
)
_REMEMBER_KO = (
    _rule(
        r"^(?:(?:그리고|저기|참|아|응|네|꼭|이것도|이거|이것|이걸|이건|다음을?|앞으로)[,:]?\s*)*"
        r"(?:꼭\s*)?(?:기억|메모|명심|저장)\s*(?:해|하)\s*(?:둬|두|줘|주|놔|놓)?\s*(?:줘|주"
        r"|세요|줄래|라|요)*"
        r"[.!]?\s*[:,：\-–.!]\s*(?P<content>.+)$"
    ),
    _rule(r"^(?:꼭\s*)?잊지\s*(?:마|말)\S*\s*[:,：\-–.!]\s*(?P<content>.+)$"),
    _rule(
        r"^(?P<content>.+?)(?P<tail>다는|라는|이라는)\s*(?:것을|거|걸|것|점을|점|사실을"
        r"|사실)\s*(?:꼭\s*)?(?:잘\s*)?"
        r"(?:기억|메모|명심|잊지)\S*(?:\s*(?:줘|두세요|둬|주세요|놔|마|말아\S*|주실래요"
        r"|줄래))*\s*[.!~]*$"
    ),
    _rule(
        r"^(?P<content>.+?)(?P<tail>다고|라고|이라고|고|는 걸|은 걸|는 것을|은 것을|는 것"
        r"|,)?\s+(?:꼭\s*)?(?:잘\s*)?"
        r"(?:기억해|메모해|기억하|명심해|잊지)\S*(?:\s*(?:줘|두세요|둬|주세요|놔|마|말아\S*"
        r"|주실래요|줄래))*\s*[.!~]*$"
    ),
)


def explicit(text: str) -> str | None:
    """What the user asks in so many words to remember ("remember that …"); None if nothing.

    "Do you remember …?" and "remember when we …?" are questions, not requests.
    """
    text = scripts.clean(text[:_READ_CHARS]).strip()
    if not text:
        return None
    for pattern in (_REMEMBER_EN, _SAVE_EN, _FUTURE_EN):
        match = pattern.match(text)
        if match:
            content = match["content"].strip()
            is_question = content.endswith("?") and not _polite_question(text)
            if is_question or _NOT_CONTENT_EN.match(content) or not re.search(r"\w", content):
                return None
            return _content(re.sub(r"^to (?=\w)", "", content.rstrip("?")))
    is_asking = text.endswith(("?", "？")) and not re.search(
        r"(?:줄래|주실래|줄 수|주실 수)\S*$", text
    )
    if not scripts.has_hangul(text) or is_asking:
        return None
    for pattern in _REMEMBER_KO:
        match = pattern.match(text)
        if match:
            content = match["content"].strip()
            tail = match.groupdict().get("tail") or ""
            if tail in {"다는", "다고"}:
                content += "다"
            if re.fullmatch(
                r"(?:이것|이거|그것|그거|이걸|그걸|이|그|꼭|잘|제발|내가 한 말)\S?", content
            ):
                return None
            return _content(content)
    return None


def _polite_question(text: str) -> bool:
    return (
        re.match(
            r"^(?:\W*(?:please|hey|hi|ok)\W+)*(?:can|could|would|will) you\b", text, re.IGNORECASE
        )
        is not None
    )


_LEAD = _rule(
    r"^(?:(?:oh|well|so|and|but|also|btw|by the way|actually|anyway|hi|hello|hey|yes|no|ok|okay"
    r"|sure|thanks"
    r"|in fact|just so you know|fyi|you know|please|honestly|frankly|to be honest)\b[,!.:]*\s+)+"
)
_LEAD_KO = _rule(
    r"^(?:(?:아|음|네|응|참|그리고|그런데|근데|사실|사실은|참고로|안녕하세요|안녕)[,!.]*\s+)+"
)


def _content(text: str) -> str:
    """A memory's wording: no lead-in, no final stop, a capital first."""
    text = re.sub(r"\s+", " ", text).strip()
    text = _LEAD_KO.sub("", _LEAD.sub("", text)).strip(" \t\"'.!~,;:")
    return text[:1].upper() + text[1:]


_SENTENCE_END = re.compile(r"(?<=[.!?。！？~])[\"')\]]*\s+|\n+")
_QUOTED = re.compile(r"\"[^\"\n]{12,}\"|「[^」]*」|『[^』]*』|(?<!\w)'[^'\n]{12,}'(?!\w)")
_QUESTION = _rule(
    r"[?？]\W*$|^(?:what|which|where|who|whose|when|why|how|do|does|did|is|are|am|was|were|can"
    r"|could|would|will"
    r"|should|shall|have|has|may|might)\b"
    r"|(?:니|까|까요|나요|가요|은가|는지|을지|냐|느냐|던가|인가|일까|을까|어때|어떻게|뭐야|뭐지"
    r"|뭐예요|뭐죠|누구야|어디야|어디지|언제야|"
    r"언제지|왜|얼마야|맞지|맞아)[.!~ ]*$"
    r"|(?:무엇|무슨|어디|언제|누구|어느|뭐가|뭘|몇 )"
)
_SUPPOSED = _rule(
    r"\b(?:if|imagine|suppose|assume|assuming|pretend|let's say|what if|unless|wish"
    r"|hypothetically|would have"
    r"|maybe|perhaps|might|probably|not sure|i guess|for example|e\.g\.|say i)\b"
    r"|만약|만일|가령|예를 들어|(?:라면|다면|으면|했더라면)(?:\s|$|,)|아마|같아요?[.!~ ]*$"
    r"|싶다면|인 척|하는 척"
)
_REPORTED = _rule(
    r"\b(?:he|she|they|it|someone|somebody|people|everyone|the (?:article|book|text|author"
    r"|character|user|customer"
    r"|client|email|letter)|[A-Z]\w+|my \w+)\s+(?:said|says|told|asked|wrote|writes|claims?"
    r"|claimed|replied|answered"
    r"|thinks?|thought|states?|stated|mentioned)\b"
    r"|\b(?:quote|translate|rewrite|rephrase|proofread|summari[sz]e|correct|fix|paraphrase|say"
    r"|write|repeat)\b.*[:：]"
    r"|라고 (?:말했|했|썼|적혀|답했|대답했|물었|하더)|다고 (?:말했|했|썼|하더|들었)|번역"
    r"|고쳐 ?줘|교정"
)
_COMMAND = _rule(
    r"^(?:please |kindly |now |then |just |can you |could you )*"
    r"(?:run|execute|calculate|compute|make|create|write|show|tell|give|list|find|search|open"
    r"|close|delete|remove"
    r"|add|send|call (?!me )|explain|describe|translate|summari[sz]e|help|stop|start|let|go|try"
    r"|check|look|read|build"
    r"|fix|update|change|set|get|put|print|convert|generate|compare|plan|draw|download|install"
    r"|say|forget|ignore"
    r"|repeat|wait|continue|answer this|act)\b"
)
_COMMAND_KO = _rule(
    r"(?:해|보여|알려|만들어|써|적어|찾아|고쳐|세워|돌려|계산해|설명해|번역해|요약해|읽어|열어"
    r"|지워|가르쳐|도와|추천해|말해|"
    r"골라|바꿔|보내)\s*(?:줘|줘요|주세요|줄래|줄래요|주라|주십시오|봐|봐요|보세요)[.!~ ]*$"
    r"|(?:하라|해라|하시오|하십시오|합시다|하자)[.!~ ]*$"
)
_PROCEDURAL = _rule(
    r"^(?:please )?(?:always|never|from now on|whenever|every time|each time|when (?:i|you|we"
    r"|answering|writing)\b.*,)"
    r"|^(?:please )?(?:do not|don't) ever\b|^you (?:should|must) (?:always|never)\b"
    r"|^(?:항상|언제나|늘|절대|절대로|앞으로는?|매번)\s|(?:할|볼|쓸|답할|대답할|작성할"
    r"|\S+[할을]) 때(?:는|마다|에는)?\s.*"
    r"(?:줘|주세요|마|말아|해|하기|한다|해라|않)"
)
_SECRET = _rule(
    r"\b(?:password|passphrase|passcode|pin (?:code|number|is)|api[- ]?key|secret key"
    r"|private key|access token"
    r"|credit card|card number|cvv|cvc|social security|ssn)\b|비밀번호|암호는|패스워드"
    r"|카드 ?번호|주민등록번호|주민번호"
    r"|\bsk-\w{8,}|\b(?:\d[ -]?){13,16}\b"
)
_EPISODE = _rule(
    r"^(?:yesterday|today|last (?:night|week|month|year|summer|winter|spring|fall|autumn"
    r"|\w+day)|this (?:morning|week"
    r"|afternoon|weekend)|(?:in|on) \w+ \d*,?|on \w+day,?)?\s*,?\s*(?:i|we)(?: just| finally"
    r"| recently)?"
    r" (?:met|visited|went|attended|finished|completed|launched|shipped|released|bought|sold"
    r"|saw|watched|read"
    r"|travell?ed|flew|ran|won|lost|passed|failed|started|graduated|signed|fixed|broke|talked"
    r"|spoke|decided|agreed"
    r"|chose|had (?:a|an|dinner|lunch)|got)\b"
    r"|^(?:어제|오늘|그저께|지난|이번|작년|올해|방금|최근)\S*\s.*(?:했|갔|왔|봤|샀|만났|끝냈"
    r"|먹었|읽었|받았|다녀왔)(?:어|어요|습니다|다|음)"
    r"|(?:로|기로)\s?(?:했|결정했|정했)(?:어|어요|습니다|다)"
)
_WHEN_EN = _rule(
    r"\b(?:yesterday|today|last|this (?:morning|week|weekend|afternoon|year|month)|ago|tonight|just"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|20\d\d|decided|agreed|chose|january|february"
    r"|march|april"
    r"|june|july|august|september|october|november|december)\b"
)

# How much a kind of fact matters, 0…1: who the user is lasts longer than what happened to them.
_IMPORTANCE = {
    "allergy": 0.9,
    "name": 0.9,
    "diet": 0.8,
    "residence": 0.7,
    "job": 0.7,
    "employer": 0.7,
    "birthday": 0.7,
    "decision": 0.7,
}
_IMPORTANCE_BY_TYPE = {
    MemoryType.PREFERENCE: 0.6,
    MemoryType.SEMANTIC: 0.5,
    MemoryType.PROCEDURAL: 0.7,
    MemoryType.EPISODIC: 0.4,
}
_EXPLICIT_BONUS = 0.2
_PREFERENCES = ("prefer", "like", "favorite", "want")

_POINTING = _rule(
    r"(?:it|this|that|these|those|them)(?: (?:one|ones|all|too|so much|very much|a lot))*"
    r"|(?:이|그|저)(?:것|거|걸|게)(?:들|을|를|이|은|도)*"
)


def classify(content: str) -> MemoryType:
    """The type of a memory by its wording."""
    text = scripts.clean(content).strip()
    if _PROCEDURAL.search(text):
        return MemoryType.PROCEDURAL
    fact = facts.parse(text)
    if fact is not None and fact.key.partition(":")[0] in _PREFERENCES:
        return MemoryType.PREFERENCE
    if _EPISODE.search(text):
        return MemoryType.EPISODIC
    return MemoryType.SEMANTIC


def candidate(content: str, *, is_explicit: bool) -> Candidate:
    """A candidate of this wording, typed, weighed and with its subject."""
    kind = classify(content)
    fact = facts.parse(content)
    subject = fact.subject if fact and kind is not MemoryType.PROCEDURAL else None
    base = _IMPORTANCE_BY_TYPE[kind]
    if fact is not None:
        base = _IMPORTANCE.get(fact.key.partition(":")[0], base)
    importance = min(1.0, base + (_EXPLICIT_BONUS if is_explicit else 0.0))
    return Candidate(kind, content, round(importance, 2), subject)


def _is_fact(sentence: str) -> bool:
    """Whether a statement says something lasting about the user or their work."""
    if _PROCEDURAL.search(sentence):
        return True
    fact = facts.parse(sentence)
    if fact is not None and _POINTING.fullmatch(fact.value):
        # "I love this": what is meant is not said, and nobody will know later.
        return False
    if fact is not None and fact.is_about_user:
        return True
    is_korean = scripts.has_hangul(sentence)
    is_dated = is_korean or _WHEN_EN.search(sentence) is not None
    return is_dated and _EPISODE.search(sentence) is not None


def _is_refused(sentence: str) -> bool:
    if not 4 <= len(sentence) <= _MAX_SENTENCE_CHARS or sentence.startswith((">", "|", "#", "$")):
        return True
    if _PROCEDURAL.search(sentence):
        # "When I ask for code, …" is a rule although it holds a condition and an order.
        return any(rule.search(sentence) for rule in (_REPORTED, _SECRET)) or sentence.endswith("?")
    rules = (_QUESTION, _SUPPOSED, _REPORTED, _SECRET, _COMMAND, _COMMAND_KO)
    return any(rule.search(sentence) for rule in rules)


def extract(text: str) -> list[Candidate]:
    """What to remember of a user's message, in its order, without duplicates, at most 8.

    Reads the first 8,000 characters, at about 10 ms a thousand: long texts belong in a thread.
    An explicit request ("remember that …") is followed whatever it holds; else only plain
    statements about the user count.
    """
    text = scripts.clean(text[:_READ_CHARS])
    if scripts.has_fence(text) and explicit(scripts.without_code(text)) is None:
        text = scripts.without_code(text, "\n")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(">")]
    text = "\n".join(lines).strip()
    if "\n" not in text and len(_SENTENCE_END.split(text)) == 1:
        asked = explicit(text)
        if asked:
            return [candidate(asked, is_explicit=True)]
    found: list[Candidate] = []
    # After "translate this:" everything that follows is somebody's text, not the user's word.
    for raw in _SENTENCE_END.split(text):
        sentence = raw.strip(" \t-*•")
        asked = explicit(sentence)
        if asked:
            found.append(candidate(asked, is_explicit=True))
            continue
        if raw.rstrip().endswith((":", "：")) or _REPORTED.search(raw):
            break
        sentence = _content(_QUOTED.sub(" ", scripts.without_code(sentence))) + (
            "?" if sentence.endswith(("?", "？")) else ""
        )
        if not _is_refused(sentence) and _is_fact(sentence):
            found.append(candidate(_content(sentence), is_explicit=False))
    unique = {item.content.lower(): item for item in reversed(found)}
    return [item for item in found if unique.pop(item.content.lower(), None)][:_MAX_CANDIDATES]
