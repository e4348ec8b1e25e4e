"""The tone of texts, measured on lines that were labelled by hand and are no seeds."""

from collections.abc import Mapping, Sequence

import pytest

from models.states import SentimentLabel
from services.language import tone
from services.language.analysis import Analyzer
from services.language.embeddings import Embedder
from tests.services.language import hard_lines, tone_lines

Lines = Mapping[SentimentLabel, Sequence[str]]


@pytest.fixture
async def analyzer():
    embedder = Embedder()
    yield Analyzer(embedder)
    await embedder.aclose()


@pytest.mark.parametrize("text", ["I love this. The year is '2024'.", "' '' ’", "'", "don't '"])
def test_an_apostrophe_alone_is_no_word(text: str) -> None:
    assert tone.words(text) == tone.words(text.replace("' ", " ").replace("'2024'", "2024"))


async def wrong(analyzer: Analyzer, lines: Lines) -> list[tuple[str, str, str]]:
    read = [
        (label, (await analyzer.analyze(line)).sentiment.label, line)
        for label, group in lines.items()
        for line in group
    ]
    return [(str(want), str(got), line) for want, got, line in read if want is not got]


def size(lines: Lines) -> int:
    return sum(map(len, lines.values()))


def test_no_line_of_the_evaluation_is_a_seed() -> None:
    seeds = set(tone.seeds()[0])
    for lines in (tone_lines.ENGLISH, tone_lines.KOREAN, hard_lines.TONES, hard_lines.FRESH):
        assert seeds.isdisjoint(line for group in lines.values() for line in group)


@pytest.mark.parametrize("lines", [tone_lines.ENGLISH, tone_lines.KOREAN], ids=["en", "ko"])
async def test_plain_tones_are_read(analyzer: Analyzer, lines: Lines) -> None:
    assert size(lines) >= 50
    missed = await wrong(analyzer, lines)
    assert len(missed) <= 0.1 * size(lines), missed
    # No tone is bought with another.
    for label, group in lines.items():
        assert len([m for m in missed if m[0] == label]) <= 0.2 * len(group), missed


@pytest.mark.parametrize(
    ("lines", "share"), [(hard_lines.FRESH, 0.6), (hard_lines.TONES, 0.6)], ids=["fresh", "hard"]
)
async def test_tones_without_words_for_them_are_mostly_read(
    analyzer: Analyzer, lines: Lines, share: float
) -> None:
    missed = await wrong(analyzer, lines)
    assert len(missed) <= (1 - share) * size(lines), missed
    # What is matter-of-fact is not called a mood.
    neutral = lines[SentimentLabel.NEUTRAL]
    assert len([m for m in missed if m[0] == "NEUTRAL"]) <= 0.2 * len(neutral), missed


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("good", 1),
        ("not good", -1),
        ("no problems at all", 1),
        ("I can't recommend it enough", 1),
        ("terribly slow", -1),
        ("좋아요", 1),
        ("안 좋아요", -1),
        ("좋지 않아요", -1),
        ("마음에 들어요", 1),
        ("마음에 안 들어요", -1),
        ("문제 없어요", 1),
        ("나쁘지 않네요", 1),
        ("재미없어요", -1),
        ("the table", 0),
        ("책상", 0),
    ],
)
def test_negations_turn_words_round(text: str, sign: int) -> None:
    found = tone.words(text)
    total = found.positive - found.negative
    assert (total > 0) - (total < 0) == sign


def test_intensifiers_weigh_words() -> None:
    assert tone.words("very good").positive > tone.words("good").positive
    assert tone.words("slightly bad").negative < tone.words("bad").negative
    assert tone.words("정말 좋아").positive > tone.words("좋아").positive


async def test_scores_have_the_sign_of_their_label(analyzer: Analyzer) -> None:
    for label, group in tone_lines.ENGLISH.items():
        for line in group:
            read = (await analyzer.analyze(line)).sentiment
            assert -1 <= read.score <= 1
            if label is SentimentLabel.POSITIVE is read.label:
                assert read.score > 0
            if label is SentimentLabel.NEGATIVE is read.label:
                assert read.score < 0


@pytest.mark.parametrize(
    "text", ["", " ", "```\nawful()\n```", "`hate`", "https://awful.example", "?!"]
)
async def test_what_is_no_prose_has_no_tone(analyzer: Analyzer, text: str) -> None:
    read = (await analyzer.analyze(text)).sentiment
    assert (read.label, read.score) == (SentimentLabel.NEUTRAL, 0.0)


async def test_two_processes_read_alike() -> None:
    read = []
    for _ in range(2):
        embedder = Embedder()
        read.append(await Analyzer(embedder).analyze("I love it, but it is slow. `x = 1`, 3pm"))
        await embedder.aclose()
    assert read[0] == read[1]
    assert read[0].sentiment.label is SentimentLabel.MIXED
