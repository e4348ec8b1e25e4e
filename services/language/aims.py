"""What a text asks for or does: the embedded assistant's rules, then the nearest examples.

A rule is exact and explainable, so what it reads comes first. Otherwise the nearest authored
examples decide; what is near none of them is told by its form: a question, a request, a statement.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.language import intent_examples, scripts
from services.language.embeddings import Vectors
from services.llm import intents
from services.llm.intents import Kind

# Rules read so much of a text: some of them are quadratic.
_RULE_CHARS = 1_000
_RULE_CONFIDENCE = 0.95
# From this cosine on a text means what its nearest example means; further ones are reported from
# the second on, if they are almost as near as the best.
_NEAR = 0.5
_ALSO_NEAR = 0.08
# One sentence of several says less than a text of its own.
_PART_NEAR = 0.6
_FORM_CONFIDENCE = 0.5
MAX_INTENTS = 3
# Told by the form of a text as well.
FORMS = frozenset({"question", "request", "statement"})
# Asked for, never stated.
_ASKED = frozenset({"ask_time", "recall", "calculate", "identity"})
_NAMES = {Kind.TIME: "ask_time"}


@dataclass(frozen=True, slots=True)
class Aim:
    """A name such as `run_code`, and how sure it is, in 0…1."""

    name: str
    confidence: float


def examples() -> tuple[list[str], list[str]]:
    """The texts to be near to, and the name of each."""
    pairs = [(line, _name(kind)) for kind, group in intents.EXAMPLES.items() for line in group]
    pairs += [(line, name) for name, group in intent_examples.EXAMPLES.items() for line in group]
    return [line for line, _ in pairs], [name for _, name in pairs]


def _name(kind: Kind) -> str:
    return _NAMES.get(kind, kind.value)


_QUESTION = re.compile(
    r"\?\s*$|^(?:what(?! an? \w+ \w+\W*$)|who|whom|whose|where|when|why|how|which|is|are|was|were"
    r"|do|does|did|can|could|will|would|should|has|have|had|may|am)\b"
    r"|(?:까|까요|나요|은가요|는가요|인가요|가요|냐|니|을까|뭐야|뭐예요|누구야|어디야|언제야|왜)[\s.?!]*$",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"^(?:(?:please|now|then|also|next|hey|ok(?:ay)?)\b,?\s*)*(?:(?:can|could|would|will) you\b"
    r"|(?:add|analy[sz]e|build|change|check|compare|convert|copy|count|create|define|delete"
    r"|describe|download|draft|draw|explain|export|extract|find|fix|format|generate|get|give|help"
    r"|import|install|list|look|make|move|open|plot|print|rank|read|recommend|remind|remove|rename"
    r"|replace|rewrite|save|search|send|set|show|sort|suggest|summari[sz]e|tell|test|translate"
    r"|turn|update|upload|use|write)\b(?! (?:is|are|was|were)\b))"
    r"|(?:줘|줘요|주세요|주십시오|줄래|줄래요|줄래\?|주겠어|달라|하십시오|하세요|해라|부탁해|부탁해요|부탁드려요"
    r"|부탁드립니다|바랍니다)[\s.?!]*$",
    re.IGNORECASE,
)


def form(text: str) -> str:
    """`request`, `question` or `statement`, by the form of the text alone."""
    if _REQUEST.search(text):
        return "request"
    return "question" if _QUESTION.search(text) else "statement"


def by_rule(text: str) -> Aim | None:
    """What the assistant's rules read in the beginning of a text; None where none applies."""
    text = text[:_RULE_CHARS]
    found = intents.read(text)
    # "I am proud of what our team built" asks for nothing.
    if found is None or (found.kind is Kind.RECALL and form(text.strip()) == "statement"):
        return None
    return Aim(_name(found.kind), _RULE_CONFIDENCE)


class Nearest:
    """Examples by name, asked by cosine."""

    def __init__(self, vectors: Vectors, names: Sequence[str]) -> None:
        """Keep unit vectors and the name of each."""
        self._vectors = vectors
        self._names = sorted(set(names))
        self._groups = [
            np.array([i for i, of in enumerate(names) if of == name]) for name in self._names
        ]

    def read(self, vector: Vectors, text: str, near: float = _NEAR) -> list[Aim]:
        """Names whose examples are `near`, the nearest first; else the form of the text alone."""
        cosines = self._vectors @ vector
        nearest = np.array([cosines[group].max() for group in self._groups])
        order = np.argsort(-nearest, kind="stable")
        best = float(nearest[order[0]])
        shape = form(text)
        found = [
            Aim(self._names[i], _sure(float(nearest[i])))
            for i in order[:MAX_INTENTS]
            if nearest[i] >= near
            and best - nearest[i] <= _ALSO_NEAR
            and not (shape == "statement" and self._names[i] in _ASKED)
        ]
        if not found or found[0].name in FORMS:
            # The form says better which of the three it is.
            return [
                Aim(shape, _sure(best) if found and found[0].name == shape else _FORM_CONFIDENCE)
            ]
        return [aim for aim in found if aim.name not in FORMS]


def _sure(cosine: float) -> float:
    """A confidence from a cosine: 0.5 at the threshold, 0.9 at identity."""
    return round(0.5 + 0.4 * min(max((cosine - _NEAR) / (1 - _NEAR), 0.0), 1.0), 4)


def read(nearest: Nearest, texts: Sequence[str], vectors: Vectors, original: str) -> list[Aim]:
    """Intents of a message, best first, no name twice, at most three.

    `texts` are its prose and, if there are several, its sentences, with their `vectors`; `original`
    is what was written, code and all.
    """
    whole = by_rule(original)
    best: dict[str, float] = {}
    if whole is not None:
        best[whole.name] = whole.confidence
    # With several sentences each speaks for itself; alone, the whole does.
    for index, text in list(enumerate(texts))[1:] or list(enumerate(texts)):
        part = by_rule(text) if index else whole
        near = _PART_NEAR if index else _NEAR
        aims = [part] if part else nearest.read(vectors[index], text, near)
        for aim in aims if text else []:
            best[aim.name] = max(best.get(aim.name, 0.0), aim.confidence)
    if not best and scripts.code_blocks(original):
        best["statement"] = _FORM_CONFIDENCE
    if not FORMS.issuperset(best):
        best = {name: sure for name, sure in best.items() if name not in FORMS}
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Aim(name, sure) for name, sure in ranked[:MAX_INTENTS]]
