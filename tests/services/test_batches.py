"""Answering all who ask in the same moment together."""

import asyncio
from collections.abc import Sequence

import pytest

from services.batches import Batches


class Library:
    """Reads when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.begins = asyncio.Event()
        self.failure: Exception | None = None

    async def read(self, keys: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(keys))
        self.begins.set()
        await self.may_read.wait()
        if self.failure is not None:
            raise self.failure
        return {key: key.upper() for key in keys if key != "absent"}


async def test_all_who_ask_in_one_moment_are_answered_by_one_reading() -> None:
    library = Library()
    batches = Batches(library.read)
    answers = await asyncio.gather(*map(batches.of, ["a", "b", "absent", "a"]))
    assert answers == ["A", "B", None, "A"]
    assert library.asked == [["a", "b", "absent"]]


async def test_nobody_is_given_what_was_read_before_they_asked() -> None:
    library = Library()
    batches = Batches(library.read)
    library.may_read.clear()
    first = asyncio.create_task(batches.of("a"))
    await library.begins.wait()
    later = [asyncio.create_task(batches.of(key)) for key in ("a", "b")]
    await asyncio.sleep(0)
    library.may_read.set()
    assert await asyncio.gather(first, *later) == ["A", "A", "B"]
    assert library.asked == [["a"], ["a", "b"]]


async def test_a_reading_is_bounded() -> None:
    library = Library()
    batches = Batches(library.read, size=2)
    assert await asyncio.gather(*map(batches.of, "abcde")) == list("ABCDE")
    assert library.asked == [["a", "b"], ["c", "d"], ["e"]]


async def test_who_leaves_takes_the_answer_from_nobody() -> None:
    library = Library()
    batches = Batches(library.read)
    library.may_read.clear()
    leaving, staying = (asyncio.create_task(batches.of("a")) for _ in range(2))
    await library.begins.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    library.may_read.set()
    assert leaving.cancelled()
    assert await staying == "A"


async def test_a_reading_that_fails_is_told_to_those_who_asked_for_it_alone() -> None:
    library = Library()
    batches = Batches(library.read)
    library.failure = OSError("away")
    answers = await asyncio.gather(*map(batches.of, "ab"), return_exceptions=True)
    assert answers == [library.failure] * 2
    library.failure = None
    assert await batches.of("a") == "A"


async def test_a_failure_nobody_waits_for_any_more_is_nobodys() -> None:
    library = Library()
    batches = Batches(library.read)
    library.failure = OSError("away")
    library.may_read.clear()
    leaving = asyncio.create_task(batches.of("a"))
    await library.begins.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    library.may_read.set()
    with pytest.raises(OSError, match="away"):
        await batches.of("b")
