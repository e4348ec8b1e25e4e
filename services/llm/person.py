"""A fact in the user's words, said back to the user: "I prefer …" becomes "You prefer …"."""

import re

from services.language import scripts

_SWAPS = {
    "i": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
    "i'm": "you're",
    "i've": "you've",
    "i'd": "you'd",
    "i'll": "you'll",
    "you": "I",
    "your": "my",
    "yours": "mine",
    "yourself": "myself",
    "you're": "I'm",
    "you've": "I've",
    "you'll": "I'll",
    "you'd": "I'd",
}
_OBJECT_BEFORE = frozenset(
    {"to", "for", "with", "about", "of", "from", "by", "at", "on", "in", "than", "like", "and"}
    | {"tell", "give", "show", "ask", "help", "call", "remind", "send", "let", "want", "need"}
    | {"expect", "love", "trust", "thank", "teach", "told"}
)
_ADVERBS = r"(?:(?:not|really|also|still|always|never|currently|now|often|usually|just)\s+)?"
_TOKEN = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?|[^A-Za-z]+")
_USER = re.compile(r"^(?:the user|user)('s)?\s+", re.IGNORECASE)


def _swap(token: str, before: str) -> str:
    key = token.lower()
    new = _SWAPS.get(key)
    if new is None:
        return token
    if key == "you" and before in _OBJECT_BEFORE:
        return "me"
    return new


def _english(text: str) -> str:
    if _USER.match(text):
        return text
    words: list[str] = []
    before = ""
    for token in _TOKEN.findall(text):
        words.append(_swap(token, before))
        if token.strip(" "):
            before = token.lower() if token[0].isalpha() else ""
    said = "".join(words)
    said = re.sub(rf"\b([Yy]ou) ({_ADVERBS})am\b", r"\1 \2are", said)
    said = re.sub(rf"\b([Yy]ou) ({_ADVERBS})was\b", r"\1 \2were", said)
    said = re.sub(rf"\bI ({_ADVERBS})are\b", r"I \1am", said)
    said = re.sub(r"\bam you\b", "are you", said)
    return said[:1].upper() + said[1:]


# Plain endings to the polite form that speaks of the listener.
_ENDINGS = (
    (r"(?:좋아해요?|좋아합니다|좋아한다|좋아함)", "좋아하십니다"),
    (r"(?:안 좋아해요?|좋아하지 않아요?|좋아하지 않습니다|좋아하지 않는다)", "좋아하지 않으십니다"),
    (r"(?:싫어해요?|싫어합니다|싫어한다)", "싫어하십니다"),
    (r"(?:선호해요?|선호합니다|선호한다|선호함)", "선호하십니다"),
    (r"(?:살아요?|삽니다|산다|살고 있어요?|살고 있습니다|살고 있다)", "살고 계십니다"),
    (r"(?:일해요?|일합니다|일한다|일하고 있어요?|일하고 있습니다)", "일하고 계십니다"),
    (r"(?:다녀요?|다닙니다|다닌다|다니고 있어요?|다니고 있습니다)", "다니고 계십니다"),
    (r"(?:이사했어요?|이사했습니다|이사했다|이사 왔어요?)", "이사하셨습니다"),
    (r"(?:써요?|씁니다|쓴다|사용해요?|사용합니다|사용한다)", "사용하십니다"),
    (r"(?:마셔요?|마십니다|마신다)", "드십니다"),
    (r"(?:키워요?|키웁니다|키우고 있어요?)", "키우십니다"),
    (r"(?:있어요?|있습니다|있다)", "있습니다"),
    (r"(?:없어요?|없습니다|없다)", "없습니다"),
    (r"(?:했어요?|했습니다|했다)", "하셨습니다"),
    (r"(?:이에요|예요|이야|입니다|이다)", "입니다"),
    (r"(?<=[가-힣])야", "입니다"),
)


def _korean(text: str) -> str:
    said = text.rstrip(" .!~")
    said = re.sub(r"^(?:나는|저는|난|전|내가|제가|나도|저도)\s+", "", said)
    for pattern, polite in _ENDINGS:
        changed = re.sub(rf"{pattern}$", polite, said)
        if changed != said:
            changed = re.sub(r"^(?:내|제|나의|저의)\s+", "사용자님의 ", changed)
            return changed.replace(" 내 ", " 사용자님의 ").replace(" 제 ", " 사용자님의 ")
    # An ending no rule knows is quoted rather than bent wrongly.
    return f'"{text.rstrip(" .")}"라고 하셨습니다'


def said_back(content: str) -> str:
    """The fact from the assistant's mouth, without a final stop. A Korean sentence stays Korean."""
    content = content.strip().rstrip(".")
    return _korean(content) if scripts.has_hangul(content) else _english(content)
