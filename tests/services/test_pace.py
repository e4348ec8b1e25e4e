"""A process that is late sends more at a time instead of later and later."""

import asyncio
from typing import Any

import pytest

from services.base import Deps
from services.streams import TextWriter, writer
from services.streams.pace import LONGEST_S, Pace

TOPIC, KEY = "conversation:cnv_1", "msg_1:0"


def test_a_window_stays_as_it_is_while_sleepers_wake_about_in_time() -> None:
    pace = Pace(0.04)
    for late_s in (0.0, 0.019, 0.001, 0.02, 0.015) * 10:
        pace.woke(late_s)
        assert pace.window_s == 0.04
        assert not pace.is_stretched


def test_one_long_stall_changes_nothing_and_two_do() -> None:
    pace = Pace(0.04)
    pace.woke(2.0)
    assert pace.window_s == 0.04
    pace.woke(0.0)
    assert pace.window_s == 0.04
    pace.woke(2.0)
    pace.woke(2.0)
    assert pace.window_s == LONGEST_S
    assert pace.is_stretched


def test_a_window_grows_with_what_is_late_and_shrinks_again() -> None:
    pace = Pace(0.04)
    windows = []
    for late_s in [0.03] * 20 + [0.001] * 20:
        pace.woke(late_s)
        windows.append(pace.window_s)
    grown, shrunk = windows[:20], windows[20:]
    assert grown == sorted(grown)
    # 40 ms, and four times what is late beyond 20 ms.
    assert grown[-1] == pytest.approx(0.08, abs=0.001)
    assert shrunk == sorted(shrunk, reverse=True)
    assert shrunk[-1] == 0.04


def test_a_window_that_is_long_by_itself_is_not_cut() -> None:
    pace = Pace(1.0)
    for _ in range(20):
        pace.woke(3.0)
    assert pace.window_s == 1.0


class Late(Pace):
    """The pace of a process that is late for good."""

    is_stretched = True  # type: ignore[assignment]
    window_s = 1.0  # type: ignore[assignment]


async def appended(deps: Deps) -> list[str]:
    return [news.data["text"] for news in (await deps.bus.read(TOPIC)).entries]


async def resting(text: TextWriter) -> None:
    async with asyncio.timeout(60):
        while text._rested is None:  # noqa: ASYNC110 - nothing else tells that it rests.
            await asyncio.sleep(0)


async def never(_text: str) -> None:
    raise AssertionError("nothing is stored so soon")


async def test_a_late_writer_holds_its_source_back_and_sends_what_came_meanwhile_as_one(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "Pace", Late)
    text = TextWriter(deps, TOPIC, KEY, checkpoint=never)
    pieces = [f"{number} " for number in range(30)]
    source: asyncio.Queue[str] = asyncio.Queue()

    async def read() -> None:
        """Read as from a connection: what has come is there at once."""
        for _ in pieces:
            await text.write(await source.get())

    async with asyncio.TaskGroup() as group:
        running = group.create_task(text.run())
        await text.write("first ")
        await resting(text)
        reading = group.create_task(read())
        source.put_nowait(pieces[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for piece in pieces[1:]:
            source.put_nowait(piece)
        await reading
        await text.settle()
        running.cancel()
    assert text.text == "first " + "".join(pieces)
    assert await appended(deps) == ["first ", "".join(pieces)]


async def test_a_writer_that_is_cancelled_lets_go_of_whom_it_held_back(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asleep(Late):
        window_s = 3600.0  # type: ignore[assignment]

    monkeypatch.setattr(writer, "Pace", Asleep)
    text = TextWriter(deps, TOPIC, KEY, checkpoint=never)
    sent = asyncio.Event()
    append = deps.bus.append

    async def told(topic: str, data: Any) -> int:
        sent.set()
        return await append(topic, data)

    monkeypatch.setattr(deps.bus, "append", told)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(text.run())
        await text.write("one ")
        await asyncio.wait_for(sent.wait(), 60)
        await resting(text)
        held = group.create_task(text.write("two"))
        await asyncio.sleep(0)
        assert not held.done()
        running.cancel()
        await asyncio.wait_for(held, 60)
    await text.settle()
    assert await appended(deps) == ["one ", "two"]
