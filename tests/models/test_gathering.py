"""Selects of one moment sent as one: joined where they are alike, apart where not, and mended."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, bindparam, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from models.gathering import Gathering
from models.journal import Journal, journal
from models.statements import Statement

_people = Table("people", MetaData(), Column("id", Integer), Column("name", String))


def statement(*where: Any) -> Statement:
    keys = bindparam("keys", type_=Integer, expanding=True)
    found = select(_people.c.id, _people.c.name).where(_people.c.id.in_(keys), *where)
    return Statement(found, sqlite.dialect(), tuple)


class Asked:
    """What is asked, and when it is answered; every key is found, but for those that fail."""

    def __init__(self, *failing: Any) -> None:
        self.keys: list[list[Any]] = []
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._failing = failing

    async def __call__(self, keys: Sequence[Any]) -> Mapping[Any, Any]:
        self.keys.append(list(keys))
        self.begun.set()
        await self.may_end.wait()
        if any(key in self._failing for key in keys):
            raise LookupError(f"among {keys}")
        return {key: f"found {key}" for key in keys}


@pytest.fixture
def gathering() -> Gathering:
    return Gathering()


async def test_those_of_one_moment_are_asked_together(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    found = await asyncio.gather(*(gathering.of(one, {}, [n, n + 1], asked) for n in range(5)))
    assert asked.keys == [[0, 1, 2, 3, 4, 5]]
    assert [each[n] for n, each in enumerate(found)] == [f"found {n}" for n in range(5)]


async def test_who_asks_alone_asks_for_their_own(gathering: Gathering) -> None:
    asked = Asked()
    assert await gathering.of(statement(), {}, [7], asked) == {7: "found 7"}
    assert asked.keys == [[7]]


async def test_other_statements_and_other_values_are_asked_apart(gathering: Gathering) -> None:
    # The parameter's own key is not its name: a condition's value has none that it was given.
    named = statement(_people.c.name == "ann")
    (name,) = named.given
    asked = Asked()
    await asyncio.gather(
        gathering.of(named, {name: "ann"}, [1], asked),
        gathering.of(named, {name: "bob"}, [2], asked),
        gathering.of(named, {name: "ann"}, [3], asked),
        gathering.of(statement(), {}, [4], asked),
    )
    assert sorted(asked.keys) == [[1, 3], [2], [4]]


async def test_lists_among_the_values_are_asked_apart(gathering: Gathering) -> None:
    listed = statement(_people.c.name.in_(bindparam("names", expanding=True)))
    assert listed.given == ("names",)
    asked = Asked()
    await asyncio.gather(
        *(gathering.of(listed, {"names": ["ann"]}, [key], asked) for key in (1, 2))
    )
    assert asked.keys == [[1], [2]]


async def test_no_statement_grows_beyond_what_one_operation_may_ask(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    await asyncio.gather(
        gathering.of(one, {}, range(150), asked),
        gathering.of(one, {}, range(150, 250), asked),
        gathering.of(one, {}, range(250, 300), asked),
    )
    assert sorted(map(len, asked.keys)) == [100, 200]


async def test_who_asks_for_few_rows_waits_for_few(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    values = {"limit": 101}
    await asyncio.gather(
        gathering.of(one, values, range(100), asked),
        *(gathering.of(one, values, [key], asked) for key in range(100, 140)),
    )
    assert len(asked.keys[0]) == 100
    together = max(map(len, asked.keys[1:]))
    assert 10 < together <= 2_500 / 101
    assert sorted(key for keys in asked.keys for key in keys) == list(range(140))


async def test_who_must_wait_to_ask_lets_the_others_go(gathering: Gathering) -> None:
    one, asked, held = statement(), Asked(), Asked()
    held.may_end.clear()
    # It comes to that while it waits for others.
    is_busy = iter((False, True))
    first = asyncio.create_task(gathering.of(one, {}, [0], held, lambda: next(is_busy)))
    found = await asyncio.gather(*(gathering.of(one, {}, [key], asked) for key in (1, 2)))
    assert found == [{1: "found 1", 2: "found 2"}] * 2
    assert held.keys == [[0]]
    held.may_end.set()
    assert await first == {0: "found 0"}


async def test_if_all_must_wait_each_asks_alone(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    await asyncio.gather(*(gathering.of(one, {}, [key], asked, lambda: True) for key in range(3)))
    assert sorted(asked.keys) == [[0], [1], [2]]


@pytest.mark.parametrize(
    "error",
    [
        PoolTimeoutError("no connection left", code="3o7r"),
        OperationalError(None, None, OSError(2003, "refused"), connection_invalidated=True),
    ],
)
async def test_that_there_is_no_connection_is_found_out_once(
    gathering: Gathering, error: SQLAlchemyError
) -> None:
    one, asked = statement(), []

    async def ask(keys: Sequence[Any]) -> Mapping[Any, Any]:
        asked.append(list(keys))
        raise error

    found = await asyncio.gather(
        *(gathering.of(one, {}, [key], ask) for key in range(3)), return_exceptions=True
    )
    assert asked == [[0, 1, 2]]
    assert found[0] is error
    # Nobody adds to what another is told.
    assert len(set(map(id, found))) == 3
    for each in found:
        assert type(each) is type(error)
        assert str(each) == str(error)
        assert vars(each) == vars(error)


async def test_what_was_sent_and_failed_is_asked_alone(gathering: Gathering) -> None:
    one, asked = statement(), []

    async def ask(keys: Sequence[Any]) -> Mapping[Any, Any]:
        asked.append(list(keys))
        if len(keys) > 1:
            raise OperationalError("SELECT", None, OSError(2013, "lost"))
        return dict.fromkeys(keys)

    await asyncio.gather(*(gathering.of(one, {}, [key], ask) for key in range(2)))
    assert asked == [[0, 1], [0], [1]]


async def test_nobody_is_given_what_was_read_before_they_asked(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    asked.may_end.clear()
    first = asyncio.create_task(gathering.of(one, {}, [1], asked))
    await asked.begun.wait()
    second = asyncio.create_task(gathering.of(one, {}, [1], asked))
    asked.begun.clear()
    await asked.begun.wait()
    assert asked.keys == [[1], [1]]
    asked.may_end.set()
    assert await first == await second == {1: "found 1"}


async def test_who_fails_fails_alone(gathering: Gathering) -> None:
    one, asked = statement(), Asked("bad")
    found = await asyncio.gather(
        *(gathering.of(one, {}, [key], asked) for key in ("a", "bad", "b")), return_exceptions=True
    )
    assert found[0] == {"a": "found a"}
    assert found[2] == {"b": "found b"}
    assert isinstance(found[1], LookupError)
    assert asked.keys == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


@pytest.mark.parametrize("is_asking", [False, True])
async def test_the_first_to_come_may_leave(gathering: Gathering, is_asking: bool) -> None:
    one, asked = statement(), Asked()
    asked.may_end.clear()
    tasks = [asyncio.create_task(gathering.of(one, {}, [key], asked)) for key in range(3)]
    if is_asking:
        await asked.begun.wait()
    else:
        await asyncio.sleep(0)
    tasks[0].cancel()
    asked.may_end.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [{1: "found 1", 2: "found 2"}] * 2
    assert asked.keys[-1] == [1, 2]


async def test_who_joined_may_leave(gathering: Gathering) -> None:
    one, asked = statement(), Asked()
    tasks = [asyncio.create_task(gathering.of(one, {}, [key], asked)) for key in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[1], asyncio.CancelledError)
    assert found[0][0] == "found 0"
    assert found[2][2] == "found 2"
    assert len(asked.keys) == 1


async def test_the_statement_is_in_the_journal_of_each_who_waited_for_it(
    gathering: Gathering,
) -> None:
    one, asked = statement(), Asked()
    noted: dict[int, Journal] = {}

    async def operation(key: int) -> None:
        noted[key] = Journal()
        journal.set(noted[key])
        await gathering.of(one, {}, [key], asked)

    await asyncio.gather(*(asyncio.create_task(operation(key)) for key in range(3)))
    # The first one's is told where it is sent.
    assert [noted[key].count for key in range(3)] == [0, 1, 1]
    (told, _), *_ = noted[1].sent
    assert told == one.bound({"keys": [1]})[0]
    assert told.endswith("IN (?)")
