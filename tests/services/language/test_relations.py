import pytest

from services.language.embeddings import Embedder
from services.language.memories import Relation, normalize, rank, relation
from tests.services.language import memory_pairs as pairs

CONTRADICTIONS = pairs.CONTRADICTIONS + pairs.HELD_OUT_CONTRADICTIONS + pairs.UNSEEN_CONTRADICTIONS
DUPLICATES = pairs.DUPLICATES + pairs.HELD_OUT_DUPLICATES + pairs.UNSEEN_DUPLICATES
COMPATIBLE = pairs.COMPATIBLE + pairs.HELD_OUT_COMPATIBLE + pairs.UNSEEN_COMPATIBLE


async def judged(authored):
    embedder = Embedder()
    old = await embedder.embed([first for first, _ in authored])
    new = await embedder.embed([second for _, second in authored])
    await embedder.aclose()
    return [
        (first, second, relation(first, second, float(a @ b)))
        for (first, second), a, b in zip(authored, old, new, strict=True)
    ]


async def test_every_authored_contradiction_supersedes():
    assert len(CONTRADICTIONS) >= 40
    missed = [row for row in await judged(CONTRADICTIONS) if row[2] is not Relation.SUPERSEDES]
    assert missed == []


async def test_every_authored_duplicate_is_recognised():
    assert len(DUPLICATES) >= 30
    missed = [row for row in await judged(DUPLICATES) if row[2] is not Relation.DUPLICATE]
    assert missed == []


async def test_compatible_facts_are_both_kept():
    assert len(COMPATIBLE) >= 40
    kept = {Relation.RELATED, Relation.UNRELATED}
    wrong = [row for row in await judged(COMPATIBLE) if row[2] not in kept]
    assert wrong == []


async def test_a_contradiction_holds_in_both_directions():
    """Whichever is said later wins, except where the later one only denies something else."""
    turned = [(second, first) for first, second in pairs.CONTRADICTIONS]
    rows = await judged(turned)
    superseding = sum(row[2] is Relation.SUPERSEDES for row in rows)
    assert superseding >= len(rows) - 2


@pytest.mark.parametrize("similarity", [-1.0, 0.0, 0.5, 1.0])
def test_the_same_wording_is_a_duplicate_whatever_the_similarity(similarity):
    assert relation("I prefer metric units", "i  prefer metric units!", similarity) == "duplicate"
    assert relation("완전히 같은 문장", "완전히 같은 문장.", similarity) == "duplicate"


def test_what_no_rule_reads_is_judged_by_similarity_but_never_against_names_or_numbers():
    old = "The blue folder holds the tax papers"
    assert relation(old, "The blue folder holds the tax documents", 0.97) == "duplicate"
    assert relation(old, "The blue folder is for the tax papers", 0.7) == "related"
    assert relation(old, "Penguins cannot fly", 0.1) == "unrelated"
    assert relation("Invoice 17 went to Kim", "Invoice 18 went to Kim", 0.99) != "duplicate"
    assert relation("The key is kept by Anna", "The key is kept by Bora", 0.99) != "duplicate"
    assert relation("Cats sleep in the barn", "Cats never sleep in the barn", 0.99) != "duplicate"


@pytest.mark.parametrize(
    "text", ["", " ", "?", "a" * 10_000, "\x00", "는 은 이 가", "my is", "i am"]
)
def test_odd_texts_are_judged_without_failing(text):
    assert relation(text, "I live in Seoul", 0.0) in set(Relation)
    assert relation("I live in Seoul", text, 0.0) in set(Relation)


def test_normalize_keeps_what_matters():
    assert normalize("  I Prefer  metric units. ") == "i prefer metric units"
    assert normalize("I don’t") == normalize("I don't")
    assert normalize("version 1.5") == "version 1.5"


DAY = 86_400.0


def test_rank_rises_with_each_factor():
    base = rank(0.5, 0.5, 10 * DAY, 5 * DAY, 3)
    assert rank(0.6, 0.5, 10 * DAY, 5 * DAY, 3) > base
    assert rank(0.5, 0.9, 10 * DAY, 5 * DAY, 3) > base
    assert rank(0.5, 0.5, 10 * DAY, 1 * DAY, 3) > base
    assert rank(0.5, 0.5, 10 * DAY, 5 * DAY, 30) > base
    assert rank(0.5, 0.5, 10 * DAY, None, 3) < base


def test_relevance_half_again_as_high_always_wins():
    weakest = rank(0.6, 0.0, 3650 * DAY, None, 0)
    strongest = rank(0.4, 1.0, 0.0, 0.0, 10_000)
    assert weakest > strongest


def test_rank_stays_in_bounds():
    assert rank(0.0, 1.0, 0.0, 0.0, 5) == 0.0
    assert rank(-0.3, 1.0, 0.0, 0.0, 5) == 0.0
    assert rank(1.0, 1.0, 0.0, 0.0, 10**9) == pytest.approx(1.05)
    assert rank(1.0, 5.0, -10.0, None, -3) == pytest.approx(1.0)
