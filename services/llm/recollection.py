"""Which memories answer a question about the user, and how to say them."""

from collections.abc import Sequence

from services.language import asking
from services.language.embeddings import Embedder
from services.llm.base import RecalledMemory
from services.llm.person import said_back

# Cosine of a question and a fact that answers it, at least; unrelated ones stay near 0.1.
_ANSWERS = 0.34
_STRICT = 0.5
# Memories this close to the best one are said as well.
_CLOSE = 0.06
_MAX_SAID = 5
_MAX_SAID_OF_ALL = 12


def sentence(content: str) -> str:
    """A memory said to its owner, as a whole sentence."""
    said = said_back(content)
    return said if said.endswith(("!", "?", ".")) else f"{said}."


async def relevant(
    embedder: Embedder,
    question: str,
    memories: Sequence[RecalledMemory],
    *,
    is_strict: bool = False,
) -> list[RecalledMemory]:
    """The memories that answer the question, best first, at most 5; none if none does.

    A question for all that is known gets up to 12, as the application ranked them.
    A memory about the very thing asked ("what is my name?") comes before one that merely sounds
    alike; with `is_strict` only close ones count.
    """
    unique = list({memory.id: memory for memory in memories if memory.content.strip()}.values())
    if not unique:
        return []
    asked = asking.about(question)
    if asked is not None and asked.is_wide and not is_strict:
        return sorted(unique, key=lambda memory: (-memory.score, memory.id))[:_MAX_SAID_OF_ALL]
    vectors = await embedder.embed([question[:800], *(memory.content for memory in unique)])
    scores = vectors[1:] @ vectors[0]
    ranked = []
    for memory, score in zip(unique, scores, strict=True):
        fit = asking.fit(asked, memory.content) if asked else 0.0
        if fit < 0:
            continue
        ranked.append((float(score) + fit, memory))
    ranked.sort(key=lambda pair: (-pair[0], -pair[1].score, pair[1].id))
    bound = _STRICT if is_strict else _ANSWERS
    if not ranked or ranked[0][0] < bound:
        return []
    best = ranked[0][0]
    return [memory for score, memory in ranked if score >= best - _CLOSE][:_MAX_SAID]
