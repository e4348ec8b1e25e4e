"""What is counted and spent over every bus."""

import asyncio
import time

from services.events.base import Bus
from tests.services.events.patience import patience


async def test_counts_add_up_and_can_be_forgotten(bus: Bus) -> None:
    hits = await asyncio.gather(*(bus.count("sign-in", 60) for _ in range(20)))
    assert sorted(hits) == list(range(1, 21))
    assert await bus.count("other", 60) == 1
    await bus.forget("sign-in")
    assert await bus.count("sign-in", 60) == 1


async def test_what_is_spent_adds_up_to_the_limit_and_no_further(bus: Bus) -> None:
    began_s = time.time()
    asked = [bus.spend("ann", 3, limit=10, window_s=60) for _ in range(5)]
    answers = await asyncio.gather(*asked)
    assert sorted(a.total for a in answers if a.is_granted) == [3, 6, 9]
    assert [a.total for a in answers if not a.is_granted] == [9, 9]
    assert all(0 < a.left_s <= 60 for a in answers)
    assert len({a.ends_s for a in answers}) == 1, "one window has one end"
    assert 0 < (answers[0].ends_s or 0) - began_s <= 90

    looked = await bus.spend("ann", 0, limit=10, window_s=60)
    assert (looked.total, looked.is_granted) == (9, True)
    last = await bus.spend("ann", 1, limit=10, window_s=60)
    assert (last.total, last.is_granted) == (10, True)
    other = await bus.spend("ben", 11, limit=10, window_s=60)
    assert (other.total, other.is_granted) == (0, False)
    # A limit that was lowered since is passed already.
    lowered = await bus.spend("ann", 0, limit=5, window_s=60)
    assert (lowered.total, lowered.is_granted) == (10, False)


async def test_looking_begins_no_window_and_a_window_ends(bus: Bus) -> None:
    first = await bus.spend("ann", 0, limit=10, window_s=0.2)
    assert (first.total, first.ends_s, first.is_granted) == (0, None, True)
    assert (await bus.spend("ann", 10, limit=10, window_s=0.2)).is_granted
    async with patience():
        while not (again := await bus.spend("ann", 10, limit=10, window_s=0.2)).is_granted:
            assert again.total == 10
            await bus.ping()
    assert again.total == 10


async def test_a_count_begins_anew_after_its_window(bus: Bus) -> None:
    async with patience():
        hits = [await bus.count("c", 0.2)]
        while (hit := await bus.count("c", 0.2)) > hits[-1]:
            hits.append(hit)
            await bus.ping()
    assert hit == 1
    assert hits == list(range(1, len(hits) + 1))
