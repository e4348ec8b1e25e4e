"""Remembering without a database: what to keep, what is the same, what takes another's place.

Pure functions; the memories service stores what they decide.
"""

import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from enum import StrEnum

from services.language import facts, facts_en, facts_ko, lexicon, scripts
from services.language.extraction import (
    Candidate,
    MemoryType,
    candidate,
    classify,
    explicit,
    extract,
)
from services.language.fact import Fact

__all__ = [
    "Candidate",
    "MemoryType",
    "Relation",
    "candidate",
    "classify",
    "explicit",
    "extract",
    "normalize",
    "rank",
    "relation",
]


class Relation(StrEnum):
    """How what is said now relates to what is remembered."""

    DUPLICATE = "duplicate"
    SUPERSEDES = "supersedes"
    RELATED = "related"
    UNRELATED = "unrelated"


# Cosines of the multilingual encoder, from the authored pairs of the tests.
_SAME_WORDING = 0.93
_SAME_ACROSS_LANGUAGES = 0.8
_RELATED = 0.45
_READ_CHARS = 500

# What a thing looks like says nothing about what it is.
_LOOKS = frozenset(["color", "length", "tone"])

# Verbs under which many things can be true at once, and what has happened once.
_MANY = frozenset(
    [
        "like",
        "love",
        "enjoy",
        "hate",
        "speak",
        "know",
        "visited",
        "met",
        "bought",
        "saw",
        "read",
        "watched",
        "went",
        "attended",
        "have",
        "own",
        "allergic",
        "interested",
        "ate",
        "called",
        "tried",
        "learned",
        "can",
        "drink",
        "eat",
        "play",
        "include",
        "mention",
        "learn",
        "learning",
        "wish",
        "hope",
        "need",
        "plan",
        "met",
        "좋아해",
        "만났어",
        "샀어",
        "읽었어",
    ]
)
_PROCEDURE_EN = re.compile(
    r"^(?:please )?(?:(?P<yes>always|make sure to|be sure to|remember to|from now on)"
    r"|(?P<no>never|do not ever|do not|avoid|stop))?"
    r"[, ]*(?:please )?(?P<action>.+)$"
)
_CONDITION_EN = re.compile(
    r"^(?:when|whenever|if|every time|each time) (?P<c1>[^,]+), (?P<a1>.+)$"
    r"|^(?P<a2>.+?) (?P<w2>when|whenever|if|every time|each time|unless) (?P<c2>.+)$"
)
_PROCEDURE_KO = re.compile(
    r"^(?:(?P<c>.+?(?:때|면|마다|때는|때마다))\s+)?(?:(?P<yes>항상|언제나|늘|꼭|앞으로|매번)"
    r"|(?P<no>절대로?))\s+(?P<action>.+)$"
)
_ENDING_KO = re.compile(
    r"\s?(?:지 ?(?:마|말)\S*(?: ?\S{1,3})?|(?:해|하여)?(?: ?(?:줘|주세요|주라|줄래))|하세요"
    r"|하기|할 것|한다|합니다|해요|해라|해|세요|라|요)$"
)


def normalize(content: str) -> str:
    """The wording that decides whether two memories are literally the same.

    NFC, lower case, no final marks, single spaces: "I prefer  metric units." and "i prefer metric
    units" are one.
    """
    text = scripts.clean(content).lower()
    return " ".join(text.split()).strip(" .!~,;:\"'")


def _tokens(text: str) -> list[str]:
    if scripts.has_hangul(text):
        return facts_ko.plain(text).split()
    return re.findall(r"[\w'@.+#-]+", re.sub(r"\b(?:an?|the)\b", " ", facts_en.plain(text)))


def _contains(whole: str, part: str) -> bool:
    return set(part.replace(",", " ").split()) <= set(whole.replace(",", " ").split())


def _values(old: Fact, new: Fact, similarity: float, is_mixed: bool) -> Relation:
    """Two values of one attribute of which there is one at a time, both affirmed."""
    if old.value == new.value:
        return Relation.DUPLICATE
    kinds = lexicon.category(old.value), lexicon.category(new.value)
    if is_mixed and None in kinds:
        # A name written in two scripts: only the meaning can tell.
        is_same = similarity >= _SAME_ACROSS_LANGUAGES
        return Relation.DUPLICATE if is_same else Relation.SUPERSEDES
    if None not in kinds and kinds[0] != kinds[1]:
        is_own = old.key.partition(":")[0] not in {"my", "prefer", "use", "decision", "diet"}
        return Relation.SUPERSEDES if is_own or old.key == "diet" else Relation.RELATED
    if old.key.startswith("my:") and (kinds[0] in _LOOKS) != (kinds[1] in _LOOKS):
        return Relation.RELATED
    if _contains(old.value, new.value):
        return Relation.DUPLICATE
    if _contains(new.value, old.value):
        return Relation.RELATED
    return Relation.SUPERSEDES


def _pair(old: Fact, new: Fact, similarity: float, is_mixed: bool) -> Relation | None:
    """How two facts relate; None where they are about different things."""
    keys = old.key, new.key
    if keys[0] != keys[1] and " for " not in keys[0] and " for " not in keys[1]:
        return None
    if keys[0] != keys[1] and keys[0].partition(" for ")[0] != keys[1].partition(" for ")[0]:
        return None
    if keys[0] != keys[1] and " for " in keys[0] and " for " in keys[1]:
        return None
    if old.is_single and new.is_single:
        if old.is_negated == new.is_negated:
            if old.is_negated and old.value != new.value:
                return Relation.RELATED
            return _values(old, new, similarity, is_mixed)
        # "no longer at Google" ends "at Google"; it says nothing against "at Naver".
        is_same = old.value == new.value or _contains(old.value, new.value)
        if is_same or (old.is_negated and not new.is_negated and old.key == "diet"):
            return Relation.SUPERSEDES
        return Relation.RELATED
    if old.value == new.value:
        return Relation.DUPLICATE if old.is_negated == new.is_negated else Relation.SUPERSEDES
    kind = lexicon.category(old.value)
    is_same_kind = kind is not None and kind == lexicon.category(new.value)
    is_changed = is_same_kind and old.key.startswith("my:") and old.is_negated == new.is_negated
    return Relation.SUPERSEDES if is_changed else Relation.RELATED


def _by_facts(old: str, new: str, similarity: float) -> Relation | None:
    """The relation by what both say; None where the rules read no common attribute."""
    is_mixed = scripts.has_hangul(old) != scripts.has_hangul(new)
    before, after = facts.parse_all(old), facts.parse_all(new)
    found = [
        relation
        for a in before
        for b in after
        if (relation := _pair(a, b, similarity, is_mixed)) is not None
    ]
    for strongest in (Relation.SUPERSEDES, Relation.DUPLICATE, Relation.RELATED):
        if strongest in found:
            if strongest is Relation.DUPLICATE and len(after) > len(before):
                return Relation.RELATED
            return strongest
    return None


def _procedure(text: str) -> tuple[str, bool, list[str]] | None:
    """Condition, whether it is forbidden, and the words of the action of a standing instruction."""
    if scripts.has_hangul(text):
        sentence = facts_ko.plain(text)
        match = _PROCEDURE_KO.match(" ".join(normalize(text).split()))
        if match is None:
            return None
        is_denied = bool(match["no"]) or re.search(r"지 ?(?:마|말|않)", sentence) is not None
        action = _ENDING_KO.sub("", match["action"])
        return (match["c"] or "").strip(), is_denied, action.split()
    sentence = facts_en.words(text)
    condition, rest = "", sentence
    found = _CONDITION_EN.match(sentence)
    if found:
        condition, rest = (found["c1"] or found["c2"]), (found["a1"] or found["a2"])
    match = _PROCEDURE_EN.match(rest)
    if match is None or not (match["yes"] or match["no"] or condition):
        return None
    return condition.strip(), bool(match["no"]), _tokens(match["action"])


def _slot(old: Sequence[str], new: Sequence[str]) -> Relation | None:
    """The relation of two wordings that differ in one place.

    Values of one kind in that place exclude each other ("at 6 am", "at 8 am"), unless the sentence
    is of a sort that can be true many times.
    """
    if _MANY & {*old, *new}:
        return None
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changed = [op for op in blocks if op[0] != "equal"]
    kept = sum(op[2] - op[1] for op in blocks if op[0] == "equal")
    if len(changed) != 1 or kept == 0 or changed[0][0] != "replace":
        return None
    _, i1, i2, j1, j2 = changed[0]
    before, after = " ".join(old[i1:i2]), " ".join(new[j1:j2])
    kinds = lexicon.look_up(_stem(before)), lexicon.look_up(_stem(after))
    if kinds[0][0] is None or kinds[0][0] != kinds[1][0]:
        return None
    return Relation.DUPLICATE if kinds[0][1] == kinds[1][1] else Relation.SUPERSEDES


def _stem(word: str) -> str:
    if scripts.has_hangul(word) and lexicon.category(word) is None:
        return re.sub(r"(?:으로|로|에서|에|은|는|을|를|이|가)$", "", word)
    return word


def _by_procedure(old: str, new: str) -> Relation | None:
    before, after = _procedure(old), _procedure(new)
    if before is None or after is None:
        return None
    if before[0] != after[0]:
        return Relation.RELATED
    if before[2] == after[2]:
        return Relation.DUPLICATE if before[1] == after[1] else Relation.SUPERSEDES
    if before[1] == after[1] and not before[1]:
        return _slot(before[2], after[2])
    return None


_DENIALS = re.compile(
    r"\b(?:do not|does not|am not|is not|are not|have not|can not|not|never|stopped|quit|gave up"
    r"|(?:have|am) stopped)\b"
)


def _core(text: str) -> str:
    """A sentence without its denial, its verb in one form: what is affirmed or denied."""
    plain = re.sub(r"\b(?:am|started|do|still|to)\b", " ", _DENIALS.sub(" ", facts_en.plain(text)))
    return " ".join(re.sub(r"(?<=\w{3})(?:ing|s|e)\b", "", plain).split())


def _by_wording(old: str, new: str) -> Relation | None:
    a, b = _tokens(old), _tokens(new)
    if a == b:
        return Relation.DUPLICATE
    if not scripts.has_hangul(old + new) and _core(old) == _core(new):
        is_same = _is_denied(old) == _is_denied(new)
        return Relation.DUPLICATE if is_same else Relation.SUPERSEDES
    return _slot(a, b)


def _is_denied(text: str) -> bool:
    if scripts.has_hangul(text):
        return facts_ko.is_denied(facts_ko.plain(text))
    return facts_en.is_denied(facts_en.plain(text))


def _said_apart(old: str, new: str) -> bool:
    """Whether names or numbers tell two similar sentences apart."""
    pattern = re.compile(r"\d[\d.,:]*")
    if pattern.findall(old) != pattern.findall(new):
        return True
    names = [set(re.findall(r"(?<=\s)[A-Z][\w-]+", text)) for text in (old, new)]
    return bool(names[0] ^ names[1]) or _is_denied(old) != _is_denied(new)


def relation(old: str, new: str, similarity: float) -> Relation:
    """How `new` relates to `old`; `similarity` is the cosine of their embeddings.

    SUPERSEDES: the same attribute of the same subject now has another value, or is denied.
    DUPLICATE: `new` adds nothing. RELATED: near each other, both hold. Else UNRELATED.
    """
    if normalize(old) == normalize(new):
        return Relation.DUPLICATE
    if max(len(old), len(new)) > _READ_CHARS:
        # No statement of one fact is this long; a note is judged by its meaning alone.
        return Relation.RELATED if similarity >= _RELATED else Relation.UNRELATED
    found = _by_procedure(old, new) or _by_facts(old, new, similarity) or _by_wording(old, new)
    if found is not None:
        return found
    if similarity >= _SAME_WORDING and not _said_apart(old, new):
        return Relation.DUPLICATE
    return Relation.RELATED if similarity >= _RELATED else Relation.UNRELATED


_HOURLY_DECAY = 0.995


def rank(
    score: float,
    importance: float,
    age_s: float,
    last_access_age_s: float | None,
    access_count: int,
) -> float:
    """How high a memory stands in an answer, 0 upward; `score` is its relevance in 0…1.

    relevance × (0.8 + 0.2 importance) × (0.9 + 0.1 · 0.995^hours) × (1 + 0.05 · use), with hours
    since the last access, or since it was made, and use = ln(1 + n) / ln(101), at most 1.
    Relevance, importance and recency, with their decay of 0.995 an hour, are of Park et al.,
    "Generative Agents" (2023), section 4.1, which adds them up; here they multiply and are bounded,
    so that all together never outweigh a relevance higher by half (0.8 · 0.9 against 1.05).
    """
    ages = [age_s] if last_access_age_s is None else [age_s, last_access_age_s]
    hours = max(0.0, min(ages)) / 3600
    recency = math.pow(_HOURLY_DECAY, hours)
    use = min(1.0, math.log1p(max(0, access_count)) / math.log(101))
    weight = (0.8 + 0.2 * min(1.0, max(0.0, importance))) * (0.9 + 0.1 * recency)
    return max(0.0, score) * weight * (1 + 0.05 * use)
