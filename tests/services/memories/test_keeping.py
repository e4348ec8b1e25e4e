import asyncio
import math

import numpy as np
import pytest
from sqlalchemy import func, select

from models.memories import Memory, MemoryRelation
from models.states import MemoryRelationType, MemoryType
from services import memories
from services.base import ANONYMOUS
from services.errors import UnauthenticatedError, UserError, UserErrorCode
from tests.services.language.memory_pairs import CONTRADICTIONS
from tests.services.small_world import message, person, process

SEMANTIC, PREFERENCE = MemoryType.SEMANTIC, MemoryType.PREFERENCE


async def rows(deps, viewer):
    async with deps.db.reading() as connection:
        return (
            await connection.execute(
                select(
                    Memory.id,
                    Memory.content,
                    Memory.importance,
                    Memory.valid_until,
                    Memory.superseded_by_id,
                    Memory.access_count,
                    Memory.embedding,
                )
                .where(Memory.user_id == viewer.user_id)
                .order_by(Memory.id)
            )
        ).all()


async def relations(deps, kind):
    async with deps.db.reading() as connection:
        return [
            tuple(row)
            for row in await connection.execute(
                select(MemoryRelation.source_memory_id, MemoryRelation.target_memory_id).where(
                    MemoryRelation.relation_type == kind
                )
            )
        ]


async def test_a_new_fact_is_kept_with_its_vector(deps, ann):
    made = await memories.create(deps, ann, type=SEMANTIC, content="  I live in Seoul. ")
    assert made.is_new
    assert made.superseded == []
    assert made.memory.content == "I live in Seoul."
    assert made.memory.importance == 0.5
    assert made.memory.valid_until is None
    [row] = await rows(deps, ann)
    vector = np.frombuffer(row.embedding, "<f4")
    np.testing.assert_allclose(
        vector, (await deps.embedder.embed(["I live in Seoul."]))[0], atol=1e-5
    )


async def test_the_same_fact_ten_times_is_one_memory_of_growing_importance(deps, ann):
    wordings = ["I prefer metric units", "i prefer  metric units.", "I PREFER METRIC UNITS!"]
    made = [
        await memories.create(deps, ann, type=PREFERENCE, content=wordings[n % 3])
        for n in range(10)
    ]
    assert [item.is_new for item in made] == [True] + [False] * 9
    assert {item.memory.id for item in made} == {made[0].memory.id}
    importances = [item.memory.importance for item in made]
    assert importances == sorted(set(importances))
    assert importances[-1] < 1
    [row] = await rows(deps, ann)
    assert row.content == "I prefer metric units"
    assert row.access_count == 0


async def test_the_same_fact_in_other_words_is_one_memory(deps, ann):
    first = await memories.create(deps, ann, type=PREFERENCE, content="I prefer metric units")
    again = await memories.create(deps, ann, type=PREFERENCE, content="저는 미터법을 선호해요")
    assert (again.memory.id, again.is_new) == (first.memory.id, False)


async def test_ten_requests_at_once_make_one_memory(deps, ann):
    made = await asyncio.gather(
        *(
            memories.create(deps, ann, type=PREFERENCE, content="I prefer metric units")
            for _ in range(10)
        )
    )
    assert sum(item.is_new for item in made) == 1
    assert len(await rows(deps, ann)) == 1


async def test_two_processes_at_once_make_one_memory(tmp_path):
    path = tmp_path / "shared.db"
    async with process(path) as one, process(path) as two:
        ann = await person(one, "ann")
        made = await asyncio.gather(
            *(
                memories.create(deps, ann, type=PREFERENCE, content=content)
                for content in ("I prefer metric units", "i prefer metric units!")
                for deps in (one, two)
            )
        )
        assert sum(item.is_new for item in made) == 1
        assert len(await rows(one, ann)) == 1


async def test_a_contradicted_fact_is_closed_and_kept(deps, ann):
    old = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    new = await memories.create(deps, ann, type=SEMANTIC, content="I moved to Busan")
    assert new.is_new
    assert [memory.id for memory in new.superseded] == [old.memory.id]
    closed = new.superseded[0]
    assert closed.superseded_by_id == new.memory.id
    assert closed.valid_until == new.memory.valid_from
    assert closed.valid_from < closed.valid_until
    assert await relations(deps, MemoryRelationType.SUPERSEDES) == [(new.memory.id, old.memory.id)]
    back = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    assert back.is_new
    assert [memory.id for memory in back.superseded] == [new.memory.id]


async def test_of_authored_contradictions_the_current_fact_comes_first(deps):
    missed = []
    for number, (old, new) in enumerate(CONTRADICTIONS[:40]):
        viewer = await person(deps, f"person{number}")
        before = await memories.create(deps, viewer, type=SEMANTIC, content=old)
        await memories.create(deps, viewer, type=SEMANTIC, content="I have a red bicycle")
        after = await memories.create(deps, viewer, type=SEMANTIC, content=new)
        found = await memories.search(deps, viewer, old, first=5)
        all_found = await memories.search(deps, viewer, old, first=5, include_superseded=True)
        past = [m.memory for m in all_found if m.memory.id == before.memory.id]
        is_right = (
            found[0].memory.id == after.memory.id
            and before.memory.id not in [m.memory.id for m in found]
            and all_found[0].memory.id == after.memory.id
            and past
            and past[0].valid_until == after.memory.valid_from
        )
        if not is_right:
            missed.append((old, new))
    assert missed == []


async def test_a_fact_told_before_its_contradiction_is_kept_as_past(deps, ann):
    first = await message(deps, ann, "I live in Seoul")
    second = await message(deps, ann, "I live in Busan")
    # The second message is read first.
    [busan] = await memories.remember_from_message(
        deps, ann, second.id, second.content, told_at=second.created_at
    )
    [seoul] = await memories.remember_from_message(
        deps, ann, first.id, first.content, told_at=first.created_at
    )
    assert seoul.is_new
    assert seoul.memory.superseded_by_id == busan.memory.id
    assert seoul.memory.valid_until == busan.memory.valid_from
    assert await relations(deps, MemoryRelationType.SUPERSEDES) == [
        (busan.memory.id, seoul.memory.id)
    ]
    found = await memories.search(deps, ann, "where do I live?")
    assert [match.memory.id for match in found] == [busan.memory.id]


async def test_facts_near_in_meaning_are_linked_both_ways(deps, ann):
    tea = await memories.create(deps, ann, type=PREFERENCE, content="I love green tea")
    await memories.create(deps, ann, type=SEMANTIC, content="The build server has 64 cores")
    cup = await memories.create(
        deps, ann, type=SEMANTIC, content="I drink a cup of green tea every morning"
    )
    assert sorted(await relations(deps, MemoryRelationType.RELATED)) == sorted(
        [(tea.memory.id, cup.memory.id), (cup.memory.id, tea.memory.id)]
    )


async def test_a_memory_keeps_its_ten_strongest_links(deps, ann):
    hub = await memories.create(deps, ann, type=SEMANTIC, content="I have met many people")
    for n in range(16):
        await memories.create(
            deps, ann, type=MemoryType.EPISODIC, content=f"I met person number {n} in Berlin"
        )
    async with deps.db.reading() as connection:
        counts = (
            (
                await connection.execute(
                    select(func.count())
                    .where(MemoryRelation.relation_type == MemoryRelationType.RELATED)
                    .group_by(MemoryRelation.source_memory_id)
                )
            )
            .scalars()
            .all()
        )
    assert len(await rows(deps, ann)) == 17
    assert max(counts) <= 10 + 3
    assert len(counts) > 1
    assert hub.is_new


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", UserErrorCode.REQUIRED),
        (" \n\t", UserErrorCode.REQUIRED),
        ("x" * 4001, UserErrorCode.LIMIT),
        ("a\x00b", UserErrorCode.INVALID),
        ("a\ud800b", UserErrorCode.INVALID),
    ],
)
async def test_bad_content_is_refused_and_nothing_is_written(deps, ann, content, code):
    with pytest.raises(UserError) as caught:
        await memories.create(deps, ann, type=SEMANTIC, content=content)
    assert (caught.value.code, caught.value.path) == (code, ("content",))
    kept = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    with pytest.raises(UserError) as caught:
        await memories.update(deps, ann, memory_id=kept.memory.id, content=content)
    assert (caught.value.code, caught.value.path) == (code, ("content",))
    assert [row.content for row in await rows(deps, ann)] == ["I live in Seoul"]


@pytest.mark.parametrize("importance", [-0.01, 1.01, math.nan, math.inf, -math.inf])
async def test_importance_out_of_range_is_refused(deps, ann, importance):
    with pytest.raises(UserError) as caught:
        await memories.create(
            deps, ann, type=SEMANTIC, content="I live in Seoul", importance=importance
        )
    assert (caught.value.code, caught.value.path) == (UserErrorCode.INVALID, ("importance",))
    assert await rows(deps, ann) == []


async def test_the_longest_content_is_kept_whole(deps, ann):
    content = ("I know a lot about gardens. " * 200)[:4000]
    made = await memories.create(deps, ann, type=SEMANTIC, content=content)
    assert made.memory.content == content.strip()


async def test_a_full_quota_refuses_new_facts_but_not_known_ones(tmp_path):
    async with process(tmp_path / "test.db", memories_per_user=2) as deps:
        ann = await person(deps, "ann")
        await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
        await memories.create(deps, ann, type=SEMANTIC, content="The server has 64 cores")
        with pytest.raises(UserError) as caught:
            await memories.create(deps, ann, type=SEMANTIC, content="I play the violin")
        assert caught.value.code is UserErrorCode.QUOTA
        again = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
        assert not again.is_new
        assert await memories.remember_from_message(deps, ann, "-", "I play the violin.") == []
        assert len(await rows(deps, ann)) == 2
        # The quota is one's own.
        bob = await person(deps, "bob")
        assert (await memories.create(deps, bob, type=SEMANTIC, content="I play chess")).is_new


async def test_writing_needs_the_permission(deps):
    reader = await person(deps, "reader", role="viewer")
    with pytest.raises(UserError) as caught:
        await memories.create(deps, reader, type=SEMANTIC, content="I live in Seoul")
    assert caught.value.code is UserErrorCode.FORBIDDEN
    with pytest.raises(UnauthenticatedError):
        await memories.create(deps, ANONYMOUS, type=SEMANTIC, content="I live in Seoul")
    assert await rows(deps, reader) == []


async def test_an_edit_changes_content_vector_and_links(deps, ann):
    tea = await memories.create(deps, ann, type=PREFERENCE, content="I love green tea")
    made = await memories.create(
        deps, ann, type=SEMANTIC, content="I drink green tea every morning"
    )
    assert len(await relations(deps, MemoryRelationType.RELATED)) == 2
    changed = await memories.update(
        deps,
        ann,
        memory_id=made.memory.id,
        content="The build server has 64 cores",
        type=MemoryType.PROCEDURAL,
        importance=0.9,
    )
    assert (changed.content, changed.type, changed.importance) == (
        "The build server has 64 cores",
        MemoryType.PROCEDURAL,
        0.9,
    )
    assert changed.updated_at > made.memory.updated_at
    assert await relations(deps, MemoryRelationType.RELATED) == []
    [best, *_] = await memories.search(deps, ann, "how many cores does the server have?")
    assert best.memory.id == made.memory.id
    [best, *_] = await memories.search(deps, ann, "green tea")
    assert best.memory.id == tea.memory.id


async def test_an_edit_that_repeats_another_memory_is_refused(deps, ann):
    one = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    two = await memories.create(deps, ann, type=SEMANTIC, content="I play the violin")
    with pytest.raises(UserError) as caught:
        await memories.update(deps, ann, memory_id=two.memory.id, content="i live in seoul.")
    assert (caught.value.code, caught.value.path) == (UserErrorCode.CONFLICT, ("content",))
    assert one.memory.id in caught.value.message
    # Its own wording may be corrected.
    same = await memories.update(deps, ann, memory_id=one.memory.id, content="I live in Seoul.")
    assert same.content == "I live in Seoul."


async def test_deleting_is_for_good_and_leaves_the_past_closed(deps, ann):
    old = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    new = await memories.create(deps, ann, type=SEMANTIC, content="I live in Busan")
    await memories.delete(deps, ann, memory_id=new.memory.id)
    [row] = await rows(deps, ann)
    assert row.id == old.memory.id
    assert row.valid_until is not None
    assert row.superseded_by_id is None
    assert await relations(deps, MemoryRelationType.SUPERSEDES) == []
    assert await memories.search(deps, ann, "where do I live?") == []


async def test_other_peoples_memories_cannot_be_touched(deps, ann, bob):
    made = await memories.create(deps, ann, type=SEMANTIC, content="I live in Seoul")
    admin = await person(deps, "root", role="admin")
    for stranger in (bob, admin):
        for attempt in (
            memories.update(deps, stranger, memory_id=made.memory.id, content="I live in Paris"),
            memories.update(deps, stranger, memory_id=made.memory.id, importance=0.1),
            memories.delete(deps, stranger, memory_id=made.memory.id),
        ):
            with pytest.raises(UserError) as caught:
                await attempt
            assert (caught.value.code, caught.value.path) == (UserErrorCode.NOT_FOUND, ("id",))
    [row] = await rows(deps, ann)
    assert (row.content, row.importance) == ("I live in Seoul", 0.5)
    # The same fact of two people is two memories.
    assert (await memories.create(deps, bob, type=SEMANTIC, content="I live in Seoul")).is_new
