"""Facts in English sentences."""

import re
from collections.abc import Callable

from services.language import lexicon, rules_en, vocabulary_en
from services.language.fact import Fact, Said, attribute, choice, is_functional


def words(text: str) -> str:
    """The sentence in lower case without contractions, final marks and double spaces."""
    text = text.lower().strip(" .!~;,")
    for pattern, full in vocabulary_en.CONTRACTIONS:
        text = pattern.sub(full, text)
    text = re.sub(r"^(?:the user|user)'s\b", "my", text)
    text = re.sub(
        r"^(?:the user|user) (?:is|has)\b",
        lambda m: "i am" if "is" in m[0][-3:] else "i have",
        text,
    )
    text = re.sub(
        r"^(?:the user|user) (\w+?)(?:es|s)\b",
        lambda m: f"i {m[1]}" + ("e" if m[0].endswith("ves") or m[0].endswith("kes") else ""),
        text,
    )
    return " ".join(text.split())


def plain(text: str) -> str:
    """`words` without adverbs and lead-ins that change no fact."""
    text = re.sub(
        r"^(?:that|and|but|so|well|yes|no|ok|also|hi|hello|sorry|remember that|note that)[, ]+",
        "",
        words(text),
    )
    text = vocabulary_en.FILLER.sub(" ", text.replace(" no longer ", " not "))
    return " ".join(re.sub(r"\s*,\s*$|^\s*,", "", text).split()).strip(" ,")


def _value(text: str) -> str:
    text = re.sub(r"^(?:an?|the|my|our|some|any)\s+", "", text.strip(" ,"))
    text = re.sub(r"(?:,| but | because | so that | which | and not | not ).*$", "", text)
    return re.sub(r"^(?:an?|the|to)\s+", "", text).strip(" \"'")


def _activity(value: str) -> str:
    """One form for "to run", "running", "runs"."""
    first, _, rest = value.partition(" ")
    stem = re.sub(r"(?<=\w{3})ing$", "", first)
    if stem != first and len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "ls":
        stem = stem[:-1]
    return f"{stem.rstrip('e') if stem != first else first.rstrip('e')} {rest}".strip()


def _profession(named: str | None) -> str | None:
    """The job somebody says to be; None for "a father", "learning German", "tired"."""
    words = (named or "").split()
    if not words or words[0].endswith("ing") or words[-1] in vocabulary_en.NOT_PROFESSION:
        return None
    return named if vocabulary_en.PROFESSION.search(named or "") else None


def _taste(said: Said) -> list[Fact]:
    name = lexicon.canonical(said.value)
    if name.endswith("ing") or lexicon.category(said.value) is None:
        name = _activity(name)
    return [Fact("like", name, said.is_negated != (said.key == "dislike"), False)]


def _habit(said: Said) -> list[Fact]:
    verb = next(full for part, full in vocabulary_en.HABITS if said.get("verb").startswith(part))
    what = f"{verb} {lexicon.canonical(said.value)}".strip()
    return [Fact("habit", what, said.is_negated, False)]


def _possession(said: Said) -> list[Fact]:
    noun, number = said.get("noun"), said.get("n")
    if vocabulary_en.NO_POSSESSION.match(noun) or noun.split()[-1] in vocabulary_en.NO_POSSESSIONS:
        return []
    singular = vocabulary_en.SINGULAR.get(noun) or noun.removesuffix("s")
    count = lexicon.canonical(number) if number else "some"
    return [Fact(f"have:{singular}", "0" if said.is_negated else count)]


def _attribute(said: Said) -> list[Fact]:
    if not said.value or said.noun in {"problem", "question", "point", "idea", "answer"}:
        return []
    is_known = is_functional(said.noun)
    if not is_known and said.value.startswith(("not ", "going ", "so ", "very ")):
        return []
    owner = said.get("owner")
    name = lexicon.canonical(said.value)
    is_own = is_known and owner == "my"
    return [Fact(attribute(owner, said.noun), name, said.is_negated, is_known, is_own)]


def _favorite(said: Said) -> list[Fact]:
    noun = attribute("my", said.noun).removeprefix("my:")
    return [Fact(f"favorite:{noun}", lexicon.canonical(said.value), said.is_negated)]


def _of_noun(said: Said) -> list[Fact]:
    return [Fact(f"{said.key}:{said.noun}", lexicon.canonical(said.value), said.is_negated)]


def _decision(said: Said) -> list[Fact]:
    kind, name = lexicon.look_up(said.value)
    if kind is None:
        kind, name = lexicon.find(said.value) or (None, said.value)
    about = kind or said.noun
    return [Fact(f"decision:{about}" if about else "decision", name, said.is_negated, bool(about))]


def _choice(said: Said) -> list[Fact]:
    prefix, value, noun = said.key.rstrip(":"), said.value, said.noun
    place = vocabulary_en.PLACE_OF_USE.search(value) if prefix == "use" else None
    if place:
        value, noun = value[: place.start()], noun or place[1]
    kind = lexicon.category(value)
    about = None
    if noun:
        named = lexicon.find(noun)
        bare = re.sub(r"^(?:my|our|the) ", "", noun)
        about = kind or (named[0] if named else attribute("my", bare).removeprefix("my:"))
    key, name = choice(prefix, value, about=about)
    if prefix == "use" and noun and about == kind:
        key = f"{key} for {noun}"
    other = _value(said.get("w")) if prefix == "prefer" else ""
    facts = [Fact(key, name, said.is_negated, is_single=key != prefix or bool(other))]
    if other:
        pair = f"{name} > {lexicon.canonical(other)}"
        facts.append(Fact("prefer pair", pair, said.is_negated, False))
    return facts


def _job(said: Said) -> list[Fact]:
    value = said.value
    if said.groups.get("profession"):
        named = _profession(said.get("profession"))
        if named is None:
            return []
        value = _value(named)
    facts = [Fact("job", lexicon.canonical(value), said.is_negated)]
    if said.get("employer"):
        facts.append(Fact("employer", lexicon.canonical(_value(said.get("employer")))))
    return facts


def _study(said: Said) -> list[Fact]:
    facts = [Fact("study", lexicon.canonical(said.value), said.is_negated)]
    if said.get("school"):
        facts.append(Fact("school", _value(said.get("school"))))
    return facts


_READERS: dict[str, Callable[[Said], list[Fact]]] = {
    "have": _possession,
    "habit": _habit,
    "my:": _attribute,
    "like": _taste,
    "dislike": _taste,
    "favorite": _favorite,
    "take": _of_noun,
    "routine": _of_noun,
    "decision": _decision,
    "prefer:": _choice,
    "use:": _choice,
    "favorite:": _choice,
    "job": _job,
    "employment": _job,
    "study": _study,
}
# These need no value: "I have a dog", "I smoke", "I am a nurse".
_BARE = frozenset({"have", "habit", "my:", "job"})


def _read(key: str, is_single: bool, match: re.Match[str], is_negated: bool) -> list[Fact]:
    groups = match.groupdict()
    said = Said(key, groups, _value(groups.get("v") or ""), is_negated)
    if key in _READERS:
        return _READERS[key](said) if said.value or key in _BARE else []
    if not said.value:
        return []
    return [Fact(key, lexicon.canonical(said.value), is_negated, is_single)]


def is_denied(sentence: str) -> bool:
    """Whether a sentence in the form of `plain` denies something."""
    if vocabulary_en.NEGATION.search(vocabulary_en.NO_NEGATION.sub("", sentence)) is None:
        return False
    # "Tabs, not spaces" affirms tabs.
    is_aside = re.search(r",? (?:and )?not (?!\w+ing\b)\w+$", sentence)
    return not is_aside or vocabulary_en.AUXILIARY_NOT.search(sentence) is not None


def parse(text: str) -> list[Fact]:
    """The facts of an English sentence, the main one first."""
    sentence = plain(text)
    is_negated = is_denied(sentence)
    for key, is_single, rule in rules_en.RULES:
        match = rule.match(sentence)
        found = _read(key, is_single, match, is_negated) if match else []
        if found:
            return found
    return []
