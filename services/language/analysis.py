"""What a message says beside its words: its tone, what it asks for, and the things it names.

Works offline, in English and Korean. Everything is learnt from authored lines at first use, in
about half a second; afterwards a usual message takes a few milliseconds.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from models.states import SentimentLabel
from services.language import aims, entities, tone
from services.language.aims import Aim
from services.language.embeddings import Embedder, Vectors
from services.language.entities import READ_CHARS, Entity
from services.language.tone import Tone

# A long text is embedded by its beginning.
_WHOLE_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was found; `intents` best first, `entities` by position."""

    sentiment: Tone
    intents: list[Aim]
    entities: list[Entity]


@dataclass(frozen=True, slots=True)
class _Learnt:
    tones: tone.Classifier
    aims: aims.Nearest


class Analyzer:
    """Analyses texts of one process. Nothing is learnt before the first `analyze`."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._learning = asyncio.Lock()
        self._learnt: _Learnt | None = None

    async def analyze(self, text: str) -> Analysis:
        """Analyse the first 10,000 characters of a text, off the event loop.

        The same text always gives the same analysis. Raises RuntimeError once the embedder is
        closed. A caller that is cancelled leaves nothing behind.
        """
        learnt = await self._learn()
        texts, found = await asyncio.to_thread(_prepare, text)
        vectors = await self._embedder.embed(texts)
        return await asyncio.to_thread(_judge, learnt, text, texts, vectors, found)

    async def _learn(self) -> _Learnt:
        async with self._learning:
            if self._learnt is None:
                lines, classes = tone.seeds()
                examples, names = aims.examples()
                vectors = await self._embedder.embed([*lines, *examples])
                tones = await asyncio.to_thread(
                    tone.Classifier, vectors[: len(lines)], lines, classes
                )
                self._learnt = _Learnt(tones, aims.Nearest(vectors[len(lines) :], names))
            return self._learnt


def _prepare(text: str) -> tuple[list[str], list[Entity]]:
    """The prose to embed (whole, then by clauses if it has several), and the entities."""
    prose = tone.prose(text[:READ_CHARS], _WHOLE_CHARS)
    parts = tone.clauses(prose)
    return [prose, *(parts if len(parts) > 1 else [])], entities.find(text)


def _judge(
    learnt: _Learnt, text: str, texts: Sequence[str], vectors: Vectors, found: list[Entity]
) -> Analysis:
    is_empty = not any(character.isalnum() for character in texts[0])
    return Analysis(
        Tone(SentimentLabel.NEUTRAL, 0.0) if is_empty else tone.read(learnt.tones, texts, vectors),
        aims.read(learnt.aims, texts, vectors, text[:READ_CHARS]),
        found,
    )
