"""What texts ask for, measured on lines that were labelled by hand and are no examples."""

from collections.abc import Mapping, Sequence

import pytest

from services.language import aims
from services.language.analysis import Analyzer
from services.language.embeddings import Embedder
from tests.services.language import hard_lines, intent_lines, tone_lines

Lines = Mapping[str, Sequence[str]]


@pytest.fixture
async def analyzer():
    embedder = Embedder()
    yield Analyzer(embedder)
    await embedder.aclose()


async def names(analyzer: Analyzer, text: str) -> list[str]:
    return [aim.name for aim in (await analyzer.analyze(text)).intents]


async def wrong(analyzer: Analyzer, lines: Lines) -> list[tuple[str, list[str], str]]:
    read = [
        (name, await names(analyzer, line), line) for name, group in lines.items() for line in group
    ]
    return [(name, got, line) for name, got, line in read if got[:1] != [name]]


def test_no_line_of_the_evaluation_is_an_example() -> None:
    examples = {line.lower() for line in aims.examples()[0]}
    for lines in (intent_lines.ENGLISH, intent_lines.KOREAN, hard_lines.INTENTS):
        assert examples.isdisjoint(line.lower() for group in lines.values() for line in group)


@pytest.mark.parametrize(
    ("lines", "share"),
    [(intent_lines.ENGLISH, 0.9), (intent_lines.KOREAN, 0.85), (hard_lines.INTENTS, 0.75)],
    ids=["en", "ko", "hard"],
)
async def test_intents_are_read(analyzer: Analyzer, lines: Lines, share: float) -> None:
    count = sum(map(len, lines.values()))
    assert count >= 35
    missed = await wrong(analyzer, lines)
    assert len(missed) <= (1 - share) * count, missed


async def test_what_is_out_of_scope_is_told_by_its_form(analyzer: Analyzer) -> None:
    # Of lines about anything at all, none runs code or a plan, and few seem to ask for a tool.
    lines = [
        line
        for group in (tone_lines.ENGLISH, tone_lines.KOREAN)
        for lines in group.values()
        for line in lines
    ]
    claimed = [(line, await names(analyzer, line)) for line in lines]
    assert not [c for c in claimed if {"run_code", "run_plan", "create_plan"} & set(c[1])]
    strange = [c for c in claimed if not aims.FORMS & set(c[1])]
    # "thank you!" and "Remember that …" are what they seem.
    assert len(strange) <= 0.07 * len(lines), strange


async def test_several_sentences_have_several_intents_the_surest_first(analyzer: Analyzer) -> None:
    found = (await analyzer.analyze("Thanks a lot! What time is it?")).intents
    assert {aim.name for aim in found} == {"thanks", "ask_time"}
    both = (await analyzer.analyze("고마워요. 지금 몇 시예요?")).intents
    assert {aim.name for aim in both} == {"thanks", "ask_time"}
    for aim_list in (found, both):
        sure = [aim.confidence for aim in aim_list]
        assert sure == sorted(sure, reverse=True)
        assert all(0 < value <= 1 for value in sure)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("Is it raining?", "question"),
        ("how big is it", "question"),
        ("Please sort the list", "request"),
        ("could you look it up?", "request"),
        ("It rains.", "statement"),
        ("비가 오나요", "question"),
        ("목록을 정렬해 줘", "request"),
        ("비가 온다.", "statement"),
    ],
)
def test_forms(text: str, shape: str) -> None:
    assert aims.form(text) == shape


@pytest.mark.parametrize("text", ["", "   ", "\n"])
async def test_nothing_has_no_intent(analyzer: Analyzer, text: str) -> None:
    assert await names(analyzer, text) == []
