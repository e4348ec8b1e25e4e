"""Limits on many short waits: what `asyncio.timeout_at` promises, with one timer."""

import asyncio

import pytest

from services.llm.patience import Patience

_SOON_S, _LATE_S = 0.02, 60.0


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_wait_that_takes_too_long_is_broken_off() -> None:
    patience, never = Patience(), asyncio.Event()
    with pytest.raises(TimeoutError), patience.until(_in(_SOON_S)):
        await never.wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_that_ends_in_time_is_not_nor_is_what_comes_after_its_time() -> None:
    patience, later = Patience(), asyncio.Event()
    with patience.until(_in(_SOON_S)):
        await asyncio.sleep(0)
    # Beyond the end of the first, whose timer looks and finds nobody waiting.
    asyncio.get_running_loop().call_later(3 * _SOON_S, later.set)
    await later.wait()
    with patience.until(_in(_LATE_S)):
        await asyncio.sleep(0)
    patience.close()


async def test_a_later_wait_has_its_own_time() -> None:
    patience, later, never = Patience(), asyncio.Event(), asyncio.Event()
    with patience.until(_in(_SOON_S)):
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(3 * _SOON_S, later.set)
    with patience.until(_in(_LATE_S)):
        await later.wait()
    with pytest.raises(TimeoutError), patience.until(_in(_SOON_S)):
        await never.wait()
    patience.close()


async def test_a_shorter_wait_after_a_longer_one_ends_in_its_time() -> None:
    patience, much_later = Patience(), asyncio.Event()
    with patience.until(_in(_LATE_S)):
        await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(_LATE_S / 4, much_later.set)
    with pytest.raises(TimeoutError), patience.until(_in(_SOON_S)):
        await much_later.wait()


async def test_whoever_cancels_the_task_cancels_it() -> None:
    began, never = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        patience = Patience()
        with patience.until(_in(_LATE_S)):
            began.set()
            await never.wait()

    task = asyncio.create_task(wait())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_wait_both_too_long_and_cancelled_is_cancelled() -> None:
    began, never = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        patience = Patience()
        with patience.until(_in(-1.0)):
            began.set()
            await never.wait()

    task = asyncio.create_task(wait())
    await began.wait()
    # In the same turn of the loop as the timer, which is due already.
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_the_wait_raises_is_raised() -> None:
    patience = Patience()
    with pytest.raises(ValueError, match="mine"), patience.until(_in(_LATE_S)):
        raise ValueError("mine")
    patience.close()
