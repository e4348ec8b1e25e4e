"""Facts in Korean sentences."""

import re
from collections.abc import Callable

from services.language import lexicon, rules_ko, vocabulary_ko
from services.language.fact import Fact, Said, attribute, choice, is_functional


def plain(text: str) -> str:
    """The sentence without final marks, the speaker and words that change no fact."""
    text = re.sub(r"\s+", " ", text.lower().strip(" .!~;,?"))
    text = vocabulary_ko.FILLER.sub(" ", text)
    text = re.sub(r"\s+", " ", text.replace(",", " ")).strip()
    return vocabulary_ko.SELF.sub("", text).strip()


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


def _taste(said: Said) -> list[Fact]:
    name = _canonical(said.value)
    name = re.sub(r"(?:하는|타는|보는|듣는|읽는|마시는|먹는) (?:것|거|걸)$", "", name).strip()
    is_denied = said.key == "dislike" or said.is_negated
    if said.key == "dislike" and re.search(r"안 싫|싫지 않|싫어하지 않", said.sentence):
        is_denied = False
    return [Fact("like", lexicon.canonical(name), is_denied, False)]


def _favorite(said: Said) -> list[Fact]:
    noun = attribute("my", said.noun).removeprefix("my:")
    return [Fact(f"favorite:{noun}", _canonical(said.value), said.is_negated)]


def _habit(said: Said) -> list[Fact]:
    name = _canonical(said.value)
    if name == "담배":
        return [Fact("habit", "smoke", said.is_negated, False)]
    named = (full for part, full in vocabulary_ko.HABITS if said.get("verb").startswith(part))
    is_drink = lexicon.category(said.value) == "drink" or name == "술"
    verb = next(named, "drink" if is_drink else "do")
    return [Fact("habit", f"{verb} {name}", said.is_negated, False)]


def _routine(said: Said) -> list[Fact]:
    verb = next(full for part, full in vocabulary_ko.ROUTINES if said.noun.startswith(part))
    return [Fact(f"routine:{verb}", _canonical(said.value), said.is_negated)]


def _possession(said: Said) -> list[Fact]:
    count = lexicon.canonical(said.get("n")) if said.get("n") else "some"
    noun = lexicon.canonical(said.get("noun"))
    return [Fact(f"have:{noun}", "0" if said.is_negated else count)]


def _attribute(said: Said) -> list[Fact]:
    owner, value = said.get("owner"), said.value
    is_known = is_functional(said.noun)
    if not value or (not owner and not is_known):
        return []
    if re.search(r"(?:을|를|에서|에게) \S+$|(?:어|아|여|해|요|까)$", value):
        # A verb, not a noun: the ending that makes it a statement is missing.
        return []
    whose = "the" if owner in {"우리", "우리의", "저희"} else "my"
    name = _canonical(value)
    if len(name) > 2 and lexicon.category(value) is None:
        name = re.sub(r"(?:으로|로|에|에서)$", "", name)
    is_own = is_known and bool(owner)
    return [Fact(attribute(whose, said.noun), name, said.is_negated, is_known, is_own)]


def _decision(said: Said) -> list[Fact]:
    about = lexicon.category(said.value) or said.noun
    key = f"decision:{about}" if about else "decision"
    return [Fact(key, _canonical(said.value), said.is_negated, bool(about))]


def _choice(said: Said) -> list[Fact]:
    prefix = said.key.rstrip(":")
    about = None
    if said.noun:
        kind = lexicon.category(said.value)
        about = kind or attribute("my", said.noun).removeprefix("my:")
    key, name = choice(prefix, said.value, about=about)
    other = _value(said.get("w")) if prefix == "prefer" else ""
    facts = [Fact(key, name, said.is_negated, is_single=key != prefix or bool(other))]
    if other:
        pair = f"{name} > {lexicon.canonical(other)}"
        facts.append(Fact("prefer pair", pair, said.is_negated, False))
    return facts


def _job(said: Said) -> list[Fact]:
    value = said.value
    if said.groups.get("profession"):
        value = said.get("profession")
        if not vocabulary_ko.PROFESSION.search(value) or rules_ko.OTHER.match(value):
            return []
    facts = [Fact("job", _canonical(value), said.is_negated)]
    if said.get("employer"):
        facts.append(Fact("employer", _value(said.get("employer"))))
    return facts


_READERS: dict[str, Callable[[Said], list[Fact]]] = {
    "have": _possession,
    "habit": _habit,
    "my:": _attribute,
    "like": _taste,
    "dislike": _taste,
    "favorite": _favorite,
    "routine": _routine,
    "decision": _decision,
    "prefer:": _choice,
    "use:": _choice,
    "favorite:": _choice,
    "job": _job,
}
# These need no value: "강아지를 키워", "간호사예요".
_BARE = frozenset({"have", "job"})


def _read(key: str, is_single: bool, match: re.Match[str], is_negated: bool) -> list[Fact]:
    groups = match.groupdict()
    said = Said(key, groups, _value(groups.get("v") or ""), is_negated, match[0])
    if not said.value and key not in _BARE:
        return []
    other = rules_ko.OTHER.match(said.value) if key in rules_ko.PERSONAL else None
    if other:
        about = f"of {other['who']}:{key.rstrip(':')}"
        told = _canonical(_value(other["rest"]))
        return [Fact(about, told, is_negated != (key == "dislike"), is_single, False)]
    if key in _READERS:
        return _READERS[key](said)
    return [Fact(key, _canonical(said.value), is_negated, is_single)]


def is_denied(sentence: str) -> bool:
    """Whether a sentence in the form of `plain` denies something."""
    return vocabulary_ko.NEGATION.search(sentence) is not None


def parse(text: str) -> list[Fact]:
    """The facts of a Korean sentence, the main one first."""
    sentence = plain(text)
    is_negated = is_denied(sentence)
    for key, is_single, rule in rules_ko.RULES:
        match = rule.match(sentence)
        found = _read(key, is_single, match, is_negated) if match else []
        if found:
            return found
    return []
