"""Whatever is written, it is analysed: nothing that reads texts raises."""

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.language import (
    asking,
    calculations,
    dates,
    extraction,
    facts,
    memories,
    planning,
    zones,
)
from services.language.analysis import Analyzer
from services.language.embeddings import Embedder
from services.llm import intents

_WORDS = (
    "' \" ’ ` ``` ~ - -- + * / \\ # @ $ % & ( ) [ ] { } < > . .. … , ; : ! ? | _ = ^ 0 1 -1 2024",
    "'2024' 1e9 3pm 24:61 2024-13-45 €5 a@b http:// https://[ www. C:\\ /etc ./x sbx_",
    "I I'm my not don't but however and love hate dog name is was prefer remember that always",
    "call me if plan run time in Seoul what when",
    "나는 좋아 지않 없 지만 싫어 안 못 기억해 내 이름은 오후 3시 몇 시",
    "é ß İ ﬁ ① Ⅷ ½ 𝟛 👩‍👩‍👧 \u200b \u0300 \ufffd \u2028",
)
_PIECES = st.sampled_from([piece for line in _WORDS for piece in line.split(" ")])
_ODD = st.lists(
    st.one_of(_PIECES, st.sampled_from([" ", "  ", "\n", "\t", ""]), st.text(max_size=4)),
    max_size=14,
).map("".join)
_SPACED = st.lists(_PIECES, max_size=14).map(" ".join)
TEXTS = st.one_of(_ODD, _SPACED)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def analyzer(runner: asyncio.Runner) -> Iterator[Analyzer]:
    embedder = Embedder()
    yield Analyzer(embedder)
    runner.run(embedder.aclose())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
@example(text="I love this. The year is '2024'.")
@example(text="'")
def test_every_text_is_analysed(runner: asyncio.Runner, analyzer: Analyzer, text: str) -> None:
    found = runner.run(analyzer.analyze(text))
    assert -1 <= found.sentiment.score <= 1
    assert len({aim.name for aim in found.intents}) == len(found.intents)
    assert all(0 < aim.confidence <= 1 for aim in found.intents)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, other=TEXTS)
def test_every_text_is_read(text: str, other: str) -> None:
    intents.read(text)
    for candidate in extraction.extract(text):
        assert candidate.content.strip()
        assert 0 <= candidate.importance <= 1
    facts.parse_all(text)
    memories.relation(text, other, 0.7)
    asked = asking.about(text)
    if asked is not None:
        asking.fit(asked, other)
    if re.search(r"\w", text):
        assert planning.outline(text)
    calculations.read(text)
    zones.find(text)
    for read in (dates.iso, dates.english, dates.korean):
        read(text)
