"""The tone of a text: words that carry one, with what turns them round, and sentence embeddings.

A multinomial logistic regression reads the embedding of a clause beside the tone of its words; it
is learnt from `tone_seeds` at first use. A text is mixed where one clause is clearly positive and
another, or another word of the same clause, clearly negative.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.states import SentimentLabel
from services.language import scripts, tone_seeds, tone_words
from services.language.embeddings import Vectors

Floats = npt.NDArray[np.float64]
# In the order of the classifier's classes.
LABELS = (SentimentLabel.NEGATIVE, SentimentLabel.NEUTRAL, SentimentLabel.POSITIVE)
MAX_CLAUSES = 16
_CLAUSE_CHARS = 300
# Words at least this strong, in both directions, make one clause mixed.
_CLEAR_WORD = 1.9
_CLEAR_CLAUSE = 0.55
# The lexicon's features beside an embedding of length 1.
_WORDS_WEIGHT = 0.5
_REGULARISATION = 0.2
_TURNED = -0.8


@dataclass(frozen=True, slots=True)
class Tone:
    """A label and a score in -1 (negative) … 1 (positive)."""

    label: SentimentLabel
    score: float


@dataclass(frozen=True, slots=True)
class Words:
    """Sums of the positive and of the negative words of a text, both ≥ 0."""

    positive: float
    negative: float


_LINK = re.compile(r"(?:https?://|www\.)\S++")
_SENTENCE = re.compile(r"(?<=[.!?…。;\n])\s++|\n")
_CONTRAST = re.compile(
    r"(?:,\s*)?\b(?:but|however|although|though|yet|whereas|nevertheless)\b,?"
    r"|(?<=[가-힣]지만)[,\s]|(?<=[가-힣]데)[,\s]|(?<=으나)[,\s]|(?<=데요)[,\s]"
    r"|(?:하지만|그러나|그런데|근데|그래도|다만)[,\s]",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[a-z']++|[가-힣]++")


def prose(text: str, limit: int) -> str:
    """The text that people wrote to be read, without code and links, at most `limit` characters."""
    return " ".join(
        _LINK.sub(" ", scripts.without_code(scripts.clean(text[: 2 * limit]))).split(" ")
    )[:limit].strip()


def clauses(text: str) -> list[str]:
    """Sentences, parted at words of contrast; at most the first 16, each by its beginning."""
    found = [
        part.strip(" ,")[:_CLAUSE_CHARS]
        for sentence in _SENTENCE.split(text)
        for part in _CONTRAST.split(sentence)
    ]
    return [part for part in found if re.search(r"\w", part)][:MAX_CLAUSES]


def words(text: str) -> Words:
    """The words of a text that carry a tone, turned round by negations, weighed by intensifiers."""
    text = re.sub(r"[’]", "'", text.lower())
    text = re.sub(r"마음에\s*안\s*[들드]", "안 마음에들", text)
    text = re.sub(r"마음에\s*(?=[들드])", "마음에들", text)
    text = re.sub(r"화가\s*(?:너무\s*|정말\s*)?(?=[나났])", "화", text)
    # An apostrophe alone, as around '2024', is no word.
    tokens = [word for token in _TOKEN.findall(text) if (word := token.replace("'", ""))]
    positive = negative = 0.0
    for index, token in enumerate(tokens):
        weight = _weight(tokens, index, token)
        positive += max(weight, 0.0)
        negative -= min(weight, 0.0)
    return Words(positive, negative)


def _weight(tokens: Sequence[str], index: int, token: str) -> float:
    following = tokens[index + 1] if index + 1 < len(tokens) else ""
    if token[0] >= "가":
        return _korean(tokens[max(0, index - 2) : index], token, following)
    weight = tone_words.ENGLISH.get(token, 0.0)
    if not weight or (token in tone_words.ENGLISH_STRONGER and following in tone_words.ENGLISH):
        return 0.0
    before = tokens[max(0, index - 3) : index]
    if before and before[-1] in tone_words.ENGLISH_STRONGER:
        weight *= 1.4
    elif before and before[-1] in tone_words.ENGLISH_WEAKER:
        weight *= 0.6
    is_turned = not tone_words.ENGLISH_NEGATIONS.isdisjoint(before)
    if is_turned and not ("enough" in tokens[index:] and weight > 0) and "only" not in before:
        weight *= _TURNED
    return weight


def _korean(before: Sequence[str], token: str, following: str) -> float:
    weight, length = 0.0, 0
    for size in range(min(len(token), 4), 0, -1):
        if token[:size] in tone_words.KOREAN:
            weight, length = tone_words.KOREAN[token[:size]], size
            break
    if not weight:
        return 0.0
    if not tone_words.KOREAN_STRONGER.isdisjoint(before):
        weight *= 1.4
    elif not tone_words.KOREAN_WEAKER.isdisjoint(before):
        weight *= 0.6
    is_turned = (
        (bool(before) and before[-1] in ("안", "못"))
        or (token.endswith("지") and following.startswith(("않", "못", "말")))
        or following.startswith(("없", "아니"))
        or re.search(r"지(?:않|못)|없", token[length:]) is not None
    )
    return weight * _TURNED if is_turned else weight


def _features(vectors: Vectors, texts: Sequence[str]) -> Floats:
    found = [words(text) for text in texts]
    tones = np.array([[w.positive, w.negative, w.positive - w.negative] for w in found])
    scaled = _WORDS_WEIGHT * tones / np.sqrt(tones**2 + 4.0)
    return np.concatenate([vectors, scaled], axis=1, dtype=np.float64)


def seeds() -> tuple[list[str], list[int]]:
    """The lines to learn from, and the class of each (an index of `LABELS`)."""
    groups = (tone_seeds.NEGATIVE, tone_seeds.NEUTRAL, tone_seeds.POSITIVE)
    lines = [group.strip().splitlines() for group in groups]
    classes = [index for index, group in enumerate(lines) for _ in group]
    return [line for group in lines for line in group], classes


class Classifier:
    """A regularised multinomial logistic regression over clauses."""

    def __init__(self, vectors: Vectors, texts: Sequence[str], classes: Sequence[int]) -> None:
        """Learn from the texts' embeddings, in a tenth of a second; the same result every time."""
        features = _features(vectors, texts)
        wanted = np.eye(len(LABELS))[list(classes)]
        # Rare classes weigh as much as frequent ones.
        balance = (wanted.sum() / len(LABELS) / wanted.sum(axis=0))[list(classes)][:, None]
        self._weights = np.zeros((features.shape[1], len(LABELS)))
        self._bias = np.zeros(len(LABELS))
        step, momentum = 4.0 / len(texts), 0.9
        moved, moved_bias = np.zeros_like(self._weights), np.zeros_like(self._bias)
        for _ in range(400):
            error = (_softmax(features @ self._weights + self._bias) - wanted) * balance
            gradient = features.T @ error + _REGULARISATION * self._weights
            moved = momentum * moved - step * gradient
            moved_bias = momentum * moved_bias - step * error.sum(axis=0)
            self._weights += moved
            self._bias += moved_bias

    def chances(self, vectors: Vectors, texts: Sequence[str]) -> Floats:
        """The probabilities of `LABELS` for each text, `(n, 3)`."""
        return _softmax(_features(vectors, texts) @ self._weights + self._bias)


def _softmax(values: Floats) -> Floats:
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    scaled: Floats = raised / raised.sum(axis=1, keepdims=True)
    return scaled


def read(classifier: Classifier, texts: Sequence[str], vectors: Vectors) -> Tone:
    """The tone of a text, given whole as the first of `texts`, then by its clauses if several."""
    chances = classifier.chances(vectors, texts)
    parts = chances[1:] if len(texts) > 1 else chances
    best, worst = float(parts[:, 2].max()), float(parts[:, 0].max())
    is_torn = any(
        min(found.positive, found.negative) >= _CLEAR_WORD for found in map(words, texts[:1])
    )
    if is_torn or (best >= _CLEAR_CLAUSE and worst >= _CLEAR_CLAUSE):
        return Tone(SentimentLabel.MIXED, round((best - worst) / 2, 4))
    strongest = parts[int(parts[:, 1].argmin())]
    negative, neutral, positive = ((chances[0] + strongest) / 2).tolist()
    score = round(positive - negative, 4)
    if neutral >= max(positive, negative) or score == 0:
        return Tone(SentimentLabel.NEUTRAL, score)
    return Tone(SentimentLabel.POSITIVE if score > 0 else SentimentLabel.NEGATIVE, score)
